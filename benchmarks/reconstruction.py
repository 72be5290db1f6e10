"""What a reconstruction does beyond quality.py's table: every width, each part alone, other models, what it costs.

    python benchmarks/reconstruction.py         # half an hour on two cores; needs $LLM_PRUNER_SHARED, by default
                                                # ../shared, and benchmarks/models/ (train_models.py)
    python benchmarks/reconstruction.py --gpu   # a random Llama-3.1-8B at a given shape on one GPU: seconds, memory

The same calibration text and test windows as quality.py. An interrupted run goes on where it was.
"""

import argparse
import json
import math
import time
from functools import partial

import torch
from measure import RESULTS, HostMemory, conditions, keep
from quality import MODEL, NSAMPLES, RATIOS, prompts, windows
from train_models import CONFIGS, MODELS
from transformers import LlamaConfig, LlamaForCausalLM

from llm_pruner import Budget, Method, Ratio, Reconstruct, ScoreAndCut, Target, prune
from llm_pruner.evaluation.perplexity import perplexity
from llm_pruner.methods import Journal
from llm_pruner.model import loading
from llm_pruner.output.conditions import Stopwatch
from llm_pruner.reconstruction.layer import Settings
from llm_pruner.reconstruction.reconstruct import reconstruct
from llm_pruner.reconstruction.tokens import split
from llm_pruner.shape.draft import draft
from llm_pruner.shape.plan import make_plan
from llm_pruner.shape.request import Request

WIDTHS = (0.25, 0.5)
WHOLE = 0.3
PUBLISHED = {
    "magnitude": ScoreAndCut("magnitude"),
    "AMP": ScoreAndCut("amp"),
    "Wanda-sp": ScoreAndCut("wanda_sp"),
    "FLAP": ScoreAndCut("flap", compensate="bias"),
    "FLAP, AL-AM": ScoreAndCut("flap", compensate="bias"),
}
OURS = {"reconstruct": Reconstruct(search_minutes=30.0), "reconstruct, per layer": Reconstruct(per_layer=True)}
# of the budget
STRUCTURES = {"FLAP, AL-AM": "AL-AM"}
PARTS = {
    "second-order selection": Settings(least_squares=False, epochs=0),
    "… and o_proj, down_proj fitted to the dense outputs": Settings(input_projections=False, stream=False, epochs=0),
    "… to the dense stream": Settings(input_projections=False, epochs=0),
    "… and the input projections fitted": Settings(epochs=0),
    "… and layers optimised, 4 passes": Settings(epochs=4, logits=False),
    "… 8 passes": Settings(epochs=8, logits=False),
    "… and the last layer towards the logits": Settings(epochs=8),
}
# half of llama-6m's attention and MLP
HALF = "num_attention_heads=4,num_key_value_heads=2,intermediate_size=352"


def load(folder):
    return loading.load_model(str(folder), loading.load_config(str(folder)), device=torch.device("cpu"))


