"""What was made and how good it is: the headline, perplexity against parameters, scores, recovery."""

from collections.abc import Sequence

from llm_pruner.output.page.charts import Line, Point, curve, scatter
from llm_pruner.output.page.columns import boxes
from llm_pruner.output.page.elements import (
    facts,
    figure,
    figures,
    named,
    noted,
    section,
    table,
)
from llm_pruner.output.page.markup import Markup, tag
from llm_pruner.output.page.models import (
    EVALUATED,
    Model,
    Text,
    dense_of,
    is_pruning,
    is_recovery,
)
from llm_pruner.output.page.wording import (
    duration,
    known,
    number,
    percent,
    size,
    times,
)

SMOOTH = 20  # the mean that is drawn over the loss takes one of so many parts of it


def tiles(models: Sequence[Model], steps: Sequence[dict]) -> Markup | None:
    """The main figures of the model that came out at last, beside those of the dense one."""
    dense, others = dense_of(models), [model for model in models if model.role != EVALUATED]
    if not steps and len(models) == 2:
        others = models
    made = others[-1] if others else None
    if dense is None or made is None or made is dense:
        return None
    shown = [
        _change("parameters", dense.parameters, made.parameters, number),
        _change("size", dense.bytes, made.bytes, size),
    ]
    for text in (text for text in dense.perplexity if text in made.perplexity):
        one, other = dense.perplexity[text], made.perplexity[text]
        ratio = _ratio(other, one)
        note = f"from {number(one)}{f' ({times(ratio)})' if ratio else ''}, on {text[0]}"
        shown.append(_tile("perplexity", number(other), note))
    if steps and steps[-1].get("recovered_share") is not None:
        shown.append(_tile("recovered", percent(steps[-1]["recovered_share"]), "of the gap in log-perplexity to dense"))
    for mode, ratio in list(made.ratios.items())[:1]:
        spread = f"{times(ratio['decode']['low'])} to {times(ratio['decode']['high'])}, {mode}"
        shown.append(_tile("decoding speed", times(ratio["decode"]["median"]), spread))
    return tag("div", [tile for tile in shown if tile], class_="tiles")


def _change(name: str, before: int | None, after: int | None, how) -> Markup | None:
    if None in (before, after):
        return None
    change = f"{100 * (after / before - 1):+.1f} %".replace("-", "−")
    return _tile(name, how(after), f"from {how(before)} ({change})")


def _tile(name: str, value: str, note: str) -> Markup:
    return tag("div", tag("p", name, class_="name"), tag("p", value, class_="value"), tag("p", note, class_="note"))


def headline(models: Sequence[Model], texts: Sequence[Text]) -> Markup:
    """Size and perplexity of every model, below each how it compares with the dense one."""
    dense = dense_of(models)
    rows = []
    for model in models:
        base = None if model is dense else dense
        part = _ratio(model.parameters, base and base.parameters)
        row = [named(model.label, f"c{model.colour}")]
        row.append(noted(known(model.parameters), part and f"{percent(part)} of dense"))
        for text in texts:
            value = number(model.perplexity[text]) if text in model.perplexity else known(None)
            ratio = _ratio(model.perplexity.get(text), base and base.perplexity.get(text))
            row.append(noted(value, ratio and f"{times(ratio)} dense"))
        rows.append([*row, known(model.bytes)])
    scored = [f"perplexity, {text[0]}, {text[1]:,} × {text[2]:,} tokens" for text in texts]
    head = ["model", "parameters", *scored, "bytes"]
    return section("models", "Models", table("Size and perplexity", head, rows))


def _ratio(value: float | None, dense: float | None) -> float | None:
    return value / dense if value is not None and dense else None


