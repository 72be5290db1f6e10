"""A teacher's distributions on disk: the same training, no teacher in memory, and none of something else."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llm_pruner.config.recover import RecoverOptions
from llm_pruner.errors import RunError, UsageError
from llm_pruner.model import loading
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.recovery import run, sources, teacher_cache
from llm_pruner.recovery.examples import IGNORED, Examples, collate, training_examples, windows
from llm_pruner.recovery.likeliest import likeliest_of
from llm_pruner.recovery.run import recover
from llm_pruner.recovery.settled import settle
from llm_pruner.recovery.teacher_cache import KEY, filled, key_of
from tests.support.checkpoints import cut_short, save_tiny
from tests.support.commands import DEMO

pytestmark = pytest.mark.usefixtures("no_fresh_process")

WORDS = "The wind was cold and the gulls were loud. Rain fell on the roofs all morning, and the tide was low. "
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a teacher, a student, and a text."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "teacher", seed=1)
    save_tiny(folder / "student")
    (folder / "text.txt").write_text(WORDS * 10, encoding="utf-8")
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    """Of 40 tokens each, with the k of `options`."""
    monkeypatch.setattr(teacher_cache, "SHARD", 40 * (4 * 8 + 4))


def options(models, tmp_path, **changes) -> RecoverOptions:
    values = {
        "model": str(models / "student"), "teacher": str(models / "teacher"), "method": "distil",
        "data": str(models / "text.txt"), "eval_data": "none", "max_seq_len": 16, "steps": 4, "train_batch_size": 4,
        "learning_rate": 0.01, "save_model": str(tmp_path / "out"), "device": "cpu", "mixed_precision": "no",
        "teacher_cache": str(tmp_path / "cache"), "teacher_top_k": 8, "overwrite": True,
    }  # fmt: skip
    return RecoverOptions(**values | changes)


class Case:
    """What `filled` takes, and a loader that counts."""

    def __init__(self, asked: RecoverOptions, examples: Examples | None = None):
        self.found = sources.find(asked)
        self.settled = settle(asked, self.found)
        tokenizer = load_tokenizer(str(DEMO))
        vocab_size = self.found.config.vocab_size
        self.examples = examples or training_examples(asked.data, 16, tokenizer, vocab_size, asked.nsamples)
        self.loaded = 0

    def load(self):
        self.loaded += 1
        self.teacher = loading.load_model(self.found.teacher, self.found.teacher_config, "float32", CPU)
        return self.teacher

    def fill(self):
        return filled(self.found, self.settled, self.examples, self.load)


def losses(report):
    return [point.loss for point in report.history if point.loss is not None]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_tokens_give_the_training_that_the_teacher_gives(models, tmp_path, temperature):
    """Over two epochs. AdamW moves as far for tiny gradients as for others, so the rate is a small one."""
    common = {"temperature": temperature, "ce_weight": 0.5, "epochs": 2, "steps": None, "nsamples": 12}
    common["learning_rate"] = 0.001
    plain = recover(options(models, tmp_path, teacher_cache=None, teacher_top_k=256, **common))
    expected = load_file(tmp_path / "out" / "model.safetensors")
    cached = recover(options(models, tmp_path, teacher_top_k=10**6, **common))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-5)
    assert len(losses(plain)) == 6
    assert losses(plain)[-1] < 0.95 * losses(plain)[0]
    start = load_file(models / "student" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert (found[name] - expected[name]).abs().max() < 0.05 * (found[name] - start[name]).abs().max()


@pytest.mark.slow
def test_a_complete_cache_needs_no_teacher(models, tmp_path, monkeypatch, capsys):
    first = recover(options(models, tmp_path))
    assert "writing 1 of 1 shards" in capsys.readouterr().out
    plain = loading.load_model

    def refusing(folder, *more):
        assert "teacher" not in str(folder), "the teacher is not loaded"
        return plain(folder, *more)

    monkeypatch.setattr(run.loading, "load_model", refusing)
    again = recover(options(models, tmp_path))
    assert "complete" in capsys.readouterr().out
    assert losses(again) == losses(first)
    recover(options(models, tmp_path, seed=7, steps=1, train_weights="lora", train_batch_size=3))
    with pytest.raises(AssertionError, match="is not loaded"):
        recover(options(models, tmp_path, teacher_cache=str(tmp_path / "other")))


def test_the_cache_holds_what_the_teacher_says(models, tmp_path, small_shards):
    """Window by window, in any order, also where only a part of each window counts."""
    ids = torch.randint(96, (9, 16), generator=torch.Generator().manual_seed(2))
    pairs = [(one[: 16 - i], labels[: 16 - i]) for i, (one, labels) in enumerate(windows(ids).pairs)]
    pairs[3][1][:9] = IGNORED
    case = Case(options(models, tmp_path), Examples(pairs))
    cache = case.fill()
    assert len(cache.shards) > 1
    order = [7, 3, 0, 3, 8]
    batch = collate([case.examples[i] for i in order])
    assert batch["index"].tolist() == order
    with torch.no_grad():
        logits = case.teacher(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = likeliest_of(logits[:, :-1][batch["labels"][:, 1:] != IGNORED], 8)
    found = cache.of(order, CPU)
    assert torch.allclose(found.log_p, expected.log_p, atol=1e-3)
    assert torch.allclose(found.log_rest, expected.log_rest, atol=1e-5)
    assert (found.tokens == expected.tokens).float().mean() > 0.99, "but for ties"


def test_an_interrupted_filling_goes_on(models, tmp_path, small_shards):
    case = Case(options(models, tmp_path))
    whole = case.fill()
    assert len(whole.shards) > 4
    contents = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    shutil.rmtree(tmp_path / "cache")

    case, seen = Case(options(models, tmp_path)), []

    def load():
        teacher = Case.load(case)

        def killed(_, inputs, __):
            seen.append(len(inputs))
            if len(seen) == 4:
                raise KeyboardInterrupt

        teacher.register_forward_hook(killed)
        return teacher

    with pytest.raises(KeyboardInterrupt):
        filled(case.found, case.settled, case.examples, load)
    there = {path.name for path in (tmp_path / "cache").glob("shard-*")}
    assert 0 < len(there) < len(whole.shards)
    stamps = {name: os.stat(tmp_path / "cache" / name).st_mtime_ns for name in there}
    case.fill()
    assert {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == contents
    assert {name: os.stat(tmp_path / "cache" / name).st_mtime_ns for name in there} == stamps


def test_a_shard_that_is_cut_short_is_written_again(models, tmp_path, small_shards, capsys):
    cache = Case(options(models, tmp_path)).fill()
    before = cache.path(1).read_bytes()
    for damage in (cut_short, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"no array")):
        damage(cache.path(1))
        case = Case(options(models, tmp_path))
        capsys.readouterr()
        case.fill()
        out = capsys.readouterr().out
        assert f"note: {cache.path(1)} is damaged, and is written again" in out
        assert f"writing 1 of {len(cache.shards)} shards" in out
        assert case.loaded == 1
        assert cache.path(1).read_bytes() == before


def test_a_damaged_description_costs_no_shard(models, tmp_path, small_shards):
    Case(options(models, tmp_path)).fill()
    (tmp_path / "cache" / KEY).write_text("{")
    case = Case(options(models, tmp_path))
    case.fill()
    assert case.loaded == 0
    assert (tmp_path / "cache" / f"{KEY}.damaged").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "student-2"}, "is of another teacher"),
        ({"nsamples": 5}, "is of other training windows"),
        ({"temperature": 2.0}, "is of `temperature` 1.0"),
        ({"teacher_top_k": 9}, "is of `teacher_top_k` 8"),
    ],
)
def test_a_cache_of_something_else_is_refused(models, tmp_path, changes, message):
    if "teacher" in changes:
        changes = {"teacher": save_tiny(tmp_path / changes["teacher"], seed=2)}
    Case(options(models, tmp_path)).fill()
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "cache").iterdir())
    case = Case(options(models, tmp_path, **changes))
    with pytest.raises(UsageError, match=message) as error:
        case.fill()
    assert "\n" not in str(error.value)
    assert case.loaded == 0
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "cache").iterdir()) == before


def test_the_same_windows_are_the_same_whatever_they_are_called(models, tmp_path):
    (tmp_path / "copy.txt").write_bytes((models / "text.txt").read_bytes())
    one, other = (Case(options(models, tmp_path, **more)) for more in ({}, {"data": str(tmp_path / "copy.txt")}))
    assert key_of(one.found, one.settled, one.examples) == key_of(other.found, other.settled, other.examples)
    changed = [(ids, labels.where(torch.arange(len(labels)) != 5, IGNORED)) for ids, labels in one.examples.pairs]
    assert key_of(one.found, one.settled, Examples(changed)) != key_of(one.found, one.settled, one.examples)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("text.txt", "is a file; name a folder"),
        ("teacher", "is teacher .*, which this run needs"),
        ("others", "holds notes.md, which is not of a cache"),
        ("out/cache", "`save_model` .* holds teacher_cache"),
    ],
)
def test_places_that_are_not_for_a_cache(models, tmp_path, place, message):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "notes.md").write_text("mine")
    folder = models if (models / place).exists() else tmp_path
    with pytest.raises(UsageError, match=message):
        recover(options(models, tmp_path, teacher_cache=str(folder / place)))
    assert (tmp_path / "others" / "notes.md").read_text() == "mine"


def test_losses_that_need_the_teacher_are_refused(models, tmp_path):
    with pytest.raises(UsageError, match="the loss 'hidden' needs the teacher"):
        recover(options(models, tmp_path, losses="hidden=1"))
    with pytest.raises(UsageError, match="`hidden_weight` needs the teacher"):
        recover(options(models, tmp_path, hidden_weight=1.0))
    assert not (tmp_path / "cache").exists()


def test_a_teacher_without_finite_logits_fills_nothing(models, tmp_path):
    case = Case(options(models, tmp_path))

    def load():
        teacher = Case.load(case)
        teacher.lm_head.weight.data[3] = torch.nan
        return teacher

    with pytest.raises(RunError, match="logits are not finite"):
        filled(case.found, case.settled, case.examples, load)
    assert not list((tmp_path / "cache").glob("shard-*"))


def test_a_full_disk_is_one_line(models, tmp_path, monkeypatch):
    case = Case(options(models, tmp_path))
    monkeypatch.setattr(teacher_cache, "check_disk", lambda *_: None)
    monkeypatch.setattr(teacher_cache, "write_whole", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(RunError, match="shard-00000-.* cannot be written: No space left"):
        case.fill()


def test_numbers_that_no_teacher_said_are_found(models, tmp_path):
    """Before they index anything."""
    cache = Case(options(models, tmp_path)).fill()
    rows = np.load(cache.path(0), mmap_mode="r+")
    rows["tokens"][0] = 65_000
    rows.flush()
    cache.of([1], CPU)
    with pytest.raises(RunError, match="is damaged"):
        cache.of([0], CPU)


def test_processes_fill_a_share_each(models, tmp_path, small_shards, monkeypatch):
    """The second of two writes every other shard, and says so where the first wrote nothing in this folder."""

    class Second:
        num_processes, process_index = 2, 1

        def main_process_first(self):
            return torch.no_grad()

        def wait_for_everyone(self):
            pass

    monkeypatch.setattr(teacher_cache, "PartialState", lambda cpu: Second())
    case = Case(options(models, tmp_path))
    with pytest.raises(RunError, match="incomplete; all processes need the same folder"):
        case.fill()
    numbers = {int(path.name[6:11]) for path in (tmp_path / "cache").glob("shard-*")}
    assert numbers == set(range(1, max(numbers) + 2, 2))
    assert len(numbers) > 1


def test_an_unfinished_recovery_does_not_go_on_without_its_cache(models, tmp_path):
    found = sources.find(options(models, tmp_path))
    keys = []
    for changes in ({}, {"teacher_cache": str(tmp_path / "moved")}, {"teacher_cache": None}):
        settled = settle(replace(options(models, tmp_path), **changes), found)
        keys.append(run.key_of(found, settled, str(models / "student")))
    assert keys[0] == keys[1] != keys[2]


def test_the_description_is_plain(models, tmp_path):
    Case(options(models, tmp_path)).fill()
    told = json.loads((tmp_path / "cache" / KEY).read_text())
    assert (told["top_k"], told["temperature"]) == (8, 1.0)
    assert told["vocab_size"] == len(load_tokenizer(str(DEMO)))
