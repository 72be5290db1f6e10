"""How large attentions and MLPs are, and 2SSP's division of a budget, against numbers made by hand."""

import pytest

from llm_pruner.errors import PlanError
from llm_pruner.model.axes import HEADS, KV_HEADS, LAYER, MLP, Axis
from llm_pruner.shape.blocks import Blocks, two_stages, without
from llm_pruner.shape.counter import ParameterCounter
from tests.support import tiny
from tests.support.toys import counter_of, widths


def llama(layers: int, hidden: int, kv_channels: int, neurons: int) -> Blocks:
    """Without biases, heads as wide as the stream, two norms in a layer."""
    attention, mlp = 2 * hidden * (hidden + kv_channels), 3 * hidden * neurons
    return Blocks(layers, attention, mlp, layers * (attention + mlp + 2 * hidden), neurons)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (llama(32, 4096, 4096, 11008), [(5, 7744), (9, 6368), (13, 4992)]),
        (llama(32, 4096, 1024, 14336), [(1, 10005), (2, 7893), (5, 5994)]),
        (llama(30, 576, 192, 1536), [(2, 1058), (4, 836), (8, 648)]),
    ],
    ids=["Llama-2-7B", "Llama-3.1-8B", "SmolLM2-135M"],
)
def test_the_division_is_that_of_the_published_code(blocks, expected):
    assert [two_stages(blocks, share) for share in (0.25, 0.375, 0.5)] == expected


def test_the_division_of_a_toy():
    """m/(a·α) = 2 and 4·½² = 1 attention; 32 of 64 parameters, 28 of them in MLPs: 7 of 12 in each."""
    assert two_stages(Blocks(4, 4, 12, 64, 12), 0.5) == (1, 5)


@pytest.mark.parametrize(
    ("blocks", "share", "message"),
    [
        # 4·0.5^(1/3/1.5) = 3.43 attentions of 12 each are 36 of 64
        (Blocks(4, 12, 4, 64, 4), 0.5, "`param_ratio` 0.5 is 3 whole attentions .* 0.562 to .*; ask for more"),
        # 4·0.93² = 3.46: three attentions and 48 of the MLPs are 60 of 64, which is all neurons
        (Blocks(4, 4, 12, 64, 12), 0.93, "is 3 whole attentions .* 0.188 to 0.938 of the decoder can go; ask for less"),
    ],
)
def test_a_share_that_the_rule_cannot_give(blocks, share, message):
    with pytest.raises(PlanError, match=message):
        two_stages(blocks, share)


@pytest.mark.parametrize("case", tiny.CASES)
def test_parts_have_the_parameters_of_their_modules(case):
    """Biases, and norms inside an attention, included."""
    model = tiny.model(case)
    blocks = Blocks.of(counter_of(tiny.config(case)), model.config.model_type)
    layer = next(module for module in model.base_model.children() if hasattr(module, "append"))[0]
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in layer.named_children()}
    attention = next(size for name, size in sizes.items() if name in ("self_attn", "attn", "attention"))
    assert (blocks.attention, blocks.mlp) == (attention, sizes["mlp"])
    assert blocks.decoder == blocks.layers * sum(sizes.values())
    assert (blocks.of_axis(HEADS), blocks.of_axis(MLP)) == (blocks.attention, blocks.mlp)


def test_layers_of_other_parts_are_refused():
    """Such as experts, of another package's family."""
    counter = counter_of(tiny.config("llama"))
    before = counter.before.but({Axis("experts", "num_experts", LAYER): 4})
    with pytest.raises(PlanError, match="mixtral has experts in its layers, which are not one attention and one MLP"):
        Blocks.of(ParameterCounter(counter.shapes, counter.groups, before, 2), "mixtral")


def test_widths_without_a_part():
    before = widths(48, 8, 4, 80, 8)
    assert without(before, HEADS) == before.but({HEADS: 0, KV_HEADS: 0})
    assert without(before, HEADS, MLP) == before.but({HEADS: 0, KV_HEADS: 0, MLP: 0})
