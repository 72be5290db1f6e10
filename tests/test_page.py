"""The page: what it shows, that no data can break it, and that every chart stays in its frame."""

import json
import re

import pytest

from llm_pruner.output.page import html
from llm_pruner.output.page.labels import text_box
from llm_pruner.output.page.markup import Markup, tag
from llm_pruner.output.page.models import models_of, steps_of
from tests.read_page import Read
from tests.reports import BEFORE, evaluated, pruned, recovered, searched

EVERY = ["models", "quality", "widths", "rebuild", "scores", "recovery", "zero-shot", "speed", "conditions"]


def full() -> str:
    return html.page([pruned(rebuild=searched()), recovered()], evaluated())


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("models", ["1,000,000", "600,00060.0 % of dense", "1,200,000", "20.00", "60.00×3.00 dense", "30.00×1.50 dense",
                    "words.txt, 1,501 × 128 tokens", "not finite"]),
        ("quality", ["dense (dense-1b)", "pruned (flap)", "recovered (distil)", "not finite: other"]),
        ("widths", ["num_attention_heads: 33.3 % removed", "layer 3: 4 before, 1 after", "hidden_size 48"]),
        ("rebuild", ["chosen", "0.01230", "0.0777", "38–43", "lm_head of its own"]),
        ("scores", ["layer 5: median 18.00", "Units of hidden_size in the residual stream, scored by flap"]),
        ("recovery", ["63.1 %", "983,040", "480 steps", "train.txt", "599,000", "0.0104", "seconds", "31.00 at 120.0"]),
        ("zero-shot", ["75.0 ± 1.2", "50.0 ± 0.9", "10,042", "62.5", "mean", "1,234"]),
        ("speed", ["6,400", "×1.25×1.12 – ×1.38", "20.0 ms", "512 MB", "not measured, it holds a branch"]),
        ("conditions", ["--param_ratio 0.4", "llm_pruner recover", "llm_pruner evaluate", "1 min 3 s", "1.23 GB",
                        "2.13.0", "128 samples of 64 tokens of c4"]),
    ],
)  # fmt: skip
def test_every_section_says_its_numbers(section, said):
    text = Read(full()).sections[section]
    for each in said:
        assert each in text, text


def test_sections_in_their_order_and_only_with_their_data():
    assert list(Read(full()).sections) == EVERY
    plain = pruned(perplexity={}, evaluation={}, calibration={}, scores={})
    assert list(Read(html.page([plain])).sections) == ["models", "widths", "conditions"]
    alone = recovered(made_from=None, dense_perplexity=None, teacher=None, recovered_share=None, history=[])
    assert list(Read(html.page([alone])).sections) == ["models", "quality", "recovery", "conditions"]
    bare = evaluated(ratios={}, models=[{"name": "one", "parameters": 5, "bytes": 10, "speed": None}])
    assert list(Read(html.page([], bare)).sections) == ["models", "conditions"]
    assert list(Read(html.page([])).sections) == []


def test_the_dense_model_is_not_compared_with_itself():
    assert "100.0 %" not in Read(full()).sections["models"]
    assert "×1.000" not in full()


def test_layers_that_went_are_shown_where_they_were():
    narrow = {**BEFORE, "intermediate_size": [40, 41, 44, 45]}
    layers = {"before": 6, "after": 4, "kept": [0, 1, 4, 5]}
    text = Read(html.page([pruned(widths={"before": BEFORE, "after": narrow}, layers=layers)])).sections["widths"]
    for layer, width in enumerate((40, 41, 0, 0, 44, 45)):
        assert f"layer {layer}: 80 before, {width} after" in text
    assert "Layers removed whole: 2, 3." in text
    assert "In every layer: hidden_size 48; num_attention_heads 8;" in text


def test_the_shape_that_was_chosen_stands_out():
    page = full()
    ((x, y),) = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>chosen<', page)
    (at_x, at_y) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>[^<]*4 layers: KL 0\.2000', page)[0]
    assert abs(float(x) - float(at_x)) < 10
    assert abs(float(y) - float(at_y)) < 5
    (row,) = re.findall(r'<tr class="strong">(.*?)</tr>', page)
    assert "0.01230" in row


