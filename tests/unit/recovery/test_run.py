"""Recovery: what it learns, what it leaves alone, that it goes on after a kill, and that its checkpoint is ordinary."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import llm_pruner
from llm_pruner.config.prune import PruneOptions
from llm_pruner.config.recover import RecoverOptions
from llm_pruner.errors import RunError, UsageError
from llm_pruner.output import checkpoint
from llm_pruner.recovery import sources
from llm_pruner.recovery.run import recover
from llm_pruner.recovery.schedule import Schedule
from llm_pruner.recovery.unfinished import last_kept
from tests.support import tiny
from tests.support.checkpoints import save_tiny
from tests.support.commands import DEMO

pytestmark = pytest.mark.usefixtures("no_fresh_process")

WORDS = "The wind was cold and the gulls were loud. Rain fell on the roofs all morning, and the tide was low. "


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(WORDS * 40, encoding="utf-8")
    return str(path)


def options(tmp_path, text, **changes) -> RecoverOptions:
    values = {
        "model": str(tmp_path / "student"), "teacher": str(tmp_path / "teacher"), "method": "distil", "data": text,
        "eval_data": text, "max_seq_len": 16, "steps": 6, "train_batch_size": 4, "learning_rate": 0.01,
        "save_model": str(tmp_path / "out"), "device": "cpu", "mixed_precision": "no",
    }  # fmt: skip
    return RecoverOptions(**values | changes)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "qwen3", "phi3", "gemma3_text", "gpt2", "gpt_neox", "llama_tied"])
@pytest.mark.parametrize("train_weights", ["full", "lora"])
def test_distillation_comes_closer_to_the_teacher(tmp_path, text, case, train_weights):
    """… and saves a stock checkpoint of the same shapes and dtype, without adapters."""
    dropouts = dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop"), 0.0) if case == "gpt2" else {}
    teacher, student = (save_tiny(tmp_path / name, case, **dropouts) for name in ("teacher", "student"))
    rate = 0.002 if train_weights == "full" else 0.004
    weights = load_file(f"{student}/model.safetensors")
    torch.manual_seed(3)
    noisy = {name: t + 0.03 * torch.randn_like(t) if t.dim() > 1 else t for name, t in weights.items()}
    from safetensors.torch import save_file

    save_file(noisy, f"{student}/model.safetensors", metadata={"format": "pt"})
    report = recover(
        options(
            tmp_path,
            text,
            train_weights=train_weights,
            steps=16,
            lora_dropout=0.0,
            train_batch_size=8,
            learning_rate=rate,
        )
    )
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in saved.items()} == {
        name: (t.shape, t.dtype) for name, t in noisy.items()
    }
    ids = torch.tensor(AutoTokenizer.from_pretrained(DEMO)(WORDS)["input_ids"])[None]
    before, after, wanted = (
        tiny.logits(AutoModelForCausalLM.from_pretrained(folder), ids)
        for folder in (student, tmp_path / "out", teacher)
    )

    def divergence(found):
        p, q = wanted.log_softmax(-1), found.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()

    assert divergence(after) < 0.8 * divergence(before)
    losses = [point.loss for point in report.history if point.loss is not None]
    assert losses[-1] < losses[0]
    assert report.training.trainable_parameters < report.parameters.after or train_weights == "full"


@pytest.mark.slow
def test_lora_learns_the_text_and_is_merged(tmp_path, text):
    student = save_tiny(tmp_path / "student")
    report = recover(options(tmp_path, text, method="lora", teacher=None, steps=20, learning_rate=0.02))
    assert report.perplexity.after < 0.7 * report.perplexity.before
    saved, before = load_file(tmp_path / "out" / "model.safetensors"), load_file(f"{student}/model.safetensors")
    changed = {name for name in before if not torch.equal(saved[name], before[name])}
    assert changed == {name for name in before if "_proj." in name}
    assert not list((tmp_path / "out").glob("adapter*"))
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["training"]["steps"] == 20
    assert stored["method"] == "lora"


@pytest.mark.slow
def test_a_step_is_the_same_however_it_is_accumulated(tmp_path, text):
    """Records of different lengths: every predicted token of the step counts alike."""
    save_tiny(tmp_path / "student", max_position_embeddings=256)
    save_tiny(tmp_path / "teacher", seed=1, max_position_embeddings=256)
    records = [{"instruction": "Say.", "input": "", "output": WORDS[: 5 * (i + 1)]} for i in range(4)]
    (tmp_path / "records.json").write_text(json.dumps(records))
    found = []
    for batch, parts in ((4, 1), (2, 2), (1, 4)):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        recover(
            options(
                tmp_path, str(tmp_path / "records.json"), method="distil", ce_weight=1.0, steps=1,
                train_batch_size=batch, gradient_accumulation_steps=parts, train_seq_len=256, eval_data=text,
                weight_decay=0.0,
            )
        )  # fmt: skip
        found.append(load_file(tmp_path / "out" / "model.safetensors"))
    start = load_file(tmp_path / "student" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (found[0][name] - start[name]).abs().max()
    for other in found[1:]:
        assert (other[name] - found[0][name]).abs().max() < 0.02 * moved


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, text, monkeypatch):
    save_tiny(tmp_path / "teacher", seed=1)
    save_tiny(tmp_path / "student")
    whole = recover(options(tmp_path, text))
    expected = load_file(tmp_path / "out" / "model.safetensors")
    assert not (tmp_path / "out.unfinished").exists()

    shutil.rmtree(tmp_path / "out")
    plain = Schedule.on_step_end

    def killed(self, args, state, control, **rest):
        plain(self, args, state, control, **rest)
        if state.global_step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Schedule, "on_step_end", killed)
    with pytest.raises(KeyboardInterrupt):
        recover(options(tmp_path, text, save_minutes=0.0))
    assert not (tmp_path / "out").exists()
    assert last_kept(tmp_path / "out.unfinished").name == "checkpoint-3"
    (tmp_path / "out.unfinished" / "checkpoint-9").mkdir()  # one that was not written to its end
    monkeypatch.setattr(Schedule, "on_step_end", plain)
    report = recover(options(tmp_path, text, save_minutes=0.0))
    assert report.training.resumed_at == [3]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    def of(report, kind):
        return [(point.step, value) for point in report.history if (value := getattr(point, kind)) is not None]

    assert of(report, "loss") == of(whole, "loss")
    assert of(report, "perplexity") == of(whole, "perplexity")
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.slow
def test_other_inputs_start_anew(tmp_path, text, monkeypatch, capsys):
    save_tiny(tmp_path / "teacher", seed=1)
    save_tiny(tmp_path / "student")
    plain = Schedule.on_train_end
    monkeypatch.setattr(Schedule, "on_train_end", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        recover(options(tmp_path, text))
    monkeypatch.setattr(Schedule, "on_train_end", plain)
    report = recover(options(tmp_path, text, temperature=2.0))
    assert "starting anew" in capsys.readouterr().out
    assert report.training.resumed_at == []


@pytest.mark.slow
def test_mixed_precision_leaves_an_ordinary_model(tmp_path, text, monkeypatch):
    """What is scored, verified and saved computes in its own dtype, not under the training's autocast."""
    seen = {}
    monkeypatch.setattr(checkpoint, "verify", lambda model, *_: seen.update(logits=tiny.logits(model, tiny.tokens())))
    save_tiny(tmp_path / "teacher", seed=1)
    save_tiny(tmp_path / "student")
    report = recover(options(tmp_path, text, mixed_precision="bf16", learning_rate=0.001))
    assert report.training.precision == "bf16"
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert reloaded.dtype == torch.float32
    assert torch.equal(tiny.logits(reloaded, tiny.tokens()), seen["logits"])


