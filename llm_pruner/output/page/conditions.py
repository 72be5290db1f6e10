"""Under which conditions: data, seed, memory, seconds by phase, the command, versions and options."""

from collections.abc import Sequence

from llm_pruner.output.page.columns import Bar, bars
from llm_pruner.output.page.elements import facts, figure, folded, section
from llm_pruner.output.page.markup import Markup, tag
from llm_pruner.output.page.models import PRUNED, RECOVERED, SPARSE, role_of, text_of
from llm_pruner.output.page.wording import duration, known, percent, size

TITLES = {PRUNED: "Pruning", RECOVERED: "Recovery", SPARSE: "Sparsity"}


def conditions(steps: Sequence[dict], evaluation: dict | None) -> Markup | None:
    content = []
    for step in steps:
        content += _block(TITLES[role_of(step)], step, _of_step(step))
    if evaluation:
        content += _block("Evaluation", evaluation, evaluation.get("conditions") or {})
    return section("conditions", "Conditions", content) if content else None


def _of_step(step: dict) -> dict[str, object]:
    entries: dict[str, object] = {}
    if text := text_of(step):
        entries["scored on"] = f"{text[0]}, {text[1]:,} windows of {text[2]:,} tokens"
    if told := step.get("calibration"):
        entries["calibrated on"] = f"{told['nsamples']:,} samples of {told['seq_len']:,} tokens of {told['data']}"
    if step.get("sparsity"):
        entries |= {"sparse": step["label"], "kept": known(step.get("kept"), percent)}
    if "importance" in step:
        entries |= {"units chosen by": step["importance"], "made up for by": step.get("compensate", "none")}
        kind = step["model_type"]
        entries["saved as"] = kind["after"] + (", masked only: every shape stays" if step.get("masked") else "")
    return entries


def _block(title: str, told: dict, entries: dict) -> list[Markup]:
    entries = {name.replace("_", " "): value for name, value in entries.items()}
    if told.get("seed") is not None:
        entries["seed"] = told["seed"]
    for where, value in (told.get("peak_memory") or {}).items():
        entries[f"peak memory, {where}"] = size(value)
    content = [tag("h3", title)]
    if told.get("command"):
        content.append(tag("pre", tag("code", told["command"]), tabindex=0))
    if entries:
        content.append(facts(entries))
    seconds = told.get("seconds") or {}
    if seconds:
        rows = [(phase, [Bar(phase, value, duration(value), 1)]) for phase, value in seconds.items()]
        caption = f"Seconds by phase; {duration(sum(seconds.values()))} in all."
        content.append(tag("div", figure(bars(f"{title}: seconds by phase", rows), caption), class_="grid"))
    for name in ("versions", "options"):
        given = {
            key: value for key, value in (told.get(name) or {}).items() if value is not None and value is not False
        }
        if given:
            content.append(folded(name.capitalize(), facts(given)))
    return content
