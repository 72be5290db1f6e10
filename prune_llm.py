"""Prune a language model: `python prune_llm.py --model X --pruning_ratio 0.5`, the same as `llm-pruner prune …`."""

import sys

from llm_pruner.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