@pytest.mark.slow
def test_time_ends_training_with_the_rate_at_nothing(tmp_path, text, monkeypatch):
    save_tiny(tmp_path / "teacher", seed=1)
    save_tiny(tmp_path / "student")
    now = iter(range(0, 100_000, 10))
    monkeypatch.setattr("llm_pruner.recovery.schedule.time.monotonic", lambda: float(next(now)))
    report = recover(options(tmp_path, text, steps=None, epochs=1000, max_minutes=2.0))
    rates = [point.learning_rate for point in report.history if point.loss is not None]
    assert report.training.steps == 12  # the clock moves ten seconds a step
    assert report.training.minutes == pytest.approx(2.0)
    assert max(rates) > 0.009
    assert rates[-1] < 0.001


@pytest.mark.slow
def test_what_the_report_of_a_pruned_checkpoint_decides(tmp_path, text):
    """Teacher, texts and window length; and the gap that was closed."""
    teacher, student = save_tiny(tmp_path / "teacher", seed=1), save_tiny(tmp_path / "student")
    half = PruneOptions(
        model=teacher, pruning_ratio=0.5, importance="magnitude", no_save=True, eval_data=text, max_seq_len=24
    )
    pruned = llm_pruner.prune_checkpoint(half).to_dict() | {
        "perplexity": {"before": 1.5, "after": 99.0}, "calibration": {"data": text, "nsamples": 3, "seq_len": 8},
    }  # fmt: skip
    (tmp_path / "student" / "report.json").write_text(json.dumps(pruned))
    report = recover(RecoverOptions(model=student, steps=3, device="cpu"))
    assert (report.method, report.teacher, report.train_weights) == ("distil", teacher, "full")
    assert (report.training.data, report.training.max_seq_len) == (text, 24)
    assert report.evaluation.data == text
    assert report.dense_perplexity == 1.5
    assert report.made_from.perplexity.after == 99.0
    assert (tmp_path / "student-recovered" / "config.json").is_file()
    again = recover(RecoverOptions(model=str(tmp_path / "student-recovered"), steps=1, device="cpu"))
    assert again.teacher == teacher, "a recovered checkpoint knows what was pruned in the first place"
    assert again.dense_perplexity == 1.5

    pruned["model"] = pruned["base_model"] = "nowhere/at-all/now"
    (tmp_path / "student" / "report.json").write_text(json.dumps(pruned))
    report = recover(RecoverOptions(model=student, steps=1, device="cpu", overwrite=True))
    assert report.method == "lora"


