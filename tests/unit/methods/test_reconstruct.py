"""The reconstruction: the shape it finds for a budget, that the model has it, and that an interrupted run goes on."""

import copy
import gc
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_pruner.errors import RunError
from llm_pruner.methods import reconstruct as module
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP
from llm_pruner.model.families import widths_of
from llm_pruner.reconstruction.logits import logits_of
from llm_pruner.reconstruction.probe import Probe
from llm_pruner.reconstruction.tokens import Tokens, split
from tests.support import tiny
from tests.support.reconstructing import divergence, fitted_and_held, method_of, prompts, ratios_of

FINE = {"intermediate_size": 320}


@pytest.mark.parametrize(("tokens", "times"), [(1000, 8), (43_690, 3), (131_072, 2), (10**6, 2)])
def test_the_less_text_the_more_often_it_is_gone_over(tokens, times):
    held = torch.zeros(1, 10**6)  # does not count
    assert module.passes(Tokens([torch.zeros(1, tokens), held], [False, True])) == times


@pytest.mark.parametrize(
    ("asked", "whole", "small", "times"),
    [(None, None, True, 8), (None, None, False, 0), (None, 1, False, 0), (None, 0, False, 8), (1, None, False, 1)],
)
def test_layers_of_larger_models_are_optimised_alone_only_without_all_together(asked, whole, small, times, monkeypatch):
    recipes, own = [], module.reconstruct
    monkeypatch.setattr(module, "reconstruct", lambda *rest, **more: recipes.append(rest[5]) or own(*rest, **more))
    monkeypatch.setattr(module, "SMALL", 2**24 if small else 1000)
    method_of(tiny.model("llama"), prune="mlp=0.3", epochs=asked, global_epochs=whole)
    assert [(recipe.epochs, recipe.input_projections) for recipe in recipes] == [(times, bool(times) or whole == 0)]


@pytest.mark.parametrize(("most", "phases"), [(2**30, ["optimise"]), (1000, [])])
def test_very_large_models_are_not_optimised_together(most, phases, monkeypatch):
    ran = []
    own = module.optimise_together
    monkeypatch.setattr(module, "LARGEST", most)
    monkeypatch.setattr(module, "optimise_together", lambda *rest: ran.append("optimise") or own(*rest))
    method_of(tiny.model("llama"), prune="mlp=0.3")
    assert ran == phases


@pytest.mark.parametrize(
    ("options", "enough", "apart"),
    [({}, True, True), ({}, False, False), ({"epochs": 1}, True, False), ({"global_epochs": 0}, True, False)],
)
def test_half_of_the_text_is_kept_for_the_optimisation_of_all_layers(options, enough, apart, monkeypatch):
    """It sees all of the text, whose logits are those of the dense model, and the layers before only a half."""
    monkeypatch.setattr("llm_pruner.reconstruction.tokens.STEP", 48)
    monkeypatch.setattr("llm_pruner.reconstruction.tokens.RUN", 1)
    monkeypatch.setattr(module, "ENOUGH", 1 if enough else 1000)
    dense, seen, own, plain = tiny.model("llama"), {}, module.reconstruct, module.baseline
    monkeypatch.setattr(module, "reconstruct", lambda *a, **more: seen.update(fitted=a[4]) or own(*a, **more))
    # of a random model it may be better, and then nothing is optimised
    monkeypatch.setattr(module, "baseline", lambda *a: replace(plain(*a), kl=math.inf))
    together = module.optimise_together

    def optimised(model, teacher, *rest):
        seen.update(optimised=teacher.tokens, errors=[
            (logits_of(teacher.model, ids, stream) - dense(ids).logits).abs().max().item()
            for ids, stream in zip(teacher.tokens.batches, teacher.stream, strict=True)
        ])  # fmt: skip
        return together(model, teacher, *rest)

    monkeypatch.setattr(module, "optimise_together", optimised)
    method_of(copy.deepcopy(dense), prune="mlp=0.3", **options)
    fitted = {tuple(batch.flatten().tolist()) for batch in seen["fitted"].fitted}
    whole = {tuple(batch.flatten().tolist()) for batch in split(prompts()).fitted}
    if options.get("global_epochs") == 0:
        assert fitted == whole
        return
    assert {tuple(batch.flatten().tolist()) for batch in seen["optimised"].fitted} == whole
    assert len(fitted) == len(whole) // (2 if apart else 1)
    assert fitted <= whole
    assert max(seen["errors"]) < 1e-5


