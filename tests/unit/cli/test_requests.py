"""PruneOptions: defaults < YAML < flags, and nothing that cannot be meant gets through."""

import pytest

from llm_pruner.cli.deciding import method_of
from llm_pruner.cli.main import parse
from llm_pruner.cli.requests import (
    criterion_named,
    request_of,
    resolve,
    validate,
    validate_pruning,
    wants_reconstruction,
    without_vocabulary,
)
from llm_pruner.config.prune import PruneOptions
from llm_pruner.errors import UsageError
from llm_pruner.importance.criteria.flap import Flap
from llm_pruner.importance.criteria.random import Random
from llm_pruner.importance.criteria.taylor import Taylor
from llm_pruner.model.loading import pick_device
from llm_pruner.shape.request import Budget, Ratio, Target
from llm_pruner.vocabulary.choice import Wanted
from tests import REPOSITORY
from tests.support.options import write


def test_flags_win_over_yaml_over_defaults(tmp_path):
    path = write(tmp_path, "model: a\npruning_ratio: 0.25\nseed: 7\n")
    options = parse(["--config", path, "--pruning_ratio", "0.5"])
    assert (options.model, options.pruning_ratio, options.seed, options.max_seq_len) == ("a", 0.5, 7, 4096)


def test_a_shape_on_the_command_line_replaces_that_of_the_yaml(tmp_path):
    path = write(tmp_path, "model: a\npruning_ratio: 0.25\nprune: mlp\nseed: 7\n")
    options = parse(["--config", path, "--target", "hidden_size=8"])
    assert (options.pruning_ratio, options.target, options.seed) == (None, "hidden_size=8", 7)
    assert parse(["--config", path, "--pruning_ratio", "0.5"]).prune == "mlp"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model"),
        (["--model", "m"], "how much"),
        (["--model", "m", "--pruning_ratio", "1"], "1.0 is not a ratio; it must be a number with 0 <= ratio < 1"),
        (["--model", "m", "--pruning_ratio", "-0.1"], "-0.1 is not a ratio"),
        (["--model", "m", "--pruning_ratio", "nan"], "nan is not a ratio"),
        (["--model", "m", "--pruning_ratio", "50%"], "'50%'.*0 <= ratio < 1"),
        (["--model", "m", "--pruning_ratio", "inf"], "inf is not a ratio"),
        (["--model", "m", "--pruning", "0.5"], "unknown argument '--pruning'"),
        (["--model", "m", "--prunning_ratio", "0.5"], "did you mean 'pruning_ratio'"),
        (["--model", "m", "--pruning_ratio", "0.5", "stray"], "unknown argument 'stray'"),
        (["--model", "m", "--pruning_ratio", "0.5", "--round_to", "0"], "round_to: 0"),
        (["--model", "m", "--pruning_ratio", "0.5", "--seed", "1.5"], "seed: '1.5' is str, it must be a whole number"),
        (["--model", "m", "--pruning_ratio", "0.5", "--dtype", "bf16"], "did you mean 'bfloat16'"),
        (["--model", "m", "--pruning_ratio", "0.5", "--importance", "magnitud"], "did you mean 'magnitude'"),
        (["--model", "m", "--pruning_ratio", "0.5", "--prune", "head"], "did you mean 'heads'"),
        (["--model", "m", "--pruning_ratio", "0.5", "--target", "hidden_size=4"], "both set the shape"),
        (["--model", "m", "--target", "hidden_size=4", "--prune", "mlp"], "target and prune exclude each other"),
        (["--model", "m", "--target", "hidden_size=4", "--round_to", "64"], "target and round_to exclude each other"),
        (["--model", "m", "--plan", "p.json", "--seed", "4"], "plan and seed exclude each other"),
        (["--model", "m", "--pruning_ratio", "0.9", "--prune", "mlp=0.5"], "pruning_ratio 0.9 is not used"),
        (["--model", "m", "--pruning_ratio", "0.5", "--no_save", "--save_model", "x"], "contradict"),
        (["--model", "m", "--pruning_ratio", "0.5", "--device", "cpu", "--device_map", "auto"], "one of them"),
        (["--model", "m", "--pruning_ratio"], "expected one argument"),
        (["--model", "m", "--prune", "vocab,vocab=0.5"], "names 'vocab' twice"),
        (["--model", "m", "--prune", "vocab=1"], "1.0 is not a ratio|'1' is not a ratio|1 is not a ratio"),
        (["--model", "m", "--target", "vocab_size=0"], "vocab_size: '0' is not a width"),
        (["--model", "m", "--pruning_ratio", "0.5", "--vocab_data", "t.txt"], "vocab_data is the text whose tokens"),
        (["--model", "m", "--prune", "vocab", "--mask_only"], "mask_only keeps every shape"),
        (["--model", "m", "--prune", "vocab,mlp"], "mlp has no ratio"),
    ],
)
def test_flags_that_cannot_be_meant(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse(arguments)


def test_flags_leave_out_what_the_yaml_says_about_another_method():
    flap, magnitude = (str(REPOSITORY / "configs" / f"{name}.yaml") for name in ("flap", "magnitude"))
    wanda = resolve({"model": "m", "importance": "wanda_sp", "structure": "UL-UM"}, flap)
    assert (wanda.metrics, wanda.structure, wanda.nsamples) == (None, "UL-UM", 1024)
    ratios = resolve({"model": "m", "prune": "heads=0.5,mlp=0.3"}, flap)
    assert (ratios.structure, ratios.pruning_ratio, ratios.metrics) == (None, None, "WIFV")
    assert resolve({"model": "m", "iteration": 1}, magnitude).prune is None
    assert resolve({"model": "m", "param_ratio": 0.5}, flap).structure == "AL-AM"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--importance", "magnitude"], "method reconstruct and importance both choose the units"),
        (["--order", "reversed"], "method reconstruct and order both choose"),
        (["--compensate", "none"], "method reconstruct and compensate both choose"),
        (["--compensate", "bias"], "method reconstruct and compensate both choose"),
        (["--structure", "UL-UM"], "method reconstruct and structure both choose"),
        (["--mask_only"], "method reconstruct and mask_only both choose"),
        (["--scores", "s.safetensors"], "method reconstruct and scores both choose"),
        (["--save_plan", "plan.json"], "save_plan lists units that scores chose; a method may make new weights"),
        (["--round_to", "64"], "round_to goes with width ratios"),
    ],
)
def test_what_contradicts_a_reconstruction(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse(["--model", "m", "--param_ratio", "0.3", "--method", "reconstruct", *arguments])


@pytest.mark.parametrize("method", ["shortgpt", "slicegpt"])
def test_what_contradicts_a_method_without_units(method):
    asked = ["--model", "m", "--param_ratio", "0.3", "--method", method]
    for arguments, message in (
        (["--save_plan", "plan.json"], "save_plan lists units that scores chose"),
        (["--importance", "magnitude"], f"method {method} and importance both choose the units"),
    ):
        with pytest.raises(UsageError, match=message):
            parse([*asked, *arguments])
    with pytest.raises(UsageError, match=f"method {method} has no option 'epochs'; leave it out"):
        method_of(parse([*asked, "--epochs", "2"]), reconstruct=True)


def test_a_plan_says_the_method():
    with pytest.raises(UsageError, match="plan and method exclude each other"):
        parse(["--model", "m", "--plan", "plan.json", "--method", "reconstruct"])
    with pytest.raises(UsageError, match="method reconstruct and plan both choose"):
        validate_pruning(PruneOptions(plan="plan.json", method="reconstruct"))


@pytest.mark.parametrize("method", [[], ["--method", "reconstruct"]])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--per_layer", "--pruning_ratio", "0.5"], "per_layer .* one of param_ratio, target_params, target_memory"),
        (["--per_layer", "--target", "intermediate_size=8"], "per_layer shares a budget out"),
        (["--search_minutes", "-1", "--param_ratio", "0.3"], "search_minutes: -1.0 must be a number of at least 0"),
        (["--search_minutes", "nan", "--param_ratio", "0.3"], "search_minutes: nan must be"),
        (["--epochs", "-1", "--param_ratio", "0.3"], "epochs: -1 must be a whole number of at least 0"),
        (["--epochs", "0.5", "--param_ratio", "0.3"], "epochs: '0.5' is str, it must be a whole number"),
        (["--global_epochs", "-1", "--param_ratio", "0.3"], "global_epochs: -1 must be a whole number of at least 0"),
        (["--target_memory", "8 apples"], "target_memory: '8 apples' is not a size; write 8GB, 1.5GiB or 500MB"),
        (["--target_memory", "0"], "target_memory: '0' is not a size"),
        (["--target_memory", "8GB", "--param_ratio", "0.3"], "param_ratio and target_memory both set the shape"),
        (["--iteration", "1", "--prune", "mlp"], "iteration takes both heads and neurons"),
    ],
)
def test_options_of_a_reconstruction_that_cannot_be_meant(method, arguments, message):
    with pytest.raises(UsageError, match=message):
        parse(["--model", "m", *method, *arguments])


