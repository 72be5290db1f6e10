"""ShortGPT: the layers with the lowest block influence go, and nothing else changes."""

import copy

import pytest
import torch

from llm_pruner import METHODS, prune
from llm_pruner.errors import PlanError, RunError, UsageError
from llm_pruner.methods.shortgpt import ShortGPT, block_influence, cosines, layers_left, most_influential
from llm_pruner.shape.draft import draft
from llm_pruner.shape.request import Budget, Ratio, Replay, Target
from tests.support import tiny

DEPTH = 4


def model(case: str = "llama", **changes):
    """A tiny model of four layers."""
    if "layer_types" in tiny.CASES[case][1]:
        changes["layer_types"] = ["sliding_attention", "full_attention"] * 2
    return tiny.model(case, num_hidden_layers=DEPTH, **changes)


def quiet(built, layer: int, factor: float) -> None:
    """Scale everything that a llama's layer writes to the stream."""
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            built.model.layers[layer].get_submodule(name).weight *= factor


def prompts(rows: int = 4, length: int = 12) -> list[torch.Tensor]:
    return list(tiny.tokens(rows, length))


def test_the_example_by_hand():
    """(1,0), (1,1), (1,1.1) leave three layers; (0,1) enters the first."""
    stream = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.1]])
    influence = (1 - cosines(stream[:-1], stream[1:])).tolist()
    assert influence == pytest.approx([1.0, 0.2929, 0.0011], abs=5e-5)
    assert most_influential(influence, 2) == [0, 1]
    assert most_influential(influence, 1) == [0]


def test_of_equal_influence_the_first_layer_goes():
    assert most_influential([0.5, 0.1, 0.1, 0.3], 3) == [0, 2, 3]


@pytest.mark.parametrize(
    ("number", "share", "left"), [(6, 0.2, 4), (6, 0.3, 4), (6, 0.5, 3), (32, 0.25, 24), (10, 0.7, 3), (6, 1e-7, 5)]
)
def test_the_ceiling_of_the_share_goes(number, share, left):
    """0.7 · 10 is a little more than 7 in floating point, and 7 go."""
    assert layers_left(number, share) == left


def test_a_layer_has_to_stay():
    assert layers_left(4, 0.75) == 1
    with pytest.raises(PlanError, match=r"the ratio 0.76 leaves none of 4 layers; the highest legal ratio is 0.75"):
        layers_left(4, 0.76)


def test_influence_is_of_all_tokens_and_of_the_layers_own_input():
    """From the hidden states that the model itself returns; prompts of two lengths, whose tokens count alike."""
    built = model()
    batches = [tiny.tokens(2, 12), tiny.tokens(1, 5, seed=3)]
    total, seen = torch.zeros(DEPTH, dtype=torch.double), 0
    inputs: list = [[] for _ in range(DEPTH)]
    for index, layer in enumerate(built.model.layers):
        layer.register_forward_hook(lambda _, given, out, index=index: inputs[index].append((given[0], out)))
    with torch.no_grad():
        for batch in batches:
            built(batch)
            seen += batch.numel()
    for index, pairs in enumerate(inputs):
        for x, y in pairs:
            x, y = x.double(), y.double()
            total[index] += (1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).sum()
    assert block_influence(built, batches) == pytest.approx((total / seen).tolist(), abs=1e-6)


@pytest.mark.parametrize("case", tiny.CASES)
def test_what_is_left_are_the_other_layers_in_their_order(case):
    """Of every family: the pruned model computes what the dense one does when the layers are passed by."""
    dense = model(case)
    influence = block_influence(dense, [torch.stack(prompts())])
    gone = sorted(sorted(range(DEPTH), key=influence.__getitem__)[:2])
    new, plan = prune(copy.deepcopy(dense), Budget(param_ratio=0.5), ShortGPT(), prompts())
    assert plan.layers == [layer for layer in range(DEPTH) if layer not in gone]
    assert (plan.importance, plan.num_layers_before, new.config.num_hidden_layers) == ("shortgpt", DEPTH, 2)
    assert sum(p.numel() for p in new.parameters()) == plan.parameters_after
    assert plan.removed()["decoder"] == pytest.approx(0.5)
    layers = next(m for m in dense.base_model.children() if isinstance(m, torch.nn.ModuleList))
    for index in gone:
        layers[index].forward = lambda hidden_states, *args, **options: hidden_states
    assert torch.equal(tiny.logits(new), tiny.logits(dense))


