"""All layers optimised together: towards the dense model's logits, never behind the start on held-out text."""

import copy
import io

import pytest
import torch

from llm_pruner.reconstruction import end_to_end
from llm_pruner.reconstruction.end_to_end import Held, Teacher, optimise_together
from llm_pruner.reconstruction.reconstruct import reconstruct
from tests.support import tiny
from tests.support.reconstructing import PLAIN, calibration, divergence, fitted_and_held, planned

CASES = ["llama", "llama_tied", "qwen2", "gemma3_text", "phi3", "gpt2", "gpt_neox"]


def pruned(case: str, dtype=torch.float32):
    """(dense model, pruned model, of which nothing was fitted, teacher)."""
    dense, tokens = tiny.model(case).to(dtype), calibration(batches=2)
    groups, plan, config = planned(dense, {"mlp": 0.4})
    done = reconstruct(dense, groups, plan.after, config, tokens, PLAIN)
    teacher = Teacher.of(dense, tokens, done.dense_stream)
    return copy.deepcopy(dense), done.settle(dense), teacher


@torch.no_grad()
def loss(model, batches) -> float:
    """Of the next tokens, from the logits of the model as it runs."""
    losses = [model(batch, labels=batch).loss.item() for batch in batches]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_divergence_falls_and_is_that_of_the_model(case, quick, monkeypatch):
    """Whether products are in bfloat16 or not; held-out text is always measured in the model's own precision."""
    monkeypatch.setattr(end_to_end, "has_quick_bfloat16", lambda device: quick)
    dense, model, teacher = pruned(case)
    _, held = fitted_and_held(teacher.tokens)
    start = divergence(dense, model, held)
    before, after = optimise_together(model, teacher, epochs=20)
    assert before.kl == pytest.approx(start, rel=1e-3)
    assert after.kl == pytest.approx(divergence(dense, model, held), rel=1e-3)
    assert after.loss == pytest.approx(loss(model, held), rel=1e-4)
    assert after.kl < 0.97 * before.kl


@pytest.mark.parametrize("case", ["llama", "llama_tied"])
def test_only_layers_change_and_no_gradient_is_left(case):
    """Whether a parameter learns is as it was: whoever trains the model afterwards finds nothing frozen."""
    _, model, teacher = pruned(case)
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimise_together(model, teacher, epochs=3)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".layers." in name}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert len(set(flags.values())) == 2


@pytest.mark.parametrize("disk", ["is there", "is full", "cannot be written to"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_that_harm_are_taken_back(monkeypatch, dtype, disk):
    """A rate at which everything breaks leaves the model as it was, bit by bit."""

    class Full(io.BytesIO):
        def write(self, *_) -> int:
            raise OSError("No space left on device")

    def none() -> None:
        raise FileNotFoundError("No usable temporary directory found")

    _, model, teacher = pruned("llama", dtype)
    if disk != "is there":
        monkeypatch.setattr(end_to_end.tempfile, "TemporaryFile", Full if disk == "is full" else none)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(end_to_end, "RATE", 10.0)
    before, after = optimise_together(model, teacher, epochs=1)
    assert before == after
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_keeps_its_dtype(dtype):
    _, model, teacher = pruned("llama", dtype)
    before, after = optimise_together(model, teacher, epochs=20)
    assert after.kl < before.kl
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("shape", [(), (1,), (7, 1), (3, 5, 1)])
def test_rows_of_one_weight_take_the_steps_of_adam(shape):
    """But for the momentum, which is rounded to bfloat16."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(shape, generator=generator)
    theirs, small = own.clone().requires_grad_(), end_to_end._Adam(own)
    adam = torch.optim.Adam([theirs], lr=0.5 * small.rate, betas=end_to_end.BETAS, eps=end_to_end.EPSILON)
    start = own.clone()
    for _ in range(5):
        theirs.grad = torch.randn(shape, generator=generator)
        adam.step()
        small.step(own, theirs.grad, factor=0.5)
    torch.testing.assert_close(own - start, theirs.detach() - start, rtol=0.02, atol=0.02 * small.rate)


def test_a_row_has_one_second_moment():
    """The larger gradients of a row take the larger steps, and all rows steps of one size."""
    own, adam = torch.ones(2, 3), end_to_end._Adam(torch.ones(2, 3))
    adam.step(own, torch.tensor([[1.0, 2.0, 2.0], [100.0, 200.0, 200.0]]), factor=1.0)
    moved = (1 - own) / adam.rate
    torch.testing.assert_close(moved, torch.tensor([[1.0, 2.0, 2.0]] * 2) / 3**0.5, rtol=0.01, atol=0.0)


def test_products_in_bfloat16_give_nearly_the_same_gradients(monkeypatch):
    """Of float32, into weights of float32, and with no autocast left behind."""
    _, model, teacher = pruned("llama")
    student, gradients = end_to_end._Student(model, teacher), []
    for quick in (False, True):
        monkeypatch.setattr(end_to_end, "has_quick_bfloat16", lambda device, quick=quick: quick)
        student.backward(0, slice(0, 4))
        gradients.append([parameter.grad for parameter in student.parameters.values()])
        assert {gradient.dtype for gradient in gradients[-1]} == {torch.float32}
        assert not torch.is_autocast_enabled("cpu")
        model.zero_grad(set_to_none=True)
    exact, rounded = (torch.cat([own.flatten() for own in each]) for each in gradients)
    assert 1e-4 < (exact - rounded).norm() / exact.norm() < 0.1


def test_same_seed_same_bytes():
    def run(seed: int):
        _, model, teacher = pruned("llama")
        optimise_together(model, teacher, epochs=2, seed=seed)
        return model.model.layers[0].mlp.up_proj.weight

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@pytest.mark.parametrize(
    ("kl", "loss", "better"),
    [(0.9, 9.0, True), (1.05, 2.9, True), (1.05, 3.0, False), (1.2, 2.0, False), (1.0, 3.0, False)],
)
def test_a_loss_that_falls_as_kl_soars_is_no_gain(kl, loss, better):
    """A broken model that bets on nothing has a lower loss on random text."""
    assert Held(kl, loss).better_than(Held(1.0, 3.0)) == better
    assert not Held(float("nan"), float("nan")).better_than(Held(1.0, 3.0))
