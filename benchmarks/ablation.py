"""What the parts of a reconstruction bring on a real model, on text that decisions are made on.

    python benchmarks/ablation.py      # minutes a row on two cores; needs what real.py needs

SmolLM2-135M-Instruct, 20 % of its attention and MLP parameters removed, calibrated on 64 windows of 512 tokens, half
of them of the first four fifths of WikiText-2's validation text, half of other prose. Scored on 24 windows of 512
tokens of the last fifth, and on 24 of documents that neither calibrate nor test. Each row is scored before and behind
the optimisation of all layers. Rows that are in results/ablation.json are not run again.
"""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from typing import Any
from unittest import mock

import torch
from measure import RESULTS, keep
from quality import ADAPTIVE, BIAS
from real import DEVELOPED, DEVELOPMENT, dense, documents, drawn, prose, scores, text_file, validation
from transformers import AutoModelForCausalLM

from llm_pruner import Budget, Reconstruct, ScoreAndCut
from llm_pruner.methods import Journal
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP
from llm_pruner.model.families import widths_of
from llm_pruner.reconstruction import end_to_end, layer, least_squares
from llm_pruner.reconstruction.costs import measure_layers
from llm_pruner.reconstruction.end_to_end import Teacher, last_stream, optimise_together
from llm_pruner.reconstruction.form_search import FormSearch
from llm_pruner.reconstruction.layer import Settings
from llm_pruner.reconstruction.planned import Form, Planned
from llm_pruner.reconstruction.reconstruct import reconstruct
from llm_pruner.reconstruction.search import cheapest_layers
from llm_pruner.reconstruction.tokens import Tokens, split
from llm_pruner.shape.budget import filled_with_neurons
from llm_pruner.shape.draft import Draft, Traced, draft

RATIO, NSAMPLES = 0.2, 64
FITTED = Settings(input_projections=False, epochs=0)


@cache
def tokens() -> Tokens:
    sources = text_file("validation", validation()[0]), text_file("prose", prose(documents()[:-DEVELOPMENT]))
    return split(drawn(sources, NSAMPLES))


@cache
def drafted() -> Draft:
    return draft(Budget(param_ratio=RATIO), dense().config, Reconstruct(per_layer=True))


@cache
def flap() -> tuple[Any, Form]:
    """(the model that FLAP AL-AM makes, its form)."""
    model, method = dense(), ScoreAndCut("flap", **BIAS)
    made = draft(Budget(param_ratio=RATIO, **ADAPTIVE), model.config, method)
    pruned = method.prune(model, made, [row for batch in tokens().fitted for row in batch], Journal(print))
    return pruned.model.eval(), Form(pruned.plan.after)


@cache
def measured() -> Form:
    """The widths of measured prices."""
    return FormSearch(dense(), drafted(), tokens(), minutes=1.0, per_layer=True).run().form


@cache
def priced() -> Form:
    """The widths of measured prices, before units move between layers."""
    return FormSearch(dense(), drafted(), tokens(), minutes=0.0, per_layer=True).run().form


@cache
def one_width() -> Form:
    """The best width for all layers, in heads and neurons."""
    return FormSearch(dense(), drafted(), tokens(), minutes=1.0).run().form


@cache
def alike() -> Form:
    """One width for all layers, with all heads."""
    counter, goal = drafted().traced.counter, drafted().shape.goal
    return Form(counter.everywhere(filled_with_neurons(counter, counter.before, goal)))


@cache
def shallow() -> Form:
    """Whole layers removed, those that change the stream least."""
    counter = drafted().traced.counter
    left = round((1 - RATIO) * counter.num_layers)
    layers = cheapest_layers(measure_layers(dense(), tokens().fitted), left)
    return Form((counter.before,) * left, layers)


@cache
def side_by_side() -> Form:
    """The dense model's widths for every layer of `flattened`."""
    before = drafted().traced.counter.before
    return Form((before,) * flattened().config.num_hidden_layers)


@cache
@torch.no_grad()
def flattened():
    """The dense model with some pairs of neighbouring layers side by side, as many as have to go.

    A pair is a layer of twice the width, whose parts all read what enters the first of the two; the other layers get
    units of zeros, so that all are alike. The weights of norms go into the projections behind them. Those pairs are
    taken whose first layer changes the stream least. FlattenGPT, ICML 2026.
    """
    model = dense()
    config, layers, changes = copy.deepcopy(model.config), model.model.layers, measured_changes()
    pairs: list[int] = []
    for index in sorted(range(len(layers) - 1), key=changes.__getitem__):
        if len(pairs) < round(RATIO * len(layers)) and not {index - 1, index, index + 1} & set(pairs):
            pairs.append(index)
    starts = [index for index in range(len(layers)) if index - 1 not in pairs]
    for axis in (HEADS, KV_HEADS, MLP):
        setattr(config, axis.field, 2 * getattr(config, axis.field))
    config.num_hidden_layers = len(starts)
    wide = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    wide.load_state_dict(
        {name: value for name, value in model.state_dict().items() if ".layers." not in name}, strict=False
    )
    for own, index in zip(wide.model.layers, starts, strict=True):
        beside(own, [layers[one] for one in ([index, index + 1] if index in pairs else [index])])
    return wide


