"""Signals at several moments, kills, full disks, and the work state that they leave, damaged further."""

from collections.abc import Iterator

from tests.faults.changes import Change, cut, directory, edited, fields, link, pipe, remove, text
from tests.faults.contract import Event, Fault
from tests.faults.stock import HALF, UNFINISHED

PRUNE = f"prune --model model {HALF} --save_model pruned --overwrite"
MOMENTS = {
    "the model is loaded": "open:*model/generation_config.json",
    "the checkpoint is begun": "tempfile.mkdtemp:*partial*",
    "its configuration is written": "open:*partial*/config.json",
    "its report is written": "os.rename:*report.json|open:*partial*/report.json",
    "it is published": "os.rename:*partial*|ctypes.dlsym:renameat2",
}
SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": -9}


def faults() -> Iterator[Fault]:
    for moment, when in MOMENTS.items():
        for name, code in SIGNALS.items():
            published = moment in ("it is published", "its report is written")
            yield Fault(
                "signals", f"{name} when {moment}", PRUNE, None, (0, code) if published else (code,), (),
                ("llama", "pruned"),
                ("pruned",) if published or code == -9 else (), ("pruned",), events=(Event(when, name),),
                killed=code == -9,
                again=code == -9,
            )  # fmt: skip
    for moment in ("the model is loaded", "its configuration is written", "its report is written"):
        for second in ("os.rmdir:*|os.remove:*", "shutil.rmtree:*partial*"):
            yield Fault(
                "signals", f"SIGINT when {moment} and at {second.partition(':')[0]}", PRUNE, None, (0, 130), (),
                ("llama", "pruned"),
                ("pruned",), ("pruned",), events=(Event(MOMENTS[moment], "SIGINT"), Event(second, "SIGINT")),
                killed=True,
            )  # fmt: skip
    for name, code in SIGNALS.items():
        yield Fault(
            "signals", f"{name} in a training that goes on afterwards", UNFINISHED, None, (code,), (),
            ("llama", "text", "pruned"),
            ("recovered", "recovered.unfinished"), ("recovered",), events=(Event("os.mkdir:*checkpoint-3", name),),
            killed=code == -9, again=True,
        )  # fmt: skip
        yield Fault(
            "signals", f"{name} in the second stage of prune --recover",
            f"prune --model model {HALF} --save_model out --recover how.yaml", text("how.yaml", (
                "method: distil\ndata: text.txt\nmax_seq_len: 16\nsteps: 4\nsave_minutes: 0.0000001\n")), (code,),
            ("out",) if code in (130, 143) else (), ("llama", "text"),
            ("out", "out-recovered", "out-recovered.unfinished"), ("out",),
            events=(Event("os.mkdir:*checkpoint-2", name),), killed=code == -9,
        )  # fmt: skip
    for size in (1_000, 30_000, 200_000, 260_000):
        yield Fault(
            "full disks", f"files end at {size:,} bytes", PRUNE.replace("0.5", "0.25"), None, (1,), (),
            ("llama", "pruned"), (),
            ("pruned",), limits={"FSIZE": size},
        )  # fmt: skip
    yield Fault("full disks", "of a plan", f"prune --model model {HALF} --dry_run --save_plan plan.json", None, (1,),
        ("plan.json",),
                limits={"FSIZE": 100})  # fmt: skip
    yield Fault("full disks", "of a plan that is there", f"prune --model model {HALF} --dry_run --save_plan plan.json",
        None, (1,),
                ("plan.json",), ("llama", "plan"), limits={"FSIZE": 100})  # fmt: skip
    yield Fault("full disks", "of a report",
        "evaluate --model model --eval_data text.txt --max_seq_len 16 --report out.json", None, (1,),
                ("out",), ("llama", "text"), limits={"FSIZE": 100})  # fmt: skip
    yield Fault(
        "full disks", "no memory", f"prune --model model {HALF} --no_save", None, (0, 1), (), limits={"AS": 3 * 2**30}
    )
    yield from _recovery()
    yield from _pipelines()


