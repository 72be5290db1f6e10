"""Fill in the parts of the documentation that follow from the code: a hook of mkdocs.

A page marks the place with `<!-- generated: NAME -->`; NAME is a key of GENERATED.
"""

import json
import math
import re
from dataclasses import Field, fields
from pathlib import Path
from statistics import mean, variance
from types import NoneType, UnionType
from typing import Annotated, Union, get_args, get_origin

from llm_pruner.cli.commands import COMMANDS
from llm_pruner.config.groups import SECTIONS
from llm_pruner.config.options import fields_of, kind_of
from llm_pruner.importance import CRITERIA
from llm_pruner.output.reports import PruneReport, RecoverReport, SparsifyReport

# they lie outside the documentation, beside the figures that they show
PLOTS = "benchmarks/results/quality.png", "benchmarks/results/real.png"
REPOSITORY = Path(__file__).parents[1]
# the calibration texts of benchmarks/real.py
TEXTS = {"mixture": "the mixture", "WikiText-2": "WikiText-2 alone"}
WORDS = {
    "str": "text", "int": "whole number", "float": "number", "bool": "true or false", "dict": "mapping",
    "Any": "any value",
}  # fmt: skip


def command_line() -> str:
    """Return a section for every command, with a table of flags for every group of its options."""
    return "\n\n".join(_command(name) for name in COMMANDS)


def _command(name: str) -> str:
    command, groups = COMMANDS[name], {}
    for flag, field in fields_of(command.options).items():
        groups.setdefault(field.metadata["group"], []).append(_flag(flag, field))
    parts = [f"## llm-pruner {name} {{: #{name} }}", command.description]
    parts += ["\n".join(["```bash", *(f"llm-pruner {name} {example}" for example in command.examples), "```"])]
    for group, rows in sorted(groups.items(), key=lambda item: SECTIONS.index(item[0])):
        heading = f"### {group[0].upper()}{group[1:]} {{: #{name}-{re.sub('[^a-z]+', '-', group.lower()).strip('-')} }}"
        parts += [heading, "\n".join(["| flag | default | meaning |", "|---|---|---|", *rows])]
    return "\n\n".join(parts)


def _flag(name: str, field: Field) -> str:
    told, value = field.metadata, ""
    if kind_of(field) is not bool:
        value = f" {told['metavar'] or name.upper()}" + " …" * (kind_of(field) is tuple)
    default = "" if field.default in (None, False) else _default(field.default)
    choices = told["choices"] or (CRITERIA.names() if name == "importance" else ())
    listed = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
    return f"| {_code(f'--{name}{value}')} | {default} | {_escaped(told['help'])}{listed} |"


def _default(value: object) -> str:
    return _code(",".join(value) if isinstance(value, tuple) else str(value))


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _escaped(text: str) -> str:
    """Keep what Markdown would read as markup: bars of tables, stars, tags."""
    return re.sub(r"([|*<>_])", r"\\\1", text)


def report_fields() -> str:
    """Return a table of the fields of report.json, with their types and the steps whose reports have them."""
    steps: dict[tuple[str, str], list[str]] = {}
    for report in (PruneReport, RecoverReport, SparsifyReport):
        for own in fields(report):
            steps.setdefault((own.name, _named(own.type)), []).append(report.step)
    rows = [f"| `{name}` | {kind} | {', '.join(found)} |" for (name, kind), found in steps.items()]
    return "\n".join(["| field | value | in the report of |", "|---|---|---|", *rows])


