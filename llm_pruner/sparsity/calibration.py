"""From calibration text to the tensors of sparse inputs: one decoder layer after the other, each behind sparse ones."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.layerwise import Layer, not_finite, walk
from llm_pruner.config import recipe as names
from llm_pruner.config.recipe import Recipe
from llm_pruner.config.sparsify import validate_recipe
from llm_pruner.errors import PlanError, UsageError, computing
from llm_pruner.model.layers import decoder_layers
from llm_pruner.sparsity.activations import SparseInput
from llm_pruner.sparsity.learn import Learning, learn
from llm_pruner.sparsity.linear import SparseLinear, make_sparse, sparse_layers
from llm_pruner.sparsity.targets import targeted

# values of each linear layer's input that quantiles are taken of
SAMPLE = 2**22


class Seen:
    """What a linear layer was given: of each channel the largest |x_j| and ‖x_j‖₂ [in], and some tokens [n, in]."""

    def __init__(self, tokens: int, sampled: bool = True) -> None:
        """tokens: how many there will be. sampled: whether some are kept."""
        self.tokens, self.sampled = tokens, sampled
        self.squares = self.largest = torch.zeros(())
        self._rows: list[torch.Tensor] = []

    def add(self, x: torch.Tensor) -> None:
        """Add inputs x [..., in]."""
        x = x.detach().flatten(0, -2)
        self.largest = torch.maximum(x.abs().amax(0).float(), self.largest.to(x.device))
        self.squares = self.squares + x.float().square().sum(0).double()
        if self.sampled:
            self._rows.append(x[:: -(-self.tokens * x.shape[1] // SAMPLE)].clone())

    @property
    def norm(self) -> torch.Tensor:
        """‖x_j‖₂ of each channel, float32 [in]."""
        return self.squares.sqrt().float()

    @property
    def rows(self) -> torch.Tensor:
        """Some of the tokens, [n, in]."""
        return torch.cat(self._rows)


@computing("the calibration of sparse activations")
def sparsify_activations(
    model, recipe: Recipe, batches: Sequence[torch.Tensor] = (), learning: Learning | None = None
) -> dict[str, dict]:
    """Make the targeted linear layers of a model sparse in place.

    Args:
        model: A causal language model in evaluation mode.
        recipe: What is made sparse and how.
        batches: LongTensors [prompts, length] of calibration text, for a recipe that needs some.
        learning: How learnable shifts are trained.

    Returns:
        {decoder layer: its error before and after}, of learnable shifts.

    Raises:
        PlanError: Targets mean nothing in this model, or it is sparse already.
        RunError: Something is not finite, or memory runs out.
    """
    check(model, recipe, names.ACTIVATIONS, batches)
    targets = targeted(model, recipe.targets)
    if not recipe.needs_text:
        for linear in make_sparse(model, targets, recipe).values():
            weigh(linear)
        return {}
    layers = layers_of(model, targets)
    learned: dict[str, dict] = {}
    # what enters a layer when the layers before it are sparse
    stream = None
    for layer in walk(model, batches):
        stream = list(layer.stream) if stream is None else stream
        own = layers[layer.index]
        # the dense stream
        layer.run()
        with watched(model, own, batches, recipe.needs_sample) as seen, torch.no_grad():
            for batch, hidden in enumerate(stream):
                layer.call(batch, hidden)
        made = make_sparse(model, own, recipe)
        for name, sparse in made.items():
            if not torch.isfinite(seen[name].largest).all():
                raise not_finite(f"what {name} reads is NaN or Inf on the calibration data", sparse.columns.dtype)
            measure(sparse, seen[name])
        if recipe.transform == names.LEARNABLE and own:
            learned[str(layer.index)] = learn(layer, stream, learning or Learning())
            # the shifts have moved what a threshold is about
            for name in own:
                _set_threshold(made[name].sparsity, seen[name])
        seen.clear()
        stream = _through(layer, stream)
    return learned


def check(model: nn.Module, recipe: Recipe, sparse: str, batches: Sequence[torch.Tensor]) -> None:
    """Raise a UsageError for a recipe that means nothing here, and a PlanError for a model that is sparse already.

    Args:
        model: The model.
        recipe: What is to be made sparse.
        sparse: What the recipe must be about.
        batches: The calibration text, which some recipes need.
    """
    validate_recipe(recipe)
    if recipe.sparse != sparse:
        raise UsageError(f"the recipe is about {recipe.sparse}, not {sparse}")
    if recipe.needs_text and not batches:
        raise UsageError(f"{recipe.label} needs calibration text: batches of token ids [prompts, length]")
    if sparse_layers(model):
        raise PlanError("the model has sparse activations already; start from the dense one")


def measure(layer: SparseLinear, seen: Seen) -> None:
    """Set the tensors of a layer's sparsity, from its inputs."""
    sparsity, recipe = layer.sparsity, layer.sparsity.recipe
    if sparsity.scale is not None:
        largest = layer.columns.detach().abs().amax(1).float()
        ratio = (seen.largest / largest).sqrt()
        # dead channels
        sparsity.scale.copy_(torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0))
    weigh(layer)
    if recipe.calibrated_l and sparsity.column_norm is not None:
        sparsity.column_norm.copy_(sparsity.centred(seen.rows)[0].norm(dim=0))
    if sparsity.order is not None and recipe.m is not None:
        sparsity.order.copy_(permutation(sparsity, seen.rows, recipe.m))
    _set_threshold(sparsity, seen)


