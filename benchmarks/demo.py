"""The README's first command: the main job on the built-in model.

python benchmarks/demo.py
"""

from measure import keep

from llm_pruner import prune_checkpoint
from llm_pruner.config.prune import PruneOptions


def main() -> None:
    report = prune_checkpoint(PruneOptions(model="demo", pruning_ratio=0.5, no_save=True))
    keep(
        "demo",
        {
            "parameters": report["parameters"],
            "perplexity": {side: round(value, 2) for side, value in report["perplexity"].items()},
            "seconds": round(sum(report["seconds"].values()), 1),
        },
    )


if __name__ == "__main__":
    main()
