"""Methods on a real model, scored on the kind of text they were calibrated with and on another kind.

    python benchmarks/real.py                     # needs $LLM_PRUNER_SHARED, by default ../shared, and smollm2.py
    python benchmarks/real.py --only "FLAP AL-AM" --ratios 0.2

SmolLM2-135M-Instruct in float32, a share of its attention and MLP parameters removed. Calibrated on 32 windows of 512
tokens of wikitext-2/valid.txt, seed 0; scored on 51 windows of 512 tokens, evenly of wikitext-2/test.txt, and on 40 of
prose: of the last 600 documents of english-24mb.txt.xz those that have 2,000 characters or more and are not of WikiText
(none of its marks `@-@` and `<unk>`), in their order. Rows that are in results/real.json are not run again.
"""

import argparse
import json
import lzma
import math
import time
from functools import cache

import torch
from measure import RESULTS, HostMemory, keep
from quality import ADAPTIVE, BIAS, SHARED, Row, reconstructed, scored
from smollm2 import fetched
from torch.nn.functional import kl_div, nll_loss

from llm_pruner import Budget, prune
from llm_pruner.calibration.prompts import calibration_prompts
from llm_pruner.calibration.windows import token_windows
from llm_pruner.model import loading
from llm_pruner.model.tokenizers import load_tokenizer

RATIOS = (0.2, 0.3)
NSAMPLES, LENGTH = 32, 512
WINDOWS = {"WikiText-2": 51, "prose": 40}
DOCUMENTS, LONG, MARKS = 600, 2000, ("@-@", "<unk>")
METHODS: dict[str, Row] = {
    "random": scored("random"),
    "magnitude": scored("magnitude"),
    "Taylor": scored("taylor"),
    "AMP": scored("amp"),
    "Wanda-sp": scored("wanda_sp"),
    "FLAP UL-UM": scored("flap", **BIAS),
    "FLAP AL-AM": scored("flap", ADAPTIVE, **BIAS),
    "reconstruct, shape not searched, no passes": reconstructed(search_minutes=0.0, epochs=0),
    "reconstruct": reconstructed(),
    "reconstruct, per layer": reconstructed(per_layer=True),
}


@cache
def windows(kind: str) -> torch.Tensor:
    """LongTensor [windows, LENGTH], evenly of the text."""
    text = (SHARED / "data/wikitext-2/test.txt").read_text(encoding="utf-8") if kind == "WikiText-2" else prose()
    found = token_windows(text, load_tokenizer(str(fetched())), LENGTH)
    return found[:: len(found) // WINDOWS[kind]][: WINDOWS[kind]]


def prose() -> str:
    with lzma.open(SHARED / "data/english-24mb.txt.xz", "rt", encoding="utf-8") as file:
        documents = file.read().split("\n\n")[-DOCUMENTS:]
    return "\n\n".join(own for own in documents if len(own) >= LONG and not any(mark in own for mark in MARKS))


@cache
def prompts() -> list[torch.Tensor]:
    text = str(SHARED / "data/wikitext-2/valid.txt")
    return calibration_prompts(text, NSAMPLES, LENGTH, 0, load_tokenizer(str(fetched())))


def dense():
    folder = str(fetched())
    return loading.load_model(folder, loading.load_config(folder), "float32", device=torch.device("cpu"))


@cache
@torch.no_grad()
def dense_states(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(the dense model's last hidden states [windows, LENGTH, hidden], its head [vocabulary, hidden])."""
    model = dense()
    states = torch.cat([model.model(window[None]).last_hidden_state for window in windows(kind)])
    return states, model.lm_head.weight.detach()


@torch.no_grad()
def scores(model) -> dict[str, dict[str, float]]:
    """Return perplexity and KL(dense ‖ model), in nats per token, on each kind of text."""
    found: dict[str, dict[str, float]] = {"perplexity": {}, "kl": {}}
    for kind in WINDOWS:
        states, head = dense_states(kind)
        loss = divergence = 0.0
        for window, state in zip(windows(kind), states):
            ours = model(window[None]).logits[0].log_softmax(-1)
            loss += nll_loss(ours[:-1], window[1:], reduction="sum").item()
            divergence += kl_div(ours, (state @ head.T).log_softmax(-1), log_target=True, reduction="sum").item()
        found["perplexity"][kind] = round(math.exp(loss / windows(kind)[:, 1:].numel()), 2)
        found["kl"][kind] = round(divergence / windows(kind).numel(), 4)
    return found


def one(name: str, ratio: float) -> dict:
    """Prune and score: what `prune_llm.py --param_ratio` does between loading and saving."""
    row, model = METHODS[name], dense()
    before = HostMemory.now()
    HostMemory.reset_peak()
    started = time.perf_counter()
    model, plan = prune(model, Budget(param_ratio=ratio, **row.budget), row.method(seed=0), prompts())
    seconds, peak = time.perf_counter() - started, HostMemory.peak()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "removed": round(plan.removed()["decoder"], 4),
        **scores(model.eval()),
        "stock": not model.config.model_type.startswith("pruned_"),
        "widths": plan.widths_after(),
        "seconds": round(seconds, 1),
        "peak_memory_beside_the_model": peak - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ratios", nargs="*", type=float, default=RATIOS)
    arguments = parser.parse_args()
    path = RESULTS / "real.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}}
    if "dense" not in result:
        result["dense"] = scores(dense())["perplexity"]
        keep("real", result)
    for ratio in arguments.ratios:
        for name in arguments.only:
            if f"{name} | {ratio}" not in result["runs"]:
                result["runs"][f"{name} | {ratio}"] = one(name, ratio)
                keep("real", result)


if __name__ == "__main__":
    main()