@cache
def measured_changes() -> tuple[float, ...]:
    return measure_layers(dense(), tokens().fitted).layers


def beside(wide, layers) -> None:
    """Fill a layer with the units of some others, and the rest of it with zeros."""
    for parameter in wide.parameters():
        parameter.zero_()
    for norm, readers, writer in (
        ("input_layernorm", [f"self_attn.{own}_proj" for own in "qkv"], "self_attn.o_proj"),
        ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj"),
    ):
        wide.get_submodule(norm).weight.fill_(1.0)
        for name in readers:
            own = torch.cat([one.get_submodule(name).weight * one.get_submodule(norm).weight for one in layers])
            wide.get_submodule(name).weight[: len(own)] = own
        own = torch.cat([one.get_submodule(writer).weight for one in layers], 1)
        wide.get_submodule(writer).weight[:, : own.shape[1]] = own


def own_ridge(moments, prior: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `normal_equations`, but λ is relative to each input's own element of the diagonal."""
    inputs, prior = moments.inputs / moments.weight, prior.to(moments.inputs)
    pull = (ridge * inputs.diagonal()).clamp_min(least_squares.LEAST)
    if moments.intercept:
        pull[-1] = 1e-9 * pull[0]
    right = moments.cross / moments.weight + prior * pull
    inputs.diagonal().add_(pull)
    return inputs, right


def by_energy(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """As `token_weights`, but a token weighs no more where its energy grows more than usual."""
    return 1 / after.clamp_min(least_squares.least_energy(after))


@dataclass(frozen=True)
class Fitting:
    """How a model is made before its layers are optimised together.

    Attributes:
        form: What it becomes.
        settings: How its layers are reconstructed; None for FLAP's own cut.
        half: Whether only half of the text is fitted on.
        ridge: Makes the normal equations.
        weights: Of the tokens.
        model: The model to reconstruct.
    """

    form: Callable[[], Form] = measured
    settings: Settings | None = FITTED
    half: bool = True
    ridge: Callable = least_squares.normal_equations
    weights: Callable = least_squares.token_weights
    model: Callable[[], Any] = dense


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        fitting: What comes before the optimisation.
        only_fresh: Whether only the other half of the text is optimised on.
        rate: Of the optimisation, as `end_to_end.RATE`.
        bfloat16: Whether its products are in bfloat16, where the processor has instructions for them.
    """

    fitting: Fitting = field(default_factory=Fitting)
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
    "no units moved between layers": Row(Fitting(priced)),
    "one width for all layers": Row(Fitting(one_width)),
    "one width for all layers, all heads": Row(Fitting(alike)),
    "one width, all heads, massive activations weigh as others": Row(Fitting(alike, weights=by_energy)),
    "the widths of FLAP AL-AM": Row(Fitting(lambda: flap()[1])),
    "FLAP AL-AM itself": Row(Fitting(settings=None)),
    "six whole layers removed": Row(Fitting(shallow)),
    "six pairs of layers side by side (FlattenGPT)": Row(Fitting(side_by_side, model=flattened)),
    "input projections fitted as well": Row(Fitting(settings=Settings(epochs=0))),
    "λ relative to each input's own energy": Row(Fitting(ridge=own_ridge)),
    "nothing fitted": Row(Fitting(settings=Settings(least_squares=False, epochs=0))),
    "layers fitted on all of the text": Row(Fitting(half=False)),
}


@lru_cache(maxsize=1)
def fitted(fitting: Fitting) -> tuple[Any, dict, float]:
    """(the model before its layers are optimised together, its scores, seconds)."""
    part = tokens().at(tokens().halves()[0]) if fitting.half else tokens()
    if fitting.settings is None:
        started = time.perf_counter()
        smaller, _ = flap()
    else:
        model, form = fitting.model(), fitting.form()
        planned = Planned.of(Traced.of(model.config, widths_of(model.config)), form)
        started = time.perf_counter()
        with (
            mock.patch.object(least_squares, "normal_equations", fitting.ridge),
            mock.patch.object(layer, "token_weights", fitting.weights),
        ):
            smaller = reconstruct(
                model, planned.dense.groups, planned.wide, planned.config, part, fitting.settings, layers=form.layers
            ).model
    seconds = time.perf_counter() - started
    return smaller.eval(), scores(smaller, DEVELOPED), seconds


def never(device) -> bool:
    return False


def run(row: Row) -> dict:
    """Reconstruct, score, optimise, score."""
    _, fresh = tokens().halves()
    seen = tokens().at(sorted([*tokens().held_places, *fresh])) if row.only_fresh else tokens()
    before, told, seconds = fitted(row.fitting)
    model, smaller, started = dense(), copy.deepcopy(before), time.perf_counter()
    teacher = Teacher.of(model, seen, last_stream(model, seen.batches))
    with mock.patch.multiple(end_to_end, RATE=row.rate, **{} if row.bfloat16 else {"has_quick_bfloat16": never}):
        optimise_together(smaller, teacher, epochs=1)
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
