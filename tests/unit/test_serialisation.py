"""Dataclasses as JSON: by the types of their fields they are checked, read and written."""

import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pruner.errors import UsageError
from llm_pruner.serialisation import optional, or_empty, plain, read, schema
from llm_pruner.validation import maybe, number, one_of

T = TypeVar("T")
Score = Annotated[float, maybe(number(0))]


@dataclass(frozen=True)
class Pair(Generic[T]):
    before: T
    after: T


@dataclass(frozen=True)
class Inner:
    name: str
    score: Score = 0.0


@dataclass(frozen=True)
class Outer:
    CONSTANTS = ("step",)
    step = "outer"

    kind: Annotated[str, one_of(["a", "b"])]
    counts: list[int]
    inner: dict[str, Inner]
    pair: Pair[float]
    truth: bool = False
    word: str | int = ""
    last: Inner | None = None
    anything: Any = None
    spare: list[Inner] | None = optional()
    empty: dict[str, int] | None = or_empty()
    numbers: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Spare:
    size: int = 1


@dataclass(frozen=True)
class Holder:
    spare: Spare | None


SMALL: dict = {"kind": "a", "counts": [1, 2], "inner": {"x": {"name": "n"}}, "pair": {"before": 1.5, "after": 2}}


def test_values_become_objects():
    made = read(Outer, {**SMALL, "last": {"name": "m", "score": None}, "more": 1, "word": 3}, "x.json")
    assert made.inner == {"x": Inner("n")}
    assert made.pair == Pair(1.5, 2)
    assert math.isnan(made.last.score), "null where the rule of a float allows it"
    assert (made.word, made.spare, made.numbers) == (3, None, [])


def test_objects_become_values():
    made = Outer("b", [], {}, Pair(math.inf, 1.0), last=Inner("n", math.nan), anything=(1, {"a": math.nan}))
    assert plain(made) == {
        "step": "outer", "kind": "b", "counts": [], "inner": {}, "pair": {"before": None, "after": 1.0},
        "truth": False, "word": "", "last": {"name": "n", "score": None}, "anything": [1, {"a": None}], "empty": {},
        "numbers": [],
    }  # fmt: skip
    assert plain([]) == []
    assert plain("text") == "text"


@pytest.mark.parametrize("spare", [None, []])
def test_what_is_optional_and_empty_is_left_out(spare):
    made = read(Outer, SMALL | {"spare": spare}, "x.json")
    assert "spare" not in plain(made)
    assert plain(read(Outer, SMALL | {"spare": [{"name": "n"}]}, "x.json"))["spare"] == [{"name": "n", "score": 0.0}]


def test_an_empty_mapping_stands_for_a_dataclass_that_is_none():
    """Also for one that could be made of nothing."""
    assert read(Outer, SMALL | {"last": {}}, "x.json").last is None
    assert read(Holder, {"spare": {}}, "x.json").spare is None
    assert read(Holder, {"spare": {"size": 2}}, "x.json").spare == Spare(2)


def test_the_names_without_a_default_are_required():
    rules, required = schema(Outer)
    assert required == ("kind", "counts", "inner", "pair")
    assert set(rules) == {
        "kind", "counts", "inner", "pair", "truth", "word", "last", "anything", "spare", "empty", "numbers",
    }  # fmt: skip
    assert schema(Pair[int])[1] == ("before", "after")
    assert schema(Pair[int])[0]["after"]("text")
    assert schema(Pair[str])[0]["after"]("text") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "c"}, "kind: 'c' must be one of a, b"),
        ({"counts": [1, 2.5]}, r"counts: \[1, 2.5\] must be a list, each a whole number"),
        ({"counts": [2**63 + 1]}, "counts: .* must be a list, each a whole number from"),
        ({"counts": [True]}, "counts: .* must be a list, each a whole number"),
        ({"inner": {"x": {}}}, "inner: .* must be a mapping whose 'x' is a mapping that has name, not {}"),
        ({"inner": {"x": {"name": 5}}}, "inner: .*whose name is text, not 5"),
        ({"inner": {"x": {"name": "n", "score": -1}}}, "whose score is a finite number of at least 0, or null, not -1"),
        ({"pair": {"before": 1.0}}, "pair: .* must be a mapping that has after"),
        ({"pair": {"before": 1.0, "after": "x"}}, "pair: .*whose after is a finite number, not 'x'"),
        ({"truth": 1}, "truth: 1 must be true or false"),
        ({"word": 1.5}, r"word: 1\.5 must be text or a whole number"),
        ({"last": {"score": 1}}, "last: .* must be a mapping that has name, or null"),
        ({"numbers": [math.nan]}, r"numbers: \[nan\] must be a list, each a finite number"),
        ({"numbers": None}, "numbers: None must be a list"),
    ],
)
def test_values_that_are_illegal_are_named(changes, message):
    with pytest.raises(UsageError, match=rf"^x\.json: .*{message}"):
        read(Outer, SMALL | changes, "x.json")


@pytest.mark.parametrize("name", ["kind", "counts", "inner", "pair"])
def test_fields_that_are_missing_are_named(name):
    with pytest.raises(UsageError, match=f"^x.json has no {name}$"):
        read(Outer, {own: value for own, value in SMALL.items() if own != name}, "x.json")


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(max_size=4)
INNER = st.builds(Inner, NAMES, st.floats(0, 1e300))


@settings(deadline=None)
@given(
    made=st.builds(
        Outer, st.sampled_from("ab"), st.lists(st.integers(-(2**63), 2**63)), st.dictionaries(NAMES, INNER),
        st.builds(Pair, FLOATS, FLOATS), st.booleans(), st.one_of(NAMES, st.integers(0, 9)), st.none() | INNER,
        st.none() | NAMES, st.none() | st.lists(INNER, min_size=1),
        st.none() | st.dictionaries(NAMES, st.integers(0, 9), min_size=1), st.lists(FLOATS),
    )
)  # fmt: skip
def test_every_object_comes_back(made):
    text = json.dumps(plain(made), allow_nan=False)
    again = read(Outer, json.loads(text), "x.json")
    assert plain(again) == json.loads(text)
    assert again == (made if made.empty else Outer(**{**vars(made), "empty": {}}))
