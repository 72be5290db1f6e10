"""Every published method at the same number of parameters, on a trained model and real text.

    python benchmarks/quality.py            # needs $LLM_PRUNER_SHARED, by default ../shared; 40 minutes on two cores
    python benchmarks/quality.py --plot     # only draws the plot again, from results/quality.json

llama-6m in bfloat16, 20, 30 and 50 % of its attention and MLP parameters removed; calibrated on wikitext-2/valid.txt
with three seeds (their mean, lowest and highest are kept; reconstructions with one), scored on every third window of
256 tokens of wikitext-2/test.txt.
An interrupted run goes on where it was. The plot needs matplotlib.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import mean

import torch
from measure import RESULTS, keep

from llm_pruner import METHODS as PRUNING
from llm_pruner import Budget, Method, Reconstruct, ScoreAndCut, prune
from llm_pruner.calibration.activations import batches_of, collect
from llm_pruner.calibration.needs import MOMENTS
from llm_pruner.calibration.prompts import calibration_prompts
from llm_pruner.calibration.windows import token_windows
from llm_pruner.evaluation.perplexity import perplexity
from llm_pruner.model import loading
from llm_pruner.model.axes import MLP
from llm_pruner.model.groups import output_projection
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.model.trace import trace_groups

SHARED = Path(os.environ.get("LLM_PRUNER_SHARED", Path(__file__).parents[2] / "shared"))
MODEL, TEXT = SHARED / "models" / "llama-6m", SHARED / "data" / "wikitext-2"
RATIOS = (0.2, 0.3, 0.5)
SEEDS = (0, 1, 2)
NSAMPLES, LENGTH = 128, 128
# windows of the test text, one of so many: all would take three times as long and rank alike
EVERY = 3
BIAS = {"compensate": "bias"}
ADAPTIVE = {"structure": "AL-AM"}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        method: Makes the method, given a seed.
        budget: What its budget says besides its size.
        seeds: Those that are run; one where weights alone are scored, and where runs take long.
    """

    method: Callable[..., Method]
    budget: dict = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS

    @property
    def published(self) -> bool:
        """Whether the method is one of others."""
        return not isinstance(self.method(), Reconstruct)


def scored(criterion: str, budget: dict | None = None, seeds: tuple[int, ...] = SEEDS, **options) -> Row:
    """A row of scoring and cutting."""
    return Row(partial(ScoreAndCut, criterion, **options), budget or {}, seeds)


def reconstructed(budget: dict | None = None, **options) -> Row:
    """A row of ours."""
    return Row(partial(Reconstruct, **options), budget or {}, SEEDS[:1])


def named(name: str, **options) -> Row:
    """A row of a published method of its own kind. SliceGPT takes the whole budget from the hidden size, so that
    embeddings and lm_head shrink too; ShortGPT removes whole layers, so that of six a third goes at 20 and at 30 %."""
    return Row(lambda seed=0: PRUNING.make(name, options | {"seed": seed}))


METHODS: dict[str, Row] = {
    "random": scored("random"),
    "magnitude": scored("magnitude", seeds=SEEDS[:1]),
    "mag_sp": scored("mag_sp", seeds=SEEDS[:1]),
    "Taylor param_first": scored("taylor:taylor=param_first"),
    "Taylor vectorize": scored("taylor:taylor=vectorize"),
    "AMP": scored("amp"),
    "AMP reversed": scored("amp", order="reversed"),
    "Wanda-sp": scored("wanda_sp"),
    "Wanda-sp with bias": scored("wanda_sp", **BIAS),
    "FLAP WIFV, no bias": scored("flap"),
    "FLAP WIFV": scored("flap", **BIAS),
    "FLAP IFV": scored("flap:metrics=IFV", **BIAS),
    "FLAP WIFN": scored("flap:metrics=WIFN", **BIAS),
    "FLAP WIFV reversed": scored("flap", order="reversed", **BIAS),
    "FLAP WIFV, AL-AM": scored("flap", ADAPTIVE, **BIAS),
    "FLAP WIFV, AL-AM, uniform": scored("flap", {**ADAPTIVE, "uniform": True}, **BIAS),
    "AMP, AL-AM": scored("amp", ADAPTIVE),
    "ShortGPT": named("shortgpt"),
    "SliceGPT": named("slicegpt"),
    "2SSP": named("2ssp"),
    "Putri": named("putri"),
    "BlockPruner": named("blockpruner"),
    # so long that a busy machine finds the same shape
    "reconstruct": reconstructed(search_minutes=30.0),
    "reconstruct, shape not searched": reconstructed(search_minutes=0.0),
    "reconstruct, shape of the published ones": reconstructed({"axes": ("heads", "mlp")}, search_minutes=0.0),
    "reconstruct, per layer": reconstructed(per_layer=True),
}


