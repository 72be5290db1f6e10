"""Printing: encodings that lack characters, streams that are closed, full or lost, names that are not UTF-8."""

import os
from collections.abc import Iterator
from pathlib import Path

from tests.faults.contract import Fault
from tests.faults.stock import CALIBRATED, HALF, RECOVER

ENCODINGS = ("ascii", "latin-1", "cp1252", "utf-16")
LOST: dict[str, tuple[dict, bool]] = {  # the streams, and whether nobody hears an error
    "stdout closed": ({"stdout": "closed"}, False),
    "stderr closed": ({"stderr": "closed"}, True),
    "both closed": ({"stdout": "closed", "stderr": "closed"}, True),
    "stdout on a full disk": ({"stdout": "full"}, False),
    "stderr on a full disk": ({"stderr": "full"}, True),
    "both on a full disk": ({"stdout": "full", "stderr": "full"}, True),
    "stdout to a pipe that nobody reads": ({"stdout": "pipe"}, False),
    "stderr to a pipe that nobody reads": ({"stderr": "pipe"}, True),
    "stdout to a reader that leaves": ({"stdout": "head"}, False),
}
COMMANDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "prune": (f"prune --model model {HALF} --save_model out", ("llama",), ("out",)),
    "the best method": (
        f"prune --model model --param_ratio 0.3 --search_minutes 0 --epochs 1 --eval_data none {CALIBRATED} "
        "--save_model out",
        ("llama", "text"), ("out",),
    ),
    "evaluate": ("evaluate --model model --eval_data text.txt --max_seq_len 16 --report out.json", ("llama", "text"),
        ("out.*",)),
    "sparsify": (
        "sparsify --model model --n 2 --m 4 --eval_data text.txt --max_seq_len 16 --save_model out", ("llama", "text"),
        ("out",),
    ),
    "recover": (f"{RECOVER.replace('--steps 4', '--steps 1')} --save_model out", ("llama", "text", "pruned"), ("out",)),
    "pipeline": ("pipeline --config pipeline.yaml --model model --folder run", ("llama", "text", "pipeline.yaml"),
        ("run",)),
    "help": ("prune --help", (), ()),
}  # fmt: skip
BAD = os.fsdecode(b"caf\xe9-\xff")  # a name that is not UTF-8
REFUSED = "prune --model model --pruning_ratio 0.5 --importance magnitudé --dry_run"


def faults() -> Iterator[Fault]:
    for what, (command, needs, writes) in COMMANDS.items():
        slow = what not in ("prune", "evaluate", "help")
        targets = () if what in ("evaluate", "pipeline", "help") else ("out",)
        for encoding in ENCODINGS[: 1 if slow else None]:
            yield Fault("printing", f"{what}: stdout in {encoding}", command, None, (0,), (), needs, writes, targets,
                        streams={"stdout": encoding, "stderr": encoding})  # fmt: skip
        for name, (streams, silent) in LOST.items():
            if slow and name not in ("stdout on a full disk", "stdout to a reader that leaves"):
                continue
            codes = (0, 1) if what == "help" else (0,)
            yield Fault(
                "printing",
                f"{what}: {name}",
                command,
                None,
                codes,
                (),
                needs,
                writes,
                targets,
                streams=streams,
                silent=silent,
            )
    for name, (streams, silent) in LOST.items():
        yield Fault("printing", f"an error: {name}", REFUSED, None, (2,), (), streams=streams, silent=silent)
    for encoding in ENCODINGS:
        yield Fault("printing", f"an error in {encoding}", REFUSED, None, (2,), (),
            streams={"stdout": encoding, "stderr": encoding},
                    silent=encoding == "utf-16")  # fmt: skip
    c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for what, command, codes, needs, writes in [
        ("help", "prune --help", (0,), (), ()),
        ("help of recover", "recover --help", (0,), (), ()),
        ("an error", REFUSED, (2,), ("llama",), ()),
        ("a plan", f"prune --model model {HALF} --dry_run --save_plan out.json", (0,), ("llama",), ("out.json",)),
    ]:
        yield Fault(
            "printing",
            f"{what} with LC_ALL=C",
            command,
            None,
            codes,
            (),
            needs,
            writes,
            environment=c,
            fresh=True,
            seconds=60,
        )
    for encoding in ("ascii", "cp1252"):
        yield Fault("printing", f"help with PYTHONIOENCODING={encoding}", "prune --help", None, (0,), (), (),
                    environment={"PYTHONIOENCODING": encoding}, fresh=True)  # fmt: skip
    yield from _names()


