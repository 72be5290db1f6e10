"""Plans: what is kept, the JSON round trip, replay on a sibling, and what is refused."""

import json
import os
from dataclasses import replace

import pytest
import torch

from llm_pruner.errors import PlanError, UsageError
from llm_pruner.importance.selection import choose
from llm_pruner.model.axes import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, MLP, Widths
from llm_pruner.model.groups import Group
from llm_pruner.model.surgery import cut
from llm_pruner.model.trace import trace_groups
from llm_pruner.shape.plan import Plan, check_replay, make_plan
from tests.support import tiny
from tests.support.steps import planned, pruned

GROUPS = [
    Group("hidden", HIDDEN, None, 6, ()),
    Group("layers.0.heads", HEADS, 0, 8, ()),
    Group("layers.0.kv_heads", KV_HEADS, 0, 4, ()),
    Group("layers.0.mlp", MLP, 0, 5, ()),
]
BEFORE = Widths({HIDDEN: 6, HEADS: 8, KV_HEADS: 4, MLP: 5, HEAD_DIM: 2})


def test_choose_by_hand():
    scores = {
        "hidden": torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0, 2.0]),
        "layers.0.heads": torch.tensor([0.0, 1.0, 9.0, 8.0, 3.0, 4.0, 7.0, 7.0]),
        "layers.0.kv_heads": torch.tensor([5.0, 1.0, 6.0, 0.0]),
        "layers.0.mlp": torch.tensor([0.1, 0.5, 0.4, 0.2, 0.3]),
    }
    kept = choose(GROUPS, scores, BEFORE, (Widths({HIDDEN: 4, HEADS: 2, KV_HEADS: 2, MLP: 3, HEAD_DIM: 2}),))
    assert kept == {
        "hidden": [1, 2, 3, 4],  # the first of equals
        "layers.0.kv_heads": [0, 2],
        "layers.0.heads": [1, 5],  # the better of each group that stays
        "layers.0.mlp": [1, 2, 4],
    }


def test_choose_keeps_heads_even_and_everything_else_whole():
    scores = {"layers.0.heads": torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 0.0, 2.0, 3.0])}
    kept = choose(GROUPS, scores, BEFORE, (BEFORE.but({HEADS: 4}),))
    assert kept["layers.0.heads"] == [0, 2, 4, 7]
    assert kept["layers.0.kv_heads"] == [0, 1, 2, 3]
    assert (kept["hidden"], kept["layers.0.mlp"]) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4])


def test_json_round_trip(tmp_path):
    plan = replace(planned(tiny.model("qwen2"), tiny.ALL)[1], importance="magnitude", seed=0)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.config["hidden_size"] == 24


def test_table_shows_exact_numbers():
    _, plan, _ = planned(tiny.model("llama"), tiny.ALL)
    table = plan.table({"hidden_size": 0.5, "num_attention_heads": 0.5, "intermediate_size": 0.5})
    assert f"{plan.parameters_before:,}" in table
    assert f"{plan.bytes_after:,}" in table
    assert plan.bytes_after == 4 * plan.parameters_after
    line = next(line.split() for line in table.splitlines() if line.startswith("hidden_size"))
    assert line == ["hidden_size", "48", "24", "0.5000", "0.5000"]


def test_bytes_are_of_the_checkpoints_dtype():
    model = tiny.model("llama", dtype=torch.bfloat16)
    _, plan, _ = planned(model, tiny.ALL)
    assert plan.bytes_before == sum(p.numel() * p.element_size() for p in model.parameters())


def test_replay_on_a_sibling_keeps_the_same_units():
    """Another vocabulary and RoPE base, the same widths: the plan's units are kept, its own configuration too."""
    _, plan, _ = planned(tiny.model("llama"), tiny.ALL)
    rope = {"rope_type": "default", "rope_theta": 77.0}
    sibling = tiny.model("llama", seed=5, vocab_size=60, rope_parameters=rope)
    groups = trace_groups(sibling)
    check_replay(plan, sibling.config, groups)
    expected = sibling.model.layers[1].mlp.up_proj.weight[plan.kept["layers.1.mlp"]][:, plan.kept["hidden"]].clone()
    replay, config = make_plan(sibling, groups, plan.after)
    new = cut(sibling, groups, plan.kept, config)
    assert torch.equal(new.model.layers[1].mlp.up_proj.weight, expected)
    assert (new.config.vocab_size, new.config.rope_parameters["rope_theta"]) == (60, 77.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: replace(p, model_type="mistral"), "the plan is for mistral with 2 layers, this model is llama"),
        (lambda p: replace(p, after=p.after * 2), "with 4 layers"),
        (lambda p: replace(p, before=p.before.but({HIDDEN: 64})), "hidden_size=64, this model has 48"),
        (lambda p: replace(p, kept={k: v for k, v in p.kept.items() if k != "layers.1.mlp"}), "layers.1.mlp"),
        (lambda p: replace(p, kept={**p.kept, "hidden": list(range(23))}), "hidden is not 24 ascending units of 48"),
        (lambda p: replace(p, kept={**p.kept, "hidden": [*range(23), 48]}), "hidden is not 24 ascending units"),
        (lambda p: replace(p, kept={**p.kept, "hidden": [0, 0, *range(1, 23)]}), "hidden is not 24 ascending units"),
        (lambda p: replace(p, kept={**p.kept, "layers.0.heads": [0, 1, 2, 4]}), "1 query heads in each kv head"),
    ],
)
def test_plans_that_do_not_fit_are_refused(change, message):
    model = tiny.model("llama")
    groups, plan, _ = planned(model, tiny.ALL)
    check_replay(plan, model.config, groups)
    with pytest.raises(PlanError, match=message):
        check_replay(change(plan), model.config, groups)


