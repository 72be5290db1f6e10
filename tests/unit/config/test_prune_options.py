"""PruneOptions: defaults < YAML < flags, and nothing that cannot be meant gets through."""

import ast
import re

import pytest

from llm_pruner.cli.commands import COMMANDS
from llm_pruner.cli.main import build_parser, parse
from llm_pruner.cli.messages import FLAGS, with_flags
from llm_pruner.cli.prune import method_of
from llm_pruner.cli.requests import criterion_named, resolve, validate_pruning, wants_reconstruction
from llm_pruner.config.options import fields_of, read_yaml
from llm_pruner.config.prune import FIELDS, PruneOptions
from llm_pruner.config.quantities import parse_bytes
from llm_pruner.errors import PlanError, UsageError
from llm_pruner.importance.criteria.flap import Flap
from llm_pruner.importance.criteria.random import Random
from llm_pruner.importance.criteria.taylor import Taylor
from llm_pruner.methods import ScoreAndCut
from llm_pruner.model.loading import pick_device
from llm_pruner.output.places import check_outputs
from llm_pruner.shape.draft import draft
from llm_pruner.shape.request import Budget
from tests import REPOSITORY
from tests.support import tiny
from tests.support.commands import DEMO


def yaml(tmp_path, text: str) -> str:
    path = tmp_path / "options.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_win_over_yaml_over_defaults(tmp_path):
    path = yaml(tmp_path, "model: a\npruning_ratio: 0.25\nseed: 7\n")
    options = parse(["--config", path, "--pruning_ratio", "0.5"])
    assert (options.model, options.pruning_ratio, options.seed, options.max_seq_len) == ("a", 0.5, 7, 4096)


def test_a_shape_on_the_command_line_replaces_that_of_the_yaml(tmp_path):
    path = yaml(tmp_path, "model: a\npruning_ratio: 0.25\nprune: mlp\nseed: 7\n")
    options = parse(["--config", path, "--target", "hidden_size=8"])
    assert (options.pruning_ratio, options.target, options.seed) == (None, "hidden_size=8", 7)
    assert parse(["--config", path, "--pruning_ratio", "0.5"]).prune == "mlp"


def test_both_spellings_and_equals():
    one = parse(["--model", "m", "--pruning-ratio=0.5", "--dry-run", "--save-model", "a-b"])
    two = parse(["--model=m", "--pruning_ratio", "0.5", "--dry_run", "--save_model=a-b"])
    assert one == two
    assert one.save_model == "a-b"


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
        (["--model", "m", "--pruning_ratio", "0.5", "--target", "hidden_size=4"], "both say the shape"),
        (["--model", "m", "--target", "hidden_size=4", "--prune", "mlp"], "target already says what prune would"),
        (["--model", "m", "--target", "hidden_size=4", "--round_to", "64"], "target already says what round_to would"),
        (["--model", "m", "--plan", "p.json", "--seed", "4"], "plan already says what seed would"),
        (["--model", "m", "--pruning_ratio", "0.9", "--prune", "mlp=0.5"], "pruning_ratio 0.9 is not used"),
        (["--model", "m", "--pruning_ratio", "0.5", "--no_save", "--save_model", "x"], "contradict"),
        (["--model", "m", "--pruning_ratio", "0.5", "--device", "cpu", "--device_map", "auto"], "one of them"),
        (["--model", "m", "--pruning_ratio"], "expected one argument"),
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
        (["--importance", "magnitude"], "method reconstruct and importance both say how units are chosen"),
        (["--order", "reversed"], "method reconstruct and order both say"),
        (["--compensate", "none"], "method reconstruct and compensate both say"),
        (["--compensate", "bias"], "method reconstruct and compensate both say"),
        (["--structure", "UL-UM"], "method reconstruct and structure both say"),
        (["--mask_only"], "method reconstruct and mask_only both say"),
        (["--scores", "s.safetensors"], "method reconstruct and scores both say"),
        (["--save_plan", "plan.json"], "save_plan lists units; a reconstruction makes new weights"),
        (["--round_to", "64"], "round_to goes with width ratios"),
    ],
)
def test_what_contradicts_a_reconstruction(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse(["--model", "m", "--param_ratio", "0.3", "--method", "reconstruct", *arguments])


def test_a_plan_says_the_method():
    with pytest.raises(UsageError, match="plan already says what method would"):
        parse(["--model", "m", "--plan", "plan.json", "--method", "reconstruct"])
    with pytest.raises(UsageError, match="method reconstruct and plan both say"):
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
        (["--target_memory", "8 apples"], "target_memory: '8 apples' is not a size; write 8GB, 1.5GiB or 500MB"),
        (["--target_memory", "0"], "target_memory: '0' is not a size"),
        (["--target_memory", "8GB", "--param_ratio", "0.3"], "param_ratio and target_memory both say the shape"),
        (["--iteration", "1", "--prune", "mlp"], "iteration takes both heads and neurons"),
    ],
)
def test_options_of_a_reconstruction_that_cannot_be_meant(method, arguments, message):
    with pytest.raises(UsageError, match=message):
        parse(["--model", "m", *method, *arguments])


