"""The calibrated methods as a user meets them, by subprocess on the demo model."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests import REPOSITORY
from tests.support.commands import DEMO, HALF, UNSCORED, edit_tensors, one_line

FLAP = ("--config", REPOSITORY / "configs" / "flap.yaml", "--calibration_data", "demo", "--nsamples", 64)
AMP = ("--importance", "amp", "--param_ratio", "0.3")
RECONSTRUCT = ("--method", "reconstruct")
MAGNITUDE = ("--importance", "magnitude")


@pytest.mark.slow
def test_flap_makes_a_checkpoint_that_brings_its_modelling_file(command, tmp_path):
    done = command("--model", "demo", *FLAP, "--param_ratio", "0.4", "--dtype", "float32",
                   "--save_model", "out", "--save_plan", "plan.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["removed"]["decoder"] == pytest.approx(0.4, abs=0.01)
    assert report["perplexity"]["before"] < report["perplexity"]["after"] < 3
    assert report["model_type"] == {"before": "llama", "after": "pruned_llama"}
    assert len(set(report["widths"]["after"]["intermediate_size"])) > 1
    assert report["calibration"] == {"data": "demo", "nsamples": 64, "seq_len": 128}
    assert (report["compensate"], report["masked"], report["importance"]) == ("bias", False, "flap")
    size = sum(t.numel() for t in load_file(tmp_path / "out" / "model.safetensors").values())
    assert size == report["parameters"]["after"]
    assert (tmp_path / "out" / "modeling_pruned.py").is_file()
    assert "trust_remote_code=True" in done.stdout
    assert "trust_remote_code=True" in (tmp_path / "out" / "README.md").read_text()
    biases = [t for name, t in load_file(tmp_path / "out" / "model.safetensors").items() if name.endswith(".bias")]
    assert len(biases) == 8, "o_proj and down_proj of four layers"
    assert "masked" not in done.stdout
    shutil.copy(tmp_path / "out" / "model.safetensors", tmp_path / "first.safetensors")

    again = command("--model", "out", "--pruning_ratio", "0.5")
    assert "prune the original model again" in one_line(again, 3)
    replaced = command("--model", "demo", *HALF, *UNSCORED, "--save_model", "out", "--overwrite")
    assert replaced.returncode == 0, replaced.stderr
    weights = load_file(tmp_path / "first.safetensors")
    replay = command("--model", "demo", "--plan", "plan.json", *UNSCORED, "--dtype", "float32",
                     "--save_model", "replayed")  # fmt: skip
    assert replay.returncode == 0, replay.stderr
    again = load_file(tmp_path / "replayed" / "model.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights), "biases too, from the same text"


@pytest.mark.slow
def test_uniform_is_a_stock_checkpoint(command, tmp_path):
    done = command("--model", "demo", *FLAP, "--uniform", *UNSCORED, "--save_model", "out")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["attention_bias"], config["mlp_bias"]) == ("llama", True, True)
    kept = [path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".py"]
    assert kept == []


@pytest.mark.slow
def test_masked_checkpoint_is_the_dense_one_with_zeros(command, tmp_path):
    options = ("--importance", "mag_sp", "--param_ratio", "0.5", "--nsamples", 5, *UNSCORED)
    done = command("--model", "demo", *options, "--mask_only", "--save_model", "masked")
    assert done.returncode == 0, done.stderr
    assert "every shape stays" in done.stdout
    assert "measures no activations" in done.stdout
    dense, masked = load_file(DEMO / "model.safetensors"), load_file(tmp_path / "masked" / "model.safetensors")
    assert all(masked[name].shape == dense[name].shape for name in dense)
    down = masked["model.layers.0.mlp.down_proj.weight"]
    gone = (down == 0).all(0)
    assert 0.3 < gone.float().mean() < 0.7
    assert torch.equal(down[:, ~gone], dense["model.layers.0.mlp.down_proj.weight"][:, ~gone])
    report = json.loads((tmp_path / "masked" / "report.json").read_text())
    assert report["parameters"]["after"] == report["parameters"]["before"]
    assert report["masked"]


@pytest.mark.slow
def test_alpaca_records_of_ones_own(command, tmp_path):
    records = [{"instruction": "Count.", "input": "one, two" * n, "output": "three"} for n in range(1, 9)]
    (tmp_path / "mine.json").write_text(json.dumps(records))
    arguments = ("--config", REPOSITORY / "configs" / "amp.yaml", "--iteration", 1, "--calibration_data", "mine.json")
    done = command("--model", "demo", *arguments, *UNSCORED, "--save_model", "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["widths"]["after"]["num_attention_heads"] == 6
    assert report["widths"]["after"]["intermediate_size"] == 512 - 128


def test_dry_run_of_a_uniform_method_needs_only_the_config(command, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(DEMO / "config.json", tmp_path / "bare")
    done = command("--model", "bare", "--importance", "wanda_sp", "--target_params", "1.5M", "--dry_run")
    assert done.returncode == 0, done.stderr
    line = next(line.split() for line in done.stdout.splitlines() if line.startswith("parameters"))
    assert abs(int(line[2].replace(",", "")) - 1.5e6) < 0.01 * 1.78e6
    assert line[4] == "0.1588"


@pytest.mark.slow
def test_every_yaml_runs_as_it_is(command, tmp_path):
    """Offline, with the demo's text where a data set is named."""
    shipped = sorted((REPOSITORY / "configs").glob("[!p]*.yaml"))  # a pipeline's are not prune_llm's
    assert shipped
    for path in shipped:
        data = ("--calibration_data", "demo", "--nsamples", 16) if "calibration_data" in path.read_text() else ()
        budget = ("--iteration", 1) if path.name == "amp.yaml" else ()
        done = command("--model", "demo", "--config", path, *data, *budget, "--dry_run")
        assert done.returncode == 0, f"{path.name}: {done.stderr}"
        assert re.search(r"parameters +1,783,104 ", done.stdout), path.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((*MAGNITUDE, "--param_ratio", "1"), 2, "param_ratio: 1.0 is not a ratio"),
        ((*MAGNITUDE, "--param_ratio", "0.99"), 3, "cannot meet the budget.*the nearest is 0.9"),
        ((*MAGNITUDE, "--target_params", "lots"), 2, "'lots' is not a number of parameters; write 1.2B"),
        ((*MAGNITUDE, "--target_params", "2M"), 3, "the model has 1,783,104 parameters; ask for fewer"),
        ((*MAGNITUDE, "--target_params", "100k"), 3, "--prune hidden,heads,mlp"),
        (("--importance", "flap", "--target", "hidden_size=96"), 2, "importance flap does not score hidden"),
        (("--importance", "mag_sp", "--target", "hidden_size=96"), 2, "importance mag_sp does not score hidden"),
        (("--iteration", "4"), 3, "1.0010 times the attention and MLP parameters would have to go; ask for less"),
        (("--param_ratio", "0.3", "--calibration_data", "short.txt"), 2, "has 4 tokens, one window needs 128"),
        ((*RECONSTRUCT, "--param_ratio", "0.3", "--calibration_data", "c4"), 1, "could not be loaded from the hub"),
        ((*AMP, "--calibration_data", "wikitext"), 2, "did you mean 'wikitext2'"),
        ((*AMP, "--calibration_data", "short.txt"), 2, "has 4 tokens, one window needs 128"),
        ((*AMP, "--calibration_data", "bad.json"), 2, "record 1 has the fields .*`instruction`"),
        ((*AMP, "--calibration_data", "wikitext2"), 1, "could not be loaded from the hub.*--calibration_data FILE"),
        ((*AMP, "--scores", "nowhere/s"), 2, "--scores .* is not a file in an existing folder"),
    ],
)  # fmt: skip
def test_faults(command, tmp_path, arguments, code, message):
    (tmp_path / "short.txt").write_text("On Monday Mara.")
    (tmp_path / "bad.json").write_text('{"prompt": "x"}')
    error = one_line(command("--model", "demo", *arguments, *UNSCORED), code)
    assert re.search(message, error), error
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "hf") == ["bad.json", "short.txt"]


