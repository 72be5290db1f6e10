"""Outputs that are the user's: at an input, in the way, foreign files with --overwrite, files put there meanwhile."""

import shutil
from collections.abc import Iterator

from tests.faults.changes import Change, directory, fields, hard_link, link, pipe, remove, text, together
from tests.faults.contract import Event, Fault
from tests.faults.stock import CALIBRATED, HALF, RECOVER

PRUNE = f"prune --model model {HALF}"
SPARSE = "sparsify --model model --n 2 --m 4 --eval_data text.txt --max_seq_len 16"
RECOVERED = RECOVER.replace("--steps 4", "--steps 1")
BEST = f"prune --model model --param_ratio 0.3 --search_minutes 0 --epochs 1 --eval_data none {CALIBRATED}"
# what writes → (the command, up to its value; whether it writes a folder; a suffix that is wanted)
FLAGS: dict[str, tuple[str, bool, str]] = {
    "prune --save_model": (f"{PRUNE} --save_model", True, ""),
    "prune --save_plan": (f"{PRUNE} --dry_run --save_plan", False, ""),
    "prune --scores": (f"{PRUNE} {CALIBRATED} --no_save --scores".replace("magnitude", "wanda_sp"), False, ""),
    "prune --work_dir": (f"{BEST} --save_model out --work_dir", True, ""),
    "recover --save_model": (f"{RECOVERED} --save_model", True, ""),
    "recover --work_dir": (f"{RECOVERED} --save_model out --work_dir", True, ""),
    "evaluate --report": ("evaluate --model model --eval_data text.txt --max_seq_len 16 --report", False, ".json"),
    "sparsify --save_model": (f"{SPARSE} --save_model", True, ""),
    "sparsify --report": (f"{SPARSE} --report", False, ".json"),
    "sparsify --folder": (
        "sparsify --model model --patterns pattern.yaml --eval_data text.txt --max_seq_len 16 --folder", True, "",
    ),
    "pipeline --folder": ("pipeline --config pipeline.yaml --model model --folder", True, ""),
}  # fmt: skip
NEEDS = ("llama", "text", "pruned", "pattern.yaml", "pipeline.yaml")
# where → (the value, what is done before, exit codes); {} takes the suffix that the flag wants
PLACES: dict[str, tuple[str, Change | None, tuple[int, ...]]] = {
    "at the model": ("model", None, (2,)),
    "in the model": ("model/new{}", None, (2,)),
    "at the model's config": ("model/config.json", None, (2,)),
    "at the model, by a link": ("link{}", lambda folder: (folder / "link").symlink_to("model"), (2,)),
    "in the model, by a link": ("link/new{}", link("link", "model"), (2,)),
    "at the model, with dots": ("model/../model", None, (2,)),
    "at the text": ("text.txt", None, (2,)),
    "below a file": ("text.txt/new{}", None, (2,)),
    "at a hard link to an input": ("mine{}", None, (2,)),
    "at the null device": ("/dev/null", None, (2,)),
    "at the full device": ("/dev/full", None, (2,)),
    "below the null device": ("/dev/null/new{}", None, (2,)),
    "at a pipe": ("pipe{}", None, (2,)),
    "with a name too long": ("x" * 300 + "{}", None, (2,)),
    "with a path too long": ("/".join(["x" * 200] * 30) + "{}", None, (2,)),
    "with a zero byte": ("a\0b{}", None, (2,)),
    "with no name": ("", None, (2,)),
    "where the command runs": (".", None, (2,)),
    "at a link to itself": ("loop{}", None, (2,)),
    "at a link to nothing": ("broken{}", None, (0, 2)),
    "where nobody may write": ("/proc/new{}", None, (1, 2)),
    "in a folder of the user's": ("mine{}", None, (2,)),
}
# what is checked by the same functions as of other flags, and the places that are tried with those only
LIKE_OTHERS = ("prune --scores", "recover --save_model", "sparsify --save_model", "sparsify --report")
ONCE = (
    "at the model's config", "in the model, by a link", "at the model, with dots", "below a file", "at the full device",
    "below the null device", "with a path too long", "with a zero byte", "where the command runs",
)  # fmt: skip


