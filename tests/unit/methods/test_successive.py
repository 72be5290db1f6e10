"""Several sizes in one run: each is made of the model of the one before, and is as it should be for itself."""

import copy
import math
import weakref
from dataclasses import replace

import pytest
import torch

from llm_pruner import Budget, Ratio, Reconstruct, prune, prune_successively
from llm_pruner.errors import RunError, UsageError
from llm_pruner.methods import reconstruct as module
from llm_pruner.model.axes import HEADS, MLP
from llm_pruner.model.layers import decoder_layers
from llm_pruner.model.surgery import cut, widened
from llm_pruner.reconstruction.logits import logits_of
from llm_pruner.shape.draft import draft
from tests.support import tiny
from tests.support.reconstructing import divergence, prompts

SIZES = [Budget(param_ratio=0.2), Budget(param_ratio=0.4), Budget(param_ratio=0.6)]
FINE = {"intermediate_size": 320}
SHAPES = [{"per_layer": True}, {}, {"search_minutes": 0.0}]


@pytest.fixture
def reconstructed(monkeypatch):
    """No plain method is better, as it may be of random text."""
    own = module.baseline
    monkeypatch.setattr(module, "baseline", lambda *rest: replace(own(*rest), kl=math.inf))


def made(model, sizes=SIZES, **options):
    method = Reconstruct(**{"search_minutes": 0.01, "epochs": 0} | options)
    return list(prune_successively(model, sizes, method, prompts()))


@pytest.mark.usefixtures("reconstructed")
@pytest.mark.parametrize("case", ["llama", "llama_tied"])
@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_each_has_its_size_and_lies_inside_the_one_before(options, case):
    found = made(tiny.model(case, **FINE), **options)
    assert [plan.removed()["decoder"] for _, plan in found] == pytest.approx([0.2, 0.4, 0.6], abs=0.01)
    for (_, last), (_, plan) in zip(found, found[1:]):
        assert all(own[axis] <= most[axis] for most, own in zip(last.after, plan.after) for axis in (HEADS, MLP))
        assert {name for name, units in plan.kept.items() if not set(units) <= set(last.kept[name])} == set()
    for model, plan in found:
        assert sum(p.numel() for p in model.parameters()) == plan.parameters_after


@pytest.mark.usefixtures("reconstructed")
@pytest.mark.parametrize("options", [{"per_layer": True}, {"search_minutes": 0.0}], ids=str)
def test_the_first_is_what_it_would_be_alone_and_the_others_leave_it_as_it_is(options):
    options |= {"search_minutes": 0.0}
    alone = prune(tiny.model("llama", **FINE), SIZES[0], Reconstruct(epochs=0, **options), prompts()).model
    first = made(tiny.model("llama", **FINE), **options)[0].model
    expected = alone.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in first.state_dict().items())


@pytest.mark.usefixtures("reconstructed")
def test_it_is_optimised_towards_the_dense_model(monkeypatch):
    """Not towards the model that it was made of."""
    dense = tiny.model("llama", **FINE)
    still, own, seen = copy.deepcopy(dense), module.optimise_together, []

    def noted(model, teacher, *rest):
        for ids, stream in zip(teacher.tokens.batches, teacher.stream, strict=True):
            torch.testing.assert_close(logits_of(teacher.model, ids, stream), still(ids).logits)
        seen.append(sum(batch.numel() for batch in teacher.tokens.fitted))
        return own(model, teacher, *rest)

    monkeypatch.setattr(module, "optimise_together", noted)
    monkeypatch.setattr(module, "ENOUGH", 0)
    # batches of four prompts
    monkeypatch.setattr("llm_pruner.reconstruction.tokens.STEP", 96)
    made(dense, per_layer=True)
    assert len(seen) == 3
    assert seen[1] == seen[2] < 0.6 * seen[0], "further sizes see a part of the text"


