"""Rules for the fields of files: what they accept, and what they say is legal instead."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pruner.errors import PlanError, UsageError
from llm_pruner.validation import (
    check,
    each,
    either,
    fields,
    filled,
    list_of,
    mapping,
    maybe,
    number,
    one_of,
    text,
    truth,
    whole,
)

MANY = [f"name{i}" for i in range(9)]


@pytest.mark.parametrize(
    ("rule", "legal", "illegal", "told"),
    [
        (whole(), [0, 10**30], [-1, 1.0, True, "1", None], "a whole number of at least 0"),
        (whole(2, 3000), [2, 3000], [1, 3001], "a whole number from 2 to 3,000"),
        (number(), [0, -1.5, 1e308], [math.nan, math.inf, 10**400, True, "1", None], "a finite number"),
        (number(0), [0, 1], [-0.1], "a finite number of at least 0"),
        (number(0, above=True), [1e-9], [0, -1], "a finite number above 0"),
        (number(0, 1), [0, 1, 0.5], [1.1], "a finite number of at least 0 and at most 1"),
        (number(high=1), [-9, 1], [1.1], "a finite number at most 1"),
        (text, ["", "a"], [None, 1, ["a"]], "text"),
        (truth, [True, False], [0, 1, None, "true"], "true or false"),
        (mapping, [{}, {"a": 1}], [None, [], "a"], "a mapping"),
        (one_of(["a", "b"]), ["a", "b"], ["c", None, 1, ["a"]], "one of a, b"),
        (one_of(MANY), ["name8"], ["nam8"], "a known name; did you mean 'name8'?"),
        (list_of(whole()), [[], [1, 2]], [None, 1, "a", {}], "a list"),
        (list_of(whole()), [], [[1, -1]], "a list, each a whole number of at least 0"),
        (filled(text), [["a"]], [[]], "a list of at least one value"),
        (filled(text), [], [[1]], "a list, each text"),
        (each(text), [{}, {"a": "b"}], [None, []], "a mapping"),
        (each(text), [], [{"a": "b", "c": 1}], "a mapping whose 'c' is text, not 1"),
        (fields({"a": text}), [{}, {"a": "b", "more": 1}], [{"a": 1}], "a mapping whose a is text, not 1"),
        (fields({"a": text}, ("a",)), [{"a": "b"}], [{}, {"b": 1}], "a mapping that has a"),
        (fields({"a": text}, others=False), [{}, {"a": "b"}], [{"more": 1}], "a mapping without 'more'"),
        (maybe(text), [None, "a"], [1], "text, or null"),
        (either(text, whole()), ["a", 1], [None, -1], "text or a whole number of at least 0"),
    ],
)
def test_rules(rule, legal, illegal, told):
    assert [rule(value) for value in legal] == [None] * len(legal)
    assert {rule(value) for value in illegal} == {told}


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=300), inner, max_size=3),
)


@given(value=ANY)
def test_whatever_a_field_holds_it_is_legal_or_told_in_one_short_line(value):
    schema = {
        "a": fields({"b": either(list_of(number()), maybe(one_of(MANY)))}, ("b",), others=False),
        "c": each(filled(each(truth))),
    }
    for name, rule in schema.items():
        legal = rule(value)
        if legal is None:
            check({name: value}, schema, "x.json")
            continue
        with pytest.raises(UsageError, match=rf"^x\.json: {name}: ") as caught:
            check({name: value}, schema, "x.json")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "x.json must be a mapping of fields to values, not list"),
        (None, "x.json must be a mapping of fields to values, not NoneType"),
        ({"b": 1}, "x.json has no a"),
        ({"a": 1}, "x.json: a: 1 must be text"),
    ],
)
@pytest.mark.parametrize("error", [UsageError, PlanError])
def test_what_is_wrong_is_told_with_its_file(values, message, error):
    with pytest.raises(error, match=f"^{message}$"):
        check(values, {"a": text}, "x.json", required=("a",), error=error)


def test_fields_without_a_rule_are_as_they_are():
    check({"a": "b", "more": object()}, {"a": text, "c": text}, "x.json")