def _prepared(place: str, path: str, folder_wanted: bool) -> Change | None:
    """What has to be there before, under the name that the flag is given."""
    if place == "at a hard link to an input":
        return hard_link(path, "model/config.json")
    if place == "at a pipe":
        return pipe(path)
    if place == "at a link to itself":
        return link(path, path)
    if place == "at a link to nothing":
        return link(path, "not-there-yet")
    if place == "at the model, by a link":
        return link(path, "model")
    if place == "in a folder of the user's":
        if folder_wanted:
            return text(f"{path}/thesis.txt", "years of work")
        return directory(path)
    return PLACES[place][1]


def faults() -> Iterator[Fault]:
    for flag, (command, folder_wanted, suffix) in FLAGS.items():
        for place, (value, _, codes) in PLACES.items():
            if flag in LIKE_OTHERS and place in ONCE:
                continue
            value = value.replace("{}", suffix)
            writes = ("not-there-yet", "broken*", "out", "out.unfinished") if 0 in codes else ()
            if flag == "sparsify --folder" and place == "in a folder of the user's":
                codes, writes = (0, 2), ("mine/model--pattern.json", "mine/sweep.*")
            if flag == "sparsify --folder" and place == "where the command runs":
                codes, writes = (0, 2), ("model--pattern.json", "sweep.*")
            if flag == "prune --work_dir" and place == "where the command runs":
                codes, writes = (0, 2), ("out", "?" * 16)
            if flag == "prune --work_dir" and place == "in a folder of the user's":
                codes, writes = (0, 2), ("out", "mine")
            yield Fault(
                "outputs in the way", f"{flag} {place}", (*command.split(), value),
                _prepared(place, value, folder_wanted),
                codes, (), NEEDS, writes=writes, targets=("out",),
            )  # fmt: skip
    yield from _overwritten()
    yield from _inputs()
    yield from _meanwhile()
    yield from _work_folders()


FOREIGN: dict[str, Change] = {
    "notes.json": text("pruned/notes.json", "{}"),
    "x.safetensors": text("pruned/x.safetensors", "mine"),
    "tokenizer_old": text("pruned/tokenizer_old/tokenizer.json", "{}"),
    "LICENSE-mine": text("pruned/LICENSE-mine", "mine"),
    "model.bin": text("pruned/pytorch_model.bin", "mine"),
    "a hidden file": text("pruned/.notes", "mine"),
    "a folder": text("pruned/deep/er/thesis.txt", "mine"),
    "a changed card": text("pruned/README.md", "what I found out about it"),
    "a changed configuration": fields("pruned/generation_config.json", temperature=0.3),
    "a link out": link("pruned/elsewhere", "../model"),
    "a pipe": pipe("pruned/pipe"),
    "a git repository": text("pruned/.git/HEAD", "ref: refs/heads/main"),
}


def _overwritten() -> Iterator[Fault]:
    """--overwrite replaces what a run of ours wrote, and that only."""
    commands = {
        "prune": (f"{PRUNE} --save_model pruned --overwrite", ("llama", "pruned")),
        "recover": (f"{RECOVERED.replace('--model pruned', '--model model')} --save_model pruned --overwrite",
            ("llama", "text", "pruned")),
        "sparsify": (f"{SPARSE} --save_model pruned --overwrite", ("llama", "text", "pruned")),
    }  # fmt: skip
    for what, (command, needs) in commands.items():
        for name, change in FOREIGN.items():
            yield Fault("foreign files with --overwrite", f"{what}: {name}", command, change, (2,), ("pruned",), needs)
    command = commands["prune"][0]
    for name, change, codes in [
        ("what a run of ours wrote", None, (0,)),
        ("an empty folder", lambda folder: [path.unlink() for path in (folder / "pruned").iterdir()], (0,)),
        ("a checkpoint of somebody else", remove("pruned/report.json"), (2,)),
        ("a report that lists nothing", fields("pruned/report.json", files={}), (2,)),
        ("a report that lists others", fields("pruned/report.json", files={"../model/config.json": "a",
            "/etc/passwd": "b"}), (2,)),
        ("a report that is broken", text("pruned/report.json", "{"), (2,)),
        ("a report whose list is a list", fields("pruned/report.json", files=["config.json"]), (2,)),
        ("a link to what a run of ours wrote", lambda folder: ((folder / "pruned").rename(folder / "real"),
            link("pruned", "real")(folder)), (0, 2)),
    ]:  # fmt: skip
        writes = ("pruned", "real") if 0 in codes else ()
        yield Fault(
            "foreign files with --overwrite",
            name,
            command,
            change,
            codes,
            (),
            ("llama", "pruned"),
            writes=writes,
            targets=("pruned",),
        )
    report = "evaluate --model model --eval_data text.txt --max_seq_len 16 --report mine.json --overwrite"
    for name, change in {
        "JSON of the user's": text("mine.json", '{"thesis": true}'),
        "text of the user's": text("mine.json", "years of work"),
        "a page of the user's": text("mine.html", "<html>mine</html>"),
        "a report of a pipe": pipe("mine.json"),
    }.items():
        yield Fault(
            "foreign files with --overwrite", f"evaluate: {name}", report, change, (2,), ("mine",), ("llama", "text")
        )
    plan = f"{PRUNE} --dry_run --save_plan mine.json"
    yield Fault(
        "foreign files with --overwrite",
        "a plan over JSON of the user's",
        plan,
        text("mine.json", '{"a": 1}'),
        (2,),
        ("mine.json",),
    )