def _set_threshold(sparsity: SparseInput, seen: Seen) -> None:
    if sparsity.threshold is not None:
        sparsity.threshold.copy_(threshold(sparsity, seen.rows, sparsity.recipe.share))


def weigh(layer: SparseLinear) -> None:
    """Set the column norms of wanda, of the weight as the scaling has it."""
    sparsity = layer.sparsity
    if sparsity.recipe.criterion == names.WANDA and sparsity.column_norm is not None:
        norms = layer.columns.detach().float().norm(dim=1)
        sparsity.column_norm.copy_(norms if sparsity.scale is None else norms * sparsity.scale)


def threshold(sparsity: SparseInput, rows: torch.Tensor, ratio: float) -> torch.Tensor:
    """Return the highest of the lowest scores, `ratio` of all; below all of them where that is none.

    Args:
        sparsity: What scores.
        rows: Inputs [n, in].
        ratio: The share that goes.

    Returns:
        A scalar.
    """
    scores = torch.cat([own.flatten() for own in _scores(sparsity, rows)])
    count = int(scores.numel() * ratio + 1e-6)
    return scores.kthvalue(count).values if count else torch.tensor(-1.0)


def permutation(sparsity: SparseInput, rows: torch.Tensor, m: int) -> torch.Tensor:
    """Return an order of the channels [in], int64, in which every m neighbours have strong and weak ones.

    n:m loses most where strong channels are neighbours. The channels are dealt out to the groups by their mean scores,
    the strongest first, forwards and backwards in turns; a short last group gets the weakest.

    Args:
        sparsity: What scores.
        rows: Inputs [n, in].
        m: Channels of a group.
    """
    first, *others = (own.sum(0) for own in _scores(sparsity, rows))
    strength = sum(others, first)
    ranked = strength.argsort(descending=True, stable=True)
    groups = len(ranked) // m
    if not groups:
        return ranked
    dealt = ranked[: groups * m].view(m, groups)
    dealt[1::2] = dealt[1::2].flip(1)
    return torch.cat([dealt.T.flatten(), ranked[groups * m :]])


def _scores(sparsity: SparseInput, rows: torch.Tensor) -> Iterator[torch.Tensor]:
    return (sparsity.scores(sparsity.centred(part)[0]) for part in rows.split(4096))


@torch.no_grad()
def _through(layer: Layer, stream: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    found = [layer.call(batch, hidden) for batch, hidden in enumerate(stream)]
    if not all(torch.isfinite(hidden).all() for hidden in found):
        raise not_finite(f"layer {layer.index} gives NaN or Inf when its inputs are sparse", found[0].dtype)
    return found


def layers_of(model: nn.Module, targets: Sequence[str]) -> list[list[str]]:
    """Return, for each decoder layer, the targets that are in it.

    Args:
        model: A causal language model.
        targets: Names of linear layers.
    """
    own_names = {module: name for name, module in model.named_modules()}
    return [[name for name in targets if name.startswith(f"{own_names[layer]}.")] for layer in decoder_layers(model)]


@contextlib.contextmanager
def watched(model: nn.Module, targets: Sequence[str], batches: Sequence[torch.Tensor], sampled: bool = True):
    """Run the model once and yield what its linear layers are given.

    Args:
        model: The model.
        targets: Names of linear layers.
        batches: What will be run, for its number of tokens.
        sampled: Whether some of the tokens are kept.

    Yields:
        {name: what the linear layer was given}, which fills while the context lasts.
    """
    tokens = sum(batch.numel() for batch in batches)
    seen = {name: Seen(tokens, sampled) for name in targets}
    with Hooks() as hooks:
        for name, own in seen.items():
            hooks.on_input(model.get_submodule(name), own.add)
        yield seen