def quality(models: Sequence[Model], texts: Sequence[Text]) -> Markup | None:
    """Perplexity against parameters, one chart for each text that two models were measured on."""
    drawn = []
    for text in texts:
        measured = [model for model in models if text in model.perplexity and model.parameters is not None]
        points = [
            Point(model.label, model.parameters, model.perplexity[text], model.colour,
                  f"{model.label}: {number(model.parameters)} parameters, perplexity {number(model.perplexity[text])}")
            for model in measured if model.perplexity[text] is not None
        ]  # fmt: skip
        if len(points) < 2:
            continue
        caption = f"{text[0]}: {text[1]:,} windows of {text[2]:,} tokens. Lower and further left is better."
        missing = [model.label for model in measured if model.perplexity[text] is None]
        if missing:
            caption += f" Not drawn, because not finite: {', '.join(missing)}."
        title = f"Perplexity on {text[0]} against parameters"
        drawn.append(figure(scatter(title, points, "parameters", "perplexity"), caption))
    return section("quality", "Perplexity against parameters", figures(drawn)) if drawn else None


def scores(steps: Sequence[dict]) -> Markup | None:
    drawn = []
    for step in filter(is_pruning, steps):
        for name, rows in (step.get("scores") or {}).items():
            if any(value is None for row in rows for value in row):
                continue
            title = f"Scores by {step['importance']}: {name}"
            where = "the residual stream" if name == "hidden_size" else "each layer"
            caption = f"Units of {name} in {where}, scored by {step['importance']}."
            drawn.append(figure(boxes(title, rows, f"score, {name}", "" if len(rows) == 1 else "layer"), caption))
    said = (
        "One box per layer: half of the units lie in the box, 80 % on the thick line, all on the thin one "
        "(which may reach beyond the axis); the bar is the median. "
        + ("Lower" if any("reversed" in step.get("importance", "") for step in steps) else "Higher")
        + " scores stay."
    )
    return section("scores", "Score distributions", tag("p", said), figures(drawn)) if drawn else None


def recovery(steps: Sequence[dict]) -> Markup | None:
    content = []
    for step in filter(is_recovery, steps):
        content += [figures(_curves(step)), facts(_training(step))]
    return section("recovery", "Recovery", content) if content else None


def _curves(step: dict) -> list[Markup]:
    history, drawn = step.get("history") or [], []
    last = max((point["seconds"] for point in history), default=0.0)
    unit, name = next((u, n) for u, n in ((3600, "hours"), (60, "minutes"), (1, "seconds")) if last >= 3 * u or u == 1)
    losses = [(point["seconds"] / unit, point["loss"]) for point in history if "loss" in point]
    if sum(value is not None for _, value in losses) > 1:
        lines = [Line(losses, 1, faint=True), Line(_smooth(losses), 1)]
        steps = step["training"]["steps"]
        caption = f"Training loss over {steps:,} steps; the strong line is the mean of its neighbours."
        drawn.append(figure(curve("Training loss over time", lines, name, "loss"), caption))
    points = [(point["seconds"] / unit, point["perplexity"]) for point in history if "perplexity" in point]
    if any(value is not None for _, value in points):
        found = step.get("perplexity") or {}
        levels = [("dense", step.get("dense_perplexity"), 0), ("pruned", found.get("before"), 1)]
        levels = [level for level in levels if level[1] is not None]
        caption = "Dots: while training, on the beginning of the text. Dashed lines: on all of it."
        title = "Perplexity over the time of training"
        drawn.append(figure(curve(title, [Line(points, 2, dots=True)], name, "perplexity", levels), caption))
    return drawn


def _smooth(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """The mean of each point and its neighbours, as far as they are finite."""
    reach = len(points) // (2 * SMOOTH)
    found = []
    for place, (x, _) in enumerate(points):
        near = [value for _, value in points[max(0, place - reach) : place + reach + 1] if value is not None]
        found.append((x, sum(near) / len(near) if near else None))
    return found


def _training(step: dict) -> dict[str, object]:
    told = dict(step.get("training") or {})
    minutes = told.pop("minutes", None)
    entries = {"method": step["method"], "weights": step.get("train_weights"), "teacher": step.get("teacher")}
    entries["time of training"] = None if minutes is None else duration(60 * minutes)
    if step.get("recovered_share") is not None:
        entries["gap to dense recovered"] = percent(step["recovered_share"])
    told["resumed_at_step"] = told.pop("resumed_at", [])
    entries |= {name.replace("_", " "): value for name, value in told.items() if value != []}
    return {name: value for name, value in entries.items() if value is not None}