def scored(model) -> dict:
    return {
        "perplexity": round(perplexity(model, windows()), 3),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def pruned(folder, request: Request, method: Method) -> dict:
    """One run of `prune`, scored, with its widths and seconds."""
    started = time.perf_counter()
    model, plan = prune(load(folder), request, method, prompts(0))
    seconds = round(time.perf_counter() - started, 1)
    changed = {**plan.config, "layers": plan.layers}
    return {**scored(model), "widths": plan.widths_after(), "changed": changed, "prune_seconds": seconds}


def dense(folder) -> dict:
    return scored(load(folder))


def shrunk(folder, method: Method) -> dict:
    """A run for WHOLE of all parameters gone, embeddings included."""
    total = sum(parameter.numel() for parameter in load(folder).parameters())
    return pruned(folder, Budget(params=round((1 - WHOLE) * total)), method)


def part(settings: Settings) -> dict:
    """llama-6m at half, reconstructed by some of the parts only."""
    model = load(MODEL)
    made = draft(Target(HALF), model.config, Reconstruct())
    groups = made.traced.groups
    _, config = make_plan(model, groups, made.after)
    done = reconstruct(model, groups, made.after, config, split(prompts(0)), settings)
    return {"kl": round(done.kl, 4), **scored(done.settle(model))}


def cost() -> dict:
    """Seconds by phase, the KL that was reached and peak memory of a whole run with search."""
    model, method, stopwatch = load(MODEL), Reconstruct(), Stopwatch()
    made = draft(Budget(param_ratio=0.5), model.config, method)
    HostMemory.reset_peak()
    before = HostMemory.now()
    done = method.prune(model, made, prompts(0), Journal(timed=stopwatch))
    seconds = {name: round(value, 1) for name, value in stopwatch.seconds.items()}
    return {
        "seconds": {**seconds, "all": round(sum(stopwatch.seconds.values()), 1)},
        "peak_memory_over_model_mib": round((HostMemory.peak() - before) / 2**20),
        "shapes_measured": len(done.notes["search"]),
        "kl": round(done.notes["kl"], 4),
    }


def scaling() -> dict:
    """How many times as long a reconstruction at half takes with twice the layers, and with twice the text."""

    def seconds(num_layers: int, number: int) -> float:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=256, intermediate_size=704, num_hidden_layers=num_layers, num_attention_heads=8,
            num_key_value_heads=4, vocab_size=4096, max_position_embeddings=256,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        started = time.perf_counter()
        prune(model, Target(HALF), Reconstruct(epochs=2), list(torch.randint(4096, (number, 128))))
        return time.perf_counter() - started

    # to warm up
    seconds(2, 64)
    one = seconds(6, 64)
    return {"twice_the_layers": round(seconds(12, 64) / one, 2), "twice_the_text": round(seconds(6, 128) / one, 2)}


def wanted() -> dict:
    """{name: what measures it}, in the order of the table."""
    jobs: dict = {}
    for name, folder in {"llama-6m": MODEL, **{name: MODELS / name for name in CONFIGS}}.items():
        jobs[f"{name} | dense"] = partial(dense, folder)
        # llama-6m's are in quality.py
        for ratio in RATIOS if folder != MODEL else ():
            for method, own in {**PUBLISHED, **OURS}.items():
                budget = Budget(param_ratio=ratio, structure=STRUCTURES.get(method))
                jobs[f"{name} | {ratio} | {method}"] = partial(pruned, folder, budget, own)
        for method, own in {"magnitude": PUBLISHED["magnitude"], "reconstruct": OURS["reconstruct"]}.items():
            for ratio in WIDTHS:
                jobs[f"{name} | every width {ratio} | {method}"] = partial(pruned, folder, Ratio(ratio), own)
            jobs[f"{name} | whole {WHOLE} | {method}"] = partial(shrunk, folder, own)
    for name, settings in PARTS.items():
        jobs[f"llama-6m | half | {name}"] = partial(part, settings)
    jobs["llama-6m | cost"] = cost
    jobs["scaling"] = scaling
    return jobs


def loss(runs: dict[str, dict], key: str) -> float:
    """log(perplexity / dense)."""
    return math.log(runs[key]["perplexity"] / runs[f"{key.split(' | ')[0]} | dense"]["perplexity"])


def shares(runs: dict[str, dict]) -> dict[str, float]:
    """log(perplexity / dense) of ours as a share of the best published method's at the same size."""
    found = {}
    for key in runs:
        model, *rest = key.split(" | ")
        if len(rest) == 2 and rest[1] in OURS:
            others = [f"{model} | {rest[0]} | {name}" for name in PUBLISHED]
            found[key] = round(loss(runs, key) / min(loss(runs, other) for other in others if other in runs), 3)
    return found


def markdown(result: dict) -> str:
    """The README's tables."""
    runs, share = result["runs"], result["shares"]

    def table(*rows: list) -> list[str]:
        rule = ["---"] * len(rows[0])
        return [f"| {' | '.join(map(str, row))} |" for row in (rows[0], rule, *rows[1:])] + [""]

    def value(key: str) -> str:
        return f"{runs[key]['perplexity']:.1f}"

    def ours(key: str) -> str:
        return f"{value(key)} ({share[key]:.2f})"

    def of_part(name: str) -> list[str]:
        key = f"llama-6m | half | {name}"
        return [name, f"{runs[key]['kl']:.3f}", value(key)]

    def of_width(model: str, ratio: float) -> list[str]:
        key = f"{model} | every width {ratio}"
        parameters = runs[f"{key} | reconstruct"]["parameters"]
        scores = [value(f"{model} | dense"), value(f"{key} | magnitude"), ours(f"{key} | reconstruct")]
        return [model, ratio, f"{parameters:,}", *scores]

    def of_whole(model: str) -> list[str]:
        key = f"{model} | whole {WHOLE}"
        found = runs[f"{key} | reconstruct"]
        scores = [value(f"{key} | magnitude"), ours(f"{key} | reconstruct")]
        return [model, f"{found['parameters']:,}", *scores, shape_in_words(found)]

    models = ["llama-6m", *CONFIGS]
    lines = table(
        ["llama-6m, half of the heads and neurons gone", "KL on held-out text", "perplexity"],
        *map(of_part, PARTS),
    )
    lines += table(
        ["", "removed", "dense", *PUBLISHED, *OURS],
        *(
            [model, f"{ratio:.0%}", value(f"{model} | dense")]
            + [value(f"{model} | {ratio} | {name}") for name in PUBLISHED]
            + [ours(f"{model} | {ratio} | {name}") for name in OURS]
            for model in CONFIGS
            for ratio in RATIOS
        ),
    )
    lines += table(
        ["", "every width", "parameters", "dense", "magnitude", "reconstruct"],
        *(of_width(model, ratio) for model in models for ratio in WIDTHS),
    )
    lines += table(
        ["", f"{WHOLE:.0%} of all parameters gone", "magnitude", "reconstruct", "hidden, heads, kv, neurons × layers"],
        *map(of_whole, models),
    )
    return "\n".join(lines)


def shape_in_words(run: dict) -> str:
    *widths, _ = run["widths"].values()
    kept = run["changed"]["layers"]
    words = ", ".join(map(str, widths)) + (f" × {len(kept)}" if kept else "")
    return words + (", untied" if run["changed"].get("tie_word_embeddings") is False else "")


def gpu() -> None:
    """A random Llama-3.1-8B at half its heads and neurons, 128 windows of 2048 tokens."""
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=8192, rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    target = Target("num_attention_heads=16,num_key_value_heads=4,intermediate_size=7168")
    text = list(torch.randint(config.vocab_size, (128, 2048)))
    method, stopwatch = Reconstruct(), Stopwatch()
    made = draft(target, model.config, method)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    done = method.prune(model, made, text, Journal(print, stopwatch))
    result = {
        "seconds": {name: round(value, 1) for name, value in stopwatch.seconds.items()},
        "peak_memory_over_model_gib": round((torch.cuda.max_memory_allocated() - before) / 2**30, 2),
        "kl": done.notes["kl"],
    }
    keep("reconstruction_gpu", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="only the run on a GPU")
    parser.add_argument("--only", default="", help="only what contains this text; the rest is taken from before")
    arguments = parser.parse_args()
    if arguments.gpu:
        return gpu()
    unfinished = RESULTS / "reconstruction.partial.json"
    runs = json.loads(unfinished.read_text()) if unfinished.is_file() else {}
    jobs = wanted()
    for key, job in jobs.items():
        if key not in runs and arguments.only in key:
            runs[key] = {**job(), "device": conditions()["device"]}
            unfinished.write_text(json.dumps(runs))
            print(key, runs[key], flush=True)
    if missing := [key for key in jobs if key not in runs]:
        print(f"{len(missing)} more to do, the first: {missing[0]}")
        return
    result = {
        "calibration": f"{NSAMPLES} windows of 128 tokens of wikitext-2/valid.txt, seed 0",
        "scored_on": f"wikitext-2/test.txt, {len(windows())} windows of 256 tokens",
        "shares": shares(runs),
        "runs": {key: runs[key] for key in jobs},
    }
    keep("reconstruction", result)
    (RESULTS / "reconstruction.md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))
    unfinished.unlink()


if __name__ == "__main__":
    main()
