"""Registries: objects as they are, by the place of their definition, and by entry points of other packages."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from llm_pruner import registry
from llm_pruner.errors import UsageError
from llm_pruner.methods import METHODS, Reconstruct, ScoreAndCut
from llm_pruner.registry import Registry

if TYPE_CHECKING:
    from collections import Counter


@dataclass(frozen=True)
class Thing:
    size: int = 1
    share: float = 0.5
    word: str = "a"
    on: bool = False


@dataclass(frozen=True)
class Other:
    seed: int = 0


@pytest.fixture
def things(monkeypatch) -> Registry:
    """Two that are there, and what another package offers."""
    points = {
        "theirs": EntryPoint("theirs", "dataclasses:dataclass", "some.things"),
        "gone": EntryPoint("gone", "no_such_package.mine:Mine", "some.things"),
        "thing": EntryPoint("thing", "no_such_package.mine:Mine", "some.things"),
    }
    monkeypatch.setattr(registry, "_entry_points", lambda group: points if group == "some.things" else {})
    return Registry("some.things", "thing", {"thing": Thing, "lazy": f"{__name__}:Other"})


def test_names_are_known_without_an_import(things):
    assert things.names() == list(things) == ["gone", "lazy", "theirs", "thing"]
    assert "gone" in things
    assert "lazy" in things
    assert "missing" not in things


def test_objects_by_name(things):
    assert things.get("thing") is Thing, "what is registered comes before an entry point"
    assert things.get("lazy") is things.get("lazy") is Other
    assert things.get("theirs") is dataclass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("thng", "^unknown thing 'thng'; did you mean 'thing'\\?$"),
        ("q", "^unknown thing 'q'; known: gone, lazy, theirs, thing$"),
        (
            "gone",
            "^thing 'gone', of the entry point no_such_package.mine:Mine, cannot be imported: ModuleNotFoundError",
        ),
    ],
)
def test_objects_that_are_not_there(things, name, message):
    with pytest.raises(UsageError, match=message):
        things.get(name)


def test_an_object_is_added_once(things):
    assert things.register("more", Other) is Other
    assert things.register("more", Other) is Other, "imported again"
    assert things.register("lazy", Other) is Other, "the same, by the place of its definition"
    with pytest.raises(ValueError, match="^thing 'more' is registered already$"):
        things.register("more", Thing)
    assert things.get("more") is Other


def test_a_decorator_adds_too(things):
    @things.register("decorated")
    @dataclass(frozen=True)
    class Decorated:
        pass

    assert things.get("decorated") is Decorated


@pytest.mark.parametrize(
    ("text", "given", "usual", "made"),
    [
        ("thing", {}, {}, Thing()),
        ("thing:size=3,share=0.25", {}, {}, Thing(3, 0.25)),
        ("thing: word = b c , on=True,", {}, {}, Thing(word="b c", on=True)),
        ("thing:on=yes", {}, {}, Thing(on=True)),
        ("thing:on=false", {}, {}, Thing()),
        ("thing:word=", {}, {}, Thing(word="")),
        ("thing", {"size": "3", "share": None, "unknown": None}, {}, Thing(3)),
        ("thing", {"size": 3}, {"size": 4, "word": "b", "seed": 9}, Thing(3, word="b")),
        ("lazy", {}, {"seed": 9, "size": 4}, Other(9)),
    ],
)
def test_options_are_the_fields_of_a_dataclass(things, text, given, usual, made):
    assert things.make(text, given, usual) == made


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("thng:size=3", {}, "unknown thing 'thng'"),
        ("thing:sizes=3", {}, "^thing thing has no option 'sizes'; leave it out$"),
        ("thing", {"seed": 3}, "^thing thing has no option 'seed'; leave it out$"),
        ("thing:size=3,size=4", {}, "^thing 'thing:size=3,size=4': size is given twice"),
        ("thing:size=3", {"size": 3}, "^thing 'thing:size=3': size is given twice"),
        ("thing:size=x", {}, "^size: 'x' is no"),
        ("thing:share=x", {}, "^share: 'x' is no"),
        ("thing:" + "x" * 10**6, {}, "unknown thing|has no option"),
    ],
)
def test_options_that_cannot_be_meant(things, text, given, message):
    with pytest.raises(UsageError, match=message):
        things.make(text, given)


def test_entry_points_are_looked_up_again_when_they_are_forgotten(monkeypatch):
    import importlib.metadata

    asked = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: asked.append(group) or [])
    registry.forget_entry_points()
    try:
        own = Registry("some.others", "other")
        assert own.names() == own.names() == []
        assert asked == ["some.others"]
        registry.forget_entry_points()
        assert "x" not in own
        assert asked == ["some.others"] * 2
    finally:
        registry.forget_entry_points()


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
        ("taken:size=1", "thing taken has no option 'size'; leave it out"),
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
    with pytest.raises(UsageError, match="^method score_and_cut has no option 'epochs'; leave it out$"):
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
