"""Fill in the parts of the documentation that follow from the code: a hook of mkdocs.

A page marks the place with `<!-- generated: NAME -->`; NAME is a key of GENERATED.
"""

import re
from dataclasses import Field
from pathlib import Path

from llm_pruner.cli.commands import COMMANDS
from llm_pruner.cli.main import SECTIONS
from llm_pruner.config.options import fields_of, kind_of
from llm_pruner.importance import CRITERIA
from llm_pruner.output.report_schema import REQUIRED, RULES

PLOT = "benchmarks/results/quality.png"  # lies outside the documentation, beside the figures that it shows
REPOSITORY = Path(__file__).parents[1]


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
    """Return a table of the fields of report.json, with the values that are legal and the steps that must have them."""
    rows = ["| field | value | always in the report of |", "|---|---|---|"]
    for name, rule in RULES.items():
        steps = ", ".join(step for step, required in REQUIRED.items() if name in required)
        rows.append(f"| `{name}` | {_escaped(rule(object()))} | {steps} |")
    return "\n".join(rows)


GENERATED = {"command line": command_line, "report fields": report_fields}


def filled(markdown: str) -> str:
    """Return the page with its marks replaced by what they stand for.

    Raises:
        KeyError: A mark names nothing that is generated.
    """
    return re.sub(r"<!-- generated: (.+?) -->", lambda mark: GENERATED[mark[1]](), markdown)


def on_files(files, config):
    from mkdocs.structure.files import File

    files.append(File.generated(config, PLOT, abs_src_path=str(REPOSITORY / PLOT)))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    return filled(markdown).replace(f"../../{PLOT}", f"../{PLOT}")