def test_spreads_lie_around_the_ends_of_their_bars():
    found = []
    for _, *svg in Read(full()).svgs:
        ends = {
            round(float(own["x"]) + float(own["width"]), 1) for name, own, _ in svg if name == "rect" and "rx" in own
        }
        for own in (own for name, own, _ in svg if name == "line" and own["class"] == "spread"):
            low, high = float(own["x1"]), float(own["x2"])
            assert high - low > 1
            found.append(any(abs((low + high) / 2 - end) < 0.2 for end in ends))
    assert found == [True] * 12  # two tasks with standard errors and two speeds, of three models


def test_tiles_compare_the_last_model_with_the_dense_one():
    said = "|".join(Read(full()).said)
    tiles = said[: said.index("Models")]
    for each in (
        "600,000|from 1,000,000 (−40.0 %)",
        "1.2 MB|from 2 MB",
        "30.00|from 20.00 (×1.50), on words.txt",
        "63.1 %",
    ):
        assert each in tiles
    assert "60.00" not in tiles  # the pruned model's, in between


def test_a_recovery_brings_its_pruning_along():
    assert html.page([recovered()]) == html.page([pruned(), recovered()])
    in_memory = pruned(scores={"hidden_size": (tuple(range(7)),)})
    from_file = json.loads(json.dumps(in_memory))
    assert html.page([recovered(made_from=from_file)]) == html.page([in_memory, recovered(made_from=from_file)])
    twice = recovered(made_from=recovered(), model="out/small-recovered", perplexity={"before": 30.0, "after": 25.0})
    assert [step.get("step") for step in steps_of([twice])] == [None, "recover", "recover"]
    labels = [model.label for model in models_of(steps_of([twice]), None)]
    assert labels == ["dense (dense-1b)", "pruned (flap)", "recovered (distil)", "recovered (distil) 2"]


def test_an_evaluated_model_that_is_known_is_not_there_twice():
    steps, evaluation = steps_of([pruned()]), evaluated()
    assert [m.label for m in models_of(steps, evaluation)] == ["dense (dense-1b)", "pruned (flap)", "other"]
    dense, small, other = models_of(steps, evaluation)
    assert (dense.role, small.zero_shot["piqa"]["acc"], other.role) == ("dense", 0.5, "evaluated")
    evaluation["models"][1]["perplexity"]["words.txt"]["value"] = 50.0  # the same path, another model
    assert len(models_of(steps, evaluation)) == 4
    evaluation["models"][1] |= {"name": "renamed", "path": "/elsewhere"}
    evaluation["models"][1]["perplexity"]["words.txt"]["value"] = 60.0  # another path, the same model
    assert len(models_of(steps, evaluation)) == 3


def test_no_name_becomes_markup():
    hostile = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;"

    def poisoned(value):
        if isinstance(value, str):
            return value if value in KINDS else hostile + value
        if isinstance(value, list):
            return [poisoned(each) for each in value]
        if isinstance(value, dict):
            return {poisoned(key) if key in NAMES else key: poisoned(own) for key, own in value.items()}
        return value

    data = json.loads(json.dumps([[pruned(rebuild=searched()), recovered()], evaluated()]))
    found = Read(html.page(*poisoned(data)))
    assert {name for name, _ in found.tags}.isdisjoint({"script", "img"})
    assert not [attributes for _, attributes in found.tags if any(name.startswith("on") for name in attributes)]
    assert list(found.sections) == EVERY
    assert found.sections["models"].count(hostile) >= 1
    assert tag("p", hostile, title=hostile).count("<") == 2
    assert tag("p", Markup("<b>"), ["<", 1.5, None]) == "<p><b>&lt;1.5</p>"


KINDS = ("recover", "distil", "lora", "full")
NAMES = ("piqa", "words.txt", "eager", "load", "torch", "device", "param_ratio", "flap", "host")


