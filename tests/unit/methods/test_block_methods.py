"""2SSP, Putri and BlockPruner: examples made by hand, and what each does to a tiny model, against a plain account."""

import contextlib
import itertools
import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from llm_pruner import Budget, Ratio, Replay, Target, prune
from llm_pruner.errors import PlanError, RunError, UsageError
from llm_pruner.methods import METHODS, Journal
from llm_pruner.methods.putri import neuron_scores, refitted
from llm_pruner.methods.two_ssp import summed_norms
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP
from llm_pruner.model.families import family_of, widths_of
from llm_pruner.model.groups import group_name, group_of, output_projection
from llm_pruner.model.layers import decoder_layers
from llm_pruner.model.trace import trace_groups
from llm_pruner.reconstruction.ablation import whole_parts
from llm_pruner.shape.blocks import Blocks, two_stages
from llm_pruner.shape.draft import Open, draft
from llm_pruner.shape.plan import Plan
from tests.support import tiny
from tests.support.toys import counter_of

NAMES = ("2ssp", "blockpruner", "blockpruner:alternating=true", "putri")
LAYERS = 3
PROMPTS = [*tiny.tokens(12, 16, seed=5)]
TOKENS = 40


@cache
def share(case: str) -> float:
    """The least for which attentions go, one of most cases' three, and some neurons."""
    blocks = blocks_of(case)
    for hundredths in range(20, 80):
        with contextlib.suppress(PlanError):
            if two_stages(blocks, hundredths / 100)[0]:
                return hundredths / 100
    raise AssertionError(case)


@cache
def blocks_of(case: str) -> Blocks:
    return Blocks.of(counter_of(config(case)), "")


