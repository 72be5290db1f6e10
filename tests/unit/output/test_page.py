"""The page: what it shows, that no data can break it, and that it needs nothing but itself."""

import functools
import importlib.util
import json
import math
import re

import pytest

from llm_pruner.output import charts, reports
from llm_pruner.output.models import models_of, steps_of
from llm_pruner.output.page import START, page
from tests.support.read_page import Read
from tests.support.reports import (
    BEFORE,
    HISTORY,
    as_json,
    evaluated,
    evaluated_model,
    pruned,
    recovered,
    searched,
)

EVERY = ["models", "quality", "widths", "reconstruction", "scores", "recovery", "zero-shot", "speed", "conditions"]


@functools.cache
def full() -> str:
    made = pruned(reconstruction=searched())
    return page([made, recovered(made_from=made)], evaluated())


@pytest.fixture
def no_matplotlib(monkeypatch):
    """As where the extra `report` is not installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(charts.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))


SAID = [
    ("models", ["1,000,000", "600,00060.0 % of dense", "1,200,000", "20.00", "60.00×3.00 dense", "30.00×1.50 dense",
                "words.txt, 1,501 × 128 tokens", "not finite"]),
    ("widths", ["num_attention_heads6", "4 → 1", "80 → 40", "hidden_size 48"]),
    ("reconstruction", ["chosen", "0.01110", "0.01230", "0.0777", "38–43", "lm_head of its own"]),
    ("scores", ["num_key_value_heads by flap", "18.00", "hidden_size by flap", "0.0030"]),
    ("recovery", ["63.1 %", "983,040", "480", "train.txt", "599,000", "0.0104", "2.800", "31.00"]),
    ("zero-shot", ["75.0 ± 1.2", "50.0 ± 0.9", "10,042", "62.5", "mean accuracy", "1,234"]),
    ("speed", ["6,400", "×1.25×1.12 – ×1.38", "20.0 ms", "512 MB", "not measured, it holds a branch"]),
    ("conditions", ["--param_ratio 0.4", "llm_pruner recover", "llm_pruner evaluate", "1 min 3 s", "1.23 GB", "2.13.0",
                    "128 samples of 64 tokens of c4"]),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("section", "said"), SAID[:1] + SAID[2:])
def test_every_section_says_its_numbers(section, said):
    text = Read(full()).sections[section]
    for each in said:
        assert each in text, text


def test_charts_are_there_with_their_captions():
    found = Read(full())
    assert len(found.svgs) == 13
    assert "not finite: other" in found.sections["quality"]
    assert "num_attention_heads: 33.3 % removed" in found.sections["widths"]
    assert "Units of hidden_size in the residual stream, scored by flap" in found.sections["scores"]
    assert {"dense (dense-1b)", "pruned (flap)", "recovered (distil)"} <= set(found.svgs[0])
    assert "Training loss over 480 steps" in found.sections["recovery"]


def test_without_matplotlib_the_page_has_its_tables(no_matplotlib):
    text = full.__wrapped__()
    found = Read(text)
    assert "<svg" not in text
    assert list(found.sections) == [name for name in EVERY if name != "quality"]
    for section, said in SAID[2:]:
        for each in said:
            assert each in found.sections[section]


@pytest.mark.slow
def test_which_scores_stay():
    assert "Higher scores stay" in Read(page([pruned()])).sections["scores"]
    assert "Lower scores stay" in Read(page([pruned(order="reversed")])).sections["scores"]


def test_widths_are_in_a_table_by_layer():
    rows = Read(full()).rows["widths"]
    assert rows[0] == ["layer", "num_attention_heads", "num_key_value_heads", "intermediate_size"]
    assert rows[1:] == [
        [str(layer), f"8 → {heads}", f"4 → {kv}", "80 → 40"]
        for layer, (heads, kv) in enumerate(zip((8, 6, 4, 2, 4, 8), (4, 3, 2, 1, 2, 4)))
    ]


def test_sections_in_their_order_and_only_with_their_data():
    assert list(Read(full()).sections) == EVERY
    plain = pruned(perplexity={}, evaluation={}, calibration={}, scores={})
    assert list(Read(page([plain])).sections) == ["models", "widths", "conditions"]
    alone = recovered(made_from=None, dense_perplexity=None, teacher=None, recovered_share=None, history=[])
    assert list(Read(page([alone])).sections) == ["models", "quality", "recovery", "conditions"]
    bare = evaluated(ratios={}, models=[{"name": "one", "parameters": 5, "bytes": 10, "speed": None}])
    assert list(Read(page([], bare)).sections) == ["models", "conditions"]
    assert list(Read(page([])).sections) == []


def test_the_dense_model_is_not_compared_with_itself():
    assert "100.0 %" not in Read(full()).sections["models"]
    assert "×1.000" not in full()


def test_layers_that_went_are_shown_where_they_were():
    narrow = {**BEFORE, "intermediate_size": [40, 41, 44, 45]}
    layers = {"before": 6, "after": 4, "kept": [0, 1, 4, 5]}
    found = Read(page([pruned(widths={"before": BEFORE, "after": narrow}, layers=layers)]))
    mlp = found.rows["widths"][0].index("intermediate_size")
    assert [row[mlp] for row in found.rows["widths"][1:]] == [
        "80 → 40", "80 → 41", "80 → gone", "80 → gone", "80 → 44", "80 → 45",
    ]  # fmt: skip
    assert "Layers removed whole: 2, 3." in found.sections["widths"]
    assert (
        "In every layer: hidden_size 48; num_attention_heads 8; num_key_value_heads 4; head_dim 8"
        in found.sections["widths"]
    )


def test_the_shape_that_was_chosen_stands_out():
    (row,) = re.findall(r'<tr class="strong">(.*?)</tr>', full(), flags=re.S)
    assert "0.01230" in row
    assert "chosen" in row


def test_the_best_shapes_come_first():
    rows = Read(full()).rows["reconstruction"][1:]
    assert [row[-1] for row in rows] == ["0.01230", "0.03010", "0.04020", "–"]
    assert [row[-2] for row in rows] == ["0.2000", "–", "0.05000", "not finite"]


def test_tiles_compare_the_last_model_with_the_dense_one():
    said = "|".join(filter(None, Read(full()).said))
    tiles = said[: said.index("|Models|")]
    for each in (
        "600,000|from 1,000,000 (−40.0 %)",
        "1.2 MB|from 2 MB",
        "30.00|from 20.00 (×1.50), on words.txt",
        "63.1 %",
    ):
        assert each in tiles
    assert "60.00" not in tiles  # the pruned model's, in between


@pytest.mark.slow
def test_a_recovery_brings_its_pruning_along():
    assert page([recovered()]) == page([pruned(), recovered()])
    twice = recovered(made_from=recovered(), model="out/small-recovered", perplexity={"before": 30.0, "after": 25.0})
    assert [step.step for step in steps_of([twice])] == ["prune", "recover", "recover"]
    labels = [model.label for model in models_of(steps_of([twice]))]
    assert labels == ["dense (dense-1b)", "pruned (flap)", "recovered (distil)", "recovered (distil) 2"]


@pytest.mark.slow
def test_the_same_reports_give_the_same_bytes():
    assert full.__wrapped__() == full()


def test_an_evaluated_model_that_is_known_is_not_there_twice():
    steps = steps_of([pruned()])
    assert [m.label for m in models_of(steps, evaluated())] == ["dense (dense-1b)", "pruned (flap)", "other"]
    dense, small, other = models_of(steps, evaluated())
    assert (dense.role, small.zero_shot["piqa"]["acc"], other.role) == ("dense", 0.5, "evaluated")

    def small_as(**changes) -> int:
        own = evaluated_model("small", 600_000, 60.0, 0.0, path="/home/me/out/small") | changes
        models = as_json(evaluated)["models"]
        return len(models_of(steps, evaluated(models=[models[0], own, models[2]])))

    another = {"words.txt": {"value": 50.0, "windows": 1501, "max_seq_len": 128}}
    assert small_as(perplexity=another) == 4, "the same path, another model"
    assert small_as(name="renamed", path="/elsewhere") == 3, "another path, the same model"


@pytest.mark.slow
def test_no_name_becomes_markup():
    hostile = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt; $x$ {{ 7 * 7 }} <!-- "

    def poisoned(value):
        if isinstance(value, str):
            return value if value in KINDS else hostile + value
        if isinstance(value, list):
            return [poisoned(each) for each in value]
        if isinstance(value, dict):
            return {poisoned(key) if key in NAMES else key: poisoned(own) for key, own in value.items()}
        return value

    made = pruned(reconstruction=searched())
    runs = [reports.from_dict(poisoned(own.to_dict()), "x") for own in (made, recovered(made_from=made))]
    text = page(runs, reports.from_dict(poisoned(evaluated().to_dict()), "x"))
    found = Read(text)
    assert {name for name, _ in found.tags}.isdisjoint({"script", "img"})
    assert not [attributes for _, attributes in found.tags if any(name.startswith("on") for name in attributes)]
    assert list(found.sections) == EVERY
    assert text.count("<!--") == 1
    assert found.sections["models"].count("alert(1)") >= 1
    assert found.sections["models"].count("{{ 7 * 7 }}") >= 1
    assert any("<script>alert(1)</script>" in said for svg in found.svgs for said in svg)


KINDS = ("prune", "recover", "evaluate", "distil", "lora", "full")
NAMES = ("piqa", "words.txt", "eager", "load", "torch", "device", "param_ratio", "flap", "host")


def test_needs_nothing_but_itself():
    text = page([pruned(model="caf\udce9 ü")], evaluated())
    assert text.startswith(START)
    assert "ü" in text
    assert not re.search(r"https?:|url\((?!#)|@import|<script|<link|<img|src=", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_charts_have_the_colours_of_the_page():
    """… in which they can be read in light and dark; matplotlib's stand-ins for them are all replaced."""
    svgs = re.findall(r"<svg.*?</svg>", full(), flags=re.S)
    assert svgs
    for svg in svgs:
        assert "var(--" in svg
        assert set(re.findall(r"#[0-9a-f]{6}", svg)) <= set()


