"""`python -m llm_pruner COMMAND`: prune, recover, evaluate …; `prune_llm.py` is the first of them."""

import sys

from llm_pruner.cli.main import dispatch

if __name__ == "__main__":
    sys.exit(dispatch(sys.argv[1:]))