@pytest.mark.parametrize(
    ("name", "value"),
    [("per_layer", True), ("search_minutes", 0.0), ("epochs", 0), ("global_epochs", 0), ("work_dir", "w")],
)
def test_options_of_a_reconstruction_beside_another(name, value):
    with pytest.raises(UsageError, match=f"`{name}` belongs to `method=reconstruct`"):
        validate_pruning(PruneOptions(param_ratio=0.3, importance="magnitude", **{name: value}))


def test_a_method_on_the_command_line_replaces_that_of_the_yaml(tmp_path):
    best = write(
        tmp_path,
        "method: reconstruct\nper_layer: true\nsearch_minutes: 3.0\nepochs: 2\nwork_dir: w\nparam_ratio: 0.3\n",
    )
    model = ["--model", "m", "--config"]
    assert parse([*model, best]).per_layer
    assert parse([*model, best, "--importance", "amp"]) == PruneOptions(
        model="m", importance="amp", param_ratio=0.3, config=best
    )
    flap = REPOSITORY / "configs" / "flap.yaml"
    text = {"calibration_data": ("wikitext2",), "nsamples": 1024, "calibration_seq_len": 128}
    expected = PruneOptions(model="m", method="reconstruct", pruning_ratio=0.2, config=str(flap), **text)
    assert parse([*model, str(flap), "--method", "reconstruct"]) == expected


