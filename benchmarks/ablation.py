"""What the parts of a reconstruction bring on a real model, on text that decisions are made on.

    python benchmarks/ablation.py      # ten minutes a row on two cores; needs what real.py needs

SmolLM2-135M-Instruct, 20 % of its attention and MLP parameters removed, calibrated on 128 windows of 512 tokens, half
of them of the first four fifths of WikiText-2's validation text, half of other prose. Scored on 24 windows of 512
tokens of the last fifth, and on 24 of documents that neither calibrate nor test. Each row is scored before and behind
the optimisation of all layers. Rows that are in results/ablation.json are not run again.
"""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any
from unittest import mock

from measure import RESULTS, keep
from quality import ADAPTIVE, BIAS
from real import DEVELOPED, DEVELOPMENT, dense, documents, drawn, prose, scores, text_file, validation

from llm_pruner import Budget, Reconstruct, ScoreAndCut
from llm_pruner.methods import Journal
from llm_pruner.model.axes import Layers
from llm_pruner.reconstruction import end_to_end
from llm_pruner.reconstruction.end_to_end import Teacher, last_stream, optimise_together
from llm_pruner.reconstruction.form_search import FormSearch
from llm_pruner.reconstruction.layer import Settings
from llm_pruner.reconstruction.planned import Form, Planned
from llm_pruner.reconstruction.reconstruct import reconstruct
from llm_pruner.reconstruction.tokens import Tokens, split
from llm_pruner.shape.budget import filled_with_neurons
from llm_pruner.shape.draft import draft

RATIO = 0.2
FITTED = Settings(input_projections=False, epochs=0)


@cache
def tokens() -> Tokens:
    sources = text_file("validation", validation()[0]), text_file("prose", prose(documents()[:-DEVELOPMENT]))
    return split(drawn(sources))


@cache
def flap() -> tuple[Any, Layers]:
    """(the model that FLAP AL-AM makes, its widths)."""
    model, method = dense(), ScoreAndCut("flap", **BIAS)
    made = draft(Budget(param_ratio=RATIO, **ADAPTIVE), model.config, method)
    pruned = method.prune(model, made, [row for batch in tokens().fitted for row in batch], Journal(print))
    return pruned.model.eval(), pruned.plan.after


@cache
def measured() -> Layers:
    """The widths of measured prices."""
    model, method = dense(), Reconstruct(per_layer=True)
    made = draft(Budget(param_ratio=RATIO), model.config, method)
    return FormSearch(model, made, tokens(), minutes=1.0, per_layer=True).run().form.after


@cache
def alike() -> Layers:
    """One width for all layers, with all heads."""
    model = dense()
    made = draft(Budget(param_ratio=RATIO), model.config, Reconstruct())
    counter = made.traced.counter
    return counter.everywhere(filled_with_neurons(counter, counter.before, made.shape.goal))


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        widths: Of the layers.
        settings: How they are reconstructed; None for FLAP's own cut.
        half: Whether only half of the text is fitted on.
        only_fresh: Whether only the other half is optimised on.
        rate: Of the optimisation, as `end_to_end.RATE`.
        bfloat16: Whether its products are in bfloat16, where the processor has instructions for them.
    """

    widths: Callable[[], Layers] = measured
    settings: Settings | None = FITTED
    half: bool = True
    only_fresh: bool = False
    rate: float = end_to_end.RATE
    bfloat16: bool = True


# those that differ in their optimisation only stand together, and are fitted once
ROWS = {
    "reconstruct, per layer": Row(),
    "optimised on the other half only": Row(only_fresh=True),
    "optimised at five times the rate": Row(rate=5 * end_to_end.RATE),
    "optimised at a fifth of the rate": Row(rate=end_to_end.RATE / 5),
    "optimised with products in float32": Row(bfloat16=False),
    "one width for all layers": Row(alike),
    "the widths of FLAP AL-AM": Row(lambda: flap()[1]),
    "FLAP AL-AM itself": Row(lambda: flap()[1], None),
    "input projections fitted as well": Row(settings=Settings(epochs=0)),
    "nothing fitted": Row(settings=Settings(least_squares=False, epochs=0)),
    "layers fitted on all of the text": Row(half=False),
}


@lru_cache(maxsize=1)
def fitted(widths: Callable[[], Layers], settings: Settings | None, half: bool) -> tuple[Any, dict, float]:
    """(the model before its layers are optimised together, its scores, seconds)."""
    part = tokens().half()[0] if half else tokens()
    if settings is None:
        started = time.perf_counter()
        smaller, _ = flap()
    else:
        model = dense()
        made = draft(Budget(param_ratio=RATIO), model.config, Reconstruct(per_layer=True))
        planned = Planned.of(made.traced, Form(widths()))
        started = time.perf_counter()
        smaller = reconstruct(model, planned.dense.groups, planned.wide, planned.config, part, settings).model
    seconds = time.perf_counter() - started
    return smaller.eval(), scores(smaller, DEVELOPED), seconds


def never(device) -> bool:
    return False


def run(row: Row) -> dict:
    """Reconstruct, score, optimise, score."""
    part, fresh = tokens().half() if row.half else (tokens(), [])
    held = Tokens(part.held_out, [True] * len(part.held_out))
    seen = held.and_fitted(fresh if row.only_fresh else [*part.fitted, *fresh])
    before, told, seconds = fitted(row.widths, row.settings, row.half)
    model, smaller, started = dense(), copy.deepcopy(before), time.perf_counter()
    teacher = Teacher.of(model, last_stream(model, seen.batches))
    with mock.patch.multiple(end_to_end, RATE=row.rate, **{} if row.bfloat16 else {"has_quick_bfloat16": never}):
        optimise_together(smaller, teacher, seen, epochs=1)
    optimised = time.perf_counter() - started
    return {
        "fitted": told, "optimised": scores(smaller, DEVELOPED),
        "seconds": {"fitted": round(seconds, 1), "optimised": round(optimised, 1)},
    }  # fmt: skip


def main() -> None:
    path = RESULTS / "ablation.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}
    finished = partial(keep, "ablation", result)
    if "dense" not in result:
        result["dense"] = {"perplexity": scores(dense(), DEVELOPED)["perplexity"]}
        finished()
    for name, row in ROWS.items():
        if name not in result["rows"]:
            result["rows"][name] = run(row)
            finished()


if __name__ == "__main__":
    main()
