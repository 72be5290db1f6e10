"""Errors: their exit codes, and the words of their lines."""

import errno

import pytest
import torch

from llm_pruner import errors
from llm_pruner.errors import PlanError, PrunerError, RunError, UsageError, VerificationError, computing


def test_every_kind_has_its_exit_code():
    kinds = {RunError: 1, UsageError: 2, PlanError: 3, VerificationError: 4}
    assert {kind: kind("x").exit_code for kind in PrunerError.__subclasses__()} == kinds


@pytest.mark.parametrize(
    ("word", "known", "told"),
    [
        ("magnitud", ["taylor", "magnitude"], "did you mean 'magnitude'?"),
        ("q", ["taylor", "amp"], "known: amp, taylor"),
        (None, ["taylor", "amp"], "known: amp, taylor"),
        ("magnitude" * 10**5, ["magnitude"], "known: magnitude"),
        ("a", [], "known: "),
    ],
)
def test_a_wrong_word_gets_the_nearest_or_all(word, known, told):
    assert errors.did_you_mean(word, known) == told


def test_values_are_shown_whole_or_without_their_middle():
    assert errors.shown("a\nb") == "'a\\nb'"
    assert errors.shown("x" * 98) == f"'{'x' * 98}'"
    assert errors.shown("x" * 99) == f"'{'x' * 49}…{'x' * 24}'"
    assert errors.shown(list(range(10**5))).startswith("[0, 1, 2, ")
    assert errors.shown(None) == "None"
    for value in ("y" * 10**6, ["y" * 10**6], 10**4000, {"a": "y" * 10**6}):
        assert len(errors.shown(value)) < 80


def test_messages_are_whole_or_without_their_middle():
    assert errors.shortened("m" * 1000) == "m" * 1000
    short = errors.shortened("a" * 5000 + "b" * 5000)
    assert short == f"{'a' * 500} … {'b' * 500}"


@pytest.mark.parametrize(
    ("error", "memory", "disk"),
    [
        (MemoryError(), True, False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True, False),
        (OSError(errno.ENOSPC, "full"), False, True),
        (OSError(errno.EDQUOT, "quota"), False, True),
        (RuntimeError("PytorchStreamWriter failed writing file data/2"), False, True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), False, True),
        (OSError(errno.EACCES, "no permission"), False, False),
        (ValueError("shapes do not match"), False, False),
    ],
)
def test_memory_and_disks_that_are_full_are_told_apart(error, memory, disk):
    assert (errors.is_out_of_memory(error), errors.is_out_of_disk(error)) == (memory, disk)


def test_tokens_are_redacted():
    text = "hf_abcdefgh12 at https://me:secret@host.org/x and http://t0ken@host, hf_short, mail@host"
    assert errors.redact(text) == "hf_*** at https://***@host.org/x and http://***@host, hf_short, mail@host"


def test_what_did_not_fit_is_said():
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")):
        expected = "the reconstruction of layer 3 does not fit in memory; use a smaller `nsamples`"
        with pytest.raises(RunError, match=expected), computing("the reconstruction of layer 3"):
            raise error
    with pytest.raises(RuntimeError, match="shapes"), computing("the reconstruction"):
        raise RuntimeError("shapes do not match")


def test_equations_without_a_solution_are_said():
    with pytest.raises(RunError, match="layer 3: the numbers are too large, or too far apart"), computing("layer 3"):
        torch.linalg.cholesky(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