@cache
def windows() -> torch.Tensor:
    text = (TEXT / "test.txt").read_text(encoding="utf-8")
    return token_windows(text, load_tokenizer(str(MODEL)), 256)[::EVERY]


@cache
def prompts(seed: int) -> list[torch.Tensor]:
    return calibration_prompts(str(TEXT / "valid.txt"), NSAMPLES, LENGTH, seed, load_tokenizer(str(MODEL)))


def one(name: str | None, ratio: float = 0.0, seed: int = 0) -> dict:
    """One run: what `prune_llm.py --param_ratio` does between loading and saving, scored. name None: nothing pruned."""
    model = dense()
    if name is None:
        return {
            "perplexity": round(perplexity(model, windows()), 3),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
    row = METHODS[name]
    started = time.perf_counter()
    model, plan = prune(model, Budget(param_ratio=ratio, **row.budget), row.method(seed=seed), prompts(seed))
    seconds = time.perf_counter() - started
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "removed": round(plan.removed()["decoder"], 4),
        "perplexity": round(perplexity(model, windows()), 3),
        "stock": not model.config.model_type.startswith("pruned_"),
        "widths": plan.widths_after(),
        "prune_seconds": round(seconds, 2),
    }


def dense():
    folder = str(MODEL)
    return loading.load_model(folder, loading.load_config(folder), device=torch.device("cpu"))


def neurons() -> list[dict]:
    """What weights alone cannot tell, per layer of the dense model.

    rank_correlation: between a neuron's weight norm ‖W_:j‖ and what it gives, ‖W_:j‖·‖X_j‖ (Spearman).
    mean_share: how much of what all neurons give is their mean, which a bias can keep: ‖x̄_j·‖W_:j‖‖ / ‖rms_j·‖W_:j‖‖.
    """
    model = dense()
    groups = trace_groups(model)
    inputs = collect(model, batches_of(prompts(0), 4096), groups, (MOMENTS,))
    found = []
    for group in groups:
        if group.axis == MLP:
            name = output_projection(group).parameter
            norms = model.get_parameter(name).detach().float().norm(dim=0)
            rms = inputs[name].norm / inputs[name].tokens ** 0.5
            ranks = torch.stack([norms.argsort().argsort(), (norms * rms).argsort().argsort()]).double()
            share = (inputs[name].mean * norms).norm() / (rms * norms).norm()
            found.append(
                {
                    "layer": group.layer,
                    "rank_correlation": round(torch.corrcoef(ranks)[0, 1].item(), 2),
                    "mean_share": round(share.item(), 2),
                }
            )
    return found


def bias_parts() -> dict[str, float]:
    """Perplexity of FLAP WIFV at half, uniform, with both biases, with either, with none."""
    found = {}
    for name, zero in {"both": (), "down_proj": ("o_proj",), "o_proj": ("down_proj",)}.items():
        model, _ = prune(dense(), Budget(param_ratio=0.5), METHODS["FLAP WIFV"].method(), prompts(0))
        for parameter, bias in model.named_parameters():
            if parameter.endswith(tuple(f"{projection}.bias" for projection in zero)) and zero:
                bias.data.zero_()
        found[name] = round(perplexity(model, windows()), 2)
    return found


def table_of(runs: dict[str, dict]) -> list[dict]:
    """One row per method: per ratio the mean over seeds, the lowest and the highest."""
    rows = []
    for name, own in METHODS.items():
        row: dict = {"method": name, "stock": all(runs[key]["stock"] for key in runs if key.startswith(f"{name} | "))}
        for ratio in RATIOS:
            found = [runs[f"{name} | {ratio} | {seed}"] for seed in own.seeds]
            values = [run["perplexity"] for run in found]
            row[str(ratio)] = {
                "perplexity": round(mean(values), 2),
                "lowest": round(min(values), 2),
                "highest": round(max(values), 2),
                "parameters": round(mean(run["parameters"] for run in found)),
            }
        rows.append(row)
    return rows