def _inputs() -> Iterator[Fault]:
    """No input of the run is its output, or lies in it."""
    scored, needs = PRUNE.replace("--eval_data none", ""), ("llama", "text", "pruned", "plan", "prune.yaml")
    wanda = HALF.replace("magnitude", "wanda_sp")

    def moved(name: str) -> Change:
        return lambda folder: (folder / name).rename(folder / "pruned" / name)

    for name, command, change in [
        ("the text scored", f"{scored} --eval_data pruned/text.txt --save_model pruned --overwrite", moved("text.txt")),
        (
            "the calibration text",
            f"prune --model model {wanda} {CALIBRATED} --save_model pruned --overwrite".replace(
                "text.txt", "pruned/text.txt"
            ),
            moved("text.txt"),
        ),
        (
            "the plan",
            "prune --model model --plan pruned/plan.json --eval_data none --save_model pruned --overwrite",
            moved("plan.json"),
        ),
        (
            "the YAML",
            "prune --config pruned/prune.yaml --model model --eval_data none --save_model pruned --overwrite",
            moved("prune.yaml"),
        ),
        (
            "the model",
            f"{PRUNE.replace('--model model', '--model pruned/model')} --save_model pruned --overwrite",
            moved("model"),
        ),
        ("the teacher, as the output", f"{RECOVERED} --save_model model --overwrite", None),
        (
            "the teacher, inside the output",
            RECOVERED.replace("--teacher model", "--teacher pruned/model").replace("--model pruned", "--model other")
            + " --save_model pruned --overwrite",
            lambda folder: (shutil.copytree(folder / "pruned", folder / "other"), moved("model")(folder)),
        ),
        ("the student, as the output", f"{RECOVERED} --save_model pruned --overwrite", None),
        (
            "the training text",
            f"{RECOVERED.replace('text.txt', 'out/text.txt')} --save_model out --overwrite",
            lambda folder: ((folder / "out").mkdir(), (folder / "text.txt").rename(folder / "out/text.txt")),
        ),
        (
            "a plan that is read and written",
            "prune --model model --plan plan.json --save_plan plan.json --dry_run",
            None,
        ),
        ("a plan that is written into the model", f"{PRUNE} --dry_run --save_plan model/plan.json", None),
        (
            "a report onto the text",
            "evaluate --model model --eval_data mine.json --max_seq_len 16 --report mine.json --overwrite",
            lambda folder: (folder / "text.txt").rename(folder / "mine.json"),
        ),
        ("a report into the model", "evaluate --model model --eval_data text.txt --report model/report.json", None),
        ("scores onto the text", f"prune --model model {wanda} {CALIBRATED} --no_save --scores text.txt", None),
        (
            "scores onto the weights",
            f"prune --model model {wanda} {CALIBRATED} --no_save --scores model/model.safetensors",
            None,
        ),
        ("the plan inside the checkpoint", f"{PRUNE} --save_plan out/plan.json --save_model out", None),
        (
            "a pipeline into the model",
            "pipeline --config prune.yaml --model model --folder model/run",
            text("prune.yaml", '{"prune": {"pruning_ratio": 0.5}}'),
        ),
        (
            "the student is its own teacher",
            "recover --model pruned --teacher pruned --data text.txt --eval_data none --steps 1 --save_model out",
            None,
        ),
        (
            "the student is its own teacher, by a link",
            "recover --model pruned --teacher twin --data text.txt --eval_data none --steps 1 --save_model out",
            link("twin", "pruned"),
        ),
        ("two outputs in one place", f"{PRUNE} --save_plan same --save_model same", None),
    ]:
        yield Fault("inputs that are outputs", name, command, change, (2,), (), needs)