def config(case: str):
    changes = {"gemma3_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}}
    return tiny.config(case, num_hidden_layers=LAYERS, **changes.get(case, {}))


def model_of(case: str):
    changes = {"gemma3_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}}
    return tiny.model(case, num_hidden_layers=LAYERS, **changes.get(case, {}))


@cache
def pruned(name: str, case: str):
    """(model, plan): read only."""
    return prune(model_of(case), Budget(param_ratio=share(case)), method(name), PROMPTS)


def method(name: str):
    return METHODS.make(f"{name}{',' if ':' in name else ':'}perplexity_tokens={TOKENS}")


@torch.no_grad()
def loss(model, prompts) -> float:
    """The mean over tokens, by the whole model."""
    losses = [F.cross_entropy(model(p[None]).logits[0, :-1].float(), p[1:], reduction="none") for p in prompts]
    return torch.cat(losses).double().mean().item()


@contextlib.contextmanager
def silent(parts):
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.silence())
        yield


def measured_on() -> list[torch.Tensor]:
    return PROMPTS[: math.ceil(TOKENS / 16)]


def applicable(names=NAMES):
    """Putri takes kv groups of single layers, which no class with a derived head_dim holds. Most families are slow."""
    return [
        pytest.param(name, case, marks=() if case in ("llama", "phi3", "gpt2") else pytest.mark.slow)
        for name, case in itertools.product(names, tiny.CASES)
        if not (name == "putri" and case in tiny.DERIVED)
    ]


# Examples made by hand


def test_2ssp_takes_the_mean_of_the_windows_norms():
    """Neuron 0 is (3, 4) and (0, 0) in two windows, neuron 1 is (2, 2) in both: 2.5 and √8, pooled it were 5 and 4."""
    x = torch.tensor([[[3.0, 2.0], [4.0, 2.0]], [[0.0, 2.0], [0.0, 2.0]]])
    assert (summed_norms(x) / 2).tolist() == pytest.approx([2.5, math.sqrt(8)])


def test_putri_scores_a_neuron_by_what_the_later_ones_cannot_predict():
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    second, weight = x.T @ x, torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    energy = (x @ weight.T).square().mean(0)
    assert energy.tolist() == pytest.approx([8 / 3, 2 / 3])
    assert neuron_scores(second, weight, energy).tolist() == pytest.approx([16, 4 / 3])
    assert refitted(second, weight, [0]).tolist() == [pytest.approx([2.0]), pytest.approx([0.5])]
    # exchangeable neurons, of which the order makes two kinds
    even = torch.eye(2, dtype=torch.float64)
    ones = neuron_scores(second, even, x.square().mean(0)) / x.square().mean(0)
    assert ones.tolist() == pytest.approx([1.5, 2.0])


def test_putri_reads_its_score_from_a_factor_as_the_published_code_does_from_an_inverse():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    weight, energy = torch.randn(4, 7, generator=generator).double(), torch.rand(4, generator=generator).double()
    second = x.T @ x
    upper = torch.linalg.cholesky(torch.linalg.inv(second), upper=True)
    expected = (energy[:, None] * weight**2).sum(0) / upper.diagonal() ** 2
    torch.testing.assert_close(neuron_scores(second, weight, energy), expected)


def test_a_refit_is_the_least_squares_fit_to_the_dense_outputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    weight, kept = torch.randn(4, 7, generator=generator).double(), [0, 2, 3, 6]
    expected = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
    torch.testing.assert_close(refitted(x.T @ x, weight, kept), expected)


def test_neurons_that_are_the_same_have_no_putri_score():
    assert neuron_scores(torch.ones(2, 2).double(), torch.eye(2).double(), torch.ones(2).double()) is None


# On tiny models of every family


@pytest.mark.parametrize(("name", "case"), applicable())
def test_the_pruned_model_is_the_dense_one_with_the_units_that_stay(name, case):
    """What was removed gives nothing: logits are those of the dense model with zeros and Putri's fitted weights."""
    small, plan = pruned(name, case)
    assert sum(parameter.numel() for parameter in small.parameters()) == plan.parameters_after
    assert small.config.model_type.startswith("pruned_")
    wide = model_of(case)
    groups = trace_groups(wide)
    parameters = dict(wide.named_parameters())
    for group in groups:
        if not group.has_output:
            continue
        kept, member = plan.kept[group.name], output_projection(group)
        positions = member.positions(torch.tensor(group.removed(kept), dtype=torch.long))
        parameters[member.parameter].data.index_fill_(member.dim, positions, 0)
        if name == "putri" and group.axis == MLP:
            columns = member.positions(torch.tensor(kept))
            fitted = dict(small.named_parameters())[member.parameter].data
            parameters[member.parameter].data.index_copy_(member.dim, columns, fitted)
    lost = [part for part in whole_parts(wide, groups, HEADS, MLP)
            if not plan.kept[group_name(part.axis, part.layer)]]  # fmt: skip
    with silent(lost):
        torch.testing.assert_close(tiny.logits(small), tiny.logits(wide), atol=2e-4, rtol=1e-4)
    assert lost or name == "putri"


@pytest.mark.parametrize("case", ["llama", "mistral", "gpt2", "gpt_neox"])
def test_2ssp_is_its_two_stages(case):
    small, plan = pruned("2ssp", case)
    wide = model_of(case)
    groups = trace_groups(wide)
    blocks = blocks_of(case)
    attentions, neurons = two_stages(blocks, share(case))
    assert attentions in (1, 2)
    mlps = [group_of(groups, MLP, layer) for layer in range(LAYERS)]
    norms = {group.name: 0.0 for group in mlps}
    for group in mlps:
        module = wide.get_submodule(output_projection(group).parameter.removesuffix(".weight"))
        module.register_forward_pre_hook(
            lambda _, args, name=group.name: norms.update({name: norms[name] + args[0][0].double().norm(dim=0)})
        )
    loss(wide, PROMPTS)
    for group in mlps:
        assert plan.kept[group.name] == norms[group.name].argsort(descending=True)[:neurons].sort().values.tolist()
    # of the models without the other neurons and without one more attention, the best
    narrow, gone = without_neurons(case, plan), list[int]()
    parts = whole_parts(narrow, trace_groups(narrow), HEADS)
    for _ in range(attentions):
        left = [layer for layer in range(LAYERS) if layer not in gone]
        found = {}
        for layer in left:
            with silent([part for part in parts if part.layer in (*gone, layer)]):
                found[layer] = loss(narrow, measured_on())
        gone.append(min(found, key=found.get))
    assert sorted(gone) == [layer for layer in range(LAYERS) if not plan.kept[group_name(HEADS, layer)]]
    assert loss(small, measured_on()) == pytest.approx(found[gone[-1]], rel=1e-4)


def without_neurons(case: str, plan: Plan):
    """The dense model with the neurons silent that the plan removes."""
    wide = model_of(case)
    for group in trace_groups(wide):
        if group.axis == MLP:
            member = output_projection(group)
            removed = member.positions(torch.tensor(group.removed(plan.kept[group.name]), dtype=torch.long))
            wide.get_parameter(member.parameter).data.index_fill_(member.dim, removed, 0)
    return wide


@pytest.mark.parametrize("case", ["llama", "llama_multi_head"])
def test_putri_fits_every_mlp_behind_the_fitted_ones_before_it(case):
    _, plan = pruned("putri", case)
    wide, groups = model_of(case), trace_groups(model_of(case))
    small = dict(pruned("putri", case).model.named_parameters())
    _, neurons = two_stages(blocks_of(case), share(case))
    for layer in range(LAYERS):
        group = group_of(groups, MLP, layer)
        name = output_projection(group).parameter
        module = wide.get_submodule(name.removesuffix(".weight"))
        read, written = [], []
        hook = module.register_forward_hook(lambda _, x, y, r=read, w=written: r.append(x[0][0]) or w.append(y[0]))
        with torch.no_grad():
            for prompt in PROMPTS:
                wide(prompt[None])
        hook.remove()
        x, y = torch.cat(read).double(), torch.cat(written).double()
        weight = module.weight.detach().double()
        scores = neuron_scores(x.T @ x, weight, y.square().mean(0))
        kept = scores.argsort(descending=True)[:neurons].sort().values.tolist()
        assert plan.kept[group.name] == kept
        expected = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
        torch.testing.assert_close(small[name].double(), expected, atol=2e-3, rtol=2e-3)
        module.weight.data.zero_()
        module.weight.data[:, kept] = small[name].data


@pytest.mark.parametrize("case", ["llama", "phi3", "llama_multi_head"])
def test_putri_takes_the_best_groups_of_a_round_at_once(case):
    _, plan = pruned("putri", case)
    groups, number = trace_groups(model_of(case)), widths_of(config(case))[KV_HEADS]
    wide = model_of(case)
    small = dict(pruned("putri", case).model.named_parameters())
    for group in groups:
        if group.axis == MLP:
            name = output_projection(group).parameter
            weight = wide.get_parameter(name).data
            weight.zero_()
            weight[:, plan.kept[group.name]] = small[name].data
    found = {}
    for layer, unit in itertools.product(range(LAYERS), range(number)):
        projection = decoder_layers(wide)[layer].self_attn.o_proj
        width, kept = projection.weight.shape[1] // number, projection.weight.data.clone()
        projection.weight.data[:, unit * width : (unit + 1) * width] = 0
        found[layer, unit] = loss(wide, measured_on())
        projection.weight.data.copy_(kept)
    best = sorted(found, key=found.get)[:number]
    lost = [(layer, unit) for layer, unit in found if unit not in plan.kept[group_name(KV_HEADS, layer)]]
    assert sorted(best) == lost
    assert len({layer for layer, _ in lost}) > 1, "they are of several layers"


def test_a_layer_that_loses_all_its_kv_groups_has_no_attention():
    """One kv head in a layer: the group that goes is the attention."""
    built = tiny.model("llama", num_hidden_layers=3, num_key_value_heads=1)
    blocks = Blocks.of(counter_of(tiny.config("llama", num_hidden_layers=3, num_key_value_heads=1)), "")
    ratio = next(s / 100 for s in range(10, 90) if two_stages(blocks, s / 100)[0] == 1)
    small, plan = prune(built, Budget(param_ratio=ratio), method("putri"), PROMPTS)
    lost = [layer for layer, own in enumerate(plan.after) if not own[KV_HEADS]]
    assert len(lost) == 1
    assert small.config.per_layer_widths[lost[0]]["skip"] == ["attention"]
    assert not list(decoder_layers(small)[lost[0]].self_attn.parameters())


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_blockpruner_takes_the_best_block_until_no_other_comes_nearer(case):
    _, plan = pruned("blockpruner", case)
    blocks, wanted = blocks_of(case), share(case)
    wide = model_of(case)
    parts, gone, removed = whole_parts(wide, trace_groups(wide), HEADS, MLP), [], 0
    while True:
        found = {}
        for part in parts:
            with silent([*gone, part]):
                found[part] = math.inf if part in gone else loss(wide, measured_on())
        best = min(found, key=found.get)
        size = blocks.of_axis(best.axis)
        budget = wanted * blocks.decoder
        if removed and abs(removed + size - budget) >= abs(removed - budget):
            break
        gone.append(best)
        removed += size
    lost = [(axis, layer) for axis in (HEADS, MLP) for layer in range(LAYERS) if not plan.after[layer][axis]]
    assert sorted(((part.axis, part.layer) for part in gone), key=str) == sorted(lost, key=str)


def test_an_alternating_removal_takes_as_many_attentions_as_mlps():
    """⌈0.4·3⌉ = 2."""
    small, plan = prune(model_of("llama"), Budget(param_ratio=0.4), method(NAMES[2]), PROMPTS)
    assert [sum(not own[axis] for own in plan.after) for axis in (HEADS, MLP)] == [2, 2]
    assert torch.isfinite(tiny.logits(small)).all()


def test_the_options_are_checked():
    with pytest.raises(UsageError, match="method putri: perplexity_tokens: 1 must be a whole number from 2"):
        METHODS.make("putri:perplexity_tokens=1")
    with pytest.raises(UsageError, match="method blockpruner: alternating: 2 must be true or false"):
        METHODS.get("blockpruner")(alternating=2)


# Requests


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "request_",
    [
        Ratio(0.5), Target({"intermediate_size": 40}), Budget(params=20_000), Budget(iteration=1),
        Budget(param_ratio=0.3, axes=("mlp",)), Budget(param_ratio=0.3, structure="AL-AM"), Budget(memory="40KB"),
    ],
    ids=str,
)  # fmt: skip
def test_other_requests_are_refused(name, request_):
    with pytest.raises(UsageError, match=r"divides a share .* by a rule of its own: give `param_ratio=R` and nothing"):
        draft(request_, config("llama"), METHODS.make(name))


