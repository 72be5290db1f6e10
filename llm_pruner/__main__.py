"""`python -m llm_pruner COMMAND`, the same as `llm-pruner COMMAND`."""

import sys

from llm_pruner.cli.main import dispatch

if __name__ == "__main__":
    sys.exit(dispatch())
