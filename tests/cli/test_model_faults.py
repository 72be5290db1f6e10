"""What is wrong with a model is said in one line, nothing it brings is run, and nothing is written."""

import http.server
import json
import pickle
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file

from tests.support import tiny
from tests.support.checkpoints import Evil
from tests.support.commands import HALF, UNSCORED, edit_config, edit_tensors, one_line


@pytest.mark.slow
def test_families_that_cannot(command, tmp_path):
    """An unknown model_type, with the code it would like to run; a quantised one; a shape its class cannot have."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "evil.py").write_text("open('pwned', 'w')\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "x" / "config.json").write_text(json.dumps({"model_type": "bloom", "auto_map": auto_map}))
    error = one_line(command("--model", "x", *HALF, "--dry_run", fresh=True), 3)
    assert "'bloom' is not supported; supported: gemma, gemma3_text, gpt2, gpt_neox, llama, mistral, phi3" in error
    tiny.config("gpt2").save_pretrained(tmp_path / "gpt2")
    error = one_line(command("--model", "gpt2", *HALF, "--prune", "heads", "--dry_run"), 3)
    assert "hidden and heads shrink together; nearest legal: hidden_size=24,num_attention_heads=3" in error
    tiny.config("llama", quantization_config={"quant_method": "gptq"}).save_pretrained(tmp_path / "q")
    assert "quantised" in one_line(command("--model", "q", *HALF, "--dry_run"), 3)
    assert not (tmp_path / "pwned").exists()


def test_auto_map_of_a_native_type_is_ignored(command, tmp_path, model):
    (model / "evil.py").write_text("open('pwned', 'w')\n")
    edit_config(model, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    done = command("--model", "model", *HALF, *UNSCORED, "--save_model", "out")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("pwned"))
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_pickled_code_never_runs(command, tmp_path, model):
    (model / "model.safetensors").unlink()
    with open(model / "pytorch_model.bin", "wb") as file:
        pickle.dump({"lm_head.weight": Evil()}, file)
    one_line(command("--model", "model", *HALF, *UNSCORED), 1)
    assert not list(tmp_path.rglob("pwned"))
    assert not (tmp_path / "pruned").exists()


def test_plain_pickled_weights_load(command, tmp_path, model):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(tensors, model / "pytorch_model.bin")
    done = command("--model", "model", *HALF, *UNSCORED, "--save_model", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_leftovers_of_another_format_do_not_matter(command, model):
    """Hub repositories often keep the index of pickles whose shards nobody downloads."""
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model-00001-of-00002.bin"}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    done = command("--model", "model", *HALF, *UNSCORED, "--no_save")
    assert done.returncode == 0, done.stderr


def test_lm_head_that_the_config_does_not_know(command, model):
    """transformers unties it in silence; sharing it again would throw its weights away."""
    edit_config(model, tie_word_embeddings=True)
    error = one_line(command("--model", "model", *HALF, *UNSCORED), 1)
    assert "if it holds an lm_head of its own, set tie_word_embeddings to false" in error


def test_dtype_is_the_weights_when_the_config_names_none(command, tmp_path, model):
    config = json.loads((model / "config.json").read_text())
    del config["dtype"]
    (model / "config.json").write_text(json.dumps(config))
    done = command("--model", "model", *HALF, *UNSCORED, "--save_model", "out")
    assert done.returncode == 0, done.stderr
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["bytes"]["after"] == 2 * 522_912
    error = one_line(command("--model", "model", "--target_memory", "3MB", *UNSCORED), 2)
    assert "the config.json of model names no dtype; give --dtype too" in error


def test_truncated_weights_are_named(command, model):
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "model.safetensors is truncated or broken" in one_line(command("--model", "model", *HALF, *UNSCORED), 1)


def test_missing_and_misshapen_tensors_are_named(command, model):
    edit_tensors(model, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    error = one_line(command("--model", "model", *HALF, *UNSCORED), 1)
    assert "missing tensors, first model.layers.1.mlp.up_proj.weight" in error
    edit_tensors(model, lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 192)}))
    assert "model.layers.1.mlp.up_proj.weight" in one_line(command("--model", "model", *HALF, *UNSCORED), 1)


def test_nan_in_the_weights_is_named(command, tmp_path, model):
    edit_tensors(model, lambda tensors: tensors["model.layers.2.self_attn.k_proj.weight"].fill_(float("nan")))
    error = one_line(command("--model", "model", *HALF, *UNSCORED), 1)
    assert "model.layers.2.self_attn.k_proj.weight holds" in error
    assert not (tmp_path / "pruned").exists()


def test_index_that_leaves_the_folder_is_refused(command, tmp_path, model):
    shutil.move(model / "model.safetensors", tmp_path / "elsewhere.safetensors")
    names = load_file(tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    error = one_line(command("--model", "model", *HALF, *UNSCORED), 2)
    assert "names '../elsewhere.safetensors', which is outside the checkpoint; refused" in error


def test_model_that_is_not_there(command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert "there is no folder ./nowhere" in one_line(command("--model", "./nowhere", *HALF), 1)
    assert "holds no config.json" in one_line(command("--model", "empty", *HALF), 1)
    assert "config.json, line 1 is not JSON" in one_line(command("--model", "broken", *HALF), 2)


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub on which every model is gated, or missing."""

    def do_GET(self):
        code, name = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        self.send_response(code)
        self.send_header("X-Error-Code", name)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_): ...


@pytest.mark.slow
def test_hub_says_no_in_three_ways(command, python):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    try:
        gated = one_line(command("--model", "org/gated", *HALF, **hub), 1)
        missing = one_line(command("--model", "org/missing", *HALF, **hub), 1)
    finally:
        server.shutdown()
        server.server_close()
    hub["HF_ENDPOINT"] = "http://127.0.0.1:9"
    without_waiting = (
        "import sys, time; time.sleep = id; from llm_pruner.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    unreachable = one_line(
        python("-c", without_waiting, "--model", "org/model", *HALF, **hub), 1
    )  # it tries five times
    assert "org/gated is gated: ask for access" in gated
    assert "org/missing is neither a local folder nor a model on the hub" in missing
    assert "the hub cannot be reached" in unreachable


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_is_called_that_by_every_command(command, command_of, tmp_path, model, alone):
    if alone:
        shutil.rmtree(model)
        model.mkdir()
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    runs = (
        command("--model", "model", *HALF, "--dry_run"),
        command_of("recover", "--model", "model", "--method", "lora", "--save_model", "out"),
        command_of("evaluate", "--model", "model"),
        command_of("sparsify", "--model", "model", "--save_model", "out", "--n", "2", "--m", "4"),
    )
    for done in runs:
        assert "holds an adapter (adapter_config.json): merge it" in one_line(done, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
