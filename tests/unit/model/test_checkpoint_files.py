"""The files of a checkpoint: those that transformers reads are checked, by its own rules, and no others."""

import itertools
import json
import os
import pickle
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_pruner.errors import PlanError, RunError, UsageError
from llm_pruner.model import loading
from llm_pruner.model.checkpoint_files import WEIGHTS, check_folder, check_weights, tidy, weight_files
from tests.support import tiny
from tests.support.checkpoints import Evil, cut_short
from tests.support.commands import edit_config, edit_tensors

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 4943162336\n"
PROJECTION = "model.layers.1.mlp.up_proj.weight"


def saved(folder: Path, case: str = "llama") -> Path:
    tiny.model(case).save_pretrained(folder)
    return folder


def check(folder: Path) -> None:
    check_weights(folder, loading.load_config(str(folder)))


def load(folder: Path):
    return loading.load_model(str(folder), loading.load_config(str(folder)), device="cpu")


def index(folder: Path, places: dict, name: str = "model.safetensors.index.json", **more) -> Path:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": places, **more}))
    return folder / name


def sharded(folder: Path, case: str = "llama") -> tuple[Path, dict[str, str]]:
    """Two shards and their index."""
    tensors = load_file(saved(folder, case) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{1 + number % 2}.safetensors" for number, name in enumerate(sorted(tensors))}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name in places if places[name] == shard}, folder / shard, {"format": "pt"})
    index(folder, places)
    return folder, places


def pickled(folder: Path, change=lambda tensors: tensors, **options) -> Path:
    tensors = load_file(saved(folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(change(tensors), folder / "pytorch_model.bin", **options)
    return folder


@pytest.mark.parametrize("present", [one for n in range(1, 5) for one in itertools.combinations(WEIGHTS, n)])
def test_the_files_are_those_that_transformers_takes(tmp_path, present):
    from transformers.modeling_utils import _get_resolved_checkpoint_files

    for name in present:
        kind = name.removesuffix(".index.json").rpartition(".")[2]
        for shard in (f"a.{kind}", f"b.{kind}"):
            (tmp_path / shard).write_bytes(b"x")
        content = {"metadata": {}, "weight_map": {"w": f"a.{kind}", "v": f"b.{kind}"}}
        (tmp_path / name).write_text(json.dumps(content) if name.endswith(".json") else "x")
    theirs, _ = _get_resolved_checkpoint_files(
        pretrained_model_name_or_path=str(tmp_path), variant=None, gguf_file=None, use_safetensors=None,
        user_agent=None, is_remote_code=False, download_kwargs={},
    )  # fmt: skip
    assert [str(file) for file in weight_files(tmp_path)[1]] == theirs


@pytest.mark.parametrize("case", tiny.CASES)
def test_every_family_passes(tmp_path, case):
    load(saved(tmp_path / "whole", case))
    load(sharded(tmp_path / "shards", case)[0])


def test_what_nobody_loads_does_not_matter(tmp_path):
    folder = saved(tmp_path)
    index(folder, {"w": "gone.safetensors"})
    index(folder, {"w": "../../etc/passwd"}, "pytorch_model.bin.index.json")
    (folder / "pytorch_model.bin").write_text(POINTER)
    (folder / "consolidated.safetensors").write_text(POINTER)
    (folder / "model-00007.safetensors").write_bytes(b"broken")
    os.mkfifo(folder / "flax_model.msgpack")
    (folder / "tokenizer_old").mkdir()
    load(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a mapping"),
        ("{}", "has no metadata"),
        ('{"metadata": {}}', "has no weight_map"),
        ('{"metadata": [], "weight_map": {"w": "a.safetensors"}}', re.escape("metadata: [] must be a mapping")),
        ('{"metadata": {}, "weight_map": []}', re.escape("weight_map: [] must be a mapping")),
        ('{"metadata": {}, "weight_map": {}}', "names no tensor"),
        ('{"metadata": {}, "weight_map": {"w": 5}}', "'w' must be in a file, not in 5"),
        *(
            (json.dumps({"metadata": {}, "weight_map": {"w": name}}), "outside the checkpoint; refused")
            for name in ("../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\0b", "./a.safetensors")
        ),
        ("[" * 10**5, "nested more than"),
    ],
)
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_that_is_none_is_named(tmp_path, content, message, kind):
    """Also beside a stray file that looks like a shard of another format."""
    saved(tmp_path)
    shutil.move(tmp_path / "model.safetensors", tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / f"{kind}.index.json").write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        check(tmp_path)
    assert f"{kind}.index.json" in str(caught.value)


def test_shards_that_are_not_what_the_index_says(tmp_path):
    folder, places = sharded(tmp_path)
    index(folder, places | {"model.more.weight": "model-1.safetensors"})
    with pytest.raises(RunError, match="model-1.safetensors does not hold 'model.more.weight', which the index says"):
        check(folder)
    index(folder, dict.fromkeys(places, "model-1.safetensors") | {PROJECTION: "model-2.safetensors"})
    with pytest.raises(RunError, match="does not hold"):
        check(folder)
    index(folder, places)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(RunError, match="model-2.safetensors is missing; the checkpoint is incomplete"):
        check(folder)


BROKEN = {
    "truncated or broken": cut_short,
    "is truncated or broken": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "Git LFS pointer, not the file itself: fetch it with `git lfs pull`": lambda path: path.write_text(POINTER),
    "is empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("message", BROKEN)
@pytest.mark.parametrize("make", [saved, lambda folder: sharded(folder)[0], pickled])
def test_a_file_that_is_needed_and_broken_is_called_what_it_is(tmp_path, make, message):
    folder = make(tmp_path)
    file = weight_files(folder)[1][-1]
    BROKEN[message](file)
    with pytest.raises(RunError, match=message) as caught:
        check(folder)
    assert file.name in str(caught.value)


def test_an_old_pickle_that_is_cut_short(tmp_path):
    folder = pickled(tmp_path, _use_new_zipfile_serialization=False)
    check(folder)
    cut_short(folder / "pytorch_model.bin")
    with pytest.raises(RunError, match="pytorch_model.bin is truncated or broken"):
        check(folder)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"w": 1}}, {"epoch": 3}, {5: torch.ones(1)}])