@pytest.mark.parametrize("ratios", [{"heads": 0.5, "mlp": 0.3}, {"hidden": 1 / 3}])
def test_a_reconstruction_that_is_better_is_kept(ratios):
    """Its KL is that of the model that is returned."""
    dense, said = tiny.model("llama"), []
    result = method_of(copy.deepcopy(dense), said, prune=ratios_of(ratios))
    _, held = fitted_and_held(split(prompts()))
    (plain,) = result.notes["kl_plain"].values()
    assert result.notes["kl"] == pytest.approx(divergence(dense, result.model, held), rel=1e-3)
    assert result.notes["kl"] < plain
    assert (result.plan.importance, result.plan.compensate) == ("reconstruct", "none")
    assert not any(line.startswith("note") for line in said)
    assert any(f"{plain:.4f}" in line for line in said)
    assert any(f"{result.notes['kl']:.4f}" in line for line in said)
    assert result.plan.parameters_after == sum(parameter.numel() for parameter in result.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("budget", [{"param_ratio": 0.4}, {"target_params": "whole"}])
def test_the_best_of_the_shapes_that_were_measured_is_built(case, budget):
    fine = {} if case == "gpt2" else FINE
    model, said = tiny.model(case, **fine), []
    total = sum(parameter.numel() for parameter in model.parameters())
    if "target_params" in budget:
        budget = {"target_params": str(round(0.8 * total))}
    result = method_of(model, said, **budget, search_minutes=0.008, **({"prune": "mlp"} if case == "gpt2" else {}))
    found, plan = result.notes["search"], result.plan
    assert [shape["kl"] for shape in found] == sorted(shape["kl"] for shape in found)
    assert all(final["kl"] is not None for final in result.notes.get("finals", []))
    chosen = result.notes.get("finals", found)[0]
    layers = chosen["layers"]
    assert len(plan.after) == len(layers or (0, 1)) == len(result.notes["stream_errors"])
    assert [widths.by_field() for widths in plan.after] == [chosen["widths"]] * len(plan.after)
    if "param_ratio" in budget:
        assert abs(plan.decoder_after / plan.decoder_before - 0.6) < 0.005
    else:
        assert abs(plan.parameters_after / round(0.8 * total) - 1) < 0.005
    assert plan.parameters_after == sum(parameter.numel() for parameter in result.model.parameters())
    assert widths_of(result.model.config) == plan.after[0]
    assert any(line.startswith(f"search: {len(found)} of ") for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0.0, 0.01])
def test_layers_have_widths_of_their_own(minutes):
    model = tiny.model("llama", num_hidden_layers=3, **FINE)
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[1].get_submodule(name).weight *= 0.05  # the second layer gives little
    result = method_of(model, param_ratio=0.4, per_layer=True, search_minutes=minutes)
    tried = [own["widths"] for own in result.notes["search"]]
    assert any(all(layer == own[0] for layer in own) for own in tried), "compared with widths that are the same in all"
    sizes = [widths[KV_HEADS] * widths[MLP] for widths in result.plan.after]
    assert sizes[1] < min(sizes[0], sizes[2])
    assert abs(result.plan.decoder_after / result.plan.decoder_before - 0.6) < 0.005
    assert result.model.config.model_type == "pruned_llama"
    assert tiny.logits(result.model).isfinite().all()


@pytest.mark.slow
def test_layers_are_alike_where_that_is_better(monkeypatch):
    own = Probe.kl

    def spoiled(self, changed, stay=None):
        alike = len(changed) == len(self.layers) and len(set(changed.values())) == 1
        return own(self, changed, stay) if alike else 9.0

    monkeypatch.setattr(Probe, "kl", spoiled)
    model = tiny.model("llama", **FINE)
    model.model.layers[0].mlp.down_proj.weight.data *= 0.05
    result = method_of(model, param_ratio=0.4, per_layer=True, search_minutes=0.01)
    assert result.notes["search"][-1]["kl"] == 9
    assert len(set(result.plan.after)) == 1
    assert result.model.config.model_type == "llama"


def test_a_budget_that_only_the_start_meets():
    """Heads alone come to 0.6 % of it, as near as --param_ratio has to be, but not as near as a search wants."""
    model = tiny.model("llama")
    heads = 2 * 4 * 2 * 48 * 8  # half of the query heads of both layers
    total = 2 * 20736
    result = method_of(model, param_ratio=heads / total - 0.006, prune="heads")
    assert [widths[HEADS] for widths in result.plan.after] == [4, 4]
    assert "search" not in result.notes


