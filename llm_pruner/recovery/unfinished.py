"""Where a recovery saves, and where it keeps what is unfinished, so that the same one goes on there after a kill.

The work folder holds recovery.json, which says what is being recovered how, and the Trainer's checkpoints. Each of
them is complete once it has its mark, schedule.json, with a list of its files: one that is damaged is set aside, and
the one before it is taken. Nothing else in the folder is ever removed.
"""

import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from llm_pruner import files, serialisation, validation
from llm_pruner.config.recover import RecoverOptions
from llm_pruner.console import is_main, log
from llm_pruner.errors import UsageError
from llm_pruner.files import checkpoint_digest, read_state, set_aside, text_digest, write_state
from llm_pruner.output import manifest
from llm_pruner.output.places import check_folder, check_work_folder, inputs_of
from llm_pruner.output.reports import Amount, Point, Seconds
from llm_pruner.recovery.settled import Settled
from llm_pruner.recovery.sources import Sources
from llm_pruner.recovery.teacher_cache import check_place

KEY, MARK = "recovery.json", "schedule.json"
STATE = {"key": validation.text, "resumed_at": validation.list_of(validation.whole())}
# they change no result
ELSEWHERE = ("save_model", "overwrite", "work_dir", "save_minutes", "traceback", "config")
# checkpoints, so that there is an older one when the last is damaged
KEPT = 2
# what it writes into a checkpoint that a kill left without its mark
OF_TRAINER = (
    "*config.json", "model*.safetensors*", "adapter_model*.safetensors*", "pytorch_model*", "modeling_pruned.py",
    "optimizer*", "scheduler*", "scaler*", "rng_state*.pth", "trainer_state.json", "training_args.bin", "README.md",
    "*.partial",
)  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """How far a run was when a checkpoint of it was kept, and the digests of the checkpoint's files."""

    step: Amount
    seconds: Seconds
    history: list[Point]
    files: dict[str, str]


def outputs(options: RecoverOptions, found: Sources) -> tuple[Path, Path]:
    """Return where the checkpoint goes, and where unfinished work is kept.

    Args:
        options: Of the recovery, as they were given.
        found: The sources of the run.

    Raises:
        UsageError: One of the two cannot be written.
    """
    source = found.student
    name = options.save_model or f"{options.model.rstrip('/')}-recovered"
    if not options.save_model and not os.path.isdir(source):
        name = f"recovered/{Path(source).name}"
    target = Path(name).expanduser()
    inputs = inputs_of(
        options, {"model": source, "teacher": found.teacher, "data": found.data, "eval_data": found.eval_data}
    )
    if options.teacher_cache:
        cache = Path(options.teacher_cache).expanduser()
        check_work_folder(
            cache, {name: own for name, own in inputs.items() if name != "teacher_cache"}, "teacher_cache"
        )
        check_place(cache)
        inputs["teacher_cache"] = cache
    check_folder(target, inputs, options.overwrite)
    folder = Path(options.work_dir).expanduser() if options.work_dir else target.with_name(target.name + ".unfinished")
    check_work_folder(folder, inputs | {"the output folder": target})
    if folder.is_dir() and any(folder.iterdir()) and not any(folder.glob(f"{KEY}*")):
        raise UsageError(f"`work_dir` {folder} holds something else than an unfinished recovery; choose another place")
    return target, folder


def key_of(found: Sources, settled: Settled, folder: str) -> str:
    """Return what a recovery is made from, as one hash: only the same one goes on from where it was.

    Args:
        found: The sources of the run.
        settled: The options of the run, with nothing left to default.
        folder: Where the student's files are.
    """
    parts = {name: value for name, value in settled.asdict().items() if name not in ELSEWHERE}
    parts["student"] = checkpoint_digest(found.student, folder)
    # wherever it is
    parts["teacher_cache"] = bool(settled.asked.teacher_cache)
    if found.teacher:
        parts["teacher"] = found.teacher_digest(weights=not settled.asked.teacher_cache)
    for name in ("data", "eval_data"):
        parts[name] = text_digest(parts[name])
    return files.key_of(parts)


def go_on(folder: Path, key: str) -> list[int]:
    """Return the steps that a run has gone on from so far; the work of another run is removed.

    Args:
        folder: Where unfinished work is kept.
        key: Of this run, see `key_of`.
    """
    state = read_state(folder / KEY, STATE)
    resumed = state.get("resumed_at", [])
    if state.get("key") != key:
        if state:
            log(f"note: {folder} is of a recovery with other inputs or options; starting anew")
        resumed = []
        if is_main():
            clear(folder)
    last = last_kept(folder)
    if last:
        resumed.append(int(last.name.rpartition("-")[2]))
        log(f"going on from step {resumed[-1]}, kept in {folder}")
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        write_state(folder / KEY, {"key": key, "resumed_at": resumed})
    return resumed


def mark_kept(checkpoint: Path, step: int, seconds: float, history: list[Point]) -> None:
    """Make what the Trainer has written a checkpoint that a run can go on from, and remove old ones.

    Args:
        checkpoint: The folder.
        step: The optimiser steps that are done.
        seconds: That the run took so far.
        history: The points of the training so far.
    """
    mark = Mark(step, seconds, history, manifest.listed(checkpoint, but=(MARK,)))
    write_state(checkpoint / MARK, serialisation.plain(mark))
    for old in sorted(_checkpoints(checkpoint.parent), key=_step)[:-KEPT]:
        _remove(old)


def last_kept(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that is complete and as it was written; damaged ones are set aside."""
    for checkpoint in sorted(_checkpoints(folder), key=_step, reverse=True):
        if not os.path.lexists(checkpoint / MARK):
            # a kill came before it was complete
            continue
        mark = read_mark(checkpoint)
        if mark and manifest.is_whole(checkpoint, mark.files):
            return checkpoint
        if is_main():
            set_aside(checkpoint)
        log(f"note: {checkpoint} is damaged and set aside; going on from an older one, or from the start")
    return None


def read_mark(checkpoint: Path) -> Mark | None:
    """Return what `mark_kept` kept; None where that is damaged."""
    rules, _ = serialisation.schema(Mark)
    state = read_state(checkpoint / MARK, rules)
    return serialisation.read(Mark, state, str(checkpoint / MARK)) if state else None


def clear(folder: Path) -> None:
    """Remove what recoveries have written to the work folder, and itself when nothing else is in it."""
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if re.fullmatch(rf"{re.escape(KEY)}(\.damaged(-\d+)?)?|\.[0-9a-f]{{12}}\.\d+\.partial", path.name):
            if not path.is_dir():
                path.unlink()
        elif re.fullmatch(r"checkpoint-\d+(\.damaged(-\d+)?)?", path.name) and path.is_dir():
            _remove(path)
    if left := list(manifest.entries(folder)):
        log(f"note: {folder} stays, because {left[0]} in it is not a recovery's")
    else:
        folder.rmdir()


def _remove(checkpoint: Path) -> None:
    """Removes the files of a checkpoint: those that it lists or, where it is incomplete, a Trainer's by their names."""
    mark = read_mark(checkpoint) if (checkpoint / MARK).is_file() else None
    names = list(manifest.entries(checkpoint))
    if mark:
        known = set(mark.files)
    else:
        known = {name for name in names if any(fnmatch(name, pattern) for pattern in (*OF_TRAINER, f"{MARK}*"))}
    manifest.remove(checkpoint, {}, but=tuple(name for name in names if name in known or name.startswith(MARK)))


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
