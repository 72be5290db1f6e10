"""The main job on the trained reference model: perplexity before and after, magnitude against random.

    python benchmarks/magnitude.py          # needs $LLM_PRUNER_SHARED, by default ../shared

Every row is one run of the command, with its checkpoint saved, reloaded and generating with cache.
"""

import os
import tempfile
from pathlib import Path
from statistics import mean

from measure import keep
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_pruner import prune_checkpoint
from llm_pruner.config.prune import PruneOptions

SHARED = Path(os.environ.get("LLM_PRUNER_SHARED", Path(__file__).parents[2] / "shared"))
PROMPT = "The history of the city"


def generate(folder: Path) -> str:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False, use_cache=True)
    return tokenizer.decode(tokens[0])


def row(ratio: float, importance: str, seed: int, folder: Path) -> dict:
    target = folder / f"{importance}-{ratio}-{seed}"
    report = prune_checkpoint(
        PruneOptions(
            model=str(SHARED / "models" / "llama-6m"),
            pruning_ratio=ratio,
            importance=importance,
            seed=seed,
            eval_data=str(SHARED / "data" / "wikitext-2" / "test.txt"),
            max_seq_len=256,
            save_model=str(target),
        )
    )
    return {
        "pruning_ratio": ratio,
        "importance": importance,
        "seed": seed,
        "parameters": report.parameters.after,
        "removed": report.removed,
        "perplexity_before": round(report.perplexity.before, 2),
        "perplexity": round(report.perplexity.after, 2),
        "generated": generate(target),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row(ratio, importance, seed, Path(folder))
            for ratio in (0.25, 0.5)
            for importance, seeds in (("magnitude", (0,)), ("random", (0, 1, 2)))
            for seed in seeds
        ]
    table = [
        {
            "pruning_ratio": ratio,
            "parameters": next(r["parameters"] for r in rows if r["pruning_ratio"] == ratio),
            **{
                name: round(
                    mean(r["perplexity"] for r in rows if (r["pruning_ratio"], r["importance"]) == (ratio, name)), 2
                )
                for name in ("magnitude", "random")
            },
        }
        for ratio in (0.25, 0.5)
    ]
    keep("magnitude", {"model": "llama-6m", "dense": rows[0]["perplexity_before"], "table": table, "runs": rows})


if __name__ == "__main__":
    main()
