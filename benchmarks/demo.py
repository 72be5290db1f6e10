"""The README's first command: the main job on the built-in model.

python benchmarks/demo.py
"""

from measure import keep

from llm_pruner import prune_checkpoint
from llm_pruner.config.prune import PruneOptions
from llm_pruner.records import plain


def main() -> None:
    report = prune_checkpoint(PruneOptions(model="demo", pruning_ratio=0.5, no_save=True))
    keep(
        "demo",
        {
            "parameters": plain(report.parameters),
            "perplexity": {side: round(value, 2) for side, value in plain(report.perplexity).items()},
            "seconds": round(sum(report.seconds.values()), 1),
        },
    )


if __name__ == "__main__":
    main()
