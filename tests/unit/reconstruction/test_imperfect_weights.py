"""Weights as models have them after pruning, merging or a failed training: parts that are zero, tiny, huge or alike.

Whatever a method makes of them is finite, or one line says what is wrong. Where something is silent, nothing is lost.
"""

import math

import pytest
import torch

from llm_pruner.config import recipe as names
from llm_pruner.config.prune import PruneOptions
from llm_pruner.config.recipe import Recipe
from llm_pruner.errors import RunError, UsageError
from llm_pruner.importance import CRITERIA, criterion_of
from llm_pruner.reconstruction import baseline as baseline
from llm_pruner.reconstruction.embeddings_and_head import _projected
from llm_pruner.reconstruction.least_squares import Moments, fit, normal_equations, token_weights
from llm_pruner.reconstruction.logits import divergence
from llm_pruner.reconstruction.rotation import norm_scale
from llm_pruner.reconstruction.second_order import Surgeon, keep_heads, keep_neurons
from llm_pruner.reconstruction.tokens import split
from llm_pruner.shape.allocate import standardised
from llm_pruner.sparsity.calibration import sparsify_activations
from llm_pruner.sparsity.weights import sparsify_weights
from tests.support import tiny
from tests.support.in_memory import prune_model
from tests.support.reconstructing import calibration, method_of, prompts, reconstructed

HUGE, TINY = 1e4, 1e-8


def scaled(*parts: str, factor: float = 0.0, layer: int | None = 1):
    """Multiplies every parameter whose name holds one of `parts`, of one layer or of all and what is outside; norms
    only by zero."""

    def change(model) -> None:
        names = [name for name, _ in model.named_parameters() if layer is None or f".{layer}." in name]
        found = [name for name in names if any(part in name for part in parts)]
        assert found
        for name in found:
            if factor == 0 or model.get_parameter(name).dim() > 1:
                model.get_parameter(name).data.mul_(factor)

    return change


def embeddings(rows: slice, factor: float = 0.0):
    def change(model) -> None:
        model.get_input_embeddings().weight.data[rows] *= factor

    return change


def alike(model) -> None:
    """Eight neurons that are one."""
    mlp = model.model.layers[1].mlp
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.weight.data[4:12] = projection.weight.data[4]
    mlp.down_proj.weight.data[:, 4:12] = mlp.down_proj.weight.data[:, 4:5]


def dead(model) -> None:
    """A neuron and a head that give nothing."""
    layer = model.model.layers[1]
    layer.mlp.down_proj.weight.data[:, 3] = 0
    layer.self_attn.o_proj.weight.data[:, : layer.self_attn.head_dim] = 0


BROKEN = {
    "no down_proj": scaled("down_proj"),
    "no up_proj": scaled("up_proj"),
    "no gate_proj": scaled("gate_proj"),
    "no v_proj": scaled("v_proj"),
    "no q_proj and k_proj": scaled("q_proj", "k_proj"),
    "no o_proj": scaled("o_proj"),
    "no input norm": scaled("input_layernorm"),
    "no norm before the MLP": scaled("post_attention_layernorm"),
    "no norms": scaled("layernorm"),
    "no layer": scaled(""),
    "no layers": scaled("layers.", layer=None),
    "no final norm": scaled("model.norm", layer=None),
    "a token without embedding": embeddings(slice(3, 4)),
    "most tokens without embedding": embeddings(slice(0, 80)),
    "no embeddings": embeddings(slice(None)),
    "a dead neuron and head": dead,
    "neurons alike": alike,
    "a huge layer": scaled("", factor=HUGE),
    "a huge MLP": scaled("mlp", factor=HUGE),
    "a tiny layer": scaled("", factor=TINY),
    "a tiny MLP": scaled("mlp", factor=TINY),
    "everything tiny": scaled("", factor=TINY, layer=None),
}
LAYER_NORMS = {
    "no MLP": scaled("mlp"),
    "no attention": scaled("attn", "attention"),
    "no norms": scaled("ln_", "layernorm"),
    "no weights of norms": scaled("ln_1.weight", "ln_2.weight", "layernorm.weight"),
    "no layer": scaled(""),
    "no embeddings": embeddings(slice(None)),
    "a huge layer": scaled("", factor=HUGE),
}


