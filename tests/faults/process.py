"""The process in which a command meets a fault: `python process.py PLAN COMMAND ARGUMENT …`.

PLAN is JSON: `streams` ({"stdout": an encoding, or closed, full, pipe, head}), `limits` ({"AS": bytes of memory,
"FSIZE": bytes of a file}), `events` (see contract.Event) with `log`, `record` (a file for what power_cut.Recorder
records) and `no_exchange` (folders cannot be exchanged in one step). The command runs as `python -m llm_pruner` and
`prune_llm.py` run it.
"""

import contextlib
import ctypes
import fnmatch
import io
import json
import os
import pickle
import resource
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def main() -> None:
    sys.path.remove(str(Path(__file__).parent))  # or its modules shadow others
    plan, command, *arguments = sys.argv[1:]
    plan = json.loads(plan)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs in the background has it ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and who runs under nohup this one
    for name, value in plan.get("limits", {}).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    for name, what in plan.get("streams", {}).items():
        redirect(name, what)
    if plan.get("no_exchange"):
        forget("renameat2")
    if plan.get("events"):
        happen(plan["events"], plan["log"])
    with recorded(plan["record"]) if plan.get("record") else contextlib.nullcontext():
        run(command, arguments)


def run(command: str, arguments: list[str]) -> None:
    if command == "pipeline" and hasattr(subprocess.run, "__self__"):  # this process is a fork, so its stages may be
        subprocess.Popen = Stage
    if command == "prune":
        sys.argv = [str(REPOSITORY / "prune_llm.py"), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.argv = ["llm_pruner", command, *arguments]
        runpy.run_module("llm_pruner", run_name="__main__", alter_sys=True)


def redirect(name: str, what: str) -> None:
    """What a shell, or an environment variable, does to a standard stream before Python starts."""
    number = 1 if name == "stdout" else 2
    encoding = "utf-8"
    if what == "closed":
        os.close(number)
        setattr(sys, name, None)
        return
    if what == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    elif what in ("pipe", "head"):
        reader, writer = os.pipe()
        os.dup2(writer, number)
        os.close(writer)
        if what == "pipe":
            os.close(reader)
        else:
            threading.Thread(target=lambda: (os.read(reader, 1), os.close(reader)), daemon=True).start()
    else:
        encoding = what
    errors = "strict" if name == "stdout" else "backslashreplace"  # as Python has it
    raw = io.FileIO(number, "w", closefd=False)
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=name == "stderr")
    setattr(sys, name, stream)


def forget(function: str) -> None:
    """The C library is one that lacks `function`."""
    plain = ctypes.CDLL.__getattr__

    def lacking(library, name):
        if name == function:
            raise AttributeError(name)
        return plain(library, name)

    ctypes.CDLL.__getattr__ = lacking


def is_it(way: str, name: str, arguments: tuple) -> bool:
    """Whether an audit event is the one that is meant by "name:pattern of an argument"."""
    wanted, _, pattern = way.partition(":")
    return name == wanted and any(
        fnmatch.fnmatch(os.fsdecode(one), pattern) for one in arguments if isinstance(one, str | bytes | os.PathLike)
    )


def happen(events: list[dict], log: str) -> None:
    """Installs an audit hook: whatever module does the work, the interpreter tells of files that are opened, renamed …

    What has happened is noted in the file `log`.
    """
    left = [event["nth"] for event in events]
    busy = False
    told = open(log, "a", encoding="utf-8")  # noqa: SIM115

    def hook(name: str, arguments: tuple) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            for i, event in enumerate(events):
                if left[i] > 0 and any(is_it(way, name, arguments) for way in event["when"].split("|")):
                    left[i] -= 1
                    if not left[i]:
                        print(event["when"], file=told, flush=True)
                        do(event)
        finally:
            busy = False

    sys.addaudithook(hook)


@contextlib.contextmanager
def recorded(path: str):
    """Keeps what happens to the files in this folder, whatever way the command ends."""
    from tests.faults.power_cut import Recorder

    recorder = Recorder(Path.cwd())
    try:
        yield
    finally:
        recorder.look()
        recorder.busy = True
        Path(path).write_bytes(pickle.dumps(recorder.recording))


def do(event: dict) -> None:
    for path, text in event["write"].items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    if event["signal"]:
        os.kill(os.getpid(), getattr(signal, event["signal"]))


class Stage:
    """A process of the pipeline, which is a fork as `subprocess.run` is: run to its end, then read."""

    def __init__(self, command, **options):
        done = subprocess.run(command, env=options.get("env"), cwd=options.get("cwd"))
        self.returncode = done.returncode
        self.stdout = io.StringIO(done.stdout + done.stderr)

    def wait(self, timeout=None) -> int:
        return self.returncode

    def terminate(self) -> None: ...

    kill = terminate


if __name__ == "__main__":
    main()