def _names() -> Iterator[Fault]:
    def renamed(name: str):
        return lambda folder: (folder / name).rename(Path(os.fsdecode(os.fsencode(folder / BAD))))

    half = HALF.split()
    for what, command, change, needs, writes in [
        ("the model", ("prune", "--model", BAD, *half, "--save_model", "out"), renamed("model"), ("llama",), ("out",)),
        ("the output", ("prune", "--model", "model", *half, "--save_model", f"{BAD}/{BAD}"), None, ("llama",), (BAD,)),
        ("the default output", ("prune", "--model", BAD, *half), renamed("model"), ("llama",), ("pruned",)),
        ("the plan", ("prune", "--model", "model", *half, "--dry_run", "--save_plan", BAD), None, ("llama",), (BAD,)),
        ("the plan that is read", ("prune", "--model", "model", "--plan", BAD, "--eval_data", "none", "--save_model",
            "out"),
         renamed("plan.json"), ("llama", "plan"), ("out",)),
        ("the scores", ("prune", "--model", "model", *half, "--no_save", "--scores", BAD), None, ("llama",), (BAD,)),
        ("the text scored", ("evaluate", "--model", "model", "--eval_data", BAD, "--max_seq_len", "16", "--report",
            "out.json"),
         renamed("text.txt"), ("llama", "text"), ("out.*",)),
        ("the report", ("evaluate", "--model", "model", "--eval_data", "text.txt", "--max_seq_len", "16", "--report",
            f"{BAD}.json"),
         None, ("llama", "text"), (f"{BAD}.*",)),
        ("the model of evaluate", ("evaluate", "--model", BAD, "--eval_data", "text.txt", "--max_seq_len", "16",
            "--report", "out.json"),
         renamed("model"), ("llama", "text"), ("out.*",)),
        ("the calibration text", ("prune", "--model", "model", *HALF.replace("magnitude", "wanda_sp").split(),
            "--calibration_data", BAD,
         "--calibration_seq_len", "16", "--nsamples", "2", "--save_model", "out"), renamed("text.txt"),
         ("llama", "text"), ("out",)),
        ("the YAML", ("prune", "--config", BAD, "--model", "model", "--dry_run"), renamed("prune.yaml"),
            ("llama", "prune.yaml"), ()),
    ]:  # fmt: skip
        yield Fault("names that are not UTF-8", what, command, change, (0,), (), needs, writes)
    for what, command in {
        "a model that is not there": ("prune", "--model", f"./{BAD}", *half),
        "an importance": ("prune", "--model", "model", "--pruning_ratio", "0.5", "--importance", BAD, "--dry_run"),
        "a ratio": ("prune", "--model", "model", "--pruning_ratio", BAD),
        "a YAML that is not there": ("prune", "--config", BAD),
        "an unknown flag": ("prune", f"--{BAD}", "3"),
    }.items():
        yield Fault("names that are not UTF-8", what, command, None, (1, 2))
    for name, token in {"hf": "hf_abcdefghijklmnopqrstuvwx", "x_hf": "x_hf_abcdefghijklmnopqrstuvwx"}.items():
        yield Fault(
            "printing",
            f"a token {name} is not printed",
            ("prune", "--model", f"./{token}", *half),
            None,
            (1, 2),
            ("hf_***",),
        )
