"""The HTML page about a run or an evaluation: one file that needs nothing else."""

START = "<!DOCTYPE html>\n<!-- llm_pruner -->\n"  # by which a page of this program is known