def test_weights_that_are_not_finite_are_named_before_the_text_runs_through(command, model):
    edit_tensors(
        model,
        lambda tensors: tensors["model.layers.1.self_attn.q_proj.weight"].index_fill_(0, torch.tensor(3), float("nan")),
    )
    error = one_line(command("--model", model, *AMP, "--calibration_data", "demo", "--nsamples", 4, *UNSCORED), 1)
    assert "model.layers.1.self_attn.q_proj.weight holds" in error


def test_fewer_records_than_asked_for_are_reported(command, tmp_path):
    (tmp_path / "two.json").write_text(json.dumps([{"instruction": "Count.", "input": None}] * 2))
    done = command("--model", "demo", *AMP, "--calibration_data", "two.json", *UNSCORED, "--save_model", "out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["calibration"]["nsamples"] == 2
    assert "calibration tokens are few for 192 hidden channels; use 1,920 or more" in done.stdout


@pytest.mark.slow
def test_importing_the_package_is_enough_to_load_one(python, command):
    done = command("--model", "demo", *FLAP, *UNSCORED, "--save_model", "out")
    assert done.returncode == 0, done.stderr
    script = (
        "import llm_pruner; from transformers import AutoModelForCausalLM as A; "
        "m = A.from_pretrained('out'); print(type(m).__name__, type(m).__module__)"
    )
    loaded = python("-c", script)
    assert loaded.stdout.split() == ["PrunedLlamaForCausalLM", "llm_pruner.model.modeling_pruned"], loaded.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "widths", "layers", "note"),
    [
        (("shortgpt", "--param_ratio", 0.5), {"hidden_size": 192}, 2, "influence"),
        (("shortgpt", "--target", "num_hidden_layers=3"), {"hidden_size": 192}, 3, "influence"),
        (("slicegpt", "--prune", "hidden=0.3"), {"hidden_size": 128}, 4, "energy"),
        (("slicegpt", "--target_params", "1.2M"), {"hidden_size": 129}, 4, "energy"),
    ],
)
def test_layers_and_directions_make_stock_checkpoints(command, tmp_path, arguments, widths, layers, note):
    """Which a fresh process reloads before they are published."""
    text = ("--calibration_data", "demo", "--nsamples", 16, "--calibration_seq_len", 64)
    done = command("--model", "demo", "--method", *arguments, *text, *UNSCORED, "--save_model", "out")
    assert done.returncode == 0, done.stderr
    report, config = (json.loads((tmp_path / "out" / name).read_text()) for name in ("report.json", "config.json"))
    assert (report["importance"], report["layers"]["after"]) == (arguments[0], layers)
    assert report["widths"]["before"] | widths == report["widths"]["after"]
    assert config["num_hidden_layers"] == layers
    assert {name: config[name] for name in widths} == widths
    assert note in report["notes"]
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == report["parameters"]["after"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("shortgpt", "--pruning_ratio", 0.3),
            2,
            "removes whole layers: give --param_ratio=R, or --target num_hidden_",
        ),
        (("shortgpt", "--param_ratio", 0.9), 3, "leaves none of 4 layers; the highest legal ratio is 0.75"),
        (
            ("slicegpt", "--prune", "mlp=0.3"),
            2,
            "shrinks the hidden size alone: give --prune hidden=R, --target hidden_",
        ),
    ],
)
def test_what_layers_and_directions_cannot_do(command, arguments, code, message):
    assert message in one_line(command("--model", "demo", "--method", *arguments, *UNSCORED, "--no_save"), code)
