"""The fault suite and the power-cut test, and what they say about each promise.

python benchmarks/faults.py             # three minutes on two cores; results/faults.json and faults.md
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import RESULTS, keep

REPOSITORY = Path(__file__).parents[1]
# what is promised → the violations that break it, of tests/faults/contract.py
PROMISES = {
    "an impossible run ends with the exit code of its kind of failure; a harmless fault ends no run": ("exit code",),
    "an error is one line that names the file, the field or the tensor": ("error line", "words"),
    "no message is a raw exception of Python, and none has a traceback": ("internal exception", "traceback"),
    "no run waits forever": ("hang",),
    "no file of the user is changed or removed": ("lost file",),
    "an output is complete, old or new, and no temporary file remains": ("half-written", "leftover"),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "summary.json")
        environment = {**os.environ, "LLM_PRUNER_FAULTS_REPORT": str(path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-n", "2", "-q", "--tb=no", "tests/faults"]
        # what fails is counted
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=False)
        summary = json.loads(path.read_text(encoding="utf-8"))
    if summary["errors"]:
        sys.exit(f"the suite itself failed: {summary['errors'][0]} ({len(summary['errors'])} in all)")
    keep("faults", summary)
    (RESULTS / "faults.md").write_text(markdown(summary), encoding="utf-8")
    print(f"\n{markdown(summary)}")


def markdown(summary: dict) -> str:
    """A table of the promises, with how often each was tried and broken, and one of the kinds of faults."""
    found, cuts = summary["all"], summary["power_cuts"].values()
    tried = f"{found['inputs']:,} inputs"
    lines = ["| promise | tried with | broken |", "|---|---|---|"]
    for promise, violations in PROMISES.items():
        lines.append(f"| {promise} | {tried} | {sum(found[name] for name in violations)} |")
    points, wrong = (sum(cut[name] for cut in cuts) for name in ("points", "neither_old_nor_new"))
    tried = f"{points:,} points of {len(cuts)} saves"
    lines.append(f"| after a power cut a saved output is the complete old or new one | {tried} | {wrong} |")
    lines += ["", "| kind of fault | inputs | refused | harmless | broken |", "|---|---|---|---|---|"]
    for kind, row in summary["kinds"].items():
        broken = row["inputs"] - row["refused"] - row["harmless"]
        lines.append(f"| {kind} | {row['inputs']} | {row['refused']} | {row['harmless']} | {broken} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