@pytest.mark.slow
def test_what_is_not_finite_is_said_so():
    found = Read(page([pruned(perplexity={"before": 20.0, "after": None})]))
    assert found.sections["models"].count("not finite") == 1
    assert "quality" not in found.sections  # one point is no comparison
    assert "not finite|from 20.00, on words.txt" in "|".join(found.said)
    assert Read(full()).sections["reconstruction"].count("not finite") == 1
    lost = pruned(scores={"hidden_size": [[1.0, None, 2, 3, 4, 5, 6]]})
    assert "not finite" in Read(page([lost])).sections["scores"]
    assert "<svg" not in page([lost]).partition('id="scores"')[2]
    history = [dict(point) for point in HISTORY]
    history[4] |= {"loss": None}
    history[-1] |= {"perplexity": None}
    nothing = {"before": None, "after": None}
    found = Read(page([recovered(history=history, made_from=None, perplexity=nothing, dense_perplexity=None)]))
    assert found.sections["models"].count("not finite") == 2
    assert [row[2] for row in found.rows["recovery"]].count("not finite") == 1
    assert len(found.svgs) == 2
    history = [{"step": n, "seconds": 1.0 * n, "loss": None, "learning_rate": 0.1} for n in range(3)]
    assert "<svg" not in page([recovered(history=history, made_from=None, perplexity=nothing)])


@pytest.mark.slow
def test_reports_in_memory_and_from_a_file_give_the_same_page(tmp_path):
    made = pruned()
    lost = made.__class__(**{**vars(made), "perplexity": reports.Measured(20.0, math.inf)})
    stored = reports.from_dict(json.loads(json.dumps(lost.to_dict())), "x")
    assert page([lost]) == page([stored])


def test_many_models_with_long_names():
    models = [as_json(evaluated)["models"][0]]
    models += [evaluated_model(f"a-model-with-quite-a-long-name-{n}", 600_000 + n, 60.0 + n % 3, 0) for n in range(9)]
    found = Read(page([], evaluated(models=models)))
    assert sum("quite-a-long-name" in text for text in found.svgs[0]) == 9