@pytest.mark.parametrize("case", tiny.DERIVED)
def test_putri_refuses_families_whose_layers_have_the_same_heads(case):
    with pytest.raises(PlanError, match=f"{case} derives head_dim .* `method=2ssp` and `method=blockpruner`"):
        draft(Budget(param_ratio=share(case)), config(case), METHODS.make("putri"))


@pytest.mark.parametrize(
    ("name", "ratio", "message"),
    [
        ("2ssp", 0.001, "changes nothing; a neuron of every layer is"),
        ("putri", 0.001, "changes nothing"),
        ("blockpruner", 0.01, "changes nothing; the smallest block is .* ask for more"),
        ("blockpruner:alternating=true", 0.7, "all attentions and MLPs; the most is 0.6667"),
        ("2ssp", 0.999, "ask for less"),
    ],
)
def test_shares_that_a_method_cannot_remove(name, ratio, message):
    with pytest.raises(PlanError, match=message):
        draft(Budget(param_ratio=ratio), config("llama"), METHODS.make(name))


@pytest.mark.parametrize("name", ["2ssp", "putri", "blockpruner:alternating=true"])
def test_the_outline_has_the_numbers_of_the_result(name):
    method_ = METHODS.make(name)
    made = draft(Budget(param_ratio=share("llama")), config("llama"), method_)
    assert isinstance(made.shape, Open)
    outline, _ = method_.outline(made)
    _, plan = pruned(name, "llama")
    assert outline.decoder_after == plan.decoder_after
    assert outline.parameters_after == plan.parameters_after
    assert outline.kept is None


