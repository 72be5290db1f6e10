"""What tests run in forks is what they would see of a fresh process."""

import subprocess

import pytest

from tests.support.forks import Forks

TELL = """
import os, sys
print(sys.argv, sys.path[0], os.getcwd(), os.environ["TOLD"], __name__, "llm_pruner" in sys.modules)
print(sys.stdin.read(), "to stderr", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def forks():
    """Of a process that has imported nothing, which is quicker to start."""
    forks = Forks(imported=())
    yield forks
    forks.stop()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('no')", 1),
        ("1 / 0", 1),
        ("os.kill(os.getpid(), 9)", -9),
        ("os.kill(os.getpid(), 15)", -15),
    ],
)
@pytest.mark.parametrize("way", ["-c", "-m", "script"])
def test_output_and_exit_code_are_the_same(python, tmp_path, monkeypatch, way, end, code):
    monkeypatch.setenv("TOLD", "this")
    text = f"{TELL}sys.stdout.flush()\n{end}"
    (tmp_path / "module.py").write_text(text)
    what = {"-c": ("-c", text), "-m": ("-m", "module"), "script": (tmp_path / "module.py",)}[way]
    fork, fresh = (python(*what, "one", 2, fresh=fresh) for fresh in (False, True))
    assert fork.returncode == fresh.returncode == code
    assert fork.stdout == fresh.stdout
    assert fork.stderr.splitlines()[:1] == fresh.stderr.splitlines()[:1] == [" to stderr"]
    assert fork.stderr.splitlines()[-1] == fresh.stderr.splitlines()[-1]


def test_a_fork_runs_programs_and_further_forks(python):
    code = (
        "import subprocess, sys, os; print(os.getppid())\n"
        "print(subprocess.run([sys.executable, '-c', 'import os; print(os.getppid(), 1 / 0)']).returncode)\n"
        "print(subprocess.run(['echo', 'hello'], capture_output=True, text=True).stdout)"
    )
    done = python("-c", code)
    assert done.stdout.split()[1:] == ["1", "hello"], done.stderr


def test_a_fork_that_takes_too_long_is_ended(python):
    with pytest.raises(subprocess.TimeoutExpired):
        python("-c", "import time; time.sleep(600)", timeout=1)
    assert python("-c", "print('next')").stdout == "next\n"
