"""When the power goes while something is saved, the old or the new is there, whole; so it is after the next run."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from tests.faults import power_cut
from tests.faults.conftest import PROCESS
from tests.faults.power_cut import Content, Disk
from tests.faults.stock import CALIBRATED, HALF, RECOVER, UNFINISHED

pytestmark = pytest.mark.faults

PIPELINE = "pipeline --config pipeline.yaml --model model"
SCORED = "--eval_data text.txt --max_seq_len 16"
RECOVERED = RECOVER.replace("--steps 4", "--steps 1")
OTHER = f"prune --model model {HALF}".replace("0.5", "0.25")
# name → (command, what is there before, the files and folders that must be whole)
SAVES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "a checkpoint": (f"{OTHER} --save_model out", ("llama",), ("out",)),
    "a checkpoint over another": (f"{OTHER} --save_model pruned --overwrite", ("llama", "pruned"), ("pruned",)),
    "a sparse checkpoint over another": (
        f"sparsify --model model --n 2 --m 4 {SCORED} --save_model pruned --overwrite", ("llama", "text", "pruned"),
        ("pruned",),
    ),
    "a recovered checkpoint": (f"{RECOVERED} --save_model out", ("llama", "text", "pruned"), ("out",)),
    "a plan": (f"{OTHER} --dry_run --save_plan new.json", ("llama",), ("new.json",)),
    "a plan over another": (f"{OTHER} --dry_run --save_plan plan.json", ("llama", "plan"), ("plan.json",)),
    "scores": (
        f"prune --model model {HALF} {CALIBRATED} --no_save --scores new.safetensors".replace("magnitude", "wanda_sp"),
        ("llama", "text"), ("new.safetensors",),
    ),
    "a report and its page": (f"evaluate --model model {SCORED} --report new.json", ("llama", "text"),
        ("new.json", "new.html")),
}  # fmt: skip
SWEEP = """
import sys
from pathlib import Path
from llm_pruner.output import checkpoint
for folder in sys.argv[2:]:
    try:
        with checkpoint.staged(Path(folder, sys.argv[1]), True):
            raise KeyError  # another run begins, and fails
    except KeyError:
        pass
