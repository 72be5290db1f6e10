"""The command as a user meets it, by subprocess: what it prints, leaves behind and returns."""

import http.server
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_pruner import loading
from tests import tiny

DEMO = Path(loading.resolve("demo"))
REPOSITORY = Path(__file__).parents[1]
HALF = ("--pruning_ratio", "0.5")
UNSCORED = ("--eval_data", "none")


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the demo model to break."""
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def one_line(done, code: int) -> str:
    """The error, which is one line, after checking the exit code."""
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = [line for line in done.stderr.splitlines() if line.startswith("prune_llm: error:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return tiny.logits(AutoModelForCausalLM.from_pretrained(folder))


# ------------------------------------------------------------------ the main job


def test_the_main_job_on_the_demo_model(command, tmp_path):
    done = command("--model", "demo", *HALF, timeout=60)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "pruned" / "demo-r0.50"
    report = json.loads((folder / "report.json").read_text())
    assert report["parameters"] == {"before": 1_783_104, "after": 522_912}
    assert report["bytes"]["after"] == 2 * 522_912
    assert report["perplexity"]["before"] < 2
    assert report["perplexity"]["after"] > 3 * report["perplexity"]["before"]
    assert f"perplexity after: {report['perplexity']['after']:.2f}" in done.stdout
    assert report["widths"]["after"]["hidden_size"] == 96
    assert {"plan", "load", "evaluate before", "score", "cut", "evaluate after", "save"} <= set(report["seconds"])
    assert report["peak_memory"]["host"] > 0
    assert report["command"] == "python prune_llm.py --model demo --pruning_ratio 0.5"
    assert (report["seed"], report["importance"], report["model"]) == (0, "magnitude", "demo")
    assert report["versions"]["torch"] == torch.__version__
    card = (folder / "README.md").read_text()
    assert "| hidden_size | 192 | 96 |" in card
    assert "pruned/demo-r0.50" in done.stdout
    size = sum(t.numel() * t.element_size() for t in load_file(folder / "model.safetensors").values())
    assert size == report["bytes"]["after"]
    assert oct((folder / "model.safetensors").stat().st_mode)[-3:] == oct((folder / "config.json").stat().st_mode)[-3:]
    assert [p.name for p in (tmp_path / "pruned").iterdir()] == ["demo-r0.50"], "staging was left behind"

    again = command("--model", "demo", *HALF)
    assert "is not empty; use --overwrite" in one_line(again, 2)
    pruned_again = command("--model", folder, *HALF, *UNSCORED)  # a pruned checkpoint is a checkpoint
    assert pruned_again.returncode == 0, pruned_again.stderr
    assert (tmp_path / "pruned" / "demo-r0.50-r0.50" / "config.json").is_file()


def test_dry_run_needs_only_the_config(command, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(DEMO / "config.json", tmp_path / "bare")
    done = command("--model", "bare", *HALF, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert ["parameters", "1,783,104", "522,912", "0.7067"] in [line.split() for line in done.stdout.splitlines()]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare"]


def test_ratio_zero_is_an_exact_copy(command, tmp_path):
    done = command("--model", "demo", "--pruning_ratio", "0", *UNSCORED, "--save_model", "copy")
    assert done.returncode == 0, done.stderr
    before, after = load_file(DEMO / "model.safetensors"), load_file(tmp_path / "copy" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(DEMO), logits(tmp_path / "copy"))


def test_plan_is_saved_and_replayed(command, tmp_path, model):
    first = command("--model", "demo", *HALF, *UNSCORED, "--save_plan", "plan.json", "--save_model", "one")
    assert first.returncode == 0, first.stderr
    replay = command("--model", model, "--plan", "plan.json", *UNSCORED, "--save_model", "two")
    assert replay.returncode == 0, replay.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["importance"] == "magnitude"
    dry = command("--model", "demo", *HALF, "--dry_run", "--save_plan", "dry.json")
    assert dry.returncode == 0, dry.stderr
    assert (tmp_path / "dry.json").read_text() == (tmp_path / "plan.json").read_text()


def test_random_plan_needs_no_weights(command, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(DEMO / "config.json", tmp_path / "bare")
    done = command("--model", "bare", *HALF, "--importance", "random", "--dry_run", "--save_plan", "plan.json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "plan.json").read_text())["kept"]["hidden"]) == 96


def test_yaml_flags_and_a_text_file(command, tmp_path):
    (tmp_path / "options.yaml").write_text("model: demo\npruning_ratio: 0.5\nimportance: random\n")
    (tmp_path / "text.txt").write_text("On Monday Mara came to the mill.\n" * 40)
    arguments = ("--eval_data", "text.txt", "--max_seq_len", 32, "--save_model", "out", "--seed", 3)
    done = command("--config", "options.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["importance"], report["seed"], report["evaluation"]["max_seq_len"]) == ("random", 3, 32)
    assert "importance=random" in done.stdout


def test_help_is_instant():
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "prune_llm.py"), "--help"], capture_output=True, text=True
        )
        best = min(best, time.perf_counter() - started)
    assert done.returncode == 0
    assert "--pruning_ratio R" in done.stdout
    assert best < 0.3


def test_shape_that_llama_refuses_is_saved_as_mistral(command, tmp_path):
    done = command("--model", "demo", "--target", "hidden_size=100", *UNSCORED, "--save_model", "out")
    assert done.returncode == 0, done.stderr
    assert "saved as mistral, which computes the same" in done.stdout
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert logits(tmp_path / "out").isfinite().all()


# ------------------------------------------------------------------ faults of the command


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--pruning_ratio", "50%"), 2, "'50%'.*0 <= ratio < 1"),
        (("--pruning_ratio", "1"), 2, "1.0.*0 <= ratio < 1"),
        (("--pruning_ratio", "nan"), 2, "nan.*0 <= ratio < 1"),
        (("--pruning_ratio", "1e-12"), 3, "changes nothing; the smallest ratio that takes a whole step is 0.0019"),
        (("--pruning_ratio", "0.999"), 3, "leaves nothing of hidden_size .192.; the highest legal ratio is 0.9947"),
        (("--pruning_ratio", "0.5", "--importance", "amplitude"), 2, "unknown importance 'amplitude'.*magnitude"),
        (("--pruning_ratio", "0.5", "--eval_data", "wikitext-2"), 2, "did you mean 'wikitext2'"),
        (("--pruning_ratio", "0.5", "--max_seq_len", "1"), 2, "at least 2"),
        (("--target", "num_attention_heads=3"), 3, "not a multiple of 2 kv groups.*nearest legal: 2 or 4"),
        (("--target", "hidden_size=193"), 3, "more than the model has .192."),
        (("--target", "hidden_size=192"), 3, "changes nothing"),
        (("--pruning_ratio", "0.5", "--device", "tpu9"), 2, "--device tpu9"),
        (("--pruning_ratio", "0.5", "--device", "meta"), 2, "--device meta: it holds no weights"),
    ],
)  # fmt: skip
def test_faults_of_the_options(command, tmp_path, arguments, code, message):
    import re

    error = one_line(command("--model", "demo", *arguments), code)
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_yaml_faults(command, tmp_path):
    for text, message in [
        ("pruning_ratio: 5e-1\n", "line 1: pruning_ratio: '5e-1' is str"),
        ("prunning_ratio: 0.5\n", "did you mean 'pruning_ratio'"),
        ("seed: 1\nseed: 1\n", "line 2: 'seed' is set twice"),
        ("model: !!python/object/apply:os.system ['touch pwned']\n", "line 1"),
    ]:
        (tmp_path / "o.yaml").write_text(text)
        assert message in one_line(command("--config", "o.yaml", "--model", "demo"), 2)
    assert not (tmp_path / "pwned").exists()


def test_text_too_short(command, tmp_path):
    (tmp_path / "short.txt").write_text("On Monday Mara.")
    error = one_line(command("--model", "demo", *HALF, "--eval_data", "short.txt"), 2)
    assert "has 4 tokens, one window needs 128" in error


def test_tokens_are_redacted(command, tmp_path):
    secret = "hf_" + "aB3" * 11
    (tmp_path / secret).write_text("On Monday Mara came to the mill.\n" * 40)
    done = command("--model", "demo", *HALF, "--eval_data", secret, "--save_model", "out", "--max_seq_len", 16)
    assert done.returncode == 0, done.stderr
    everything = done.stdout + done.stderr + "".join(
        (tmp_path / "out" / name).read_text() for name in ("report.json", "README.md")
    )  # fmt: skip
    assert secret not in everything
    assert "hf_***" in everything
    done = command("--model", f"./{secret}/none", *HALF, "--traceback")
    assert (done.returncode, secret in done.stderr, "hf_***" in done.stderr) == (1, False, True)
    assert "Traceback" in done.stderr


# ------------------------------------------------------------------ faults of the model


def test_families_that_cannot(command, tmp_path):
    """An unknown model_type, with the code it would like to run; a quantised one; a shape its class cannot have."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "evil.py").write_text("open('pwned', 'w')\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "x" / "config.json").write_text(json.dumps({"model_type": "bloom", "auto_map": auto_map}))
    error = one_line(command("--model", "x", *HALF, "--dry_run"), 3)
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


class Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


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
    error = one_line(command("--model", "model", *HALF, *UNSCORED), 1)
    assert "names '../elsewhere.safetensors', which is outside the checkpoint; refused" in error


def test_model_that_is_not_there(command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert "there is no folder ./nowhere" in one_line(command("--model", "./nowhere", *HALF), 1)
    assert "holds no config.json" in one_line(command("--model", "empty", *HALF), 1)
    assert "is not a configuration" in one_line(command("--model", "broken", *HALF), 1)


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


def test_hub_says_no_in_three_ways(command):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    try:
        gated = one_line(command("--model", "org/gated", *HALF, **hub), 1)
        missing = one_line(command("--model", "org/missing", *HALF, **hub), 1)
    finally:
        server.shutdown()
        server.server_close()
    unreachable = one_line(
        command("--model", "org/model", *HALF, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0"), 1
    )
    assert "org/gated is gated: ask for access" in gated
    assert "org/missing is neither a local folder nor a model on the hub" in missing
    assert "the hub cannot be reached" in unreachable


# ------------------------------------------------------------------ faults of the output


def test_output_that_is_in_the_way(command, tmp_path, model):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    shutil.copytree(DEMO, tmp_path / "mixed")
    (tmp_path / "mixed" / "thesis.txt").write_text("mine")
    for target, message, *more in [
        ("file", "is a file"),
        ("file/below", "is not a folder with write permission"),
        ("full", "is not empty; use --overwrite"),
        ("full", "holds something else than a checkpoint", "--overwrite"),
        ("mixed", "holds something else than a checkpoint", "--overwrite"),
        ("model", "is, holds or is in the input model", "--overwrite"),
        ("model/below", "is, holds or is in the input model"),
        (".", "is, holds or is in the input model", "--overwrite"),
        ("x" * 300, "File name too long"),
    ]:
        error = one_line(command("--model", "model", *HALF, *UNSCORED, "--save_model", target, *more), 2)
        assert message in error
    for mine in ("file", "full/thesis.txt", "mixed/thesis.txt"):
        assert (tmp_path / mine).read_text() == "mine"
    assert "where you are" in one_line(command("--model", "demo", *HALF, "--save_model", "."), 2)


def test_plan_files_that_would_be_lost_or_destroy(command, tmp_path, model):
    before = (model / "config.json").read_bytes()
    (tmp_path / "out").mkdir()
    for arguments, message in [
        (("--save_plan", "model/config.json", "--dry_run"), "is inside the input model"),
        (("--save_plan", "out/plan.json", "--save_model", "out"), "is inside out, which the checkpoint will replace"),
        (("--save_plan", "nowhere/plan.json", "--dry_run"), "not a file in an existing folder"),
    ]:
        assert message in one_line(command("--model", "model", *HALF, *arguments), 2)
    assert (model / "config.json").read_bytes() == before


def test_no_room_on_the_disk_is_seen_before_loading(tmp_path):
    script = (
        "import shutil, sys; from collections import namedtuple;"
        "shutil.disk_usage = lambda _: namedtuple('Usage', 'total used free')(10**9, 10**9, 10**6);"
        "import llm_pruner.loading as loading; loading.load_model = None;"
        "from llm_pruner.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = python(script, tmp_path, "--model", "demo", *HALF)
    assert "has 0.00 GB free, the checkpoint needs 0.07 GB" in one_line(done, 1)
    assert list(tmp_path.iterdir()) == []


def python(script: str, cwd: Path, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


# What happens once the new checkpoint is half or wholly written, and what the command then returns.
INTERRUPTIONS = {
    "ctrl-c": ("checkpoint.verify = lambda *_: os.kill(os.getpid(), signal.SIGINT)", 130),
    "terminated": ("checkpoint.verify = lambda *_: os.kill(os.getpid(), signal.SIGTERM)", 143),
    "killed": ("checkpoint.verify = lambda *_: os.kill(os.getpid(), signal.SIGKILL)", -9),
    "disk full": ("resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))", 1),
    "does not reload": (
        "write = checkpoint.write\n"
        "def broken(model, tokenizer, folder):\n"
        "    write(model, tokenizer, folder)\n"
        "    data = (folder / 'model.safetensors').read_bytes()\n"
        "    (folder / 'model.safetensors').write_bytes(data[:-100])\n"
        "checkpoint.write = broken",
        4,
    ),
    "other weights": (
        "write = checkpoint.write\n"
        "def broken(model, tokenizer, folder):\n"
        "    write(model, tokenizer, folder)\n"
        "    model.lm_head.weight.data += 1\n"
        "checkpoint.write = broken",
        4,
    ),
}


@pytest.mark.parametrize("name", INTERRUPTIONS)
def test_failure_while_saving_leaves_the_old_checkpoint(name, tmp_path, command):
    fault, code = INTERRUPTIONS[name]
    old = tmp_path / "out"
    shutil.copytree(DEMO, old)
    (old / "LICENSE").write_text("old")  # a mark: the new checkpoint has none
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    script = (
        "import os, resource, signal, sys\n"
        f"from llm_pruner import checkpoint\n{fault}\n"
        "from llm_pruner.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    arguments = ("--model", "demo", *HALF, *UNSCORED, "--save_model", "out", "--overwrite")
    done = python(script, tmp_path, *arguments)
    assert done.returncode == code, done.stderr
    if code in (1, 4, 130):
        one_line(done, code)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    others = [path.name for path in tmp_path.iterdir() if path.name != "out"]
    assert all(".partial-" in name for name in others)
    assert bool(others) == (code == -9), "only a kill leaves its staging folder"
    if not others:
        return
    done = command(*arguments)  # the next run sweeps it away
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("out", "hf")] == []
    assert not (old / "LICENSE").exists()
    assert json.loads((old / "config.json").read_text())["hidden_size"] == 96
