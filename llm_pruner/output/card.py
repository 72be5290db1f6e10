"""The model card: base model, how the checkpoint was made, its widths and scores beside those it came from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from markupsafe import Markup

from llm_pruner.model.families import stock_type
from llm_pruner.output import lineage, tasks, wording
from llm_pruner.output.models import PRUNED, Model, models_of, steps_of
from llm_pruner.output.page import environment
from llm_pruner.output.reports import CheckpointReport, PruneReport, RecoverReport, SparsifyReport
from llm_pruner.vocabulary.cut import COUNTS

CUT = "whole channels, heads and neurons removed"
# and nothing else
FEWER = "tokens removed from its vocabulary"


def card(report: CheckpointReport) -> str:
    """Return the card of the checkpoint that the run made, with those before it.

    Every value is escaped for Markdown's tables, as the pages' are for HTML.
    """
    steps = steps_of([report])
    models = models_of(steps)
    base = steps[0].base_model or steps[0].model
    roles = list(dict.fromkeys(step.role for step in steps))
    # pruned models are recovered, whatever is known of how they were made
    if isinstance(steps[0], RecoverReport):
        roles = list(dict.fromkeys([PRUNED, *roles]))
    data = ModelCardData(
        base_model=None if Path(base).exists() or base == "demo" else base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llm_pruner", *roles],
    )
    own = [model.role for model in models]
    templates = environment(autoescape=False, finalize=_plain)
    templates.filters["code"] = lambda text: Markup(text.replace("\n", " "))
    text = templates.get_template("card.md").render(
        metadata=Markup(data.to_yaml()), base=base, roles=roles, steps=steps, last=steps[-1], done=_done(steps),
        warning=lineage.warning(steps[-1]), nothing_but_tokens=COUNTS,
        stock_type=stock_type, names=own if len(set(own)) == len(own) else [model.label for model in models],
        tables=[("", [*_sizes(models), *_perplexities(models)]), ("zero-shot accuracy, %", _zero_shot(models))],
    )  # fmt: skip
    return ModelCard(text).content


def _plain(value: Any) -> Any:
    """Text that Markdown leaves as it is."""
    if isinstance(value, Markup):
        return value
    return str(value).replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def _done(steps: Sequence[CheckpointReport]) -> list[str]:
    """What became of the dense model, in the order of the steps; what was done twice in a row is said once."""
    done = []
    for step in steps:
        if isinstance(step, SparsifyReport):
            done.append(f"sparse {step.sparse} ({step.label})")
        elif isinstance(step, PruneReport):
            done += [FEWER] if step.vocabulary else []
            done += [] if step.importance == COUNTS else ["units set to zero" if step.masked else CUT]
        else:
            done += ["trained"] if done else [CUT, "trained"]
    return [one for place, one in enumerate(done) if one not in done[max(0, place - 1) : place]]


def _sizes(models: Sequence[Model]) -> list[list[str]]:
    names = dict.fromkeys(name for model in models for name in model.widths)
    rows = [[name, *(_width(model.widths.get(name)) for model in models)] for name in names]
    counts = ["parameters", "bytes"]
    if len({model.layers for model in models if model.layers}) > 1:
        counts.insert(0, "layers")
    return rows + [[name, *(wording.known(getattr(model, name)) for model in models)] for name in counts]


def _width(width: int | list[int] | None) -> str:
    return ", ".join(map(str, width)) if isinstance(width, list) else wording.known(width)


def _perplexities(models: Sequence[Model]) -> list[list[str]]:
    rows = []
    for text in dict.fromkeys(text for model in models for text in model.perplexity):
        label = f"perplexity ({text[0]}, {text[1]} windows of {text[2]} tokens)"
        values = [wording.known(model.perplexity.get(text), _two_digits) for model in models]
        rows.append([label, *values])
    for name in dict.fromkeys(name for model in models for name in model.bits_per_byte):
        values = [wording.known(model.bits_per_byte.get(name), _four_digits) for model in models]
        rows.append([f"bits per byte ({name})", *values])
    return rows


def _four_digits(value: float) -> str:
    return f"{value:.4f}" if wording.finite(value) else wording.NOT_FINITE


def _two_digits(value: float) -> str:
    return f"{value:.2f}" if wording.finite(value) else wording.NOT_FINITE


def _zero_shot(models: Sequence[Model]) -> list[list[str]]:
    every, rows = [model.zero_shot for model in models], []
    for task in tasks.tasks_of(every):
        if metric := tasks.main_metric(every, task):
            rows.append([f"{task} ({metric})", *(tasks.cell(scores, task, metric) for scores in every)])
    if means := tasks.means([scores for scores in every if scores]):
        left = iter(means)
        rows.append(["mean", *(f"{100 * next(left):.1f}" if scores else wording.UNKNOWN for scores in every)])
    return rows
