"""The main job on the trained reference model and real text. Run by `make test-shared`."""

import json

import pytest
import torch

from llm_pruner import prune_checkpoint
from llm_pruner.config.prune import PruneOptions

pytestmark = [pytest.mark.shared, pytest.mark.usefixtures("quick_reload")]


@pytest.fixture(scope="module")
def text(shared, tmp_path_factory):
    """A hundredth of the test text: enough to tell methods apart."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(
        (shared / "data" / "wikitext-2" / "test.txt").read_text(encoding="utf-8")[:13_000], encoding="utf-8"
    )
    return path


def prune(shared, text, tmp_path, **options) -> dict:
    # In float32: without instructions of its own for bfloat16 a CPU takes five times as long.
    asked = {"importance": "magnitude", "max_seq_len": 256, "dtype": "float32", "save_model": str(tmp_path / "out")}
    return prune_checkpoint(
        PruneOptions(model=str(shared / "models" / "llama-6m"), eval_data=str(text), **asked | options)
    )


def test_dense_perplexity_is_what_the_losses_of_transformers_give(shared):
    """Of every tenth of the 1501 windows; of all of them benchmarks/magnitude.py prints it."""
    from llm_pruner.calibration.texts import load_text
    from llm_pruner.calibration.windows import token_windows
    from llm_pruner.evaluation.perplexity import perplexity
    from llm_pruner.model import loading
    from llm_pruner.model.tokenizers import load_tokenizer

    folder = str(shared / "models" / "llama-6m")
    text = load_text(str(shared / "data" / "wikitext-2" / "test.txt"))
    windows = token_windows(text, load_tokenizer(folder), 256)
    assert len(windows) == 1501
    model = loading.load_model(folder, loading.load_config(folder), "float32", device=torch.device("cpu"))
    with torch.no_grad():
        losses = [model(one[None], labels=one[None]).loss for one in windows[::10]]
    expected = torch.stack(losses).double().mean().exp().item()
    assert 30 < expected < 40
    assert perplexity(model, windows[::10]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("ratio", "heads", "parameters"), [(0.25, 4, 3_989_952), (0.5, 4, 2_254_464)])
def test_prune_save_reload_generate(shared, text, tmp_path, ratio, heads, parameters):
    """Magnitude hurts, random hurts more, and the saved model generates with cache what it does without."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = prune(shared, text, tmp_path, pruning_ratio=ratio)
    assert (report.parameters.before, report.parameters.after) == (6_524_160, parameters)
    assert report.widths.after["num_attention_heads"] == heads
    assert report.removed["num_attention_heads"] == 0.5  # of 0.25 too: a group of two heads loses one
    dense, magnitude = report.perplexity.before, report.perplexity.after
    assert 2 * dense < magnitude
    random = prune(shared, text, tmp_path, pruning_ratio=ratio, importance="random", overwrite=True)
    assert magnitude < random.perplexity.after
    folder = tmp_path / "out"
    assert json.loads((folder / "report.json").read_text())["importance"] == "random"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer("The history of the city", return_tensors="pt")
    with_cache, without = (
        model.generate(**prompt, max_new_tokens=12, do_sample=False, use_cache=c) for c in (True, False)
    )
    assert with_cache.shape[1] > prompt["input_ids"].shape[1]
    assert torch.equal(with_cache, without)


def test_each_axis_alone_hurts_less_than_all(shared, text, tmp_path):
    everything = prune(shared, text, tmp_path, pruning_ratio=0.5).perplexity.after
    for axis in ("hidden", "heads", "kv_heads", "mlp"):
        alone = prune(shared, text, tmp_path, pruning_ratio=0.5, prune=axis, overwrite=True).perplexity
        assert alone.before < alone.after < everything, axis