def test_the_layers_that_do_least_go():
    built = model()
    quiet(built, 2, 0.01)
    quiet(built, 1, 0.1)
    assert prune(copy.deepcopy(built), Budget(param_ratio=0.25), ShortGPT(), prompts()).plan.layers == [0, 1, 3]
    assert prune(built, Target({"num_hidden_layers": 2}), ShortGPT(), prompts()).plan.layers == [0, 3]


def test_a_ratio_of_zero_makes_a_copy():
    expected = tiny.logits(model())
    new, plan = prune(model(), Budget(param_ratio=0.0), ShortGPT())
    assert plan.after == (plan.before,) * DEPTH
    assert torch.equal(tiny.logits(new), expected)


def test_a_target_of_all_layers_changes_nothing():
    with pytest.raises(PlanError, match="`target` num_hidden_layers=4 changes nothing; ask for fewer layers"):
        draft(Target({"num_hidden_layers": DEPTH}), tiny.config("llama", num_hidden_layers=DEPTH), ShortGPT())


@pytest.mark.parametrize(
    "request_",
    [
        Ratio(0.5), Ratio({"mlp": 0.5}), Budget(param_ratio=0.5, axes=("mlp",)), Budget(params="20k"),
        Budget(iteration=1), Budget(ratio=0.5), Budget(param_ratio=0.5, structure="AL-AM"),
        Target({"intermediate_size": 40}), Target({"num_hidden_layers": 2, "intermediate_size": 40}),
    ],
)  # fmt: skip
def test_other_requests_are_refused_in_one_line(request_):
    with pytest.raises(UsageError, match=r"^method shortgpt removes whole layers: give `param_ratio`=R, or `target` "):
        draft(request_, tiny.config("llama", num_hidden_layers=DEPTH), ShortGPT())


def test_a_plan_is_not_replayed():
    plan = prune(model(), Ratio({"mlp": 0.5})).plan
    with pytest.raises(UsageError, match="method shortgpt makes a plan of its own"):
        prune(model(), Replay(plan), ShortGPT(), prompts())


def test_more_layers_than_there_are():
    with pytest.raises(PlanError, match=r"num_hidden_layers=5 is more than the model has \(4\)"):
        draft(Target({"num_hidden_layers": 5}), tiny.config("llama", num_hidden_layers=DEPTH), ShortGPT())


def test_layers_that_compute_by_their_number_are_refused():
    config = tiny.config("gpt2", num_hidden_layers=DEPTH, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(PlanError, match="scale_attn_by_inverse_layer_idx: what a layer computes depends on its number"):
        draft(Budget(param_ratio=0.5), config, ShortGPT())


def test_text_is_needed():
    with pytest.raises(UsageError, match="method shortgpt needs calibration prompts"):
        prune(model(), Budget(param_ratio=0.5), ShortGPT())


def test_broken_weights_are_named():
    built = model()
    built.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(RunError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        prune(built, Budget(param_ratio=0.5), ShortGPT(), prompts())


def test_by_its_name_with_its_option():
    assert METHODS.make("shortgpt:seed=3") == ShortGPT(seed=3)
    with pytest.raises(UsageError, match="method shortgpt has no option 'order'"):
        METHODS.make("shortgpt:order=reversed")
    with pytest.raises(UsageError, match="seed: -1"):
        ShortGPT(seed=-1)