def assert_sound(model, change, prune, **values) -> None:
    """What `prune` makes of the changed model has finite logits and parameters."""
    changed = tiny.model(model, **values)
    change(changed)
    assert torch.isfinite(tiny.logits(changed)).all()
    pruned = prune(changed)
    assert torch.isfinite(tiny.logits(pruned)).all()
    assert all(torch.isfinite(parameter).all() for parameter in pruned.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("options", [{"prune": "heads=0.5,mlp=0.3", "epochs": 1}, {"pruning_ratio": 0.5}], ids=str)
def test_reconstructions(broken, options):
    assert_sound("llama", BROKEN[broken], lambda model: method_of(model, **options).model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        "no up_proj", "no v_proj", "no o_proj", "no norms", "no layer", "no layers", "a token without embedding",
        "most tokens without embedding", "no embeddings", "a huge layer", "a tiny MLP", "everything tiny",
    ],
)  # fmt: skip
def test_costs_of_layers(broken):
    options = {"param_ratio": 0.3, "per_layer": True, "search_minutes": 0.0}
    assert_sound("llama", BROKEN[broken], lambda model: method_of(model, **options).model, intermediate_size=320)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("broken", LAYER_NORMS)
def test_reconstructions_with_layer_norms(case, broken):
    assert_sound(case, LAYER_NORMS[broken], lambda model: method_of(model, pruning_ratio=0.5, epochs=1).model)


@pytest.mark.parametrize("case", ["llama_tied", "phi3", "gemma", "gemma3_text", "qwen3"])
def test_every_family_without_an_mlp(case):
    ratios = {"prune": "heads=0.5,mlp=0.3"} if case == "gemma3_text" else {"pruning_ratio": 0.5}
    assert_sound(case, scaled("mlp"), lambda model: method_of(model, **ratios).model)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["no up_proj", "no v_proj", "no layer", "no embeddings", "a huge MLP"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, {"prune": "heads=0.5,mlp=0.3"}) for name in CRITERIA.names()]
    + [
        (name, {"param_ratio": 0.3, "structure": "AL-AM"})
        for name in CRITERIA.names()
        if not criterion_of(name).sequential
    ],
)
def test_other_criteria(broken, name, shape):
    options = PruneOptions(model="tiny", importance=name, compensate="bias", **shape)

    def prune(model):
        return prune_model(model, options, prompts())[0]

    assert_sound("llama", BROKEN[broken], prune, attention_bias=True, mlp_bias=True, intermediate_size=320)


SPARSE = {
    "variance": Recipe(n=2, m=4, transform=names.VARIANCE),
    "l and scaling": Recipe(n=2, m=4, criterion=names.L_CRITERION, scaling=True),
    "learnable": Recipe(n=2, m=4, transform=names.LEARNABLE),
    "permutation": Recipe(n=2, m=4, permutation=True),
    "threshold": Recipe(ratio=0.5, select=names.THRESHOLD),
    "wanda": Recipe(n=2, m=4, criterion=names.WANDA),
    "weights": Recipe(n=2, m=4, criterion=names.WANDA, sparse=names.WEIGHTS),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken", ["no up_proj", "no v_proj", "no layer", "no embeddings", "a huge layer", "a tiny MLP"]
)
@pytest.mark.parametrize("recipe", SPARSE)
def test_sparsity(broken, recipe):
    def sparse(model):
        own = SPARSE[recipe]
        (sparsify_weights if own.sparse == names.WEIGHTS else sparsify_activations)(model, own, calibration().batches)
        return model

    assert_sound("llama", BROKEN[broken], sparse)


def test_scores_that_decide_no_widths_are_refused():
    options = PruneOptions(model="tiny", importance="wanda_sp", param_ratio=0.3, structure="AL-AM")
    with pytest.raises(UsageError, match="structure AL-AM decides them by the scores"):
        prune_model(tiny.model("llama"), options, prompts())


def test_inputs_of_zeros_leave_a_weight_what_it_was():
    moments, prior = Moments(), torch.randn(3, 5)
    moments.add(torch.zeros(8, 5), torch.randn(8, 3))
    normal, right = normal_equations(moments, prior, 1e-2)
    torch.testing.assert_close(torch.linalg.solve(normal, right.T).T.float(), prior)
    assert torch.equal(fit(moments, moments, prior).weight, prior)