def test_pickles_of_something_else(tmp_path, content):
    with pytest.raises(RunError, match="pytorch_model.bin holds"):
        check(pickled(tmp_path, lambda _: content))


def test_a_pickle_with_code_in_it_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": Evil()}))
    with pytest.raises(RunError, match="pytorch_model.bin"):
        check(tmp_path)
    assert not (tmp_path / "pwned").exists()


ODD = (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ODD, ids=str)
@pytest.mark.parametrize("name", [PROJECTION, "model.norm.weight", "model.embed_tokens.weight"])
def test_quantised_tensors_without_their_config_are_named(tmp_path, dtype, name):
    def change(tensors):
        tensors[name] = tensors[name].to(dtype)
        return tensors

    for folder in (saved(tmp_path / "safe"), pickled(tmp_path / "bin", change)):
        if folder.name == "safe":
            edit_tensors(folder, change)
        with pytest.raises(RunError, match=f"{name} is of .*no quantization_config"):
            check(folder)


def test_a_complex_weight_is_named(tmp_path):
    with pytest.raises(RunError, match=f"{PROJECTION} is of complex64"):
        check(pickled(tmp_path, lambda tensors: tensors | {PROJECTION: tensors[PROJECTION].to(torch.complex64)}))


@pytest.mark.parametrize(
    ("case", "leftovers"),
    [
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8),
                  "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool),
                      "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}),
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        ("llama", {"model.rotary_emb.inv_freq": torch.ones(4)}),
    ],
)  # fmt: skip
def test_buffers_of_older_checkpoints_are_harmless(tmp_path, case, leftovers):
    folder = saved(tmp_path, case)
    edit_tensors(folder, lambda tensors: tensors.update(leftovers))
    load(folder)


def test_weights_below_the_head_alone_are_taken(tmp_path):
    """GPT-2 was published without the prefix that its class gives its names."""
    folder = saved(tmp_path, "gpt2")
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("transformer."): t for name, t in tensors.items()}, folder / "model.safetensors")
    load(folder)