def test_needs_nothing_but_itself():
    text = html.page([pruned(model="caf\udce9 ü")], evaluated())
    assert text.startswith("<!DOCTYPE html>")
    assert "ü" in text
    assert not re.search(r"https?:|url\(|@import|<script|<link|<img|src=", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_what_is_not_finite_is_said_so():
    found = Read(html.page([pruned(perplexity={"before": 20.0, "after": None})]))
    assert found.sections["models"].count("not finite") == 1
    assert "quality" not in found.sections  # one point is no comparison
    assert "not finite|from 20.00, on words.txt" in "|".join(found.said)
    assert Read(full()).sections["rebuild"].count("not finite") == 1
    assert "scores" not in Read(html.page([pruned(scores={"hidden_size": [[1.0, None, 2, 3, 4, 5, 6]]})])).sections
    history = recovered()["history"]
    history[4] |= {"loss": None}
    history[-1] |= {"perplexity": None}
    lost = {"before": None, "after": None}
    found = Read(html.page([recovered(history=history, made_from=None, perplexity=lost, dense_perplexity=None)]))
    assert found.sections["models"].count("not finite") == 2
    loss, perplexity = found.svgs[:2]
    assert [own["d"].count("M") for name, own, _ in loss if name == "path"] == [2, 2]  # a gap
    assert sum(name == "circle" for name, _, _ in perplexity) == 1
    history = [{"step": n, "seconds": 1.0 * n, "loss": None, "learning_rate": 0.1} for n in range(3)]
    assert "svg" not in html.page([recovered(history=history, made_from=None, seconds={}, perplexity=lost)])


def crowd(number: int) -> dict:
    """Models that lie close together, with long names."""
    own = evaluated()["models"][1]
    near = {"windows": 1501, "max_seq_len": 128}
    models = [
        {**own, "name": f"a-model-with-quite-a-long-name-{n}", "path": f"/m/{n}", "parameters": 600_000 + 9000 * n,
         "perplexity": {"words.txt": {**near, "value": 60.0 + 0.3 * (n % 3)}}}
        for n in range(number)
    ]  # fmt: skip
    return evaluated(models=[evaluated()["models"][0], *models])


def big() -> dict:
    """32 layers of a model with more than a billion parameters."""
    wide = {**BEFORE, "intermediate_size": 14336, "num_attention_heads": 32}
    narrow = {**wide, "intermediate_size": [7000 + 200 * n for n in range(32)], "num_attention_heads": 16}
    scores = {
        "intermediate_size": [[-1.0, *quantile] for quantile in ([x * n for x in range(1, 7)] for n in range(32))]
    }
    return pruned(
        widths={"before": wide, "after": narrow}, layers={"before": 40, "after": 32, "kept": list(range(4, 36))},
        scores=scores, parameters={"before": 8_030_261_248, "after": 4_030_261_248},
        perplexity={"before": 6.14, "after": 3e9},
    )  # fmt: skip


@pytest.mark.parametrize(
    "page", [full(), html.page([], crowd(8)), html.page([big()]), html.page([recovered(made_from=None)])],
    ids=["full", "crowd", "big", "recovery"],
)  # fmt: skip
def test_charts_stay_in_their_frames_and_texts_apart(page):
    svgs = Read(page).svgs
    assert svgs
    for (_, frame, _), *elements in svgs:
        assert frame["role"] == "img"
        assert frame["aria-label"]
        assert elements[0][0] == "title"
        _, _, width, height = map(float, frame["viewbox"].split())
        boxes = []
        for name, own, text in elements:
            value = lambda key, own=own: float(own.get(key, 0))  # noqa: E731
            xs = [value(key) for key in ("x", "x1", "x2", "cx") if key in own]
            ys = [value(key) for key in ("y", "y1", "y2", "cy") if key in own]
            if name == "rect":
                assert value("width") >= 0
                assert value("height") >= 0
                xs, ys = [*xs, value("x") + value("width")], [*ys, value("y") + value("height")]
            if name == "path":
                points = re.findall(r"[ML]([\d.]+) ([\d.]+)", own["d"])
                assert "".join(re.findall("[A-Za-z]", own["d"])).strip("ML") == ""
                xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
            if name == "text":
                box = text_box(text, value("x"), value("y"), own.get("text-anchor", "start"))
                boxes.append((text, box))
                xs, ys = [box.left, box.right], [box.top, box.bottom]
            assert all(-0.01 <= x <= width + 0.01 for x in xs), (frame["aria-label"], name, own, text)
            assert all(-0.01 <= y <= height + 0.01 for y in ys), (frame["aria-label"], name, own, text)
        for place, (text, box) in enumerate(boxes):
            for other, theirs in boxes[:place]:
                assert box.overlap(theirs) < 1, (frame["aria-label"], text, other)
