"""Where a run will write, checked before anything is loaded: nothing that it reads, and nothing that is not ours."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from llm_pruner.calibration.mixtures import listed, text_name
from llm_pruner.config.prune import BUDGETS, PruneOptions
from llm_pruner.errors import PrunerError, RunError, UsageError
from llm_pruner.files import read_json, write_whole
from llm_pruner.output import manifest
from llm_pruner.output.manifest import START

# the options, of all commands, that may name a file or a folder which the run reads
READ = (
    "config", "model", "dense", "teacher", "plan", "scores", "calibration_data", "vocab_data", "eval_data", "data",
    "tasks", "patterns", "recover", "teacher_cache",
)  # fmt: skip
# whose values may have a share behind their names
MIXED = ("calibration_data",)
# folders, by this process: what an interrupted run has to show all the same
published: list[Path] = []
# bytes for tokenizer, card and file system, beside the weights
MARGIN = 64 * 2**20


def inputs_of(options, more: Mapping[str, str | Path | None]) -> dict[str, Path]:
    """Return {option: file or folder} of all that a run reads from this machine.

    Args:
        options: The options of a command.
        more: What options name indirectly, such as the folder of a model.
    """
    given = {name: getattr(options, name, None) for name in READ} | dict(more)
    found = {}
    for name, value in given.items():
        several = value if isinstance(value, tuple | list) else [value]
        for one in map(text_name, listed(value)) if name in MIXED else several:
            path = Path(one).expanduser() if isinstance(one, str | Path) and str(one) else None
            if path and _exists(path):
                found[name if name not in found else f"{name} {one}"] = path
    return found


def check_apart(flag: str, output: Path, inputs: Mapping[str, Path], replaced: bool = False) -> None:
    """Raise a UsageError when an output is an input or lies in one that is a folder.

    Args:
        flag: The option that names the output.
        output: The output.
        inputs: What the run reads.
        replaced: Whether the output is a folder that will be replaced; then it must hold no input either.
    """
    there = _resolved(flag, output)
    for name, path in inputs.items():
        place = path.resolve()
        same = there == place or there.exists() and place.exists() and os.path.samefile(there, place)
        if same or place in there.parents or replaced and there in place.parents:
            how = "is" if same else "is inside" if place in there.parents else "holds"
            raise UsageError(f"`{flag}` {output} {how} {name} {path}, which this run needs; choose another place")


def check_folder(target: Path, inputs: Mapping[str, Path], overwrite: bool, flag: str = "save_model") -> None:
    """Raise a UsageError when a checkpoint cannot go to `target`.

    It cannot where that is a file or an input, or where what is there is not ours.
    """
    there = _resolved(flag, target)
    parent = _existing(there.parent)
    if os.path.lexists(target) and not target.is_dir():
        raise UsageError(f"`{flag}` {target} is a file, or a link to nothing; a folder is wanted")
    check_apart(flag, target, inputs, replaced=True)
    if target.is_dir() and (os.path.ismount(there) or there == Path.cwd() or there in Path.cwd().parents):
        raise UsageError(f"{target} is a mount point or where you are, and cannot be renamed; use a folder inside it")
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"`{flag}` {target} cannot be written: {parent} is not a folder with write permission")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{target} is not empty; use `overwrite` to replace it or `{flag}` for another folder")
    if why := not_ours(target):
        raise UsageError(f"{why}; `overwrite` only replaces checkpoints of this program: choose another `{flag}`")


def not_ours(target: Path) -> str | None:
    """Return why the folder may not be replaced, in words; None where a run of this program wrote all that it holds."""
    known = manifest.of_checkpoint(target)
    if known is None:
        return f"{target} holds no checkpoint of this program (no report.json that lists its files)"
    if others := manifest.foreign(target, known, but=(manifest.REPORT,)):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        state = "was changed after" if others[0] in known else "was not written by"
        return f"{target} holds {others[0]}{more}, which {state} the run that made the checkpoint"
    return None


def check_file(flag: str, path: Path, inputs: Mapping[str, Path]) -> None:
    """Raise a UsageError when a file cannot be written to `path`.

    It cannot where there is no folder to write in, or where `path` is a folder, a device or an input.
    """
    there = _resolved(flag, path)
    if path.is_dir() or not os.access(there.parent, os.W_OK | os.X_OK) or not there.parent.is_dir():
        raise UsageError(f"`{flag}` {path} is not a file in an existing folder with write permission")
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"`{flag}` {path} is no regular file; name another")
    check_apart(flag, path, inputs)


def check_disk(target: Path, size: int, what: str = "the checkpoint") -> None:
    """Raise a RunError when the disk that `target` is on has no room for `size` more bytes, those of `what`."""
    existing = _existing(target.resolve().parent)
    free, needed = shutil.disk_usage(existing).free, size + MARGIN
    if free < needed:
        raise RunError(f"{existing} has {free / 1e9:.2f} GB free, {what} needs {needed / 1e9:.2f} GB")


def check_outputs(options: PruneOptions, source: str) -> Path | None:
    """Return the folder to save to, if any. UsageError when an output of pruning cannot be written."""
    inputs = inputs_of(options, {"model": source})
    written = {name: Path(getattr(options, name)).expanduser() for name in ("save_plan", "scores", "work_dir")
               if getattr(options, name)}  # fmt: skip
    for name, path in written.items():
        others = {other: own for other, own in inputs.items() if other != name}
        others |= {f"`{other}`": own for other, own in written.items() if other != name}
        if name == "work_dir":
            check_work_folder(path, others)
        else:
            check_file(name, path, others)
    if options.save_plan and _exists(written["save_plan"]) and not _is_plan(written["save_plan"]):
        raise UsageError(f"`save_plan` {options.save_plan} exists and is not a plan of this program; name another file")
    if options.dry_run or options.no_save:
        return None
    if options.save_model:
        target = Path(options.save_model).expanduser()
    else:
        name = options.model if options.model == "demo" else Path(source).resolve().name
        # Without the criterion's own options, as in flap:metrics=IFV: they are no part of a folder's name.
        criterion = (options.importance or "magnitude").partition(":")[0]
        method = "" if criterion == "magnitude" or options.plan else f"-{criterion}"
        target = Path("pruned") / f"{name}-{_shape_name(options)}{method}"
    check_folder(target, inputs, options.overwrite)
    for name, path in written.items():
        check_apart(name, path, {"the output folder": target})
    return target


def check_work_folder(folder: Path, inputs: Mapping[str, Path], flag: str = "work_dir") -> None:
    """Raise a UsageError when unfinished work, or what `flag` names, cannot be kept in `folder`."""
    parent = _existing(_resolved(flag, folder))
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(f"`{flag}` {folder} is a file; name a folder")
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"`{flag}` {folder} cannot be written: {parent} is not a folder with write permission")
    check_apart(flag, folder, inputs)


def report_file(options, inputs: Mapping[str, Path], page: bool = False) -> Path:
    """Return where options.report goes, and with `page` its page beside it. UsageError when that is not possible."""
    path = Path(options.report).expanduser()
    if path.suffix != ".json":
        raise UsageError(f"`report` {path} must end in .json" + "; the page goes beside it as .html" * page)
    for one in (path, path.with_suffix(".html"))[: 1 + page]:
        check_file("report", one, inputs)
        if _exists(one) and not options.overwrite:
            raise UsageError(f"{one} exists; use `overwrite` to replace it or `report` for another file")
        if _exists(one) and not is_report(one):
            raise UsageError(f"{one} exists and is not a report of this program; use `report` for another file")
    return path


def is_report(path: Path) -> bool:
    """Return whether a file is a report or a page that this program wrote."""
    try:
        if path.suffix == ".html":
            with open(path, encoding="utf-8") as file:
                return file.read(len(START)) == START
        found = read_json(path, "the report")
    except (PrunerError, OSError, ValueError):
        return False
    versions = found.get("versions") if isinstance(found, dict) else None
    return isinstance(versions, dict) and "llm_pruner" in versions and "step" in found


def _is_plan(path: Path) -> bool:
    try:
        found = read_json(path, "the plan")
    except PrunerError:
        return False
    return isinstance(found, dict) and {"model_type", "kept"} <= set(found)


def write_files(contents: Mapping[Path, Callable[[Path], None]]) -> None:
    """Write each file by its function, whole or not at all. RunError when that fails."""
    for path, write in contents.items():
        try:
            write_whole(path, write)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def _shape_name(options: PruneOptions) -> str:
    if options.pruning_ratio is not None:
        return f"r{options.pruning_ratio:.2f}"
    if options.plan:
        return Path(options.plan).stem
    budget = next((name for name in BUDGETS if getattr(options, name) is not None), None)
    what = f"{budget}{getattr(options, budget)}" if budget else options.target or options.prune or ""
    return what.replace("=", "").replace(",", "-").replace(" ", "")


def _resolved(flag: str, path: Path) -> Path:
    """UsageError for a path that no file system takes: too long a name, a loop of links."""
    try:
        os.path.lexists(path) or path.is_dir()
        there = path.resolve()
        os.lstat(there) if os.path.lexists(there) else os.lstat(_existing(there.parent))
        limit = os.pathconf(_existing(there.parent), "PC_NAME_MAX")
        if any(len(os.fsencode(part)) > limit for part in there.parts):
            raise OSError(f"File name too long: at most {limit} bytes")
        return there
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"`{flag}` {path}: {getattr(error, 'strerror', None) or error}") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # too long to be a name
        return False


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
