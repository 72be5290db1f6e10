"""Registries: objects as they are, by the place of their definition, and by entry points of other packages."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from llm_pruner import registry
from llm_pruner.errors import UsageError
from llm_pruner.registry import Registry


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
    with pytest.raises(ValueError, match="^thing 'more' is there already$"):
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
        ("thing:on=1", {}, {}, Thing(on=True)),
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
        ("thing:sizes=3", {}, "^sizes says nothing about thing thing; leave it out$"),
        ("thing", {"seed": 3}, "^seed says nothing about thing thing; leave it out$"),
        ("thing:size=3,size=4", {}, "^thing 'thing:size=3,size=4': size is given twice"),
        ("thing:size=3", {"size": 3}, "^thing 'thing:size=3': size is given twice"),
        ("thing:size=x", {}, "^size: 'x' is no"),
        ("thing:share=x", {}, "^share: 'x' is no"),
        ("thing:" + "x" * 10**6, {}, "says nothing about"),
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
