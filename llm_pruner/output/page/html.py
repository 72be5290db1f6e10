"""The page: one HTML file that needs nothing else, no network and no script."""

import json
from collections.abc import Sequence

from llm_pruner.output.page import START, measured, searched, sections
from llm_pruner.output.page.conditions import conditions
from llm_pruner.output.page.markup import Markup, tag
from llm_pruner.output.page.models import (
    is_pruning,
    is_recovery,
    models_of,
    name_of,
    role_of,
    steps_of,
)
from llm_pruner.output.page.style import STYLE
from llm_pruner.output.page.widths import widths


def page(reports: Sequence[dict], evaluation: dict | None = None) -> str:
    """The content of the file about these runs. A section is there when there are figures for it.

    reports: what is in the report.json of runs that made checkpoints, in the order of the steps; one that tells of the
    runs before it (`made_from`) needs no other. evaluation: what `python -m llm_pruner evaluate` reports.
    """
    steps = steps_of(json.loads(json.dumps(list(reports))))  # a report in memory and one from a file are the same then
    models = models_of(steps, evaluation)
    texts = list(dict.fromkeys(text for model in models for text in model.perplexity))
    title, subtitle = _title(steps, evaluation)
    body = [
        sections.headline(models, texts) if models else None,
        sections.quality(models, texts),
        widths(models, steps),
        searched.rebuilt(steps),
        sections.scores(steps),
        sections.recovery(steps),
        measured.zero_shot(models),
        measured.speed(models),
        conditions(steps, evaluation),
    ]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    header = tag("header", tag("h1", title), tag("p", subtitle), sections.tiles(models, steps))
    main = tag("main", header, body)
    return f"{START}{tag('html', head, tag('body', main), lang='en')}\n"


def _title(steps: Sequence[dict], evaluation: dict | None) -> tuple[str, str]:
    if not steps:
        models = (evaluation or {}).get("models") or []
        return f"Evaluation of {len(models)} model{'s' * (len(models) != 1)}", ", ".join(own["name"] for own in models)
    first, last = steps[0], steps[-1]
    name = name_of(first.get("base_model") or first["model"])
    done = []
    for step in steps:
        if is_recovery(step):
            teacher = f" from {step['teacher']}" if step.get("teacher") else ""
            done.append(f"recovered by {step['method']}{teacher}")
        elif is_pruning(step):
            done.append(f"{'masked' if step.get('masked') else 'pruned'} by {step['importance']}")
        else:
            done.append(f"made sparse: {step['label']}")
    version = (last.get("versions") or {}).get("llm_pruner")
    made = f" · llm_pruner {version}" if version else ""
    return f"{name}, {role_of(last)}", f"{', then '.join(done)}{made}".capitalize()
