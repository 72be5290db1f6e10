"""Python processes that are forked from one in which torch and transformers are imported.

What runs in them is what runs in a fresh process, from its command line to its exit code or the signal it dies of,
without the seconds that these imports take. llm_pruner is not imported beforehand. In such a process `subprocess.run`
is `Forks.run`, so the one that reloads a saved checkpoint is a fork like it.
"""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

IMPORTED = ("accelerate", "safetensors.torch", "transformers.models.llama.modeling_llama")
in_a_fresh_process = subprocess.run


class Forks:
    def __init__(self, connection: Connection | None = None, imported=IMPORTED, **environment: str) -> None:
        """connection: to the process that forks. Without one it is started when it is first needed, with
        `environment`, and imports the modules `imported`."""
        self.connection, self.imported, self.environment = connection, imported, environment
        self.process = None

    def run(self, command, *, cwd=None, env=None, timeout: float | None = None, **options):
        """As `subprocess.run`, with the output captured as text. Only Python is forked."""
        if command[0] != sys.executable:
            return in_a_fresh_process(command, cwd=cwd, env=env, timeout=timeout, **options)
        if self.connection is None:
            self._start()
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            environment = dict(os.environ if env is None else env)
            self.connection.send((command[1:], str(cwd or os.getcwd()), environment, str(out), str(err)))
            if not self.connection.poll(timeout):
                self.stop()
                raise subprocess.TimeoutExpired(command, timeout)
            code = self.connection.recv()
            said = [path.read_text(encoding="utf-8", errors="backslashreplace") for path in (out, err)]
            return subprocess.CompletedProcess(command, code, *said)

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *self.imported],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
                env={**os.environ, **self.environment},
            )  # fmt: skip

    def stop(self) -> None:
        """Ends the process that forks, with whatever runs in its forks."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.connection.close()
            self.connection = self.process = None


def serve(connection: Connection) -> None:
    """Forks for every job that comes, and meanwhile for those of the fork; sends its exit code."""
    while True:
        try:
            job = connection.recv()
        except EOFError:  # the other end is closed
            return
        ours, theirs = Pipe()
        with ours:
            with theirs:
                process = get_context("fork").Process(target=become, args=(theirs, *job))
                process.start()
            serve(ours)
            process.join()
        connection.send(process.exitcode)


def become(connection: Connection, arguments: list[str], folder: str, environment: dict, out: str, err: str) -> None:
    """Runs `python arguments`."""
    subprocess.run = Forks(connection).run
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate((os.devnull, out, err)):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    first, *rest = arguments
    if first == "-m":
        sys.argv, sys.path[:0] = rest, [folder]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[:0] = [first, *rest[1:]], [""]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(rest[0], vars(main))
    else:
        sys.argv, sys.path[:0] = arguments, [os.path.dirname(first)]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    import gc
    from importlib import import_module

    own = [os.path.dirname(__file__), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:] = [path for path in sys.path if path not in own]  # every fork adds its own
    for name in sys.argv[2:]:
        import_module(name)
    gc.freeze()
    serve(Connection(int(sys.argv[1])))
