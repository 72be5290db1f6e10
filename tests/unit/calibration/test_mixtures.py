"""Which texts a mixture is made of, how many windows each gets, and in which order they come."""

import pytest

from llm_pruner.calibration.mixtures import MIXTURES, Source, asked_texts, order, parsed, shared_out, text_key
from llm_pruner.errors import UsageError


def shares(*given: str) -> dict[str, float]:
    return {source.data: pytest.approx(source.share) for source in parsed(given)}


def test_texts_without_a_share_take_equal_parts_of_the_rest():
    assert parsed("wikitext2") == (Source("wikitext2", 1.0),)
    assert shares("a", "b") == {"a": 0.5, "b": 0.5}
    assert shares("a", "b=0.5", "c") == {"a": 0.25, "b": 0.5, "c": 0.25}
    assert shares("a=0.1", "b=0.9") == {"a": 0.1, "b": 0.9}


def test_a_share_is_a_number_behind_the_last_sign():
    """A file may have the sign in its name."""
    assert shares("seed=7.txt", "run=3/b=0.25") == {"seed=7.txt": 0.75, "run=3/b": 0.25}
    assert shares("temperature=0.7=1") == {"temperature=0.7": 1.0}
    assert shares("=x") == {"=x": 1.0}


def test_a_mixture_stands_for_its_members():
    members = MIXTURES["mix"]
    assert shares("mix") == dict.fromkeys(members, 1 / len(members))
    assert shares("self=0.4", "mix") == {"self": 0.4, **dict.fromkeys(members, 0.6 / len(members))}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a=0",), r"`calibration_data` a=0: a share must be above 0 and at most 1"),
        (("a=-0.5", "b"), "a=-0.5: a share must be"),
        (("a=1.5",), "a=1.5: a share must be"),
        (("a=nan",), "a=nan: a share must be"),
        (("a=inf",), "a=inf: a share must be"),
        (("a=0.5", "b=0.4"), "the shares sum to 0.9, not to 1; leave one out"),
        (("a=0.5", "b=0.6"), "the shares sum to 1.1, not to 1"),
        (("a=0.5", "b=0.5", "c"), "the shares sum to 1 and leave nothing to c"),
        (("a", "b", "a=0.5"), "has a twice"),
        (("mix", "c4"), "has c4 twice"),
    ],
)
def test_shares_that_cannot_be_meant(given, message):
    with pytest.raises(UsageError, match=message):
        parsed(given)


def test_windows_are_shared_out_by_the_largest_remainder():
    assert shared_out(128, parsed(["a", "b", "c"])) == [43, 43, 42]
    assert shared_out(10, parsed(["a=0.29", "b=0.33", "c=0.38"])) == [3, 3, 4]
    assert shared_out(100, parsed(["a=0.29", "b=0.71"])) == [29, 71]
    assert shared_out(7, parsed("a")) == [7]


def test_every_text_has_a_window():
    assert shared_out(8, parsed(["a=0.01", "b=0.02", "c"])) == [1, 1, 6]
    assert shared_out(3, parsed(["a=0.98", "b", "c"])) == [1, 1, 1]
    with pytest.raises(UsageError, match="`nsamples` 2: 3 texts need at least one window each"):
        shared_out(2, parsed(["a", "b", "c"]))


@pytest.mark.parametrize("counts", [(128,), (43, 43, 42), (32, 64, 32), (1, 31), (10, 20, 30, 68)])
def test_windows_in_a_row_are_of_all_texts(counts):
    """In proportion, but for a window or two."""
    found, total = order(counts), sum(counts)
    rows = [found[start : start + 16] for start in range(max(1, total - 15))]
    assert [found.count(text) for text in range(len(counts))] == list(counts)
    for text, count in enumerate(counts):
        assert all(abs(row.count(text) - len(row) * count / total) <= 1.5 for row in rows)


def test_what_is_asked_for_is_checked_before_anything_is_read(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("words")
    assert asked_texts(None, "some/model", "mix") == "mix"
    assert asked_texts(None, "demo", "mix") == "demo"
    assert asked_texts(f"{text}=1", "demo", "mix") == f"{text}=1"
    assert asked_texts((str(text), "self=0.5"), "some/model", "mix") == (str(text), "self=0.5")
    with pytest.raises(UsageError, match="'selff' is neither a file nor a data set; did you mean 'self'"):
        asked_texts((str(text), "selff=0.5"), "some/model", "mix")


def test_the_key_of_a_text_follows_its_content_and_its_share(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("one")
    keys = [text_key(str(text)), text_key(f"{text}=0.5"), text_key(f"{text}=0.25")]
    text.write_text("two")
    keys += [text_key(str(text)), text_key(f"{text}=0.5")]
    assert len(set(keys)) == 5
    assert text_key("c4") == "c4"