def test_several_calibration_texts_are_words_of_a_flag_and_a_list_of_the_yaml(tmp_path):
    expected = ("wikitext2", "self=0.25")
    flags = ["--model", "m", "--param_ratio", "0.3"]
    assert parse([*flags, "--calibration_data", *expected]).calibration_data == expected
    assert parse([*flags, "--calibration_data", "wikitext2"]).calibration_data == ("wikitext2",)
    for text, found in (("[wikitext2, self=0.25]", expected), ("c4", ("c4",))):
        path = write(tmp_path, f"calibration_data: {text}\n")
        assert parse([*flags, "--config", path]).calibration_data == found
    with pytest.raises(UsageError, match="line 1: calibration_data: .* must be names"):
        parse([*flags, "--config", write(tmp_path, "calibration_data: [wikitext2, 3]\n")])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, None),
        ({"prune": "mlp"}, None),
        ({"round_to": 64}, None),
        ({"calibration_data": "text.txt", "nsamples": 8, "seed": 1}, None),
        ({"method": "reconstruct"}, True),
        ({"method": "reconstruct", "iteration": 1}, True),
        ({"importance": "magnitude"}, False),
        ({"order": "random"}, False),
        ({"compensate": "none"}, False),
        ({"structure": "AL-AM"}, False),
        ({"mask_only": True}, False),
        ({"scores": "s.safetensors"}, False),
        ({"plan": "plan.json"}, False),
        ({"save_plan": "plan.json"}, False),
        ({"iteration": 1}, False),
    ],
)
def test_when_a_reconstruction_is_wanted(options, wanted):
    """None: where it can be had."""
    assert wants_reconstruction(PruneOptions(**options)) is wanted


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", "-1", "seed: -1 must be a whole number of at least 0"),
        ("seed", "4294967296", "seed: 4294967296 must be a whole number of at most 4,294,967,295"),
        ("seed", "9" * 5000, "seed: '9{49}…9{24}' is str"),
        ("nsamples", "1000000000", "nsamples: 1000000000 must be a whole number of at most 1,000,000"),
        ("calibration_seq_len", "999999999", "calibration_seq_len: 999999999 must be .* at most 16,777,216"),
        ("max_seq_len", "999999999", "max_seq_len: 999999999 must be .* at most"),
        ("batch_size", "999999999", "batch_size: 999999999 must be .* at most"),
        ("round_to", "999999999", "round_to: 999999999 must be .* at most"),
        ("epochs", "999999999", "epochs: 999999999 must be .* at most"),
        ("search_minutes", "inf", "search_minutes: inf must be a number of at most"),
        ("search_minutes", "1" + "0" * 400, "search_minutes: inf must be a number of at most"),
        ("target_params", "9" * 400, "target_params: '9{49}…9{24}' is not a number of parameters"),
        ("target_params", "0", "target_params: '0' is not a number of parameters"),
        ("target_memory", "9" * 400, "target_memory: '9{49}…9{24}' is not a size"),
        *((name, "", f"{name} is blank") for name in ("model", "save_model", "plan", "scores", "prune", "eval_data")),
        ("save_model", " ", "save_model is blank"),
        ("model", "a\0b", "model: .* has a NUL character"),
        ("device", "x" * 10**6, "device"),
    ],
)
def test_values_that_make_no_sense(name, value, message):
    flags = {"model": "m", "param_ratio": "0.3", name: value}
    if name.startswith("target"):
        flags.pop("param_ratio")

    def start():
        options = parse([word for flag, text in flags.items() for word in (f"--{flag}", text)])
        pick_device(options.device)

    with pytest.raises(UsageError, match=message) as caught:
        start()
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("[!p]*.yaml")), ids=lambda p: p.name)
def test_every_shipped_yaml_is_complete(path):
    """Runnable as it is, with a model."""
    options = resolve({"model": "m"}, str(path))
    assert (options.method or options.importance) in path.stem


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ("flap:metrics=IFW", "metrics: 'IFW'; did you mean 'IFV'"),
        ("flap:metric=IFV", "importance flap has no option 'metric'"),
        ("random:seed=x", "seed: 'x' is not a whole number"),
        ("amp:metrics=IFV", "importance amp has no option 'metrics'"),
        ("flap:metrics=IFV,metrics=WIFN", "importance 'flap:metrics=IFV,metrics=WIFN': metrics is given twice"),
    ],
)
def test_options_that_a_criterion_does_not_have(importance, message):
    with pytest.raises(UsageError, match=message):
        parse(["--model", "m", "--param_ratio", "0.3", "--importance", importance])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["flap"], Flap("WIFV")),
        (["flap:metrics=IFV"], Flap("IFV")),
        (["flap", "--metrics", "IFV"], Flap("IFV")),
        (["taylor:taylor=vectorize"], Taylor("vectorize")),
        (["random", "--seed", "3"], Random(3)),
        (["random:seed=5", "--seed", "3"], Random(5)),
    ],
)
def test_options_of_a_criterion(words, expected):
    """Behind its name, or as flags; and the method that runs has them."""
    options = parse(["--model", "m", "--param_ratio", "0.3", "--importance", *words])
    assert criterion_named(options) == expected
    assert method_of(options, reconstruct=False).criterion == expected