@pytest.mark.slow
def test_hidden_states_are_a_target_too(tmp_path, text):
    save_tiny(tmp_path / "teacher", seed=1)
    save_tiny(tmp_path / "student", hidden_size=32)  # another width: mapped
    report = recover(options(tmp_path, text, hidden_weight=1.0, steps=10))
    losses = [point.loss for point in report.history if point.loss is not None]
    assert losses[-1] < losses[0]


def test_a_teacher_of_more_tokens_teaches_those_that_the_student_has(tmp_path, text, capsys):
    teacher, student = save_tiny(tmp_path / "teacher", seed=1), str(tmp_path / "student")
    how = PruneOptions(model=teacher, prune="vocab", vocab_data=text, save_model=student, eval_data="none")
    report = llm_pruner.prune_checkpoint(how)
    found = sources.find(options(tmp_path, text))
    size = report.widths.after["vocab_size"]
    assert len(found.teacher_tokens) == size < report.widths.before["vocab_size"]
    ids = torch.tensor(AutoTokenizer.from_pretrained(student)(WORDS)["input_ids"])[None]
    kept = torch.tensor(found.teacher_tokens)
    assert torch.equal(kept[ids][0], torch.tensor(AutoTokenizer.from_pretrained(teacher)(WORDS)["input_ids"]))
    recovered = recover(options(tmp_path, text, steps=1))
    # the student has the teacher's logits at its tokens, so there is nothing to learn
    assert [point.loss for point in recovered.history if point.loss is not None][0] == pytest.approx(0, abs=1e-5)
    assert f"teaches the {size} of its" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "nowhere/at-all/now"}, RunError, "there is no folder"),
        ({"teacher": "other"}, UsageError, "knows 99 tokens"),
        ({"data": "nothing"}, UsageError, "training data 'nothing' is neither a file nor a data set"),
        ({"eval_data": "nothing"}, UsageError, "evaluation data 'nothing'"),
        ({"save_model": "student"}, UsageError, "student is model .*, which this run needs"),
        ({"save_model": "teacher"}, UsageError, "teacher is teacher .*, which this run needs"),
        ({"work_dir": "student/work"}, UsageError, "is inside model .*, which this run needs"),
        ({"work_dir": "teacher"}, UsageError, "teacher is teacher .*, which this run needs"),
        ({"work_dir": "other"}, UsageError, "holds something else than an unfinished recovery"),
        ({"teacher": None}, UsageError, "has no report.json; give `teacher`"),
        ({"method": "lora", "teacher": None, "lora_targets": "nope_proj"}, UsageError, "there is no 'nope_proj'"),
    ],
)
def test_faults(tmp_path, text, monkeypatch, changes, error, message):
    save_tiny(tmp_path / "teacher", seed=1)
    save_tiny(tmp_path / "student")
    tiny.model("llama", vocab_size=99).save_pretrained(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        recover(options(tmp_path, text, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_demos_text_is_for_what_was_made_of_the_demo_model(tmp_path):
    """By magnitude nothing was calibrated, so the report names no text to train on."""
    half = str(tmp_path / "half")
    llm_pruner.prune_checkpoint(
        PruneOptions(
            model="demo", pruning_ratio=0.5, importance="magnitude", save_model=half, eval_data="none", dtype="float32"
        )  # fmt: skip
    )
    report = recover(RecoverOptions(model=half, method="lora", steps=2, device="cpu"))
    assert (report.training.data, report.evaluation.data) == ("demo", "demo")


def test_training_and_evaluation_have_lengths_of_their_own(tmp_path, text):
    save_tiny(tmp_path / "teacher", seed=1)
    save_tiny(tmp_path / "student")
    found = sources.find(options(tmp_path, text, max_seq_len=24, train_seq_len=12))
    assert (found.eval_length, found.train_length) == (24, 12)
    assert sources.find(options(tmp_path, text, max_seq_len=24)).train_length == 24


@pytest.mark.parametrize(
    ("device", "rank", "message"),
    [
        ("cuda:1", "0", "`device` cuda:1 is for one process; a launcher numbers the GPUs itself: give cuda"),
        ("tpu9", None, "`device` 'tpu9'"),
        ("meta", None, "`device` 'meta': it holds no weights"),
    ],
)
def test_devices_are_what_they_are_everywhere(tmp_path, text, monkeypatch, device, rank, message):
    save_tiny(tmp_path / "teacher", seed=1)
    save_tiny(tmp_path / "student")
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(UsageError, match=message):
        recover(options(tmp_path, text, device=device))
