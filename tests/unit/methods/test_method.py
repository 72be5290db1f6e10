"""What a method is: a frozen dataclass with a name in the registry, that every part of a run can ask."""

from dataclasses import FrozenInstanceError, fields

import pytest

from llm_pruner.errors import UsageError
from llm_pruner.methods import METHODS, Journal, Method, Reconstruct, ScoreAndCut, settled
from llm_pruner.methods.blockpruner import BlockPruner
from llm_pruner.methods.putri import Putri
from llm_pruner.methods.shortgpt import ShortGPT
from llm_pruner.methods.slicegpt import SliceGPT
from llm_pruner.methods.two_ssp import TwoSSP
from llm_pruner.shape.draft import draft
from llm_pruner.shape.request import Ratio
from tests.support import tiny


def test_the_registry_names_all():
    assert {name: METHODS.get(name) for name in METHODS} == {
        "2ssp": TwoSSP, "blockpruner": BlockPruner, "putri": Putri, "reconstruct": Reconstruct,
        "score_and_cut": ScoreAndCut, "shortgpt": ShortGPT, "slicegpt": SliceGPT,
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in METHODS if name != "score_and_cut"])
def test_a_method_goes_by_the_name_that_it_reports(name):
    assert METHODS.get(name).name == name


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_frozen_dataclass_and_keeps_the_protocol(name):
    method = METHODS.make(name)
    assert isinstance(method, Method)
    assert not isinstance(object(), Method)
    first = fields(method)[0].name
    with pytest.raises(FrozenInstanceError, match=first):
        setattr(method, first, None)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("score_and_cut:criterion=flap,compensate=bias,seed=3", ScoreAndCut("flap", compensate="bias", seed=3)),
        ("reconstruct:per_layer=true,search_minutes=0.5", Reconstruct(per_layer=True, search_minutes=0.5)),
    ],
)
def test_options_are_its_fields(text, made):
    assert METHODS.make(text) == made


def test_an_unknown_method_gets_a_suggestion():
    with pytest.raises(UsageError, match="unknown method 'reconstrukt'; did you mean 'reconstruct'"):
        METHODS.get("reconstrukt")


def test_of_a_copy_nothing_is_reconstructed_or_compensated():
    cut = ScoreAndCut("flap", order="reversed", compensate="bias", seed=3)
    assert settled(cut, is_copy=False) is cut
    assert settled(cut, is_copy=True) == ScoreAndCut("flap", order="reversed", seed=3)
    reconstruct = Reconstruct(seed=4)
    assert settled(reconstruct, is_copy=False) is reconstruct
    assert settled(reconstruct, is_copy=True) == ScoreAndCut(seed=4)


OWN = ["search", "reconstruct", "baseline", "optimise"]


@pytest.mark.parametrize("method", [ScoreAndCut("wanda_sp", compensate="bias"), Reconstruct(epochs=0)])
def test_phases_go_to_the_journal_and_without_one_nowhere(method):
    import contextlib

    phases: list[str] = []
    lines: list[str] = []

    @contextlib.contextmanager
    def timed(phase: str):
        phases.append(phase)
        yield

    prompts = [*tiny.tokens(32, 24)]
    model = tiny.model("llama")
    made = draft(Ratio({"mlp": 0.5}), model.config, method)
    told = method.prune(model, made, prompts, Journal(lines.append, timed))
    assert phases == (["score", "cut"] if isinstance(method, ScoreAndCut) else OWN)
    assert bool(lines) == isinstance(method, Reconstruct)
    assert method.prune(tiny.model("llama"), made, prompts).plan == told.plan
