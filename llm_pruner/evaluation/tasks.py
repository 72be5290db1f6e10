"""Which tasks are meant: names that lm_eval knows, or YAML files of local ones. Imports no lm_eval."""

import difflib
import functools
import glob
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_pruner.config.groups import USUAL_TASKS
from llm_pruner.config.yaml_files import read_yaml_nodes
from llm_pruner.errors import RunError, UsageError

# a `dataset_path` of files, not of the hub
LOCAL = ("json", "csv", "text", "parquet", "arrow")
NAMES = re.compile(r"^[\"']?(task|group|tag)[\"']?:[ \t]*(.*(?:\n[ \t]*-.*)*)", re.M)
NAME = re.compile(r"[^\s,\[\]\"'-][^\s,\[\]\"']*")


def check_tasks(tasks: Sequence[str]) -> list[str]:
    """Return the tasks without repeats, `usual` and comma-separated ones expanded. Reads small files only.

    Args:
        tasks: Names of lm_eval's tasks, `usual`, or YAML files.

    Returns:
        Names and files, one each.

    Raises:
        UsageError: lm_eval does not know a name, or a YAML file is missing or no task.
        RunError: lm_eval is not installed.
    """
    known, entries = known_tasks(), dict[str, str]()
    for entry in entries_of(tasks):
        name = entry
        if is_file(entry):
            name = read_task(Path(entry))["task"]
        elif entry not in known:
            raise UsageError(f"lm_eval has no task {entry!r}; {_suggestion(entry, known)}")
        if entries.setdefault(name, entry) != entry:
            raise UsageError(f"{entries[name]} and {entry} are both called {name!r}; give one of them another name")
    if not entries:
        raise UsageError("no task: give names of lm_eval's tasks, YAML files of local ones, or `usual`")
    return list(entries.values())


def entries_of(tasks: Sequence[str]) -> Iterator[str]:
    """Yield the names and files in a list of tasks, commas and `usual` expanded."""
    for text in tasks:
        for entry in [text] if is_file(text) and Path(text).expanduser().is_file() else text.split(","):
            if is_file(entry.strip()):
                yield str(Path(entry.strip()).expanduser())
            elif entry.strip():
                yield from USUAL_TASKS if entry.strip() == "usual" else [entry.strip()]


def is_file(entry: str) -> bool:
    """Return whether an entry is a YAML file, not a name."""
    return entry.endswith((".yaml", ".yml"))


@functools.cache
def known_tasks() -> dict[str, Path | None]:
    """Return the names of lm_eval's tasks, each with its YAML; those of groups and tags with None.

    Read as text: lm_eval parses its 14,000 files for this, which takes ten seconds and more.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise RunError('zero-shot tasks need lm_eval: pip install "llm_pruner[zero_shot]"')
    known: dict[str, Path | None] = {}
    files = (path for path in Path(spec.submodule_search_locations[0], "tasks").rglob("*"))
    for path in sorted(path for path in files if path.suffix in ("", ".yaml") and path.is_file()):
        found = NAMES.findall(path.read_text(encoding="utf-8", errors="replace"))
        plain = path.suffix == ".yaml" and all(kind != "group" for kind, _ in found)
        for kind, text in found:
            for name in NAME.findall(re.sub(r"#.*|\w+:", "", text)):
                its = path if plain and kind == "task" and "\n" not in text else None
                known[name] = known.get(name) or its
    return known


def _suggestion(name: str, known) -> str:
    plain = name.lower().replace("-", "_")
    close = [plain] if plain in known else difflib.get_close_matches(plain, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "`lm_eval ls tasks` lists them"


def read_task(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """Read the YAML of a task, includes merged, data files that lie beside it by their full names.

    `!function utils.f` is read as text; nothing is imported.

    Args:
        path: The file.
        above: The files that include it.

    Raises:
        UsageError: It is no task.
    """
    _, content = read_yaml_nodes(path, "task", ("!function",))
    if not isinstance(content, dict):
        raise UsageError(f"task {path} is not a mapping of lm_eval's fields to values")
    options = content.get("dataset_kwargs")
    if isinstance(options, dict) and "data_files" in options:
        content["dataset_kwargs"] = {**options, "data_files": located(options["data_files"], path.parent)}
    merged, includes = dict[str, Any](), content.pop("include", None) or []
    for include in includes if isinstance(includes, list) else [includes]:
        other = path.parent / str(include)
        if other.resolve() in (path.resolve(), *above):
            raise UsageError(f"task {path} includes itself")
        merged |= read_task(other, (*above, path.resolve()))
    merged |= content
    if not above:
        _check(path, merged)
    return merged


def _check(path: Path, task: dict) -> None:
    if "group" in task:
        raise UsageError(f"{path} is a group; give the YAML files of its tasks")
    if not isinstance(task.get("task"), str):
        raise UsageError(f"{path} is no task: it has no `task:` with a name")
    if not isinstance(task.get("dataset_kwargs") or {}, dict):
        raise UsageError(f"task {path}: dataset_kwargs must be a mapping")
    if task.get("dataset_path") in LOCAL:
        for file in _files((task.get("dataset_kwargs") or {}).get("data_files")):
            if "://" not in file and not glob.glob(file):
                raise UsageError(f"task {path}: its data file {file} does not exist")


def located(files, folder: Path):
    """Return data files by their full names, where they lie in `folder`."""
    if isinstance(files, dict):
        return {split: located(file, folder) for split, file in files.items()}
    if isinstance(files, list):
        return [located(file, folder) for file in files]
    if not isinstance(files, str):
        # lm_eval will say so
        return files
    beside = os.path.join(folder.resolve(), os.path.expanduser(files))
    return beside if glob.glob(beside) else files


def _files(files) -> list[str]:
    if isinstance(files, dict | list):
        return [file for part in (files.values() if isinstance(files, dict) else files) for file in _files(part)]
    return [files] if isinstance(files, str) else []
