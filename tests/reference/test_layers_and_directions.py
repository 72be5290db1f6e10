"""ShortGPT and SliceGPT on the trained reference model and real text; benchmarks/quality.py measures them in full."""

import copy
import itertools
import math

import pytest
import torch

from llm_pruner import Budget, Ratio, ScoreAndCut, prune
from llm_pruner.calibration.prompts import calibration_prompts
from llm_pruner.calibration.windows import token_windows
from llm_pruner.evaluation.perplexity import perplexity
from llm_pruner.methods.shortgpt import ShortGPT
from llm_pruner.methods.slicegpt import SliceGPT
from llm_pruner.model import loading
from llm_pruner.model.depth import make_shallow
from llm_pruner.model.tokenizers import load_tokenizer

pytestmark = pytest.mark.shared


class Trained:
    """The model in float32, calibration windows, and a few windows of the test text."""

    def __init__(self, shared) -> None:
        folder, text = str(shared / "models" / "llama-6m"), shared / "data" / "wikitext-2"
        tokenizer = load_tokenizer(folder)
        self.model = loading.load_model(
            folder, loading.load_config(folder), dtype="float32", device=torch.device("cpu")
        )
        self.prompts = calibration_prompts(str(text / "valid.txt"), 32, 128, 0, tokenizer)
        scored = (text / "test.txt").read_text(encoding="utf-8")[:60_000]
        self.windows = token_windows(scored, tokenizer, 256)[::10]
        self.dense = perplexity(self.model, self.windows)

    def loss(self, how_much, method) -> float:
        """log(perplexity / dense)."""
        pruned = prune(copy.deepcopy(self.model), how_much, method, self.prompts).model
        return math.log(perplexity(pruned, self.windows) / self.dense)


@pytest.fixture(scope="module")
def trained(shared) -> Trained:
    return Trained(shared)


@pytest.mark.slow
def test_block_influence_finds_better_layers_than_chance(trained):
    """Of all 15 pairs the pair that goes is among the best four; 20 and 30 % of six layers are the same two."""
    losses = {}
    for pair in itertools.combinations(range(6), 2):
        model = copy.deepcopy(trained.model)
        make_shallow(model, [layer for layer in range(6) if layer not in pair])
        losses[pair] = math.log(perplexity(model, trained.windows) / trained.dense)
    found = trained.loss(Budget(param_ratio=0.3), ShortGPT())
    assert 0 < found <= sorted(losses.values())[3] + 1e-6
    assert found in [pytest.approx(loss, abs=1e-4) for loss in losses.values()]
    assert trained.loss(Budget(param_ratio=0.2), ShortGPT()) == pytest.approx(found, abs=1e-6)


@pytest.mark.slow
def test_the_loss_grows_with_the_ratio(trained):
    sliced = [trained.loss(Ratio({"hidden": ratio}), SliceGPT()) for ratio in (0.0, 0.1, 0.3, 0.5)]
    assert sliced[0] == pytest.approx(0, abs=1e-6)
    assert all(low + 0.02 < high for low, high in itertools.pairwise(sliced))
    short = [trained.loss(Budget(param_ratio=ratio), ShortGPT()) for ratio in (0.0, 1 / 6, 0.5)]
    assert short[0] == pytest.approx(0, abs=1e-6)
    assert short[0] < short[1] < short[2]


@pytest.mark.slow
def test_directions_are_far_better_than_channels(trained):
    """At the same hidden size, by magnitude."""
    sliced = trained.loss(Ratio({"hidden": 0.25}), SliceGPT())
    assert 0 < sliced < 0.25 * trained.loss(Ratio({"hidden": 0.25}), ScoreAndCut("magnitude"))
