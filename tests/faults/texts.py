"""Every text format × broken, as calibration, evaluation and training data."""

import json
from collections.abc import Iterator

from tests.faults.changes import POINTER, Change, directory, link, pipe, remove, sparse, text
from tests.faults.contract import Fault
from tests.faults.stock import PROSE

LINE = "The cat sat on the mat and looked at the moon. Then it slept."
ALPACA = {"instruction": "Name a colour.", "input": "", "output": "Blue, like the sky in summer."}
CHAT = {
    "messages": [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue, as the sky is."},
    ]
}
OK, BAD, EITHER = (0,), (2,), (0, 2)


def lines(*records, times: int = 40) -> str:
    return "".join(json.dumps(record) + "\n" for record in records) * times


# name → (file, content or change, exit codes)
TEXTS: list[tuple[str, str, str | bytes | Change, tuple[int, ...]]] = [
    ("prose", "data.txt", PROSE, OK),
    ("a byte order mark", "data.txt", b"\xef\xbb\xbf" + PROSE.encode(), OK),
    ("other line ends", "data.txt", PROSE.replace(". ", ".\r\n"), OK),
    ("no suffix", "data", PROSE, OK),
    ("a link to it", "data.txt", lambda folder: (text("there", PROSE)(folder), link("data.txt", "there")(folder)), OK),
    ("empty", "data.txt", "", BAD),
    ("blanks", "data.txt", " \n\t" * 500, BAD),
    ("one token", "data.txt", "a", BAD),
    ("only a byte order mark", "data.txt", b"\xef\xbb\xbf", BAD),
    ("too short", "data.txt", "Oh!", BAD),
    ("UTF-16", "data.txt", PROSE.encode("utf-16"), BAD),
    ("UTF-32", "data.txt", PROSE.encode("utf-32"), BAD),
    ("Latin-1", "data.txt", ("é" * 3000).encode("latin-1"), BAD),
    ("binary", "data.txt", bytes(range(256)) * 30, BAD),
    ("zero bytes", "data.txt", "\0" * 3000, EITHER),
    ("gzip", "data.txt.gz", b"\x1f\x8b\x08\x00" + bytes(range(256)) * 9, BAD),
    ("a device without end", "data.txt", link("data.txt", "/dev/zero"), BAD),
    ("nothing", "data.txt", link("data.txt", "/dev/null"), BAD),
    ("a pipe", "data.txt", pipe("data.txt"), BAD),
    ("a folder", "data.txt", directory("data.txt"), BAD),
    ("missing", "data.txt", remove("data.txt"), BAD),
    ("a link to itself", "data.txt", link("data.txt", "data.txt"), BAD),
    ("a pointer of Git LFS", "data.txt", POINTER, BAD),
    ("JSON Lines of texts", "data.jsonl", lines({"text": LINE}), OK),
    ("JSON Lines with a byte order mark", "data.jsonl", b"\xef\xbb\xbf" + lines({"text": LINE}).encode(), OK),
    ("JSON Lines with blank lines", "data.jsonl", lines({"text": LINE}).replace("\n", "\n\n"), OK),
    ("JSON Lines of Alpaca records", "data.jsonl", lines(ALPACA), OK),
    ("JSON Lines of chats", "data.jsonl", lines(CHAT), EITHER),
    ("a list of texts", "data.json", json.dumps([{"text": LINE}] * 40), OK),
    ("a list of Alpaca records", "data.json", json.dumps([ALPACA] * 40), OK),
    ("Alpaca with a byte order mark", "data.json", b"\xef\xbb\xbf" + json.dumps([ALPACA] * 40).encode(), OK),
    ("Alpaca with numbers", "data.json", json.dumps([ALPACA | {"output": 7}] * 40), EITHER),
    ("Alpaca with null", "data.json", json.dumps([ALPACA | {"input": None}] * 40), OK),
    ("Alpaca with lists", "data.json", json.dumps([ALPACA | {"output": ["a"]}] * 40), EITHER),
    ("Alpaca without an instruction", "data.json", json.dumps([{"input": "a", "output": "b"}] * 40), BAD),
    ("Alpaca and something else", "data.json", json.dumps([ALPACA, 7] * 20), BAD),
    ("an empty list", "data.json", "[]", BAD),
    ("a mapping", "data.json", json.dumps({"data": [ALPACA] * 4}), BAD),
    ("a list of numbers", "data.json", "[1, 2, 3]", BAD),
    ("a list of lists", "data.json", "[[1], [2]]", BAD),
    ("JSON that is cut off", "data.json", json.dumps([ALPACA] * 40)[:-20], BAD),
    ("deep JSON", "data.json", "[" * 100_000 + "]" * 100_000, BAD),
    ("deep JSON Lines", "data.jsonl", '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n", BAD),
    ("a broken line", "data.jsonl", lines({"text": LINE}) + '{"text": \n' + lines({"text": LINE}), BAD),
    ("texts that are numbers", "data.jsonl", lines({"text": 7}), BAD),
    ("texts that are null", "data.jsonl", lines({"text": None}), BAD),
    ("texts that are empty", "data.jsonl", lines({"text": ""}), BAD),
    ("records of an unknown kind", "data.jsonl", lines({"prompt": LINE, "chosen": LINE}), BAD),
    ("records of two kinds", "data.jsonl", lines({"text": LINE}, ALPACA), EITHER),
    ("lines that are numbers", "data.jsonl", lines(7), BAD),
    ("lines that are lists", "data.jsonl", lines([LINE]), BAD),
    ("chats without messages", "data.jsonl", lines({"messages": []}), BAD),
    ("chats that are text", "data.jsonl", lines({"messages": LINE}), BAD),
    ("messages without content", "data.jsonl", lines({"messages": [{"role": "user"}]}), BAD),
    ("messages that are numbers", "data.jsonl", lines({"messages": [7]}), BAD),
    ("content that is a list", "data.jsonl", lines({"messages": [{"role": "user", "content": [{"type": "text",
        "text": LINE}]}]}), EITHER),
    ("an unknown role", "data.jsonl", lines({"messages": [{"role": "wizard", "content": LINE}]}), EITHER),
    ("half of a character", "data.jsonl", '{"text": "\\ud800 ' + LINE + '"}\n' * 1 + lines({"text": LINE}), EITHER),
]  # fmt: skip
USES = {
    "calibration": "prune --model model --pruning_ratio 0.5 --importance wanda_sp --eval_data none --no_save "
    "--calibration_data {} --calibration_seq_len 8 --nsamples 4",
    "evaluation": "evaluate --model model --eval_data {} --max_seq_len 8",
    "training": "recover --model pruned --method lora --lora_r 2 --data {} --eval_data none --max_seq_len 64 --steps 1 "
    "--device cpu --save_model out",
}
SCORED = (  # tried as evaluation texts only
    "no suffix", "a link to it", "other line ends", "UTF-32", "nothing", "a link to itself", "lines that are numbers",
    "JSON Lines with blank lines", "Alpaca with null", "Alpaca with lists", "an empty list", "a list of lists",
    "texts that are null", "lines that are lists", "chats without messages", "chats that are text", "an unknown role",
    "messages without content", "content that is a list",
)  # fmt: skip
TRAINED = (  # the others are read by the same functions, and each takes the seconds of a training
    "prose", "JSON Lines of texts", "empty", "blanks", "UTF-16", "a device without end",
    "a pipe", "a folder", "JSON that is cut off", "deep JSON", "a broken line", "records of an unknown kind",
    "Alpaca and something else", "messages that are numbers",
)  # fmt: skip


def faults() -> Iterator[Fault]:
    for use, command in USES.items():
        for label, file, content, codes in TEXTS:
            if use == "training" and label not in TRAINED or use == "calibration" and label in SCORED:
                continue
            change = content if callable(content) else text(file, content)
            yield Fault(
                f"{use} texts", label, command.format(file), change, codes, (file,) if label != "too short" else (),
                ("llama", *["pruned"] * (use == "training")), writes=("out", "out.unfinished") * (use == "training"),
                limits={"AS": 8 * 2**30},
            )  # fmt: skip
    yield from _bounds()


def _bounds() -> Iterator[Fault]:
    """Work is bounded by what is asked for."""
    calibrated, scored = USES["calibration"], USES["evaluation"]

    def long(folder) -> None:
        (folder / "data.txt").write_text(PROSE * 50_000)  # 100 MB

    yield Fault("bounds", "100 MB of text for four windows", calibrated.format("data.txt"), long, (0,), (), seconds=20)
    yield Fault(
        "bounds", "a billion windows", calibrated.format("data.txt").replace("--nsamples 4", "--nsamples 1000000000"),
        text("data.txt", PROSE), (1, 2), ("nsamples",), limits={"AS": 8 * 2**30},
    )  # fmt: skip
    yield Fault("bounds", "5 GB of zeros", calibrated.format("data.txt"), sparse("data.txt", 5 * 2**30), (1, 2),
        ("data.txt",),
                limits={"AS": 8 * 2**30})  # fmt: skip
    yield Fault(
        "bounds",
        "windows longer than the model",
        scored.format("data.txt").replace("8", "100000"),
        text("data.txt", PROSE * 3),
        (0, 2),
    )
    for name, value, codes in [
        ("target_params", "10", (3,)), ("target_params", "1", (3,)), ("target_params", "100000B", (2, 3)),
        ("target_memory", "10B", (2, 3)), ("pruning_ratio", "0.9999", (3,)), ("pruning_ratio", "1e-9", (3,)),
        ("pruning_ratio", "nan", (2,)), ("pruning_ratio", "inf", (2,)), ("pruning_ratio", "50%", (2,)),
        ("pruning_ratio", "-0.1", (2,)),
        ("param_ratio", "0.99999", (3,)), ("iteration", "99", (2, 3)), ("target", "hidden_size=7", (0, 2, 3)),
        ("target", "hidden_size=0", (2, 3)), ("target", "intermediate_size=99999999999999999999", (2, 3)),
        ("target", "foo=3", (2,)),
        ("prune", "heads=nan", (2,)), ("prune", "heads=0.5,heads=0.4", (2,)), ("prune", "foo", (2,)),
        ("prune", "", (2,)),
        ("round_to", "0", (2,)), ("round_to", "100000", (2, 3)),
    ]:  # fmt: skip
        more = () if name not in ("round_to", "prune") or "=" in value else ("--pruning_ratio", "0.5")
        command = ("prune", "--model", "model", "--importance", "magnitude", "--dry_run", f"--{name}", value, *more)
        yield Fault("bounds", f"--{name} {value!r}", command, None, codes)