@pytest.mark.parametrize(
    ("name", "value"), [("per_layer", True), ("search_minutes", 0.0), ("epochs", 0), ("work_dir", "w")]
)
def test_options_of_a_reconstruction_beside_another(name, value):
    with pytest.raises(UsageError, match=f"`{name}` belongs to `method=reconstruct`"):
        validate_pruning(PruneOptions(param_ratio=0.3, importance="magnitude", **{name: value}))


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("1.5GiB", 3 * 2**29), ("500MB", 5 * 10**8), ("1000", 1000), (" 2 kib ", 2048)],
)
def test_sizes(text, size):
    assert parse_bytes(text, "memory") == size
    assert parse(["--model", "m", "--target_memory", text]).target_memory == text


def test_a_method_on_the_command_line_replaces_that_of_the_yaml(tmp_path):
    best = yaml(
        tmp_path,
        "method: reconstruct\nper_layer: true\nsearch_minutes: 3.0\nepochs: 2\nwork_dir: w\nparam_ratio: 0.3\n",
    )
    model = ["--model", "m", "--config"]
    assert parse([*model, best]).per_layer
    assert parse([*model, best, "--importance", "amp"]) == PruneOptions(
        model="m", importance="amp", param_ratio=0.3, config=best
    )
    flap = REPOSITORY / "configs" / "flap.yaml"
    text = {"calibration_data": "wikitext2", "nsamples": 1024, "calibration_seq_len": 128}
    expected = PruneOptions(model="m", method="reconstruct", pruning_ratio=0.2, config=str(flap), **text)
    assert parse([*model, str(flap), "--method", "reconstruct"]) == expected


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
    ("text", "message"),
    [
        ("model: m\npruning_ratio: 5e-1\n", r"line 2: pruning_ratio: '5e-1' is str.*0 <= ratio < 1.*write 0\.5"),
        ("model: m\npruning_ratio: 50%\n", "line 2: pruning_ratio: '50%' is str"),
        ("model: m\npruning_ratio: .nan\n", "line 2: pruning_ratio: '.nan'"),
        ("model: m\nprunning_ratio: 0.5\n", "line 2: unknown option 'prunning_ratio'; did you mean 'pruning_ratio'"),
        ("model: m\nseed: 1\nseed: 2\n", "line 3: 'seed' is set twice"),
        ("model: !!python/object/apply:os.system ['touch pwned']\n", "line 1: could not determine a constructor"),
        ("model: !!python/name:os.system\n", "line 1: could not determine a constructor"),
        ("model: [a, b]\n", "line 1: model: .* it must be text"),
        ("seed: true\n", "line 1: seed: True is bool"),
        ("dry_run: 1\n", "line 1: dry_run: 1 is int, it must be true or false"),
        ("- a\n- b\n", "must be a mapping"),
        ("null\n", "must be a mapping"),
        ("model: 'm\n", "line"),
    ],
)
def test_yaml_that_cannot_be_meant(tmp_path, text, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        read_yaml(yaml(tmp_path, text), FIELDS)
    assert not (tmp_path / "pwned").exists()


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


def test_empty_yaml(tmp_path):
    assert read_yaml(yaml(tmp_path, "# nothing yet\n"), FIELDS) == {}


def test_missing_yaml():
    with pytest.raises(UsageError, match="No such file"):
        read_yaml("nowhere.yaml", FIELDS)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("[!p]*.yaml")), ids=lambda p: p.name)
