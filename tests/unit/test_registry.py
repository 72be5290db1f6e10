"""Objects by name: what text makes of their options, and what is refused in one line."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from llm_pruner.errors import UsageError
from llm_pruner.methods import METHODS, Reconstruct, ScoreAndCut
from llm_pruner.registry import Registry

if TYPE_CHECKING:
    from collections import Counter


@dataclass(frozen=True)
class Taken:
    power: float = 1.0
    number: int | None = None
    quick: bool = True
    way: Literal["up", "down"] = "up"
    place: str | Path | None = None
    other: Any = None


@dataclass(frozen=True)
class Hidden:
    power: "float | Counter" = 1.0


THINGS = Registry("llm_pruner.nothing", "thing", {"taken": Taken, "hidden": Hidden})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("taken", Taken()),
        ("taken:power=2", Taken(power=2.0)),
        ("taken:number=3,quick=no", Taken(number=3, quick=False)),
        ("taken:quick=False", Taken(quick=False)),
        ("taken:quick=yes", Taken()),
        ("taken:number=null,way=down", Taken(way="down")),
        ("taken:place=a b", Taken(place=Path("a b"))),
        ("hidden:power=0.5", Hidden(0.5)),
    ],
)
def test_text_becomes_what_the_annotation_says(text: str, expected: object) -> None:
    assert THINGS.make(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taken:power=high", "power: 'high' is not a number"),
        ("taken:power=nan", "power: 'nan' is not a number"),
        ("taken:number=2.5", "number: '2.5' is not a whole number"),
        ("taken:quick=maybe", "quick: 'maybe' is not true or false"),
        ("taken:way=left", "way: 'left' is not one of up, down"),
        ("taken:other=1", "other: '1' is not what it takes, which is no text"),
        ("taken:size=1", "size says nothing about thing taken; leave it out"),
        ("taken:power=1,power=2", "thing 'taken:power=1,power=2': power is given twice; leave one of them out"),
    ],
)
def test_other_text_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        THINGS.make(text)
    assert str(error.value) == message


def test_methods_take_their_options_as_text() -> None:
    assert METHODS.make("reconstruct:epochs=2,per_layer=yes") == Reconstruct(epochs=2, per_layer=True)
    assert METHODS.make("score_and_cut:criterion=flap,mask_only=true") == ScoreAndCut("flap", mask_only=True)


def test_methods_refuse_options_of_others() -> None:
    with pytest.raises(UsageError, match="^epochs says nothing about method score_and_cut; leave it out$"):
        METHODS.make("score_and_cut", {"epochs": 3})


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (Reconstruct, {"epochs": -5}, "method reconstruct: epochs: -5 must be a whole number of at least 0, or null"),
        (Reconstruct, {"search_minutes": "x"}, "method reconstruct: search_minutes: 'x' must be a finite number"),
        (Reconstruct, {"per_layer": "no"}, "method reconstruct: per_layer: 'no' must be true or false"),
        (Reconstruct, {"work_dir": 3}, "method reconstruct: work_dir: 3 must be a path, or null"),
        (Reconstruct, {"seed": None}, "method reconstruct: seed: None must be a whole number"),
        (ScoreAndCut, {"order": "up"}, "method score_and_cut: order: 'up' must be one of standard, reversed, random"),
        (ScoreAndCut, {"mask_only": 1}, "method score_and_cut: mask_only: 1 must be true or false"),
    ],
)
def test_methods_check_their_options(method: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        method(**options)
