"""Where a recovery saves, and where it keeps what is unfinished, so that the same one goes on there after a kill."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from llm_pruner import checkpoint, loading, scores
from llm_pruner.errors import UsageError
from llm_pruner.recover.options import RecoverOptions
from llm_pruner.recover.sources import Sources
from llm_pruner.console import is_main, say

KEY = "recovery.json"
ELSEWHERE = ("save_model", "overwrite", "work_dir", "save_minutes", "traceback")  # options that change no result


def outputs(options: RecoverOptions, source: str) -> tuple[Path, Path]:
    """(where the checkpoint goes, where unfinished work is kept). UsageError when that cannot be."""
    name = options.save_model or f"{options.model.rstrip('/')}-recovered"
    if not options.save_model and not os.path.isdir(source):
        name = f"recovered/{Path(source).name}"
    target = Path(name).expanduser()
    checkpoint.check_target(target, source, options.overwrite)
    folder = Path(options.work_dir).expanduser() if options.work_dir else target.with_name(target.name + ".unfinished")
    for other, what in ((Path(source), "the input model"), (target, "the output folder")):
        if other.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise UsageError(f"--work_dir {folder} is inside {what}; choose another place")
    if folder.is_file():
        raise UsageError(f"--work_dir {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / KEY).is_file():
        raise UsageError(f"--work_dir {folder} holds something else than an unfinished recovery; choose another place")
    return target, folder


def key_of(found: Sources, options: RecoverOptions, folder: str) -> str:
    """What a recovery is made from, as one hash: only the same one goes on from where it was."""
    parts = {name: value for name, value in options.asdict().items() if name not in ELSEWHERE}
    parts["student"] = scores.fingerprint(found.student, folder)
    if found.teacher:
        parts["teacher"] = scores.fingerprint(found.teacher, loading.fetch(found.teacher))
    for name in ("data", "eval_data"):
        parts[name] = scores.text_digest(parts[name])
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def go_on(folder: Path, key: str) -> list[int]:
    """The steps that the run in `folder` has gone on from so far; an empty folder if it was another run."""
    from llm_pruner.recover.pace import last_kept

    kept = {}
    if (folder / KEY).is_file():
        kept = json.loads((folder / KEY).read_text(encoding="utf-8"))
        if kept["key"] != key:
            say(f"note: {folder} is of a recovery with other inputs or options; starting anew")
            kept = {}
            if is_main():
                shutil.rmtree(folder)
    resumed = kept.get("resumed_at", [])
    last = last_kept(folder)
    if last:
        resumed.append(int(last.name.rpartition("-")[2]))
        say(f"going on from step {resumed[-1]}, kept in {folder}")
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / KEY).write_text(json.dumps({"key": key, "resumed_at": resumed}), encoding="utf-8")
    return resumed