def test_of_columns_of_zeros_those_with_the_smallest_weights_go():
    moments = Moments()
    moments.add(torch.zeros(8, 6), torch.zeros(8, 2))
    prior = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0, 6.0]]).repeat(2, 1)
    normal, right = normal_equations(moments, prior, 1e-2)
    assert keep_neurons(normal, right, 6, 3) == [0, 2, 5]
    assert keep_heads(normal, right, 1, 3, 2, 2, 1) == ([0, 2], [0, 5])


@pytest.mark.parametrize(
    "normal", [torch.zeros(6, 6), torch.ones(6, 6), torch.diag(torch.tensor([1.0, 0, 0, 0, 0, 0]))]
)
def test_equations_without_one_solution(normal):
    for width in (1, 2):
        surgeon = Surgeon(normal.double(), torch.ones(2, 6).double(), width, 6 // width)
        assert len(surgeon.keep(1)) == 1
        assert math.isfinite(surgeon.error)


def test_least_squares_that_its_dtype_cannot_hold_is_none():
    moments, prior = Moments(), torch.ones(2, 3)
    x = 1e-6 * torch.randn(64, 3)
    moments.add(x, 1e6 * x.sum(1, keepdim=True).repeat(1, 2))
    assert fit(moments, moments, prior).weight.max() > 65_504
    assert fit(moments, moments, prior, torch.float16).kind == "nothing"


def test_silent_tokens_weigh_no_more_than_very_quiet_ones():
    energy = torch.tensor([[0.0, 1.0, 2.0, 4.0]])
    assert torch.equal(token_weights(energy, energy), 1 / torch.tensor([[1e-6, 1.0, 2.0, 4.0]]))
    mostly_silent = torch.tensor([[0.0, 0.0, 0.0, 4.0]])
    torch.testing.assert_close(token_weights(mostly_silent, mostly_silent), torch.tensor([[1e6, 1e6, 1e6, 0.25]]))
    torch.testing.assert_close(token_weights(*torch.zeros(2, 1, 2)), torch.full((1, 2), 1e6))


def test_a_token_weighs_more_where_its_energy_grows_far_more_than_usual():
    before = torch.tensor([[1.0, 1.0, 2.0, 1.0, 4.0, 1.0]])
    after = torch.tensor([[3.0, 3.0, 6.0, 30_000.0, 3.0, 270.0]])
    weights = token_weights(before, after)
    torch.testing.assert_close(weights * after, torch.tensor([[1.0, 1.0, 1.0, 100.0, 1.0, 1.0]]))


@torch.no_grad()
def test_what_makes_a_massive_activation_stays():
    """Of one token among 512, which by its own energy would count as little as any other."""
    model, token, neuron = tiny.model("llama", intermediate_size=32), 7, 5
    layer, embeddings = model.model.layers[0], model.model.embed_tokens.weight
    mlp = layer.mlp
    # a channel of its own, which one neuron reads
    embeddings[:, 0] = layer.self_attn.o_proj.weight[0] = 0.0
    embeddings[token] = 100.0 * torch.eye(len(embeddings[0]))[0]
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.weight[:, 0] = 0.0
        projection.weight[neuron] = 100.0 * torch.eye(len(embeddings[0]))[0]
    mlp.down_proj.weight *= 1000.0
    prompts = tiny.tokens(64, 32, seed=0)
    prompts[prompts == token] += 1
    prompts[::16, 0] = token
    kept = reconstructed(model, {"mlp": 0.5}, tokens=split(list(prompts))).kept
    assert neuron in kept["layers.0.mlp"]


def test_silent_tokens_lose_nothing_by_a_rotation():
    basis = torch.eye(4)[:, :2]
    assert norm_scale([torch.zeros(3, 4)], basis, False) == pytest.approx(math.sqrt(2))
    assert norm_scale([1e-9 * torch.ones(3, 4)], basis, False) == pytest.approx(1.0)


@pytest.mark.parametrize("intercept", [False, True])
def test_a_channel_that_never_changes_keeps_its_norm(intercept):
    moments, x = Moments(intercept), torch.randn(64, 3)
    x[:, 1] = 0
    moments.add(x, 2 * x)
    slope, _ = _projected(moments, torch.eye(3))
    torch.testing.assert_close(slope.float(), torch.tensor([2.0, 1.0, 2.0]))


def test_scores_too_large_to_be_squared_still_have_an_order():
    scores = torch.tensor([1e30, 3e30, 2e30])
    assert standardised(scores, 3).tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"prune": "heads=0.5,mlp=0.3"}, "the reconstruction of layer 1"),
        ({"param_ratio": 0.3, "per_layer": True}, "measuring the costs of layer 1"),
    ],
)
def test_numbers_too_large_for_any_solution(options, where):
    model = tiny.model("llama", intermediate_size=320)
    scaled("mlp", factor=1e10)(model)
    with pytest.raises(RunError, match=f"{where}: the numbers are too large, .* try `dtype=float32`, or `importance"):
        method_of(model, **options)