def test_every_shipped_yaml_is_complete(path):
    """Runnable as it is, with a model."""
    options = resolve({"model": "m"}, str(path))
    assert (options.method or options.importance) in path.stem


def test_every_option_has_a_legal_default_and_help():
    assert PruneOptions()
    assert all(len(f.metadata["help"]) > 10 for f in FIELDS.values())


def test_no_option_is_declared_twice():
    """Groups are composed, and a command that needs another default says so without a declaration."""
    declared = []
    for path in (REPOSITORY / "llm_pruner" / "config").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = getattr(getattr(node, "value", None), "func", None)
            if isinstance(node, ast.AnnAssign) and getattr(called, "id", "") == "option":
                declared.append(node.target.id)
    assert sorted(declared) == sorted(set(declared))
    every = {name for command in COMMANDS.values() for name in fields_of(command.options)}
    assert set(declared) == every


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_what_is_common_and_help_all_everything(name):
    command = COMMANDS[name]
    known = fields_of(command.options)
    short, long = (build_parser(command, every).format_help() for every in (False, True))
    flags = [set(re.findall(r"^  --(\w+)", text, re.MULTILINE)) for text in (short, long)]
    assert flags == [{option for option, f in known.items() if f.metadata["common"]}, set(known)]
    assert 5 < len(flags[0]) < 20
    assert "--help all" in short


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("words", "every"), [(["--help"], False), (["-h"], False), (["--help", "all"], True)])
def test_help_is_asked_for_by_the_command_line(capsys, name, words, every):
    with pytest.raises(SystemExit) as ended:
        parse(words, COMMANDS[name])
    assert ended.value.code == 0
    assert capsys.readouterr().out == build_parser(COMMANDS[name], every).format_help()


def test_parameters_in_messages_become_flags():
    message = "use a smaller `nsamples`, `dtype=bfloat16` or `lm_eval ls tasks`; `teacher` is no option of it"
    expected = "use a smaller --nsamples, --dtype bfloat16 or `lm_eval ls tasks`; `teacher` is no option of it"
    assert with_flags(message, PruneOptions) == expected


def test_parameters_of_a_budget_become_the_flags_of_prune():
    with pytest.raises(PlanError, match="^`memory` 1GB") as error:
        draft(Budget(memory="1GB"), tiny.model("llama").config, ScoreAndCut())
    assert with_flags(str(error.value), PruneOptions).startswith("--target_memory 1GB: the model has ")


def test_every_parameter_in_a_message_is_an_option_of_a_command():
    every = {name for command in COMMANDS.values() for name in fields_of(command.options)} | set(FLAGS)
    named = set()
    for path in (REPOSITORY / "llm_pruner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                named |= set(re.findall(r"(?<!`)`([a-z_]+)(?:=[^`\s]+)?`(?!`)", ast.unparse(node)))
    assert len(named) > 15
    assert named - every <= {"text", "instruction", "input", "output", "messages", "role", "content", "usual", "task"}


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ("flap:metrics=IFW", "metrics: 'IFW'; did you mean 'IFV'"),
        ("flap:metric=IFV", "metric says nothing about importance flap"),
        ("random:seed=x", "seed: 'x' is not a whole number"),
        ("amp:metrics=IFV", "metrics says nothing about importance amp"),
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


def test_options_of_a_criterion_are_no_part_of_a_folders_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = parse(["--model", "demo", "--param_ratio", "0.3", "--importance", "flap:metrics=IFV"])
    plain = parse(["--model", "demo", "--param_ratio", "0.3", "--importance", "flap"])
    assert check_outputs(options, str(DEMO)) == check_outputs(plain, str(DEMO))
    assert check_outputs(options, str(DEMO)).name.endswith("-flap")
