"""Files of settings: generation_config.json, tokenizer files, report.json of a source, plans, scores and YAML."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from tests.faults.changes import (
    MISSING,
    POINTER,
    Change,
    cut,
    directory,
    edited,
    fields,
    floats,
    link,
    pipe,
    remove,
    sparse,
    tensors,
    text,
    together,
)  # fmt: skip
from tests.faults.contract import Fault
from tests.faults.stock import CALIBRATED, HALF

SAVE = f"prune --model model {HALF} --save_model out"
SCORED = "evaluate --model model --eval_data text.txt --max_seq_len 16"
MEMORY = {"AS": 8 * 2**30}
DEEP = "[" * 100_000 + "]" * 100_000
DEEP_FIELD = '{"a": ' + DEEP + "}"


def broken_json(path: str) -> list[tuple[str, Change]]:
    """Ways in which any JSON file is broken."""
    return [
        ("empty", text(path, "")),
        ("cut off", cut(path)),
        ("a list", text(path, "[]")),
        ("a number", text(path, "7")),
        ("text", text(path, '"text"')),
        ("no JSON", text(path, "{'a': 1,}")),
        ("binary", text(path, bytes(range(256)) * 3)),
        ("deep", text(path, DEEP)),
        ("a deep field", text(path, DEEP_FIELD)),
        ("a pointer of Git LFS", text(path, POINTER)),
        ("a pipe", pipe(path)),
        ("a folder", directory(path)),
        ("a device without end", link(path, "/dev/zero")),
        ("70 MB of zeros", sparse(path, 70 * 2**20)),
    ]


def faults() -> Iterator[Fault]:
    yield from _generation()
    yield from _tokenizer()
    yield from _report()
    yield from _plan()
    yield from _scores()
    yield from _yaml()


def _generation() -> Iterator[Fault]:
    path = "model/generation_config.json"
    for label, change in broken_json(path):
        codes = (2,) if label not in ("a folder",) else (0, 2)
        yield Fault(
            "generation_config.json", label, SAVE, change, codes, ("generation_config.json",),
            writes=("out",) if 0 in codes else (), limits=MEMORY,
        )  # fmt: skip
    for field, values in {
        "temperature": ("hot", math.nan, -1.0, [1]),
        "top_p": ("some", 7.0),
        "eos_token_id": ("end", [["a"]], 10**9, {"a": 1}),
        "max_length": ("long", -1),
        "do_sample": ("yes",),
        "cache_implementation": ("foo",),
        "num_beams": ("x", 0),
        "transformers_version": (7,),
        "suppress_tokens": ("x",),
    }.items():
        for value in values:
            yield Fault(
                "generation_config.json", f"{field} {value!r}", SAVE, fields(path, **{field: value}), (0, 2),
                ("generation_config.json",), writes=("out",), targets=("out",),
            )  # fmt: skip


def _tokenizer() -> Iterator[Fault]:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = f"model/{file}"
        for label, change in broken_json(path):
            if label in ("text", "a deep field"):
                continue
            codes = (0, 1, 2) if label == "a folder" else (1, 2)
            yield Fault(
                "tokenizer files", f"{file} {label}", SCORED, change, codes, (), ("llama", "text"), limits=MEMORY
            )
    config = "model/tokenizer_config.json"
    for label, change, codes in [
        ("an unknown class", fields(config, tokenizer_class="FooTokenizer"), (0, 1, 2)),
        ("class 7", fields(config, tokenizer_class=7), (0, 1, 2)),
        ("code that it brings", together(
            fields(config, auto_map={"AutoTokenizer": ["evil.T", None]}),
            text("model/evil.py", "open('pwned', 'w')\n")), (0, 1, 2)),
        ("a length of text", fields(config, model_max_length="long"), (0, 1, 2)),
        ("an end token of 7", fields(config, eos_token=7), (0, 1, 2)),
        ("a chat template that is none", fields(config, chat_template="{% for %}"), (0, 1, 2)),
        ("special tokens that are a list", text("model/special_tokens_map.json", "[]"), (0, 1, 2)),
        ("special tokens that are broken", text("model/special_tokens_map.json", "{"), (0, 1, 2)),
        ("added tokens that are broken", text("model/added_tokens.json", "{"), (0, 1, 2)),
        ("a model of another kind", edited("model/tokenizer.json", lambda t: t | {"model": {"type": "Foo"}}), (1, 2)),
        ("no vocabulary", edited("model/tokenizer.json", lambda t: t | {"model": {"type": "BPE", "vocab": {},
            "merges": []}}), (0, 1, 2)),
        ("a vocabulary that the model does not know", edited("model/tokenizer.json", _larger), (1, 2)),
        ("a vocabulary of text", edited("model/tokenizer.json", lambda t: t | {"model": t["model"] | {"vocab": "x"}}),
            (1, 2)),
        ("only a broken tokenizer.model", together(
            remove("model/tokenizer.json"), remove(config), text("model/tokenizer.model", "junk")), (1, 2)),
        ("no tokenizer", together(remove("model/tokenizer.json"), remove(config)), (1, 2)),
    ]:  # fmt: skip
        yield Fault("tokenizer files", label, SCORED, change, codes, (), ("llama", "text"))
    unneeded = "prune --model model --pruning_ratio 0.5 --importance magnitude --eval_data none --dry_run"
    yield Fault("tokenizer files", "one that no text needs", unneeded, text("model/tokenizer.json", "{"), (0,))


def _larger(tokenizer: dict) -> dict:
    vocabulary = {
        name: number + 5000 if number > 300 else number for name, number in tokenizer["model"]["vocab"].items()
    }
    return tokenizer | {"model": tokenizer["model"] | {"vocab": vocabulary}}


RECOVER = (
    "recover --model pruned --teacher model --data text.txt --eval_data none --max_seq_len 16 --steps 1 --device cpu "
    "--save_model out"
)


def _report() -> Iterator[Fault]:
    path, needs = "pruned/report.json", ("llama", "text", "pruned")
    more = {"writes": ("out", "out.unfinished"), "targets": ("out",), "limits": MEMORY}
    for label, change in broken_json(path):
        yield Fault("report.json of a source", label, RECOVER, change, (0, 2), ("report.json",), needs, **more)
    for label, change in [
        ("model 7", fields(path, model=7)),
        ("model a list", fields(path, model=["a"])),
        ("evaluation a list", fields(path, evaluation=[1])),
        ("evaluation data 7", fields(path, evaluation={"data": 7, "max_seq_len": 16})),
        ("length text", fields(path, evaluation={"data": "text.txt", "max_seq_len": "a"})),
        ("length -3", fields(path, evaluation={"data": "text.txt", "max_seq_len": -3})),
        ("calibration 7", fields(path, calibration=7)),
        ("perplexity text", fields(path, perplexity="low")),
        ("perplexity NaN", fields(path, perplexity={"before": math.nan, "after": math.nan})),
        ("parameters text", fields(path, parameters={"before": "many", "after": None})),
        ("layers text", fields(path, layers="all")),
        ("layers that there are not", fields(path, layers={"before": 2, "after": 2, "kept": [0, 99]})),
        ("layers that are text", fields(path, layers={"before": 2, "after": 2, "kept": ["a", "b"]})),
        ("too many layers", fields(path, layers={"before": 2, "after": 2, "kept": [0] * 50})),
        ("versions 7", fields(path, versions=7)),
        ("made from itself", fields(path, made_from=7)),
        ("made from a list", fields(path, made_from=[1])),
        ("made a thousand times", edited(path, _nested)),
        ("files text", fields(path, files="all")),
        ("files 7", fields(path, files={"config.json": 7})),
        ("widths text", fields(path, widths="wide")),
        ("seconds text", fields(path, seconds="long")),
        ("options a list", fields(path, options=[1])),
        ("step 7", fields(path, step=7)),
        ("command a mapping", fields(path, command={"a": 1})),
        ("scores text", fields(path, scores="x")),
    ]:
        yield Fault("report.json of a source", label, RECOVER, change, (0, 2), ("report.json",), needs, **more)


def _nested(report: dict) -> dict:
    nested = report
    for _ in range(300):
        nested = {"made_from": nested, "versions": report["versions"]}
    return nested


def _plan() -> Iterator[Fault]:
    path, needs = "plan.json", ("llama", "plan")
    command = "prune --model model --plan plan.json --eval_data none --dry_run"
    for label, change in [*broken_json(path), ("missing", remove(path))]:
        yield Fault("plans", label, command, change, (2,), ("plan.json",), needs, limits=MEMORY)

    def widths(**values) -> Change:
        return edited(path, lambda plan: plan | {"after": [one | values for one in plan["after"]]})

    def kept(change) -> Change:
        return edited(path, lambda plan: plan | {"kept": change(plan["kept"])})

    def first(change):
        return lambda found: found | {next(iter(found)): change(next(iter(found.values())))}

    for label, change, codes in [
        ("schema 1", fields(path, schema=1), (2,)),
        ("schema text", fields(path, schema="two"), (2,)),
        ("no schema", fields(path, schema=MISSING), (2,)),
        ("no widths", fields(path, after=MISSING), (2,)),
        ("widths text", fields(path, after="wide"), (2,)),
        ("widths numbers", fields(path, after=[1, 2]), (2,)),
        ("no layers", fields(path, after=[]), (2,)),
        ("one layer too few", edited(path, lambda plan: plan | {"after": plan["after"][:1]}), (2, 3)),
        ("width 0", widths(intermediate_size=0), (2,)),
        ("width -1", widths(intermediate_size=-1), (2,)),
        ("width a fraction", widths(intermediate_size=1.5), (2,)),
        ("width huge", widths(intermediate_size=10**30), (2, 3)),
        ("width larger than the model's", widths(intermediate_size=4000), (2, 3)),
        ("width text", widths(hidden_size="x"), (2,)),
        ("width true", widths(num_attention_heads=True), (2,)),
        ("an unknown width", widths(depth=3), (2,)),
        ("before a list", fields(path, before=[1]), (2,)),
        (
            "another model before",
            edited(path, lambda plan: plan | {"before": plan["before"] | {"hidden_size": 64}}),
            (2, 3),
        ),
        ("another family", fields(path, model_type="gpt2"), (2, 3)),
        ("model type 7", fields(path, model_type=7), (2, 3)),
        ("kept null", fields(path, kept=None), (2,)),
        ("kept a list", fields(path, kept=[1]), (2,)),
        ("kept empty", fields(path, kept={}), (2, 3)),
        ("a group missing", kept(lambda found: dict(list(found.items())[1:])), (2, 3)),
        ("a group too many", kept(lambda found: found | {"foo": [0]}), (2,)),
        ("a unit that there is not", kept(first(lambda units: [*units[:-1], 10**6])), (2,)),
        ("a unit twice", kept(first(lambda units: [units[0], *units[:-1]])), (2,)),
        ("a unit -1", kept(first(lambda units: [-1, *units[1:]])), (2,)),
        ("units text", kept(first(lambda units: ["a"] * len(units))), (2,)),
        ("units fractions", kept(first(lambda units: [unit + 0.5 for unit in units])), (2,)),
        ("units backwards", kept(first(lambda units: units[::-1])), (0, 2)),
        ("one unit too few", kept(first(lambda units: units[:-1])), (2,)),
        ("units null", kept(first(lambda units: None)), (2,)),
        ("units in lists", kept(first(lambda units: [[unit] for unit in units])), (2,)),
        ("config a list", fields(path, config=[1]), (2,)),
        ("compensate foo", fields(path, compensate="foo"), (2,)),
        ("seed text", fields(path, seed="x"), (2,)),
        ("importance 7", fields(path, importance=7), (2,)),
        ("an unknown importance", fields(path, importance="foo"), (0, 2)),
        ("parameters text", fields(path, parameters_before="many"), (2,)),
        ("parameters 0", fields(path, parameters_before=0, decoder_before=0, bytes_before=0), (0, 2)),
        ("layers text", fields(path, layers="all"), (2,)),
        ("layers that there are not", fields(path, layers=[0, 99], num_layers_before=100), (2, 3)),
        ("an unknown field", fields(path, colour="red"), (0, 2)),
        ("calibration 7", fields(path, calibration=7), (0, 2)),
        ("a byte order mark", _mark(path), (0,)),
    ]:
        yield Fault(
            "plans", label, command, change, codes, ("plan.json",) if 3 not in codes else (), needs, limits=MEMORY
        )


def _mark(path: str) -> Change:
    def change(folder: Path) -> None:
        (folder / path).write_bytes(b"\xef\xbb\xbf" + (folder / path).read_bytes())

    return change


def _scores() -> Iterator[Fault]:
    path, needs = "scores.safetensors", ("llama", "text", "scores")
    command = f"prune --model model {HALF} {CALIBRATED} --no_save --scores scores.safetensors".replace(
        "magnitude", "wanda_sp"
    )

    def every(change) -> Change:
        return tensors(lambda found: {name: change(*tensor) for name, tensor in found.items()}, path)

    def notes(change) -> Change:
        return tensors(lambda found: found | {"__metadata__": change}, path)

    for label, change, codes in [
        ("as they were", lambda folder: None, (0,)),
        ("empty", text(path, ""), (2,)),
        ("text", text(path, "hello"), (2,)),
        ("cut off", cut(path), (2,)),
        ("a pipe", pipe(path), (2,)),
        ("a folder", directory(path), (2,)),
        ("a device", link(path, "/dev/zero"), (2,)),
        ("a link to nothing", link(path, "nowhere/at/all"), (0, 2)),
        (
            "a model's weights",
            lambda folder: (folder / path).write_bytes((folder / "model/model.safetensors").read_bytes()),
            (2,),
        ),
        (
            "half of the units",
            every(lambda d, s, b: [d, [*s[:-1], s[-1] // 2], b[: len(b) // s[-1] * (s[-1] // 2)]]),
            (2,),
        ),
        ("twice the units", every(lambda d, s, b: [d, [2 * s[0], *s[1:]], b + b]), (2,)),
        ("one unit more", every(lambda d, s, b: [d, [s[0] + 1, *s[1:]], b + b[: len(b) // s[0]]]), (2,)),
        ("another axis", every(lambda d, s, b: [d, [1, *s], b]), (2,)),
        ("no axis", every(lambda d, s, b: [d, [], b[:4]]), (2,)),
        ("NaN", every(lambda d, s, b: [d, s, floats([math.nan] * (len(b) // 4))]), (2,)),
        ("infinity", every(lambda d, s, b: [d, s, floats([math.inf] * (len(b) // 4))]), (2,)),
        ("whole numbers", every(lambda d, s, b: ["I32", s, b]), (2,)),
        ("bool", every(lambda d, s, b: ["BOOL", s, bytes(len(b) // 4)]), (2,)),
        ("complex", every(lambda d, s, b: ["C64", s, b + b]), (2,)),
        ("a group missing", tensors(lambda found: dict(list(found.items())[1:]), path), (2,)),
        ("other names", tensors(lambda found: {f"x{name}": tensor for name, tensor in found.items()}, path), (2,)),
        ("no groups", tensors(lambda found: {"x": ["F32", [0], b""], "__metadata__": {"a": "b"}}, path), (2,)),
        ("no notes", notes({}), (2,)),
        ("other notes", notes({"format": "pt"}), (2,)),
        ("notes that are no JSON", notes({"llm_pruner.scores/1": "{"}), (2,)),
        ("notes that are a list", notes({"llm_pruner.scores/1": "[]"}), (2,)),
        ("notes that are null", notes({"llm_pruner.scores/1": "null"}), (2,)),
        ("deep notes", notes({"llm_pruner.scores/1": DEEP}), (2,)),
        ("another model", fields("model/config.json", rms_norm_eps=1e-5), (2,)),
        ("another text", text("text.txt", "Quite another text. " * 200), (2,)),
    ]:
        writes = ("nowhere",) if codes == (0, 2) else ()
        yield Fault(
            "scores", label, command, change, codes, ("scores.safetensors",), needs, writes=writes, limits=MEMORY
        )
    for label, words in (("seed", "--seed 3"), ("length", "--calibration_seq_len 8"), ("windows", "--nsamples 3")):
        yield Fault("scores", f"another {label}", f"{command} {words}", None, (2,), ("scores.safetensors",), needs)


def _aliases(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


YAMLS: list[tuple[str, Change, tuple[int, ...]]] = [
    ("empty", lambda path: text(path, ""), (2,)),
    ("null", lambda path: text(path, "null\n"), (2,)),
    ("a list", lambda path: text(path, "- a\n- b\n"), (2,)),
    ("a word", lambda path: text(path, "hello\n"), (2,)),
    ("a tab", lambda path: text(path, "prune:\n\tpruning_ratio: 0.5\n"), (2,)),
    ("an unknown option", lambda path: text(path, "prunign_ratio: 0.5\n"), (2,)),
    ("an option twice", lambda path: text(path, "seed: 1\nseed: 2\n"), (2,)),
    ("a Python tag", lambda path: text(path, "seed: !!python/object/apply:os.system ['touch pwned']\n"), (2,)),
    ("another tag", lambda path: text(path, "seed: !foo 3\n"), (2,)),
    ("a tag that does not fit", lambda path: text(path, "seed: !!int abc\n"), (2,)),
    ("a date", lambda path: text(path, "seed: 2024-01-01\n"), (2,)),
    ("a date that there is not", lambda path: text(path, "seed: 2024-13-77\n"), (2,)),
    ("text for a number", lambda path: text(path, "seed: many\n"), (2,)),
    ("a list for a number", lambda path: text(path, "seed: [1]\n"), (2,)),
    ("a mapping for a number", lambda path: text(path, "seed: {a: 1}\n"), (2,)),
    ("yes for a number", lambda path: text(path, "seed: yes\n"), (2,)),
    ("a fraction for a whole number", lambda path: text(path, "seed: 1.5\n"), (2,)),
    ("ten thousand digits", lambda path: text(path, f"seed: {'9' * 10_000}\n"), (2,)),
    ("a megabyte of text for a number", lambda path: text(path, f"seed: {'x' * 10**6}\n"), (2,)),
    ("a megabyte of key", lambda path: text(path, f"? {'x' * 10**6}\n: 1\n"), (2,)),
    ("a list as key", lambda path: text(path, "? [a, b]\n: 1\n"), (2,)),
    ("a mapping as key", lambda path: text(path, "? {a: 1}\n: 1\n"), (2,)),
    ("a number as key", lambda path: text(path, "7: 1\n"), (2,)),
    ("null as key", lambda path: text(path, "~: 1\n"), (2,)),
    ("infinity", lambda path: text(path, "seed: .inf\n"), (2,)),
    ("not a number", lambda path: text(path, "seed: .nan\n"), (2,)),
    ("two documents", lambda path: text(path, "seed: 1\n---\nseed: 2\n"), (2,)),
    ("an anchor that is nowhere", lambda path: text(path, "seed: *a\n"), (2,)),
    ("an alias of itself", lambda path: text(path, "seed: &a [*a]\n"), (2,)),
    ("a merge of a number", lambda path: text(path, "<<: 7\n"), (2,)),
    ("a merge of itself", lambda path: text(path, "&a\n<<: *a\n"), (2,)),
    ("aliases that expand to gigabytes", lambda path: text(path, _aliases(10)), (2,)),
    ("aliases that expand, as a value",
        lambda path: text(path, "seed: " + _aliases(9).splitlines()[0][4:] + "\n" + _aliases(9)), (2,)),
    ("a thousand levels of lists", lambda path: text(path, "seed: " + "[" * 1000 + "]" * 1000), (2,)),
    ("a hundred thousand levels", lambda path: text(path, "seed: " + "[" * 100_000), (2,)),
    ("a thousand levels of mappings", lambda path: text(path, "seed: " + "{a: " * 1000 + "}" * 1000), (2,)),
    ("5 MB of a list", lambda path: text(path, "seed: [" + "1, " * 1_700_000 + "1]\n"), (2,)),
    ("200 MB of zeros", lambda path: sparse(path, 200 * 2**20), (2,)),
    ("UTF-16", lambda path: text(path, "sede: 1\n".encode("utf-16")), (2,)),
    ("Latin-1", lambda path: text(path, "seed: é\n".encode("latin-1")), (2,)),
    ("binary", lambda path: text(path, bytes(range(256))), (2,)),
    ("control characters", lambda path: text(path, "seed: \x07\n"), (2,)),
    ("a zero byte", lambda path: text(path, "seed: 1\0\n"), (2,)),
    ("a pipe", pipe, (2,)),
    ("a folder", directory, (2,)),
    ("a device without end", lambda path: link(path, "/dev/zero"), (2,)),
    ("missing", remove, (2,)),
]  # fmt: skip


def _yaml() -> Iterator[Fault]:
    command = "prune --config prune.yaml --model model --dry_run"
    needs = ("llama", "prune.yaml")
    path = "prune.yaml"
    yield Fault("YAML", "a byte order mark", command, _mark(path), (0,), (), needs)
    yield Fault(
        "YAML",
        "other line ends",
        command,
        text(path, "pruning_ratio: 0.5\r\nimportance: magnitude\r\n"),
        (0,),
        (),
        needs,
    )
    yield Fault(
        "YAML",
        "a merge as it should be",
        command,
        text(path, "pruning_ratio: 0.5\nimportance: magnitude\n<<: {}\n"),
        (0, 2),
        (),
        needs,
    )
    yield Fault(
        "YAML",
        "a ratio that YAML reads as text",
        command,
        text(path, "pruning_ratio: 5e-1\n"),
        (2,),
        ("write 0.5",),
        needs,
    )
    for label, change, codes in YAMLS:
        yield Fault("YAML", label, command, change(path), codes, (), needs, limits=MEMORY)
    few = {"empty", "a list", "an option twice", "aliases that expand to gigabytes", "a thousand levels of lists",
        "a pipe",
           "a device without end", "5 MB of a list", "binary"}  # fmt: skip
    for label, change, _ in YAMLS:
        if label not in few:
            continue
        for what, line, file, own in [
            ("pipeline", "pipeline --config pipeline.yaml --model model --folder run", "pipeline.yaml",
                ("pipeline.yaml",)),
            ("a pattern of a sweep", "sparsify --model model --patterns pattern.yaml --folder run --eval_data text.txt",
             "pattern.yaml", ("pattern.yaml", "text")),
            ("recovery after pruning", f"prune --model model {HALF} --save_model out --recover how.yaml", "how.yaml",
                ()),
        ]:  # fmt: skip
            if label == "empty" and what != "pipeline" or label == "an option twice" and what == "pipeline":
                continue
            writes = ("run",) if what == "a pattern of a sweep" else ()
            yield Fault(
                "YAML", f"{what}: {label}", line, change(file), (2,), (), ("llama", *own), writes=writes, limits=MEMORY
            )
    for label, value in {
        "prune a list": {"prune": [1]}, "prune text": {"prune": "half"}, "prune null": {"prune": None},
        "a ratio of text": {"prune": {"pruning_ratio": "half"}},
        "a section that is unknown": {"prune": {}, "distil": {}},
        "a stage of a number": {"prune": {"pruning_ratio": 0.5}, "evaluate": 7},
    }.items():  # fmt: skip
        line = "pipeline --config pipeline.yaml --model model --folder run"
        yield Fault("YAML", f"pipeline: {label}", line, text("pipeline.yaml", json.dumps(value)), (2,))