def _recovery() -> Iterator[Fault]:
    """Damaged state of an unfinished recovery is set aside, an older one or a fresh start taken; the run succeeds."""
    state, last = "recovered.unfinished/recovery.json", "recovered.unfinished/checkpoint-2"
    needs, writes = ("llama", "text", "pruned", "unfinished"), ("recovered", "recovered.unfinished")
    for label, change, codes in [
        ("as it was", None, (0,)),
        ("state empty", text(state, ""), (0,)),
        ("state cut off", cut(state), (0,)),
        ("state of another version", fields(state, version=99), (0,)),
        ("state without its key", text(state, "{}"), (0,)),
        ("key 7", fields(state, key=7), (0,)),
        ("steps of text", fields(state, resumed_at="x"), (0,)),
        ("state deep", text(state, "[" * 100_000), (0,)),
        ("state a pipe", pipe(state), (0, 2)),
        ("state a folder", directory(state), (0, 2)),
        ("state missing", remove(state), (0, 2)),
        ("clock empty", text(f"{last}/schedule.json", ""), (0,)),
        ("clock of other types", text(f"{last}/schedule.json", '{"step": "x", "seconds": [], "history": 7}'), (0,)),
        ("clock a pipe", pipe(f"{last}/schedule.json"), (0, 2)),
        ("the trainer's state cut off", cut(f"{last}/trainer_state.json"), (0,)),
        ("the trainer's state empty", text(f"{last}/trainer_state.json", "{}"), (0,)),
        ("weights cut off", _weights(last, cut), (0,)),
        ("optimiser cut off", cut(f"{last}/optimizer.pt"), (0,)),
        ("random state cut off", cut(f"{last}/rng_state.pth"), (0,)),
        ("a file called checkpoint-9", text("recovered.unfinished/checkpoint-9", "x"), (0, 2)),
        ("a folder called checkpoint-x", text("recovered.unfinished/checkpoint-x/schedule.json", "{}"), (0, 2)),
        (
            "the whole folder a file",
            lambda folder: (
                (folder / "recovered.unfinished").rename(folder / "old"),
                text("recovered.unfinished", "x")(folder),
            ),
            (2,),
        ),
        (
            "the folder a link to nothing",
            lambda folder: (
                (folder / "recovered.unfinished").rename(folder / "old"),
                link("recovered.unfinished", "nowhere")(folder),
            ),
            (0, 2),
        ),
    ]:
        yield Fault(
            "unfinished recoveries", label, UNFINISHED, change, codes, (), needs, (*writes, "nowhere"), ("recovered",)
        )
    yield Fault(
        "unfinished recoveries",
        "other options",
        UNFINISHED.replace("--steps 4", "--steps 1"),
        None,
        (0, 2),
        (),
        needs,
        writes,
    )


def _weights(last: str, damage) -> Change:
    return lambda folder: [
        damage(str(path.relative_to(folder)))(folder) for path in (folder / last).glob("*.safetensors")
    ]


CHANGED = ("weights", "configuration", "report", "evaluation")  # which somebody may have done on purpose


def _pipelines() -> Iterator[Fault]:
    """A stage is skipped only when what it would skip is whole."""
    command, needs = (
        "pipeline --config pipeline.yaml --model model --folder run",
        ("llama", "text", "pipeline.yaml", "pipeline"),
    )
    for label, change in [
        ("as it was", None),
        ("state empty", text("run/pipeline.json", "")),
        ("state a list", text("run/pipeline.json", "[]")),
        ("state cut off", cut("run/pipeline.json")),
        ("state of other types", text("run/pipeline.json", '{"prune": 7, "evaluate": [1]}')),
        ("state deep", text("run/pipeline.json", "[" * 100_000)),
        ("weights cut off", cut("run/pruned/model.safetensors")),
        ("weights missing", remove("run/pruned/model.safetensors")),
        ("configuration cut off", cut("run/pruned/config.json")),
        ("configuration missing", remove("run/pruned/config.json")),
        ("report cut off", cut("run/pruned/report.json")),
        ("evaluation cut off", cut("run/evaluation.json")),
        ("evaluation a list", text("run/evaluation.json", "[]")),
        ("evaluation missing", remove("run/evaluation.json")),
        ("summary cut off", cut("run/summary.json")),
    ]:
        yield Fault(
            "unfinished pipelines", label, command, change, (0, 2) if label.split()[0] in CHANGED else (0,), (),
            needs, ("run",), ("run/pruned",),
        )  # fmt: skip
    sweep = "sparsify --model model --patterns pattern.yaml --eval_data text.txt --max_seq_len 16 --folder sweep"
    for label, change in [
        ("as it was", None),
        ("a run empty", text("sweep/model--pattern.json", "")),
        ("a run cut off", cut("sweep/model--pattern.json")),
        ("a run a list", text("sweep/model--pattern.json", "[]")),
        ("a run without its numbers", edited("sweep/model--pattern.json", lambda found: {"key": found["key"]})),
        (
            "a run of other types",
            edited("sweep/model--pattern.json", lambda found: dict.fromkeys(found, 7) | {"key": found["key"]}),
        ),
        ("a run deep", text("sweep/model--pattern.json", "[" * 100_000)),
        ("the table cut off", cut("sweep/sweep.json")),
    ]:
        yield Fault(
            "unfinished sweeps", label, sweep, change, (0,), (), ("llama", "text", "pattern.yaml", "sweep"), ("sweep",)
        )