"""


@pytest.mark.parametrize("name", SAVES)
def test_old_or_new_is_whole_at_every_point_of_saving(name, server, stock, tmp_path, record_property):
    command, needs, targets = SAVES[name]
    recording = recorded(command, needs, server, stock, tmp_path)
    before, after = power_cut.first(recording), power_cut.final(recording)
    allowed = {target: (before.tree(target), after.tree(target)) for target in targets}
    assert all(after.tree(target) not in (None, before.tree(target)) for target in targets), "it was saved"
    disks = list(power_cut.cuts(recording))
    wrong = {disk: target for disk in disks for target in targets if disk.tree(target) not in allowed[target]}
    record_property("power cut", [name, len(disks), len(wrong)])
    assert not wrong, told(*next(iter(wrong.items())), *allowed[next(iter(wrong.values()))], recording)
    inputs = sorted(set(before.entries[before.root]) - set(targets))
    for disk in disks:
        assert [one for one in inputs if disk.tree(one) != before.tree(one)] == [], disk.what


@pytest.mark.parametrize(
    ("name", "exchanged"),
    [("a checkpoint", True), ("a checkpoint over another", True), ("a checkpoint over another", False)],
)
def test_the_next_run_sweeps_away_what_a_power_cut_left(name, exchanged, server, stock, tmp_path, record_property):
    """Also where folders cannot be exchanged in one step: then the next run puts the old one back."""
    command, needs, (target,) = SAVES[name]
    recording = recorded(command, needs, server, stock, tmp_path, no_exchange=not exchanged)
    allowed = (power_cut.first(recording).tree(target), power_cut.final(recording).tree(target))
    disks = list(power_cut.cuts(recording))
    folders = [tmp_path / f"disk-{number}" for number in range(len(disks))]
    for disk, folder in zip(disks, folders):
        folder.mkdir()
        disk.write(folder, recording.blobs)
    done = server(["-c", SWEEP, target, *map(str, folders)], tmp_path)
    assert done.returncode == 0, done.stderr
    wrong = []
    for disk, folder in zip(disks, folders):
        left = [path.name for path in folder.iterdir() if ".partial" in path.name]
        if on_disk(folder / target) not in allowed or left:
            wrong.append((disk.at, disk.what, left))
    how = "" if exchanged else " in two steps"
    record_property("power cut", [f"{name}{how}, and the next run", len(disks), len(wrong)])
    assert not wrong, wrong[:3]


STATES = {
    "the state of a recovery": (UNFINISHED, ("llama", "text", "pruned"), "recovered.unfinished",
        ("recovery.json", "schedule.json")),
    "the state of a pipeline": (
        f"{PIPELINE} --folder run", ("llama", "text", "pipeline.yaml"), "run", ("pipeline.json", "summary.json"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_state_can_be_read_at_every_point(name, server, stock, tmp_path, record_property):
    command, needs, folder, files = STATES[name]
    recording = recorded(command, needs, server, stock, tmp_path)
    disks = list(power_cut.cuts(recording))
    states = [
        (disk.at, path, content)
        for disk in disks
        for path, content in (disk.tree(folder) or {}).items()
        if path.rpartition("/")[2] in files
    ]
    wrong = [(at, path) for at, path, content in states if not is_json(recording.blobs.get(content, b""))]
    assert {path.rpartition("/")[2] for _, path, _ in states} == set(files)
    record_property("power cut", [name, len(disks), len({at for at, _ in wrong})])
    assert not wrong, wrong[:3]


def is_json(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


def recorded(command: str, needs: tuple[str, ...], server, stock, tmp_path: Path, **more) -> power_cut.Recording:
    folder = tmp_path / "here"
    folder.mkdir()
    stock.put(needs, folder)
    plan = {"record": str(tmp_path / "recording"), **more}
    done = server([str(PROCESS), json.dumps(plan), *command.split()], folder)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder)
    return pickle.loads((tmp_path / "recording").read_bytes())


def on_disk(path: Path) -> dict[str, Content] | None:
    """As Disk.tree."""
    if not path.exists():
        return None
    found = {"." if one == path else f"./{one.relative_to(path)}": one for one in (path, *path.rglob("*"))}
    return {name: "folder" if one.is_dir() else power_cut.digest_of(one.read_bytes()) for name, one in found.items()}


def told(disk: Disk, target: str, old: dict | None, new: dict | None, recording: power_cut.Recording) -> str:
    """What is wrong with what the power cut left, and which operation was the next."""
    found = disk.tree(target) or {}
    nearest = min((old or {}, new or {}), key=lambda other: len(set(other.items()) ^ set(found.items())))
    files = sorted({path for path, _ in set(found.items()) ^ set(nearest.items())})
    return f"{target} at step {disk.at} of {len(recording.steps)} ({disk.what}) is neither old nor new: {files[:5]}"


def test_a_file_that_is_written_in_place_is_told():
    """The replay sees what would be lost: content that was not synced, names that were not."""
    recording = power_cut.Recording(0, {0}, {0: {"a": 1}}, {1: "old"})
    recording.steps = [("content", 1, "half"), ("content", 1, "new"), ("sync", 1)]
    assert {disk.tree("a")["."] for disk in power_cut.cuts(recording)} == {"old", "half", "new"}
    recording.steps = [("names", {(0, "b"): 2}), ("content", 2, "new"), ("names", {(0, "a"): 2, (0, "b"): None})]
    assert {disk.tree("a")["."] for disk in power_cut.cuts(recording)} == {"old", "new", None}, (
        "renamed before it is synced"
    )
    recording.steps.insert(2, ("sync", 2))
    assert {disk.tree("a")["."] for disk in power_cut.cuts(recording)} == {"old", "new"}
    recording.steps.append(("sync", 0))
    last = [disk.tree("a")["."] for disk in power_cut.cuts(recording)][-1]
    assert last == "new"


def test_operations_on_names_are_told_by_what_they_did():
    before = {0: {"a": 1, "b": 2, "c": 3}, 1: {}, 2: {}}
    exchanged = {0: {"a": 2, "b": 1, "c": 3}, 1: {}, 2: {}}
    assert power_cut.operations(before, exchanged) == [{(0, "a"): 2, (0, "b"): 1}]
    renamed = {0: {"a": 1, "b": 3}, 1: {}, 2: {}}
    assert power_cut.operations(before, renamed) == [{(0, "b"): 3, (0, "c"): None}]
    made = {0: {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, 1: {}, 2: {}}
    assert power_cut.operations(before, made) == [{(0, "d"): 4}, {(0, "e"): 5}]