@pytest.mark.parametrize(
    "name", ["score.weight", "classifier.weight", "v_head.summary.weight", "qa_outputs.bias", "score.0.weight",
             "model.value_head.weight"],
)  # fmt: skip
def test_a_head_that_a_language_model_does_not_have_is_refused(tmp_path, name):
    folder = saved(tmp_path, "llama_tied")
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(2, 48)}))
    with pytest.raises(PlanError, match=f"holds {name}, which the language model does not have"):
        check(folder)


def test_other_parts_that_have_no_place_are_refused_when_that_is_known(tmp_path):
    folder = saved(tmp_path, "llama_tied")
    edit_tensors(folder, lambda tensors: tensors.update({"projector.weight": torch.zeros(2, 48)}))
    with pytest.raises(PlanError, match="holds projector.weight, which the language model does not have"):
        load(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors"])
def test_weights_that_config_json_names_outside_the_folder(tmp_path, name):
    folder = saved(tmp_path)
    edit_config(folder, transformers_weights=name)
    with pytest.raises(UsageError, match="transformers_weights names .* outside the checkpoint"):
        check(folder)


def test_weights_that_config_json_names(tmp_path):
    folder = saved(tmp_path)
    shutil.move(folder / "model.safetensors", folder / "other.safetensors")
    edit_config(folder, transformers_weights="other.safetensors")
    (folder / "model.safetensors").write_text(POINTER)
    load(folder)
    edit_config(folder, transformers_weights="gone.safetensors")
    with pytest.raises(RunError, match="no gone.safetensors"):
        check(folder)


def test_no_weights(tmp_path):
    folder = saved(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RunError, match="holds no weights: no model.safetensors or"):
        check(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors", "tokenizer.model"]
)
def test_a_pipe_is_never_waited_for(tmp_path, name):
    folder = saved(tmp_path)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises((UsageError, RunError), match=f"{name} is no regular file"):
        check(folder)


def test_nor_is_a_socket_or_a_device(tmp_path, monkeypatch):
    folder, places = sharded(tmp_path)
    (folder / "model-1.safetensors").unlink()
    (folder / "model-1.safetensors").symlink_to("/dev/zero")
    with pytest.raises(RunError, match="model-1.safetensors is no regular file"):
        check(folder)
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("generation_config.json.sock")
        (folder / "generation_config.json").unlink()
        (folder / "generation_config.json").symlink_to("generation_config.json.sock")
        with pytest.raises(UsageError, match="no regular file"):
            check_folder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a mapping"),
        ("", "is empty"),
        (POINTER, "Git LFS pointer"),
        ({"temperature": "hot"}, "temperature: 'hot' must be a finite number"),
        ({"temperature": float("nan")}, "temperature: nan must be a finite number"),
        ({"top_k": 1.5}, "top_k: 1.5 must be a whole number"),
        ({"do_sample": "yes"}, "do_sample: 'yes' must be true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id: '</s>' must be"),
        ({"eos_token_id": [1, None]}, "eos_token_id"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"early_stopping": "maybe"}, "early_stopping"),
        ({"cache_implementation": "paper"}, "cache_implementation"),
        ({"num_return_sequences": 3}, "num_return_sequences"),
        ({"validate": 5}, "is no legal generation config"),
    ],
)
def test_a_broken_generation_config_is_named_at_the_start(tmp_path, content, message):
    folder = saved(tmp_path)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        loading.load_config(str(folder))
    assert "generation_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.9, "top_p": 0.6},  # Llama-2
        {"do_sample": False, "top_k": 5, "pad_token_id": -1},
        {"length_penalty": 2.0, "early_stopping": True},
        {"output_scores": True, "use_cache": False, "cache_implementation": "static"},
        {"eos_token_id": [500, 2], "max_length": 9, "some_field_of_tomorrow": {"a": [1]}},
    ],
)
def test_settings_without_effect_are_legal_and_do_not_keep_a_model_from_being_saved(tmp_path, values):
    from transformers import GenerationConfig

    folder = saved(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps(values))
    loading.load_config(str(folder))
    found = GenerationConfig.from_pretrained(folder)
    tidy(found)
    found.save_pretrained(tmp_path / "out")
    assert tidy(found) == []
    for name in ("eos_token_id", "max_length"):
        assert getattr(found, name) == values.get(name)
