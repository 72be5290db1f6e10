"""An interrupted reconstruction goes on behind the layers it finished, and comes to the same bytes."""

import functools

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_pruner.reconstruction import reconstruct as module
from llm_pruner.reconstruction.layer import Outcome
from llm_pruner.reconstruction.layer_files import read_layer, write_layer
from tests.support import tiny
from tests.support.checkpoints import cut_short
from tests.support.reconstructing import BRIEF, calibration, planned, reconstructed

AXES = {"llama": "all", "gpt2": "mlp"}


def run(case: str, folder=None, seed: int = 0):
    return reconstructed(
        tiny.model(case), tiny.axes(case)[AXES[case]], BRIEF, calibration(seed=seed, batches=2), folder
    )


expected_of = functools.cache(run)


def assert_same(found, expected) -> None:
    wanted = expected.model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.model.state_dict().items())
    assert (found.kl, found.errors, found.fits, found.kept) == (
        expected.kl, expected.errors, expected.fits, expected.kept
    )  # fmt: skip


@pytest.fixture
def layers_done(monkeypatch) -> list[int]:
    """The layers that are reconstructed, while the test lasts, in order."""
    order, own = [], module.reconstruct_layer
    monkeypatch.setattr(
        module, "reconstruct_layer", lambda work, *rest: (order.append(work.dense.index), own(work, *rest))[1]
    )
    return order


@pytest.mark.slow
@pytest.mark.parametrize("case", AXES)
def test_same_text_same_bytes(case, tmp_path):
    assert_same(run(case, tmp_path), expected_of(case))
    assert run(case, seed=1).kl != expected_of(case).kl


@pytest.mark.parametrize("case", AXES)
def test_it_goes_on_where_it_was(case, tmp_path, monkeypatch, layers_done):
    own = module.reconstruct_layer
    with monkeypatch.context() as patch:

        def die(work, *rest):
            if work.dense.index == 1:
                raise KeyboardInterrupt
            return own(work, *rest)

        patch.setattr(module, "reconstruct_layer", die)
        with pytest.raises(KeyboardInterrupt):
            run(case, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["layer-0.safetensors"]
    expected_of(case)
    layers_done.clear()
    assert_same(run(case, tmp_path), expected_of(case))
    assert layers_done == [1]
    assert_same(run(case, tmp_path), expected_of(case))
    assert layers_done == [1], "everything was there"


def test_killed_while_writing(tmp_path, monkeypatch):
    """The file is there whole or not at all."""
    from llm_pruner import files

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("llama", tmp_path)
    assert not list(tmp_path.glob("layer-*"))
    assert_same(run("llama", tmp_path), expected_of("llama"))


def emptied(path):
    path.write_bytes(b"")


def without_notes(path):
    save_file(load_file(path), path)


def with_other_notes(path):
    save_file(load_file(path), path, metadata={"found": "[1]"})


def of_other_widths(path):
    tensors = load_file(path)
    tensors["mlp.up_proj.weight"] = tensors["mlp.up_proj.weight"][:-1].clone()
    save_file(tensors, path, metadata={"found": "[{}, {}]"})


def of_another_layer(path):
    tensors = load_file(path)
    tensors["mlp.up.weight"] = tensors.pop("mlp.up_proj.weight")
    save_file(tensors, path, metadata={"found": "[{}, {}]"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil", [cut_short, emptied, without_notes, with_other_notes, of_other_widths, of_another_layer]
)
def test_a_file_that_does_not_fit_is_ignored(spoil, tmp_path, layers_done):
    run("llama", tmp_path)
    spoil(tmp_path / "layer-1.safetensors")
    expected_of("llama")
    layers_done.clear()
    assert_same(run("llama", tmp_path), expected_of("llama"))
    assert layers_done == [1]


def test_a_layer_comes_back_as_it_was(tmp_path):
    """Conv1D too, with what is known about it."""
    layer, other = (tiny.model("gpt2", seed=seed).transformer.h[1] for seed in (0, 1))
    found = Outcome({"layers.1.mlp": [0, 2]}, {"mlp.c_proj": "least squares"})
    write_layer(tmp_path / "new" / "folder", 1, layer, found)
    assert read_layer(tmp_path / "new" / "folder", 1, other) == found
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in layer.state_dict().items())
    assert read_layer(tmp_path / "new" / "folder", 0, other) is None
    assert read_layer(None, 1, other) is None


def test_an_empty_layer_is_filled(tmp_path):
    """As it stands in a reconstruction, without memory."""
    from llm_pruner.model.skeleton import skeleton

    model = tiny.model("llama")
    _, _, config = planned(model, {"mlp": 0.3})
    write_layer(tmp_path, 0, model.model.layers[0], Outcome({}, {}))
    assert read_layer(tmp_path, 0, skeleton(config).model.layers[0]) is None, "other widths"
    empty = skeleton(model.config).model.layers[0]
    assert read_layer(tmp_path, 0, empty) == Outcome({}, {})
    assert torch.equal(empty.mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