def overflowing():
    model = tiny.model("llama", dtype=torch.float16)
    model.model.layers[1].mlp.up_proj.weight.data.mul_(60_000)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"prune": "heads=0.5,mlp=0.3"}, {"pruning_ratio": 0.5}, {"param_ratio": 0.3, "per_layer": True},
        {"importance": "flap", "prune": "mlp=0.3"},
        {"importance": "taylor", "prune": "mlp=0.3"}, {"importance": "wanda_sp", "prune": "mlp=0.3"},
    ],
    ids=str,
)  # fmt: skip
def test_a_layer_that_overflows_is_named_with_what_helps(options):
    method = {} if "importance" in options else {"method": "reconstruct"}
    expected = "layer 1: mlp.up_proj gives NaN or Inf on the calibration data, computed in float16; try `dtype=bfloat"
    with pytest.raises(RunError, match=expected):
        prune_model(overflowing(), PruneOptions(model="tiny", **method, **options), prompts())


@pytest.mark.parametrize("recipe", ["learnable", "permutation", "weights"])
def test_sparsity_names_it_too(recipe):
    sparsify = sparsify_weights if recipe == "weights" else sparsify_activations
    with pytest.raises(RunError, match=r"layer 1: mlp\.up_proj gives NaN or Inf .* try `dtype=bfloat16` or float32"):
        sparsify(overflowing(), SPARSE[recipe], calibration().batches)


def test_embeddings_that_overflow_are_not_the_first_layers_fault():
    model = tiny.model("gemma", dtype=torch.float16)
    model.model.embed_tokens.weight.data.fill_(60_000.0)
    with pytest.raises(RunError, match="what enters layer 0 is NaN or Inf"):
        method_of(model, prune="mlp=0.3")


def test_logits_that_overflow():
    """The dense model's end the run; the pruned one's only lose to whatever they are compared with."""
    model, other, tokens = tiny.model("llama"), tiny.model("llama"), calibration()
    stream = [torch.randn(*batch.shape, model.config.hidden_size) for batch in tokens.batches]
    other.lm_head.weight.data[3] = math.inf
    assert divergence(model, other, tokens, stream, stream) == math.inf
    with pytest.raises(RunError, match="the logits are NaN or Inf on the calibration data"):
        divergence(other, model, tokens, stream, stream)


def test_a_reconstruction_is_not_lost_with_what_it_is_compared_with(monkeypatch):
    def fails(*_, **__):
        raise RunError("flap gives no finite score")

    monkeypatch.setattr(baseline, "score", fails)
    best = method_of(tiny.model("llama"), prune="mlp=0.3")
    assert best.plan.importance == "reconstruct"
    assert best.notes["kl_plain"] == {"flap": math.inf}


@pytest.mark.parametrize(
    "place", ["llm_pruner.reconstruction.reconstruct.optimise", "llm_pruner.reconstruction.survey.normal_equations"]
)
def test_memory_that_ends_in_the_best_method(place, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(place, no_memory)
    with pytest.raises(RunError, match=r"layer 0 does not fit in memory; use a smaller `nsamples`"):
        method_of(
            tiny.model("llama", intermediate_size=320), param_ratio=0.3, per_layer=True, search_minutes=0.0, epochs=1
        )