def _named(kind) -> str:
    """Return an annotation in words: rules left out, None as null."""
    if isinstance(kind, str):
        return re.sub(r"Annotated\[(.*?), .*\]", r"\1", kind).replace(" | None", " or null")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _named(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join("null" if one is NoneType else _named(one) for one in arguments)
    name = (origin or kind).__name__
    name = WORDS.get(name, name)
    inner = [_named(one) for one in arguments]
    return f"{name} of {' to '.join(inner)}" if inner else name


FIGURES = {
    "entries_of_the_package": "entries directly in `llm_pruner/`",
    "modules": "modules",
    "lines": "lines, docstrings included",
    "longest_function": "lines of the longest function",
    "most_branches": "branches of the function that has most",
    "functions_over_60_lines_or_15_branches": "functions of more than 60 lines or 15 branches",
    "own_modules_imported_inside_functions": "imports of own modules inside functions",
    "share_of_public_functions_with_args": "share of public functions whose docstring lists the arguments",
    "readme": "lines, words of the README",
    "pages_in_docs": "pages of documentation",
}


def house() -> str:
    """Return a table of what benchmarks/house.py measured of the code base, before the move into rooms and since."""
    measured = json.loads((REPOSITORY / "benchmarks" / "results" / "house.json").read_text(encoding="utf-8"))
    rows = [f"| {told} | {_figure(measured['before'][key])} | {_figure(measured['now'][key])} |"
            for key, told in FIGURES.items()]  # fmt: skip
    table = "\n".join(["| | before | now |", "|---|---|---|", *rows])
    tiers = [
        f"| `tests/{folder}` | {own['tests']:,} | {own['seconds']:,.0f} |"
        for folder, own in sorted(measured["tests"].get("test-all", {}).get("tiers", {}).items())
    ]
    head = ["| folder | tests | seconds in all, of two processes |", "|---|---|---|"]
    return "\n\n".join([table, "\n".join([*head, *tiers])] if tiers else [table])


def _figure(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{own:,}" for own in value.values())
    value = value[0] if isinstance(value, list) else value
    return f"{value:.0%}" if isinstance(value, float) else f"{value:,}"


def real() -> str:
    """Return tables of what benchmarks/real.py measured of a real model, one for each text and share."""
    measured = _measured("real")
    dense = measured["dense"]["perplexity"]
    cells = " | ".join(f"{value:,.1f}" for value in dense.values())
    tables: dict[tuple[str, str], list[str]] = {}
    for name, run in measured["runs"].items():
        method, ratio, text = name.split(" | ")
        head = [
            f"**{float(ratio):.0%} removed, calibrated on {TEXTS[text]}**\n",
            f"| method | {' | '.join(dense)} | KL, nats | seconds | GiB | checkpoint |",
            "|---" * (5 + len(dense)) + "|",
            f"| dense | {cells} | | | | |",
        ]  # fmt: skip
        tables.setdefault((text, ratio), head).append(_real_row(method, run, dense))
    return "\n\n".join("\n".join(rows) for _, rows in sorted(tables.items(), reverse=True))


def _real_row(method: str, run: dict, dense: dict[str, float]) -> str:
    cells = [f"{value:,.1f} ({math.log(value / dense[own]):.3f})" for own, value in run["perplexity"].items()]
    cells += [", ".join(f"{value:.2f}" for value in run["kl"].values()), f"{run['seconds']:,.0f}"]
    cells += [f"{run['peak_memory_beside_the_model'] / 2**30:.2f}", "stock" if run["stock"] else "per layer"]
    return f"| {' | '.join([method, *cells])} |"


def in_one_run() -> str:
    """Return a sentence on what several sizes in one run cost, as benchmarks/real.py measured it."""
    name = "reconstruct, per layer"
    measured = _measured("real")["runs"]
    keys = [(key, *key.split(" | ")) for key in measured]
    runs = {ratio: measured[key] for key, own, ratio, text in keys if (own, text) == (f"{name}, in one run", "mixture")}
    if not runs:
        return "This has not been measured yet."
    # the first size is made of the dense model
    runs["0.2"] = measured[f"{name} | 0.2 | mixture"]
    shares = ", ".join(f"{float(ratio):.0%}" for ratio in sorted(runs))
    seconds = [runs[ratio]["seconds"] for ratio in sorted(runs)]
    each = " + ".join(f"{own:,.0f}" for own in seconds)
    return f"{shares}: {each} seconds, {sum(seconds) / seconds[0]:.2f} times as long as the first size alone."


def recovered() -> str:
    """Return a table of what benchmarks/real.py recovered by distillation."""
    measured = _measured("real")
    dense, runs = measured["dense"]["perplexity"], measured["runs"]
    kinds = " | ".join(f"{kind}, before → after (share of the gap)" for kind in dense)
    rows = [
        f"| model | tokens | {kinds} | zero-shot |",
        "|---" * (3 + len(dense)) + "|",
    ]
    for key, run in runs.items():
        if "recovered" not in run:
            continue
        name, ratio, _ = key.split(" | ")
        after, cells = run["recovered"], []
        for kind, value in dense.items():
            lost = [math.log(own["perplexity"][kind] / value) for own in (run, after)]
            cells.append(f"{lost[0]:.3f} → {lost[1]:.3f} ({1 - lost[1] / lost[0]:.0%})")
        means = [f"{_mean_of(own['zero_shot']):.1f}" if "zero_shot" in own else "" for own in (run, after)]
        told = [f"{name}, {float(ratio):.0%}", f"{after['tokens']:,}", *cells, " → ".join(means)]
        rows.append(f"| {' | '.join(told)} |")
    return "\n".join(rows) if len(rows) > 2 else "No model has been recovered yet."


def _mean_of(answers: dict[str, str]) -> float:
    return mean(100 * own.count("1") / len(own) for own in answers.values())


def zero_shot() -> str:
    """Return a table of the questions that benchmarks/real.py asked, each method paired with ours by question."""
    measured = _measured("real")
    asked = {"dense |  | ": measured["dense"]} | measured["runs"]
    asked = {name: run["zero_shot"] for name, run in asked.items() if "zero_shot" in run}
    if not asked:
        return "No model has been asked yet."
    tasks = list(next(iter(asked.values())))
    rows = [
        f"| method | removed | {' | '.join(tasks)} | mean | ours, per layer, is ahead by |",
        "|---" * (4 + len(tasks)) + "|",
    ]
    for name, answers in asked.items():
        method, ratio, text = name.split(" | ")
        own = (f"reconstruct, per layer{several} | {ratio} | {text}" for several in ("", ", in one run"))
        ours = next((asked[key] for key in own if key in asked), None)
        shares = [100 * answers[task].count("1") / len(answers[task]) for task in tasks]
        ahead = "" if ours is None or ours is answers else "{:+.1f} ± {:.1f}".format(*_ahead(ours, answers))
        told = [method, f"{float(ratio):.0%}" if ratio else "", *(f"{share:.1f}" for share in shares)]
        rows.append(f"| {' | '.join([*told, f'{sum(shares) / len(shares):.1f}', ahead])} |")
    return "\n".join(rows)


def _ahead(ours: dict[str, str], theirs: dict[str, str]) -> tuple[float, float]:
    """(how many points the mean over tasks is higher, its standard error), paired by question."""
    means, variances = [], []
    for task, own in ours.items():
        differences = [int(a) - int(b) for a, b in zip(own, theirs[task], strict=True)]
        means.append(mean(differences))
        variances.append(variance(differences) / len(differences))
    return 100 * mean(means), 100 * math.sqrt(sum(variances)) / len(means)


def ablation() -> str:
    """Return a table of what benchmarks/ablation.py measured of the parts of a reconstruction."""
    if not (REPOSITORY / "benchmarks" / "results" / "ablation.json").exists():
        return "The parts have not been measured yet."
    measured = _measured("ablation")
    dense = measured["dense"]["perplexity"]
    rows = [
        f"| | {' | '.join(f'{kind}: fitted | optimised' for kind in dense)} | seconds |",
        "|---" * (2 + 2 * len(dense)) + "|",
    ]
    for name, row in measured["rows"].items():
        losses = [
            f"{math.log(row[stage]['perplexity'][kind] / dense[kind]):.3f}"
            for kind in dense
            for stage in ("fitted", "optimised")
        ]
        seconds = sum(row["seconds"].values())
        rows.append(f"| {' | '.join([name, *losses, f'{seconds:,.0f}'])} |")
    return "\n".join(rows)


def profiled() -> str:
    """Return a table of where benchmarks/profiled.py saw the time of a reconstruction go."""
    measured = _measured("profiled")
    rows = ["| | seconds | share |", "|---|---|---|"]
    for phase, parts in measured["phases"].items():
        for name, seconds in parts.items():
            told = f"**{phase}**" if name == "seconds" else name
            rows.append(f"| {told} | {seconds:,.0f} | {seconds / measured['seconds']:.0%} |")
    return "\n".join(rows)


def _measured(name: str) -> dict:
    return json.loads((REPOSITORY / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


GENERATED = {
    "command line": command_line,
    "report fields": report_fields,
    "house": house,
    "real": real,
    "in-one-run": in_one_run,
    "recovered": recovered,
    "zero-shot": zero_shot,
    "ablation": ablation,
    "profiled": profiled,
}


def filled(markdown: str) -> str:
    """Return the page with its marks replaced by what they stand for.

    Raises:
        KeyError: A mark names nothing that is generated.
    """
    return re.sub(r"<!-- generated: (.+?) -->", lambda mark: GENERATED[mark[1]](), markdown)


def on_files(files, config):
    from mkdocs.structure.files import File

    for plot in PLOTS:
        files.append(File.generated(config, plot, abs_src_path=str(REPOSITORY / plot)))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    text = filled(markdown)
    for plot in PLOTS:
        text = text.replace(f"../../{plot}", f"../{plot}")
    return text