MOMENTS = {
    "the new checkpoint is begun": Event("tempfile.mkdtemp:*partial*"),
    "its configuration is written": Event("open:*partial*/config.json"),
    "its report is written": Event("os.rename:*report.json|open:*partial*/report.json"),
}


def _meanwhile() -> Iterator[Fault]:
    """What somebody puts into the output during the run is there afterwards."""
    mine = "written by hand while the run went on"
    for moment, event in MOMENTS.items():
        for what, file in {"a new file": "notes.md", "a file like ours": "x.safetensors",
            "a file in a folder": "deep/er/notes.md",
                           "another card": "README.md"}.items():  # fmt: skip
            yield Fault(
                "files put there during the run", f"{what} when {moment}", f"{PRUNE} --save_model pruned --overwrite",
                None, (0, 1), (),
                ("llama", "pruned"), writes=("pruned", "pruned-*"), targets=() if file == "README.md" else ("pruned",),
                keeps=(mine,),
                events=(Event(event.when, write={f"pruned/{file}": mine}),),
            )  # fmt: skip
        yield Fault(
            "files put there during the run", f"a new folder when {moment}", f"{PRUNE} --save_model out", None, (0, 1),
            (), ("llama",),
            writes=("out", "out-*"), keeps=(mine,), events=(Event(event.when, write={"out/notes.md": mine}),),
        )  # fmt: skip
        yield Fault(
            "files put there during the run", f"a file in the place of the folder when {moment}",
            f"{PRUNE} --save_model out", None, (1,), (),
            ("llama",), writes=("out", "out-*"), keeps=(mine,), events=(Event(event.when, write={"out": mine}),),
        )  # fmt: skip


def _work_folders() -> Iterator[Fault]:
    """A folder of unfinished work is removed as far as it is ours."""
    needs = ("llama", "text", "pruned", "unfinished")
    command = RECOVER + "--save_minutes 0.0000001 --save_model recovered"
    mine = "what I noted beside it"
    more = {
        "writes": ("recovered", "recovered.unfinished/recovery.json", "recovered.unfinished/checkpoint-*"),
        "keeps": (mine,),
    }
    yield Fault(
        "work folders",
        "notes in it, and the run succeeds",
        command,
        text("recovered.unfinished/notes.md", mine),
        (0, 2),
        (),
        needs,
        **more,
    )
    yield Fault(
        "work folders",
        "notes in a checkpoint of it",
        command,
        text("recovered.unfinished/checkpoint-2/notes.md", mine),
        (0, 2),
        (),
        needs,
        **more,
    )
    yield Fault(
        "work folders", "notes in it, and options differ", command.replace("--steps 4", "--steps 1"),
        text("recovered.unfinished/notes.md", mine), (0, 2), (), needs, **more,
    )  # fmt: skip
    yield Fault(
        "work folders", "only notes in it", f"{command} --work_dir work", text("work/notes.md", mine), (2,), (),
        ("llama", "text", "pruned"),
        keeps=(mine,),
    )  # fmt: skip
    yield Fault(
        "work folders", "notes in a best run's", f"{BEST} --save_model out --work_dir work",
        text("work/notes.md", mine), (0, 2), (),
        ("llama", "text"), writes=("out", "work"), keeps=(mine,),
    )  # fmt: skip
    yield Fault(
        "work folders", "a pipeline's with notes in a checkpoint",
        "pipeline --config pipeline.yaml --model model --folder run",
        together(text("run/pruned/notes.md", mine), remove("run/pipeline.json"), text("run/pipeline.json", "{}")),
        (0, 1, 2), (),
        ("llama", "text", "pipeline.yaml", "pipeline"), writes=("run",), keeps=(mine,),
    )  # fmt: skip