@pytest.mark.usefixtures("reconstructed")
def test_a_model_that_was_let_go_is_not_kept(monkeypatch):
    """The optimisation takes the most memory, and needs only the model that it optimises."""
    own, taken, left = module.optimise_together, [], []

    def noted(*rest):
        left.append([layer() is not None for layer in taken])
        return own(*rest)

    monkeypatch.setattr(module, "optimise_together", noted)
    method = Reconstruct(search_minutes=0.0, epochs=0)
    run = prune_successively(tiny.model("llama", **FINE), SIZES, method, prompts())
    for _ in SIZES:
        model, _ = next(run)
        taken.append(weakref.ref(model.model.layers[0]))
        del model
    assert left == [[], [False], [False, False]]


@pytest.mark.usefixtures("reconstructed")
def test_it_is_better_than_the_last_one_cut_alike():
    dense = tiny.model("llama", **FINE)
    still = copy.deepcopy(dense)
    method = Reconstruct(epochs=0, search_minutes=0.0, per_layer=True)
    drafts = [draft(size, dense.config, method) for size in SIZES[::2]]
    groups, held = drafts[0].traced.groups, module.split(prompts()).held_out
    first, second = method.prune_successively(dense, drafts, prompts())
    for pruned in (first, second):
        assert pruned.notes["kl"] == pytest.approx(divergence(still, pruned.model, held), rel=1e-3)
    wide = widened(first.model, groups, first.plan.kept, still.config)
    plain = cut(wide, groups, second.plan.kept, second.config)
    assert second.notes["kl"] < 0.9 * divergence(still, plain, held)


@pytest.mark.usefixtures("reconstructed")
@pytest.mark.slow
@pytest.mark.parametrize("case", tiny.CASES)
def test_every_family(case):
    # whose heads cannot go alone
    sizes = [replace(size, axes=("mlp",)) if case in tiny.DERIVED else size for size in SIZES[:2]]
    found = made(tiny.model(case), sizes, per_layer=True, search_minutes=0.0)
    for model, plan in found:
        assert len(decoder_layers(model)) == len(plan.after)
        assert torch.isfinite(tiny.logits(model)).all()
    assert found[1].plan.decoder_after < found[0].plan.decoder_after


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        (SIZES[::-1], {}, "`param_ratio` 0.4 is not smaller than `param_ratio` 0.6"),
        ([SIZES[0], SIZES[0]], {}, "is not smaller than"),
        ([Budget(param_ratio=0.2, axes=["mlp"]), SIZES[1]], {}, "is not smaller than"),
        ([Ratio(0.2), Ratio(0.4)], {}, "further sizes are shares of the attention and MLP parameters"),
        ([Budget(param_ratio=0.1, axes=["hidden"]), Budget(param_ratio=0.2, axes=["hidden"])], {}, "further sizes are"),
        ([Budget(params=80000, axes=["heads", "mlp"]), SIZES[2]], {}, "further sizes are shares"),
        ([], {}, "no size is given"),
        (SIZES, {"global_epochs": 0}, "give `global_epochs=1`"),
    ],
)
def test_what_cannot_follow_is_refused_before_anything_is_done(sizes, options, message):
    model = tiny.model("llama", **FINE)
    with pytest.raises(UsageError, match=message):
        made(model, sizes, **options)
    assert all(parameter.numel() for parameter in model.parameters())


def test_a_plain_model_is_no_start(monkeypatch):
    own = module.reconstruct
    monkeypatch.setattr(module, "reconstruct", lambda *rest, **more: replace(own(*rest, **more), kl=float("inf")))
    run = prune_successively(tiny.model("llama", **FINE), SIZES, Reconstruct(epochs=0, search_minutes=0.0), prompts())
    assert next(run).plan.importance == "flap"
    with pytest.raises(RunError, match="no start for a smaller size"):
        next(run)


@pytest.mark.usefixtures("reconstructed")
def test_a_further_model_that_is_not_finite_is_refused(monkeypatch):
    own = module.optimise_together
    told = iter([lambda held: held, lambda held: replace(held, kl=math.nan)])

    def spoiled(*rest):
        before, after = own(*rest)
        return before, next(told)(after)

    monkeypatch.setattr(module, "optimise_together", spoiled)
    run = prune_successively(tiny.model("llama", **FINE), SIZES, Reconstruct(epochs=0, search_minutes=0.0), prompts())
    next(run)
    with pytest.raises(RunError, match="logits are NaN or Inf"):
        next(run)