def against_published(result: dict) -> dict[str, dict[str, float]]:
    """{row of ours: {ratio: log(perplexity / dense) as a share of the best published method's}}."""
    dense = result["dense"]["perplexity"]

    def loss(row, ratio):
        return math.log(row[str(ratio)]["perplexity"] / dense)

    published = [row for row in result["table"] if METHODS[row["method"]].published]
    return {
        row["method"]: {
            str(ratio): round(loss(row, ratio) / min(loss(other, ratio) for other in published), 3) for ratio in RATIOS
        }
        for row in result["table"]
        if row not in published
    }


def markdown(result: dict) -> str:
    """The README's table: mean over seeds (lowest – highest)."""
    lines = [
        "| | " + " | ".join(f"{ratio:.0%} removed" for ratio in RATIOS) + " | checkpoint |",
        "|---" * (len(RATIOS) + 2) + "|",
        "| dense | " + " | ".join([f"{result['dense']['perplexity']:.1f}"] * len(RATIOS)) + " | stock |",
    ]
    for row in result["table"]:
        cells = [row["method"]]
        for point in (row[str(ratio)] for ratio in RATIOS):
            spread = f" ({point['lowest']:.1f} – {point['highest']:.1f})" if point["lowest"] < point["highest"] else ""
            cells.append(f"{point['perplexity']:.1f}{spread}")
        lines.append("| " + " | ".join([*cells, "stock" if row["stock"] else "per layer"]) + " |")
    return "\n".join(lines) + "\n"


def plot(result: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
    axes.axhline(result["dense"]["perplexity"], color="black", linewidth=1, linestyle=":", label="dense")
    colours = plt.get_cmap("tab20").colors
    styles = {"reversed": ":", "AL-AM": "--", "per layer": "--", "not searched": ":", "shape of the": "-."}
    for index, row in enumerate(result["table"]):
        points = [row[str(ratio)] for ratio in RATIOS]
        style = next((line for word, line in styles.items() if word in row["method"]), "-")
        axes.errorbar(
            [point["parameters"] / 1e6 for point in points],
            [point["perplexity"] for point in points],
            yerr=[
                [point["perplexity"] - point["lowest"] for point in points],
                [point["highest"] - point["perplexity"] for point in points],
            ],
            label=row["method"], color="black" if row["method"].startswith("reconstruct") else colours[index % 20],
            linestyle=style, marker="o", markersize=3, capsize=2,
        )  # fmt: skip
    axes.set(
        xlabel="parameters of the pruned model, millions", ylabel="perplexity on WikiText-2 test", yscale="log",
        title="llama-6m, no training: mean of three calibration seeds, lowest to highest; reconstruct: one seed",
    )  # fmt: skip
    # the reversed ones leave it, as they should
    axes.set_ylim(result["dense"]["perplexity"] * 0.95, 280)
    axes.legend(fontsize=8, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3, which="both")
    figure.savefig(RESULTS / "quality.png", dpi=120)


def show(result: dict) -> None:
    (RESULTS / "quality.md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))
    plot(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="only draw and print results/quality.json again")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted run has measured")
    arguments = parser.parse_args()
    if arguments.plot:
        show(json.loads((RESULTS / "quality.json").read_text()))
        return
    unfinished = RESULTS / "quality.partial.json"
    runs = json.loads(unfinished.read_text()) if unfinished.is_file() and not arguments.fresh else {}
    wanted = {"dense": (None,)} | {
        f"{name} | {ratio} | {seed}": (name, ratio, seed)
        for ratio in RATIOS
        for name, row in METHODS.items()
        for seed in row.seeds
    }
    for key, arguments in wanted.items():
        if key not in runs:
            runs[key] = one(*arguments)
            unfinished.write_text(json.dumps(runs))
            print(f"{key}: {runs[key]['perplexity']:.1f}", flush=True)
    runs = {key: runs[key] for key in wanted}
    reference = runs.pop("dense")
    result = {
        "model": "llama-6m, bfloat16",
        "calibration": f"{NSAMPLES} windows of {LENGTH} tokens of wikitext-2/valid.txt",
        "scored_on": f"wikitext-2/test.txt, every {EVERY}rd window of 256 tokens, {len(windows())} in all",
        "dense": reference,
        "neurons": neurons(),
        "bias_at_half": {**bias_parts(), "none": round(runs["FLAP WIFV, no bias | 0.5 | 0"]["perplexity"], 2)},
        "table": table_of(runs),
        "runs": runs,
    }
    result["against_best_published"] = against_published(result)
    keep("quality", result)
    show(result)
    unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
