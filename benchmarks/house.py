"""Figures of the code base before the move into rooms and now: sizes, functions, docstrings, documents, tests.

python benchmarks/house.py              # seconds; against the commit before the move; results/house.json
python benchmarks/house.py --tests      # runs `make test` and `make test-all` as well, which takes as long as they do
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from measure import RESULTS, keep

REPOSITORY = Path(__file__).parents[1]
sys.path.append(str(REPOSITORY))

from tests.support.source import branches, functions  # noqa: E402

# the last commit before the move
BEFORE = "0fcf980"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", action="store_true", help="run the tests too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "before.tar")
        subprocess.run(["git", "archive", "-o", str(archive), BEFORE], cwd=REPOSITORY, check=True)
        with tarfile.open(archive) as packed:
            packed.extractall(Path(folder, "before"), filter="data")
        result = {"before": measured(Path(folder, "before")), "now": measured(REPOSITORY)}
    path = RESULTS / "house.json"
    known = json.loads(path.read_text(encoding="utf-8")).get("tests", {}) if path.exists() else {}
    result["tests"] = {target: ran(target) for target in ("test", "test-all")} if arguments.tests else known
    keep("house", result)


def measured(root: Path) -> dict:
    """Return the figures of a tree."""
    package = root / "llm_pruner"
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}
    every = [function for tree in trees.values() for function in functions(tree).values()]
    readme = (root / "README.md").read_text(encoding="utf-8")
    public = [own for own in every if not own.name.startswith("_") and own.args.args[1:]]
    return {
        "entries_of_the_package": len([p for p in package.iterdir() if p.name not in ("__pycache__", "build")]),
        "modules": len(trees),
        "lines": lines(trees),
        "lines_by_room": rooms(package, trees),
        "longest_function": max((length(own), own.name) for own in every),
        "most_branches": max((branches(own), own.name) for own in every),
        "functions_over_60_lines_or_15_branches": sum(length(f) > 60 or branches(f) > 15 for f in every),
        "own_modules_imported_inside_functions": sum(map(own_imports, every)),
        "share_of_public_functions_with_args": share(public, lambda own: "Args:" in (ast.get_docstring(own) or "")),
        "readme": {"lines": len(readme.splitlines()), "words": len(re.findall(r"\S+", readme))},
        "pages_in_docs": len(list((root / "docs").rglob("*.md"))),
    }


def lines(paths) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def rooms(package: Path, paths) -> dict[str, int]:
    """Return {room: lines of its modules}, the largest first; modules outside of rooms are `.`."""
    found: dict[str, int] = {}
    for path in paths:
        parts = path.relative_to(package).parts
        room = parts[0] if len(parts) > 1 else "."
        found[room] = found.get(room, 0) + lines([path])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def length(function) -> int:
    return function.end_lineno - function.lineno + 1


def own_imports(function) -> int:
    found = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
    return sum(bool(node.level) or (node.module or "").startswith("llm_pruner") for node in found)


def share(functions: list, holds) -> float:
    return round(sum(map(holds, functions)) / len(functions), 3)


def ran(target: str) -> dict:
    """Run tests by their make target; return minutes, how many passed, and tests and seconds by folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tests.xml")
        environment = {**os.environ, "PYTEST_ADDOPTS": f"--junitxml={path}"}
        start = time.monotonic()
        done = subprocess.run(["make", target], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        minutes = (time.monotonic() - start) / 60
        cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    if done.returncode:
        sys.exit(f"make {target} failed:\n{done.stdout[-2000:]}")
    tiers: dict[str, dict] = {}
    for case in cases:
        own = tiers.setdefault(case.get("classname").split(".")[1], {"tests": 0, "seconds": 0.0})
        own["tests"] += 1
        own["seconds"] = round(own["seconds"] + float(case.get("time")), 1)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped)", done.stdout)}
    return {**counts, "minutes": round(minutes, 1), "tiers": tiers}


if __name__ == "__main__":
    main()
