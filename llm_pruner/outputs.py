"""Where a run will write, checked before anything is loaded."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from llm_pruner import checkpoint
from llm_pruner.config import BUDGETS, Options
from llm_pruner.errors import RunError, UsageError


def check_outputs(options: Options, source: str) -> Path | None:
    """The folder to save to, if any. UsageError when an output cannot be written."""
    if options.work_dir:
        if Path(options.work_dir).expanduser().is_file():
            raise UsageError(f"--work_dir {options.work_dir} is a file; name a folder")
        if _inside(Path(options.work_dir, "file"), source):
            raise UsageError(f"--work_dir {options.work_dir} is inside the input model; choose another place")
    for name in ("save_plan", "scores"):
        if file := getattr(options, name):
            path = Path(file).expanduser()
            parent = path.absolute().parent
            if path.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise UsageError(f"--{name} {path} is not a file in an existing folder with write permission")
            if _inside(path, source):
                raise UsageError(f"--{name} {path} is inside the input model; choose another place")
    if options.save_plan and options.scores and Path(options.save_plan).resolve() == Path(options.scores).resolve():
        raise UsageError(f"--save_plan and --scores are both {options.scores}; name two files")
    if options.dry_run or options.no_save:
        return None
    if options.save_model:
        target = Path(options.save_model).expanduser()
    else:
        name = options.model if options.model == "demo" else Path(source).resolve().name
        named = options.importance not in (None, "magnitude") and not options.plan
        method = f"-{options.importance}" if named else ""
        target = Path("pruned") / f"{name}-{_shape_name(options)}{method}"
    checkpoint.check_target(target, source, options.overwrite)
    for name in ("save_plan", "scores"):
        if getattr(options, name) and _inside(getattr(options, name), target):
            raise UsageError(f"--{name} {getattr(options, name)} is inside {target}, which the checkpoint will replace")
    if options.work_dir and _inside(Path(options.work_dir, "file"), target):
        raise UsageError(f"--work_dir {options.work_dir} is inside {target}, where the checkpoint goes; name another")
    return target


def report_file(name: str, overwrite: bool, page: bool = False) -> Path:
    """Where a report goes, and with `page` its page beside it. UsageError when it cannot be written there."""
    path = Path(name).expanduser()
    if path.suffix != ".json":
        raise UsageError(f"--report {path} must end in .json" + "; the page goes beside it as .html" * page)
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise UsageError(f"--report {path} is not in an existing folder with write permission")
    for one in (path, path.with_suffix(".html"))[: 1 + page]:
        if one.is_dir() or one.exists() and not overwrite:
            raise UsageError(f"{one} is there; use --overwrite to replace it or --report for another file")
    return path


def write_files(contents: Mapping[Path, Callable[[Path], None]]) -> None:
    """Writes each file beside its place by its function, then renames them all. RunError when that fails."""
    partial = {path: path.with_name(f".{path.name}.partial") for path in contents}
    try:
        for path, write in contents.items():
            write(partial[path])
        for path, one in partial.items():
            os.replace(one, path)
    except OSError as error:
        raise RunError(f"{', '.join(map(str, contents))} cannot be written: {error}") from error
    finally:
        for one in partial.values():
            with contextlib.suppress(OSError):
                one.unlink()


def _shape_name(options: Options) -> str:
    if options.pruning_ratio is not None:
        return f"r{options.pruning_ratio:.2f}"
    if options.plan:
        return Path(options.plan).stem
    budget = next((name for name in BUDGETS if getattr(options, name) is not None), None)
    what = f"{budget}{getattr(options, budget)}" if budget else options.target or options.prune
    return what.replace("=", "").replace(",", "-").replace(" ", "")


def _inside(path: str | Path, folder: str | Path) -> bool:
    return Path(folder).expanduser().resolve() in Path(path).expanduser().resolve().parents