def saved_plan(folder):
    """A plan of tiny llama on the disk, and what the file holds."""
    plan = replace(planned(tiny.model("llama"), tiny.ALL)[1], importance="magnitude", seed=0)
    plan.save(folder / "plan.json")
    return json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "is not a plan"),
        ("null", "is not a plan"),
        ("{}", "is not a plan"),
        (json.dumps({"schema": 2, "model_type": "llama", "kept": {}}), "has another schema than 3"),
        (json.dumps({"format": 2, "model_type": "llama", "kept": {}}), "has another schema than 3"),
        ('{"schema": 3, "kept": {}, "kept": {}}', "'kept' occurs twice"),
        ("[" * 100_000, "nested more than"),
        ('{"schema": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_files_that_are_no_plans(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        Plan.load(path)


HUGE, NAN = 10**400, float("nan")
COUNTS = (None, True, 0, -1, 1.5, "8", [], NAN, HUGE)
WIDE = {**BEFORE.by_field(), "hidden_size": 48}
WRONG = {
    "model_type": (None, 5, [], {}),
    **dict.fromkeys(
        ("parameters_before", "parameters_after", "decoder_before", "decoder_after", "bytes_before", "bytes_after"),
        COUNTS,
    ),
    "before": (None, [], {}, {**WIDE, "more": 1}, *({**WIDE, "head_dim": count} for count in COUNTS)),
    "after": (None, {}, [], [5], [{}], *([{**WIDE, "hidden_size": count}] for count in COUNTS)),
    "config": (None, 5, [], "x"),
    "importance": (None, 5, ["magnitude"], True),
    "seed": (None, True, -1, 1.5, "0", {}, 2**32, NAN),
    "calibration": (5, [], {"data": 5}, {"data": "c4", "nsamples": 0}, {"data": "c4", "seq_len": "x"}),
    "order": (None, "upwards", 5, []),
    "compensate": (None, "more", 5, []),
    "layers": (5, {}, [-1], [1.5], ["0"], [True]),
    "num_layers_before": (0, True, "2", 1.5, []),
    "kept": (None, 5, [], "x", {"hidden": 5}, {"hidden": []}, *({"hidden": [unit]} for unit in COUNTS if unit != 0)),
    "more": (5,),
}


@pytest.mark.slow
@pytest.mark.parametrize("field", WRONG)
def test_a_field_of_a_plan_with_a_wrong_value_is_named(tmp_path, field):
    right, path = saved_plan(tmp_path), tmp_path / "plan.json"
    Plan.load(path)
    for value in WRONG[field]:
        path.write_text(json.dumps({**right, field: value}))
        with pytest.raises(UsageError, match=rf"\b{field}\b") as caught:
            Plan.load(path)
        assert len(str(caught.value)) < 1000


OPTIONAL = ("more", "config", "calibration", "order", "layers", "num_layers_before")


@pytest.mark.parametrize("field", [name for name in WRONG if name not in OPTIONAL])
def test_a_field_that_a_plan_lacks_is_named(tmp_path, field):
    right = saved_plan(tmp_path)
    del right[field]
    (tmp_path / "plan.json").write_text(json.dumps(right))
    with pytest.raises(UsageError, match="is not a plan" if field in ("kept", "model_type") else f"has no {field}"):
        Plan.load(tmp_path / "plan.json")


def changed(plan: dict, name: str, units) -> dict:
    return {**plan, "kept": {**plan["kept"], name: units}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: changed(p, "hidden", list(range(23))), "hidden must be 24 ascending units"),
        (lambda p: changed(p, "hidden", [0, 0, *range(1, 23)]), "hidden must be 24 ascending units"),
        (lambda p: changed(p, "hidden", list(range(24))[::-1]), "hidden must be 24 ascending units"),
        (lambda p: changed(p, "hidden", [*range(23), 48]), "hidden: there is no unit 48"),
        (lambda p: changed(p, "layers.2.mlp", [0]), "'layers.2.mlp' is no group of 2 layers"),
        (lambda p: changed(p, "layers.0.experts", [0]), "'layers.0.experts' is no group"),
        (lambda p: changed(p, "mlp", [0]), "'mlp' is no group"),
        (lambda p: changed(p, "layers." + "9" * 5000 + ".mlp", [0]), "is no group"),
        (lambda p: {**p, "after": [{**one, "head_dim": 999} for one in p["after"]]}, "keeps 999 of 8 head_dim"),
        (lambda p: {**p, "before": {**p["before"], "num_key_value_heads": 5}}, "do not go evenly into its kv heads"),
    ],
)
def test_plans_that_contradict_themselves(tmp_path, change, message):
    (tmp_path / "plan.json").write_text(json.dumps(change(saved_plan(tmp_path))))
    with pytest.raises(UsageError, match=message):
        Plan.load(tmp_path / "plan.json")


def test_a_pipe_is_no_plan(tmp_path):
    os.mkfifo(tmp_path / "plan.json")
    with pytest.raises(UsageError, match="`plan` .* is no regular file"):
        Plan.load(tmp_path / "plan.json")


def test_missing_plan_file():
    with pytest.raises(UsageError, match="No such file"):
        Plan.load("nowhere.json")


def test_same_seed_same_bytes():
    first, second = (pruned(tiny.model("phi3"), tiny.ALL, "random", seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
