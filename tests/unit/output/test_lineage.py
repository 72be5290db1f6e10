"""Chains of checkpoints: where each comes from, whom it learns from, and what the dense model had."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import llm_pruner
from llm_pruner.config.prune import PruneOptions
from llm_pruner.config.recover import RecoverOptions
from llm_pruner.errors import UsageError
from llm_pruner.model import loading
from llm_pruner.output import lineage
from llm_pruner.output.card import card
from llm_pruner.output.models import models_of, steps_of
from llm_pruner.output.page import page
from llm_pruner.output.reports import Evaluation, PruneReport, RecoverReport
from llm_pruner.recovery.run import recover
from tests.support.checkpoints import save_tiny
from tests.support.commands import DEMO
from tests.support.reports import SIX, TRAINING, WORDS, as_json, pruned, quantiles, recovered, searched, sparse

pytestmark = pytest.mark.usefixtures("no_fresh_process")


def test_the_perplexity_before_tokens_went_is_by_token_of_those_that_stay():
    report = pruned(bits_per_byte={"before": 1.0, "after": 1.25})
    assert lineage.perplexity_before(report) == pytest.approx(60 ** (1 / 1.25))
    assert lineage.dense_perplexity(report, report.evaluation) == lineage.perplexity_before(report)
    assert lineage.perplexity_before(pruned()) == 20
    unknown = pruned(bits_per_byte={"before": 1.0, "after": 1.25}, perplexity={"before": 20.0, "after": None})
    assert lineage.perplexity_before(unknown) is None


TEXT = "The wind was cold and the gulls were loud. Rain fell on the roofs all morning. " * 30


def twice_json(**changes) -> dict:
    """report.json of what was pruned, and what came out pruned once more."""
    own = {"base_model": "models/dense-1b", "dense_perplexity": 20.0, "made_from": as_json(pruned)}
    return as_json(pruned, model="out/small", perplexity={"before": 60.0, "after": 90.0}, **own | changes)


def twice(**changes) -> PruneReport:
    made = twice_json(**changes)
    return pruned(**made)


def text_of(**changes) -> Evaluation:
    return Evaluation(**WORDS | changes)


def stored(folder: Path, report) -> Path:
    report = report.to_dict() if hasattr(report, "to_dict") else report
    content = report if isinstance(report, bytes) else json.dumps(report).encode()
    (folder / "report.json").write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("report", "base"),
    [
        (None, None),
        (pruned(), "models/dense-1b"),
        (twice(), "models/dense-1b"),
        (recovered(made_from=twice()), "models/dense-1b"),
        (recovered(made_from=None, base_model=None), "models/dense-1b"),  # its teacher
        (recovered(made_from=None, base_model=None, teacher=None), None),
        (pruned(made_from=None, base_model="far/away", model="out/thrice"), "far/away"),
    ],
)
def test_the_first_dense_model(report, base):
    assert lineage.base_of(report) == base


@pytest.mark.parametrize(
    ("report", "evaluation", "dense"),
    [
        (pruned(), text_of(), 20.0),
        (pruned(), text_of(max_seq_len=64), None),
        (pruned(), text_of(windows=9), None),
        (pruned(), text_of(data="other.txt"), None),
        (pruned(), text_of(digest="ab"), None),  # nobody knows if it was the same file
        (pruned(evaluation=WORDS | {"digest": "ab"}), text_of(digest="cd"), None),
        (pruned(evaluation=WORDS | {"digest": "ab"}), text_of(digest="ab", data="./words.txt"), 20.0),
        (twice(), text_of(), 20.0),
        (twice(made_from=pruned(evaluation={}, perplexity={})), text_of(), None),
        (recovered(), text_of(), 20.0),
        (recovered(evaluation=WORDS | {"max_seq_len": 64}, dense_perplexity=None), text_of(max_seq_len=64), None),
        (recovered(made_from=recovered()), text_of(), 20.0),
        (recovered(made_from=None, dense_perplexity=None), text_of(), None),
        (pruned(model="out/x", base_model="dense", dense_perplexity=17.0), text_of(), 17.0),
        (pruned(), None, None),
        (None, text_of(), None),
    ],
)
def test_what_the_dense_model_had_is_never_what_a_pruned_one_had(report, evaluation, dense):
    assert lineage.dense_perplexity(report, evaluation) == dense


def test_layers_are_those_of_the_first_dense_model():
    first = pruned(layers={"before": 6, "after": 4, "kept": [0, 2, 3, 5]})
    second = twice(made_from=first, layers={"before": 4, "after": 3, "kept": [0, 1, 3]})
    assert lineage.layers_of(recovered(made_from=second), 3) == [0, 2, 5]
    assert lineage.layers_of(pruned(layers=SIX), 6) == list(range(6))
    assert lineage.layers_of(second, 4) is None
    assert lineage.layers_of(None, 4) is None


@pytest.mark.slow
def test_a_chain_without_end_is_told_to_its_last_steps(tmp_path):
    """What is forgotten is the way, not the dense model nor what it had; reading and drawing stay bounded."""
    report = pruned()
    for place in range(60):
        own = {"model": f"out/{place}", "parameters": {"before": 600_000 - place, "after": 599_999 - place}}
        report = replace(pruned(**own), **lineage.told(report, f"out/{place}", text_of()))
    stored(tmp_path, report)
    assert (tmp_path / "report.json").stat().st_size < 40 * len(json.dumps(as_json(pruned)))
    found = lineage.report_of(tmp_path)
    assert len(lineage.steps(found)) <= lineage.LONGEST + 1
    assert lineage.base_of(found) == "models/dense-1b"
    assert lineage.dense_perplexity(found, text_of()) == 20.0
    models = models_of(steps_of([found]))
    assert models[0].label == "dense (dense-1b)"
    assert models[0].perplexity == {("words.txt", 1501, 128): 20.0}
    assert models[0].parameters is None, "the size of the dense model is forgotten, and not made up"
    assert "base_model: models/dense-1b" in card(found)
    assert "out/59" in page([found])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("report", "title", "tags"),
    [
        (twice(), "# dense-1b, pruned\n", ["pruned"]),
        (recovered(made_from=twice()), "# dense-1b, pruned and recovered\n", ["pruned", "recovered"]),
        (twice(made_from=recovered()), "# dense-1b, pruned and recovered\n", ["pruned", "recovered"]),
    ],
)
def test_cards_and_pages_of_longer_chains(report, title, tags):
    text = card(report)
    assert title in text
    assert "".join(f"- {tag}\n" for tag in ("llm_pruner", *tags)) in text
    assert text.count("    python prune_llm.py") + text.count("    python -m") == len(steps_of([report]))
    assert "dense (dense-1b)" in page([report])
    assert [model.label for model in models_of(steps_of([report]))][0] == "dense (dense-1b)"


def test_a_text_of_one_name_with_other_content_is_another_text():
    steps = [
        pruned(evaluation=WORDS | {"digest": "aaaaaaaa"}),
        recovered(evaluation=WORDS | {"digest": "bbbbbbbb"}, dense_perplexity=None, made_from=None),
    ]
    dense, small, trained = models_of(steps)
    assert dense.perplexity == {("words.txt", 1501, 128): 20.0}
    assert trained.perplexity == {("words.txt (bbbbbb)", 1501, 128): 30.0}
    assert set(small.perplexity) == set(dense.perplexity) | set(trained.perplexity)


def test_reports_that_are_not_ours(tmp_path):
    assert lineage.report_of(tmp_path) is None
    old = {"versions": {"torch": "2"}, "model": 7}
    assert lineage.report_of(stored(tmp_path, old)) is None
    for content in (b"[1, 2]", b"{}", b"{", b'{"versions": 7}', b'{"versions": {"torch": "2"}}', b"\xff\xfe{\x00"):
        assert lineage.report_of(stored(tmp_path, content)) is None
    for step in ("evaluate", "sweep", "pipeline"):
        assert lineage.report_of(stored(tmp_path, {"step": step, "versions": {"llm_pruner": "1"}})) is None


def without_schema(**changes) -> dict:
    made = as_json(pruned, **changes)
    del made["schema"]
    return made


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (without_schema(), r"report\.json was written by an older llm_pruner \(no schema version\); create it again"),
        ({"versions": {"llm_pruner": "0.1.0"}}, r"report\.json was written by an older llm_pruner"),
        (as_json(recovered, made_from=without_schema()), r"report\.json: made_from was written by an older llm_pruner"),
        (as_json(pruned, schema=1), r"report\.json has schema version 1, and this llm_pruner reads 2; create it again"),
        (as_json(pruned, schema="x"), r"report\.json has schema version 'x', and this"),
        (as_json(recovered, made_from={"schema": 2, "step": "sweep"}), r"made_from has no versions"),
    ],
)
def test_another_schema_version_is_refused(tmp_path, report, message):
    with pytest.raises(UsageError, match=message):
        lineage.report_of(stored(tmp_path, report))


def test_a_report_that_makes_no_checkpoint_made_none(tmp_path):
    sweep = {
        "schema": 2, "step": "sweep", "versions": {"llm_pruner": "1"}, "command": "x", "runs": [], "failures": [],
    }  # fmt: skip
    with pytest.raises(UsageError, match="made_from: step: 'sweep' makes no checkpoint"):
        lineage.report_of(stored(tmp_path, as_json(recovered, made_from=sweep)))


@pytest.mark.slow
def test_reports_of_every_kind_are_read(tmp_path):
    zero_shot = {"before": {"piqa": {"acc": 0.5, "acc_stderr": "N/A", "samples": 7}}}
    for report in (
        pruned(), pruned(reconstruction=searched(), zero_shot=zero_shot), twice(), sparse(), recovered(),
        recovered(history=[{"seconds": 1.0, "loss": None}], perplexity={"before": 7, "after": None}, evaluation={}),
        pruned(calibration={}, layers={"before": 6, "after": 2, "kept": [1, 4]}, seed=-3), pruned(evaluation={}),
        sparse(made_from=recovered()),
    ):  # fmt: skip
        assert lineage.report_of(stored(tmp_path, report)) == report
        assert "<svg" in page([report]) or not isinstance(report, PruneReport)
        assert card(report)


ONE, TWO = {"data": "a", "max_seq_len": 16, "windows": 1}, {"before": 2, "after": 2}
WRONG: dict[str, tuple] = {
    "step": (7, "magic"), "model": (7, None, ["a"]), "base_model": (7,), "seed": ("x", None, 1.5),
    "model_type": ("llama", {"after": 7}), "bytes": (None, {"before": 1}),
    "versions": (7, {}, {"llm_pruner": 7}), "seconds": ("long", {"a": "x"}, {"a": -1}),
    "parameters": ({"before": "many", "after": 1}, {"before": 0, "after": 1}, {"after": 1}, 7),
    "perplexity": ("low", {"before": "low"}, {"before": -1.0}, [1]), "dense_perplexity": ("x", -2),
    "evaluation": ([1], "x", {**ONE, "data": 7}, {**ONE, "max_seq_len": "a"}, {**ONE, "windows": -3}, {"data": "a"}),
    "calibration": (7, {"data": "a"}, {"data": ["a"], "nsamples": 1, "seq_len": 1}),
    "zero_shot": (7, {"before": {"piqa": 7}}, {"before": {"piqa": {"acc": "good"}}}),
    "widths": ("wide", {"before": {"mlp": "x"}, "after": {}}, {"before": {"mlp": []}, "after": {}}, {"after": {}}),
    "layers": ("all", None, {"before": 2}, {"before": 10**9, "after": 1}, {**TWO, "before": 3, "kept": [0, 0]},
               {**TWO, "kept": [0, 99]}, {**TWO, "kept": ["a", "b"]}, {**TWO, "kept": [0] * 50}),
    "importance": (7, ["flap"]), "order": (7,), "compensate": (7,), "masked": ("yes", 1), "command": ({"a": 1}, None),
    "scores": ("x", {"mlp": []}, {"mlp": [[1, 2]]}, {"mlp": [[*quantiles(1)[:6], "a"]]}),
    "reconstruction": (7, {"search": [7]}, {"search": [{"kl": 1}]}, {"stream_errors": ["a"]}, {"kl_plain": 7},
                       {"kl": "x"}),
    "peak_memory": ({"host": "x"}, 7), "options": ([1], {"save_model": 7}), "files": ("all", {"config.json": 7}),
    "made_from": (7, [1], "x"),
}  # fmt: skip
OF_RECOVERY = {
    "teacher": ({}, 7), "recovered_share": ("all", [1]),
    "method": (7, "magic"), "train_weights": (7,), "history": ("x", [7], [{"loss": 1}], [{"seconds": "a"}]),
    "training": ("x", {}, {**TRAINING, "tokens": "many"}, {**TRAINING, "minutes": None}),
}  # fmt: skip
CASES = [(pruned, name, value) for name, values in WRONG.items() for value in values]
CASES += [(recovered, name, value) for name, values in OF_RECOVERY.items() for value in values]


@pytest.mark.parametrize(("make", "name", "value"), CASES, ids=lambda one: getattr(one, "__name__", str(one)[:30]))
def test_a_field_that_is_illegal_is_named_at_every_depth(tmp_path, make, name, value):
    wrong = as_json(make, **{name: value})
    for report, where in (
        (wrong, ""),
        (as_json(recovered, made_from=wrong), ": made_from"),
        (twice_json(made_from=twice_json(made_from=wrong)), ": made_from: made_from"),
    ):
        if name == "versions" and not where:
            continue  # it is not ours then
        with pytest.raises(UsageError, match=rf"report\.json{where}.*{name}") as caught:
            lineage.report_of(stored(tmp_path, report))
        assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("name", ["step", "model", "parameters", "importance", "widths", "layers", "command", "seed"])
def test_a_field_that_is_missing_is_named(tmp_path, name):
    report = as_json(pruned)
    del report[name]
    with pytest.raises(UsageError, match=f"report.json has no {name}"):
        lineage.report_of(stored(tmp_path, report))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(as_json(pruned))[:-40].encode(), "is not JSON"),
        (json.dumps(as_json(pruned, note=math.nan)).encode(), "note: nan must be a finite number"),
        (json.dumps(as_json(pruned, deep={"a": [{"b": -math.inf}]})).encode(), "deep: a: b: -inf must be a finite"),
        (json.dumps(as_json(pruned, note=10**400)).encode(), "note: 1000.* must be a finite"),
        (json.dumps(as_json(pruned)).encode().replace(b"c4", b"c\xff"), "is not UTF-8"),
        (b'{"versions": {"llm_pruner": "1"}, "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested more than"),
        (b'{"llm_pruner": "' + b"x" * 2**26 + b'"}', "at most"),
    ],
    ids=range(7),
)
def test_a_broken_file_is_named(tmp_path, content, message):
    with pytest.raises(UsageError, match=rf"report\.json.*{message}") as caught:
        lineage.report_of(stored(tmp_path, content))
    assert len(str(caught.value)) < 1000


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "report.json")
    with pytest.raises(UsageError, match="no regular file"):
        lineage.report_of(tmp_path)


# The commands


def pruning(model: str, target: Path, text: str) -> PruneReport:
    return llm_pruner.prune_checkpoint(
        PruneOptions(model=model, prune="mlp=0.25", importance="magnitude", eval_data=text, max_seq_len=16,
                save_model=str(target), device="cpu")
    )  # fmt: skip


def recovering(model, target: Path, text: str, **changes) -> RecoverReport:
    values = {"eval_data": text, "data": text, "max_seq_len": 16, "steps": 1, "device": "cpu"} | changes
    return recover(RecoverOptions(model=str(model), save_model=str(target), **values))


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


@pytest.mark.slow
def test_what_was_pruned_twice_learns_from_the_dense_model(tmp_path, text, capsys):
    dense = save_tiny(tmp_path / "dense")
    first = pruning(dense, tmp_path / "once", text)
    second = pruning(str(tmp_path / "once"), tmp_path / "twice", text)
    assert (first.base_model, first.made_from, first.dense_perplexity) == (dense, None, None)
    assert (second.base_model, second.made_from.model) == (dense, dense)
    assert second.dense_perplexity == first.perplexity.before
    assert second.perplexity.before == pytest.approx(first.perplexity.after)
    made = recovering(tmp_path / "twice", tmp_path / "out", text)
    assert f"learning from {dense}" in capsys.readouterr().out
    assert (made.method, made.teacher, made.base_model) == ("distil", dense, dense)
    assert made.dense_perplexity == first.perplexity.before
    assert made.perplexity.before == pytest.approx(second.perplexity.after)
    assert len(lineage.steps(made)) == 3
    stored_report = lineage.report_of(tmp_path / "out")
    assert stored_report.made_from.made_from.model == dense
    assert stored_report.evaluation.digest


@pytest.mark.slow
def test_under_other_conditions_the_dense_models_perplexity_is_not_known(tmp_path, text):
    """… and a second recovery does not take that of the pruned model for it."""
    dense = save_tiny(tmp_path / "dense")
    pruning(dense, tmp_path / "once", text)
    made = recovering(tmp_path / "once", tmp_path / "r1", text, max_seq_len=12)
    assert (made.dense_perplexity, made.recovered_share) == (None, None)
    again = recovering(tmp_path / "r1", tmp_path / "r2", text, max_seq_len=12)
    assert (again.dense_perplexity, again.teacher) == (None, dense)
    back = recovering(tmp_path / "r2", tmp_path / "r3", text)
    assert back.dense_perplexity == lineage.steps(back)[0].perplexity.before
    Path(text).write_text(TEXT[::-1])
    other = recovering(tmp_path / "r2", tmp_path / "r4", text)
    assert other.dense_perplexity is None, "another file of the same name"
    assert "dense (dense)" in (tmp_path / "r2" / "report.html").read_text()


def test_a_broken_report_stops_a_run_before_anything_is_loaded(tmp_path, text, monkeypatch):
    dense = save_tiny(tmp_path / "dense")
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("something was loaded"))
    stored(tmp_path / "dense", as_json(pruned, parameters="many"))
    for ask in (
        lambda: pruning(dense, tmp_path / "out", text),
        lambda: recovering(dense, tmp_path / "out", text, method="lora"),
    ):
        with pytest.raises(UsageError, match=r"dense/report\.json: parameters: 'many' must be"):
            ask()
    assert not (tmp_path / "out").exists()


# The teacher


def other_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(tokenizer))


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def teaching(tmp_path, text, change=None, teacher: str = "teacher") -> RecoverReport:
    save_tiny(tmp_path / "student")
    save_tiny(tmp_path / "teacher", seed=1)
    if change:
        change(tmp_path / "teacher")
    return recovering(tmp_path / "student", tmp_path / "out", text, teacher=str(tmp_path / teacher), eval_data="none")


def test_a_teacher_with_other_tokens_is_refused(tmp_path, text):
    tokens = [token for token, _ in sorted(json.loads((DEMO / "tokenizer.json").read_text())["model"]["vocab"].items(),
                                           key=lambda item: item[1])]  # fmt: skip
    message = rf"has other tokens than .*: token {len(tokens) - 2} is .{tokens[-1]}. in the one, .{tokens[-2]}. in the"
    with pytest.raises(UsageError, match=message):
        teaching(tmp_path, text, other_tokens)


def test_a_teacher_that_is_the_student_is_refused(tmp_path, text):
    message = "holds the same weights as .*, so there is nothing to learn"
    with pytest.raises(UsageError, match=message):
        teaching(tmp_path, text, teacher="student")
    (tmp_path / "link").symlink_to(tmp_path / "student")
    with pytest.raises(UsageError, match=message):
        teaching(tmp_path, text, teacher="link")

    def same_weights(folder: Path) -> None:
        save_file(load_file(tmp_path / "student" / "model.safetensors"), folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))

    with pytest.raises(UsageError, match=message):
        teaching(tmp_path, text, same_weights)


@pytest.mark.slow
@pytest.mark.parametrize("change", [without_tokenizer, broken_tokenizer])
def test_a_teachers_tokenizer_is_not_needed(tmp_path, text, change, capsys):
    assert teaching(tmp_path, text, change).method == "distil"
    assert ("is not known" in capsys.readouterr().out) == (change is broken_tokenizer)


def test_a_teacher_that_is_not_dense_is_told(tmp_path, text, capsys):
    teaching(tmp_path, text, lambda folder: stored(folder, pruned()))
    assert "is not a dense model, it was made from models/dense-1b" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"teacher/report\.json: scores: 7 must be"):
        teaching(tmp_path / "again", text, lambda folder: stored(folder, as_json(pruned, scores=7)))