def test_without_time_for_a_search_the_shape_is_the_proportional_one():
    result = method_of(tiny.model("llama", **FINE), param_ratio=0.4, search_minutes=0.0)
    assert "search" not in result.notes
    assert abs(result.plan.decoder_after / result.plan.decoder_before - 0.6) < 0.01


@pytest.mark.slow
def test_the_same_run_again_goes_on_where_the_first_ended(tmp_path, monkeypatch):
    """Nothing is measured or reconstructed again, and the bytes are the same."""
    options = {"param_ratio": 0.4, "search_minutes": 0.008, "epochs": 1, "work_dir": str(tmp_path / "work")}
    first = method_of(tiny.model("llama", **FINE), **options)
    (cache,) = (tmp_path / "work").glob("search-*.json")
    known = json.loads(cache.read_text())
    folders = [path for path in (tmp_path / "work").iterdir() if path.is_dir()]
    assert len(known["kl"]) == len(first.notes["search"])
    assert [len(list(folder.glob("layer-*.safetensors"))) for folder in folders] == [len(first.plan.after)]

    measured, own = [], module.reconstruct
    monkeypatch.setattr(module, "reconstruct", lambda *rest, **more: (measured.append(rest), own(*rest, **more))[1])
    again = method_of(tiny.model("llama", **FINE), **options)
    assert len(measured) == 1
    wanted = first.model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.model.state_dict().items())

    method_of(tiny.model("llama", seed=1, **FINE), **options)
    assert len(list((tmp_path / "work").glob("search-*.json"))) == 2, "another model, which has to be measured"


def test_widths_per_layer_that_were_found_are_not_searched_again(tmp_path, monkeypatch):
    """The search ends by the clock, and finished layers fit no other widths."""
    options = {"param_ratio": 0.4, "per_layer": True, "search_minutes": 0.01, "work_dir": str(tmp_path / "work")}
    first = method_of(tiny.model("llama", **FINE), **options)
    monkeypatch.setattr(Probe, "kl", lambda *_, **__: pytest.fail("measured again"))
    again = method_of(tiny.model("llama", **FINE), **options)
    assert again.plan.after == first.plan.after
    assert again.notes["search"] == first.notes["search"]
    wanted = first.model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.model.state_dict().items())


@pytest.mark.parametrize("worse", [False, True])
def test_a_target_of_layers(worse, monkeypatch):
    """The layer that changes the stream least goes, also when the plain method is better."""
    dense = tiny.model("llama", num_hidden_layers=3)
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            dense.model.layers[1].get_submodule(name).weight *= 0.01
    if worse:
        own = module.reconstruct
        monkeypatch.setattr(module, "reconstruct", lambda *rest, **more: replace(own(*rest, **more), kl=math.nan))
    result = method_of(copy.deepcopy(dense), target="num_hidden_layers=2,intermediate_size=60")
    assert result.plan.layers == [0, 2]
    assert result.plan.importance == ("flap" if worse else "reconstruct")
    assert sorted(name for name in result.plan.kept if name.endswith("mlp")) == ["layers.0.mlp", "layers.1.mlp"]
    assert result.plan.parameters_after == sum(parameter.numel() for parameter in result.model.parameters())
    assert result.model.config.num_hidden_layers == len(result.model.model.layers) == 2
    _, held = fitted_and_held(split(prompts()))
    kl = result.notes["kl_plain"]["flap"] if worse else result.notes["kl"]
    assert kl == pytest.approx(divergence(dense, result.model, held), rel=1e-3)
    expected = dense.model.layers[2].self_attn.q_proj.weight
    assert torch.equal(result.model.model.layers[1].self_attn.q_proj.weight, expected) is worse


def test_weights_that_are_not_finite_are_named():
    model = tiny.model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(RunError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        method_of(model, prune="mlp=0.3")


@pytest.mark.skipif(sys.platform != "linux", reason="the maps of a process are Linux's")
def test_the_file_of_the_dense_model_leaves_the_memory(tmp_path):
    """Weights are read as maps of their file, all of which stays as long as one of them does."""

    def is_mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text(encoding="utf-8")

    tiny.model("llama").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert is_mapped()
    method_of(model, prune="mlp=0.3")
    gc.collect()
    assert not is_mapped()