def test_how_many_blocks_of_which_kind_only_the_text_tells():
    made = draft(Budget(param_ratio=0.3), config("llama"), METHODS.make("blockpruner"))
    assert made.after is None


def test_a_share_of_nothing_is_a_copy():
    small, plan = prune(model_of("llama"), Budget(param_ratio=0), METHODS.make("2ssp"))
    assert torch.equal(tiny.logits(small), tiny.logits(model_of("llama")))
    assert plan.parameters_after == plan.parameters_before


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_needed(name):
    with pytest.raises(UsageError, match="needs calibration prompts of at least 2 tokens"):
        prune(model_of("llama"), Budget(param_ratio=0.3), METHODS.make(name), [torch.tensor([1])])


def test_putri_needs_as_many_tokens_as_neurons():
    with pytest.raises(UsageError, match="as many calibration tokens as an MLP has neurons, 80; there are 64"):
        prune(model_of("llama"), Budget(param_ratio=0.3), METHODS.make("putri"), PROMPTS[:4])


def test_putri_names_the_layer_whose_neurons_it_cannot_rank():
    model = model_of("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3] = 0
    with pytest.raises(RunError, match="layer 1: some neurons are silent, or the same as others"):
        prune(model, Budget(param_ratio=0.3), METHODS.make("putri"), PROMPTS)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_finite_are_named(name):
    model = model_of("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = math.nan
    with pytest.raises(RunError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        prune(model, Budget(param_ratio=0.3), METHODS.make(name), PROMPTS)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_done_is_told(name):
    lines: list[str] = []
    made = draft(Budget(param_ratio=share("llama")), config("llama"), method(name))
    told = method(name).prune(model_of("llama"), made, PROMPTS, Journal(lines.append))
    assert told.plan.importance == name.partition(":")[0]
    assert len(told.notes["perplexities"]) >= 2
    assert told.notes["perplexity_tokens"] == 3 * 15
    assert "perplexity on 45 calibration tokens" in lines[-1]
    number = {"putri": 4, "2ssp": 1}.get(name)
    assert number is None or len(told.notes["removed"]) == number


# Plans


@pytest.mark.parametrize("name", ["2ssp", "blockpruner"])
@pytest.mark.parametrize("case", ["qwen3", "gpt2"])
def test_a_plan_is_saved_and_replayed(name, case, tmp_path):
    small, plan = pruned(name, case)
    plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    assert (read.after, read.kept) == (plan.after, plan.kept)
    again, replayed = prune(model_of(case), Replay(read))
    assert torch.equal(tiny.logits(again), tiny.logits(small))
    assert replayed.parameters_after == plan.parameters_after
    with pytest.raises(UsageError, match="replay one by `ScoreAndCut`, without a method"):
        prune(model_of(case), Replay(read), METHODS.make(name))


@pytest.mark.parametrize("case", ["llama_multi_head", "qwen3", "gpt2", "gpt_neox"])
def test_a_mask_of_the_plan_is_the_model_that_was_cut(case):
    """Biases of output projections, and norms inside an attention, go with it."""
    small, plan = pruned("blockpruner", case)
    masked, _ = prune(model_of(case), Replay(plan), METHODS.make("score_and_cut:mask_only=true"))
    torch.testing.assert_close(tiny.logits(masked), tiny.logits(small), atol=2e-4, rtol=1e-4)


def test_biases_are_for_projections_that_are_still_there():
    small, plan = pruned("2ssp", "llama")
    biased, _ = prune(model_of("llama"), Replay(plan), METHODS.make("score_and_cut:compensate=bias"), PROMPTS)
    names = [name for name, _ in biased.named_parameters() if name.endswith("bias")]
    lost = [layer for layer, own in enumerate(plan.after) if not own[HEADS]]
    assert len(names) == 2 * LAYERS - len(lost)
    assert not torch.equal(tiny.logits(biased), tiny.logits(small))


def test_families_of_the_cases_are_those_that_have_the_property():
    assert {case for case in tiny.CASES if family_of(config(case).model_type).derived_head_dim} == set(tiny.DERIVED)
