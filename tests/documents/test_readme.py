"""The README as a newcomer goes through it: its commands and its Python, in order, in an empty folder without a hub."""

import re
import shlex

import pytest

from tests import REPOSITORY

# Commands of the README that are not run here, and why not.
LEFT_OUT = {
    "make test": "runs the tests",
    "llm-pruner pipeline": "downloads a model of 7B parameters",
}
MINUTES = "0.05"  # of training, instead of the README's
FIGURES = re.compile(r"perplexity (before|after): ")  # compared in test_docs.py


def blocks() -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def demo() -> list[str]:
    """The arguments of the command that `make demo` runs."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    return shlex.split(re.search(r"^demo:.*\n\t\$\(BIN\)/python prune_llm\.py (.*)", makefile, re.MULTILINE)[1])


def ran(python, words: list[str], activated: bool) -> str:
    """What a line prints that begins with `python` or `llm-pruner`."""
    assert activated, f"{words[0]} is not that of .venv yet"
    if "--max_minutes" in words:
        words[words.index("--max_minutes") + 1] = MINUTES
    if words[0] == "python":
        start = [REPOSITORY / words[1], *words[2:]]
    else:
        assert words[0] == "llm-pruner"
        start = ["-m", "llm_pruner", *words[1:]]
    done = python(*start, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_readme_can_be_followed(python, tmp_path):
    printed, activated, left_out = "", False, set()
    for language, block in blocks():
        if language == "python":
            done = python("-c", block)
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "smaller" / "config.json").is_file()
        elif language == "text":
            for line in block.splitlines():
                assert line in printed.splitlines() or FIGURES.match(line)
        for line in block.splitlines() if language == "bash" else ():
            words = shlex.split(line, comments=True)
            left = " ".join(words[:2])
            if words == ["make", "demo"]:
                done = python(REPOSITORY / "prune_llm.py", *demo(), "--importance", "magnitude", "--eval_data", "none")
                assert done.returncode == 0, done.stderr
            elif words == [".", ".venv/bin/activate"]:
                activated = True
            elif left in LEFT_OUT:
                left_out.add(left)
            else:
                printed = ran(python, words, activated)
    assert left_out == set(LEFT_OUT)
    assert (tmp_path / "pruned" / "half-recovered" / "report.json").is_file()