def test_a_criterion_cannot_be_told_twice():
    with pytest.raises(UsageError, match="importance 'flap:metrics=IFV': metrics is given twice"):
        parse(["--model", "m", "--param_ratio", "0.3", "--importance", "flap:metrics=IFV", "--metrics", "WIFV"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iteration": 1, "prune": "mlp"}, "iteration takes both heads and neurons"),
        ({"iteration": 1, "prune": "mlp", "structure": "UL-UM"}, "iteration takes both heads and neurons"),
        ({"pruning_ratio": 0.2, "prune": "mlp", "structure": "UL-MM", "remove_heads": 4}, "UL-MM takes both"),
        ({"pruning_ratio": 0.2, "prune": "kv_heads,mlp", "structure": "UL-UM"}, "leave kv_heads out"),
    ],
)
def test_what_cannot_leave_out_a_kind_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        validate(PruneOptions(model="m", importance="mag_sp", **options))


@pytest.mark.parametrize(
    ("given", "wanted", "rest"),
    [
        ("prune=vocab", Wanted(), Ratio(0.0)),
        ("prune=vocab=0.3", Wanted(ratio=0.3), Ratio(0.0)),
        ("prune=vocab pruning_ratio=0.5", Wanted(ratio=0.5), Ratio(0.0)),
        ("prune=vocab,mlp pruning_ratio=0.5", Wanted(ratio=0.5), Ratio({"mlp": 0.5})),
        ("prune=vocab=0.3 pruning_ratio=0.5", Wanted(ratio=0.3), Ratio(0.5)),
        ("prune=mlp=0.2,vocab=0.3", Wanted(ratio=0.3), Ratio({"mlp": 0.2})),
        ("prune=vocab param_ratio=0.2", Wanted(), Budget(param_ratio=0.2)),
        ("prune=vocab,mlp target_params=1M", Wanted(), Budget(params="1M", axes=("mlp",))),
        ("target=vocab_size=640", Wanted(size=640), Ratio(0.0)),
        ("target=vocab_size=640,hidden_size=8", Wanted(size=640), Target("hidden_size=8")),
        ("prune=vocab=0,mlp=0.5", None, Ratio({"mlp": 0.5})),
        ("prune=vocab=0", None, Ratio(0.0)),
        ("prune=vocab pruning_ratio=0", None, Ratio(0.0)),
        ("prune=vocab=0 param_ratio=0.5", None, Budget(param_ratio=0.5)),
        ("prune=mlp pruning_ratio=0.5", None, Ratio({"mlp": 0.5})),
    ],
)
def test_the_vocabulary_is_told_apart_from_the_rest(given, wanted, rest):
    flags = [f"--{one}".split("=", 1) for one in given.split()]
    options, found = without_vocabulary(parse(["--model", "m", *(part for flag in flags for part in flag)]))
    assert found == wanted
    assert request_of(options) == rest


def test_a_ratio_of_the_vocabulary_leaves_the_budget_of_the_yaml(tmp_path):
    path = write(tmp_path, "model: a\nparam_ratio: 0.25\n")
    assert parse(["--config", path, "--prune", "vocab=0.5"]).param_ratio == 0.25
    assert parse(["--config", path, "--prune", "vocab=0.5,mlp=0.5"]).param_ratio is None
