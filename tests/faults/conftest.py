"""One server of forks with everything imported, the stock of inputs, and the summary of the session."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests import REPOSITORY
from tests.faults.contract import VIOLATIONS, Fault, broken, snapshot
from tests.faults.stock import FAMILIES, Stock
from tests.support.forks import IMPORTED, Forks

HEAVY = (
    *IMPORTED, "datasets", "peft", "llm_pruner.methods.reconstruct", "llm_pruner.cli.chain",
    "llm_pruner.evaluation.run",
    "llm_pruner.output.page",
    "llm_pruner.recovery.adapters", "llm_pruner.recovery.run", "llm_pruner.recovery.train", "llm_pruner.sparsity.sweep",
    "llm_pruner.cli.pipeline", "transformers.models.auto.tokenization_auto", "tests.faults.warm", "llm_pruner.cli.main",
    *[f"transformers.models.{name}.modeling_{name}" for name in FAMILIES if name != "gemma3_text"],
    "transformers.models.gemma3.modeling_gemma3",
)  # fmt: skip
PROCESS = Path(__file__).with_name("process.py")
REPORT = "LLM_PRUNER_FAULTS_REPORT"  # a file for the summary, as JSON


def pytest_configure(config):
    config.addinivalue_line("markers", "faults: the fault suite; `make test-faults`")
    if os.environ.get(REPORT) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Summary(os.environ[REPORT]))


@pytest.fixture(autouse=True)
def _seed():
    """torch is not imported here: only the processes under test need it."""


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Runs `python *arguments` in a folder, without the network."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "HF_HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    own = os.path.join(REPOSITORY, ".")  # so that it stays in the path, see forks.py
    forks = Forks(imported=HEAVY, HF_HUB_OFFLINE="1", HF_HOME=str(home), OMP_NUM_THREADS="1", PYTHONPATH=own)

    def run(arguments, folder: Path, seconds: float = 120, fresh: bool = False, **more: str):
        command, options = [sys.executable, *arguments], {"cwd": folder, "env": environment | more, "timeout": seconds}
        if fresh:
            return subprocess.run(
                command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, **options
            )
        if forks.connection is None:
            forks.run([sys.executable, "-c", ""])  # its start is not the command's time
        return forks.run(command, **options)

    yield run
    forks.stop()


@pytest.fixture(scope="session")
def stock(server, tmp_path_factory) -> Stock:
    return Stock(tmp_path_factory.mktemp("stock"), server)


@pytest.fixture
def judge(server, stock, tmp_path, record_property, request):
    """Lets a fault happen in an empty folder and returns what it broke of the contract, in words."""

    def judged(fault: Fault) -> dict[str, str]:
        folder = tmp_path / "here"
        folder.mkdir()
        stock.put(fault.needs, folder)
        if fault.change:
            fault.change(folder)
        before = snapshot(folder)
        found = happened(fault, folder, before)
        if fault.again and not found:
            plain = {"events": (), "streams": {}, "limits": {}, "codes": (0,), "killed": False}
            found = happened(replace(fault, **plain), folder, before)
        if found:
            record_property("found", found)
        shutil.rmtree(folder, ignore_errors=True)
        return found

    def happened(fault: Fault, folder: Path, before: dict) -> dict[str, str]:
        plan = {"streams": dict(fault.streams), "limits": dict(fault.limits), "events": [*map(asdict, fault.events)]}
        plan["log"] = str(tmp_path / "log")
        words = fault.command.split() if isinstance(fault.command, str) else list(fault.command)
        try:
            arguments = [str(PROCESS), json.dumps(plan), *words]
            done = server(arguments, folder, fault.seconds, fault.fresh, **fault.environment)
            code, out, err = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired:
            code, out, err = None, "", ""
        if not any(name == "fault" for name, _ in request.node.user_properties):
            record_property("fault", [fault.kind, code == 0])
        found = broken(fault, code, out, err, before, folder)
        if fault.events and not Path(plan["log"]).read_text():
            found["exit code"] = f"{code}, and {fault.events[0].when} never came"
        if found:
            command = shlex.join(word if len(word) < 200 else f"{word[:50]}…" for word in words)
            found["said"] = f"{command} → {code} | {out[-300:]} | {err[-1500:]}"
        return {name: what.encode("ascii", "backslashreplace").decode() for name, what in found.items()}

    return judged


class Summary:
    """Counts of the session by kind, from the reports of the tests, in whatever process they ran."""

    def __init__(self, path: str) -> None:
        self.path, self.started, self.kinds = path, time.monotonic(), {}
        self.power_cuts, self.failures, self.errors = {}, {}, []

    def pytest_runtest_logreport(self, report) -> None:
        told: dict[str, list] = {}
        for name, value in report.user_properties:
            told.setdefault(name, []).append(value)
        if report.failed and not ({"found", "power cut"} & set(told)):
            self.errors.append(report.nodeid)  # of the suite itself, or of what an input is made with
        if report.when != "call":
            return
        for kind, harmless in told.get("fault", ()):
            names = ("inputs", "refused", "harmless", *VIOLATIONS, "seconds")
            row = self.kinds.setdefault(kind, dict.fromkeys(names, 0))
            row["inputs"] += 1
            row["seconds"] += report.duration
            found = next(iter(told.get("found", ())), {})
            for name in [name for name in found if name in VIOLATIONS] or ["harmless" if harmless else "refused"]:
                row[name] += 1
            if found:
                self.failures[report.nodeid.partition("[")[2].removesuffix("]")] = found
        for name, points, wrong in told.get("power cut", ()):
            self.power_cuts[name] = {"points": points, "neither_old_nor_new": wrong}

    def pytest_sessionfinish(self) -> None:
        names = ("inputs", "refused", "harmless", *VIOLATIONS)
        kinds = {kind: row | {"seconds": round(row["seconds"], 1)} for kind, row in sorted(self.kinds.items())}
        summary = {
            "kinds": kinds,
            "all": {name: sum(row[name] for row in kinds.values()) for name in names},
            "power_cuts": self.power_cuts,
            "seconds": round(time.monotonic() - self.started, 1),
            "failures": self.failures,
            "errors": self.errors,
        }
        Path(self.path).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
