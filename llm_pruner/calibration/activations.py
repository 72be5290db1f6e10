"""From calibration tokens to statistics of what the output projections read, one layer at a time.

Added up in float32 per batch and float64 across batches, on the device the layer lives on.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence

import torch

from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.layerwise import not_finite, walk
from llm_pruner.calibration.memory import halved, tokens_for
from llm_pruner.calibration.needs import ABSOLUTE, CONTRIBUTION, MOMENTS
from llm_pruner.model.axes import HEADS, MLP
from llm_pruner.model.groups import Group, output_projection

Changed = Callable[[int, "dict[str, Inputs]"], contextlib.AbstractContextManager]


class Inputs:
    """Running statistics of the input X [tokens, n] of one projection, per column: float32 [n] tensors.

    mean, variance (of the population) and norm (‖X_j‖₂) are over all tokens; absolute is the mean over prompts of each
    prompt's mean |X_j|. contribution, per head [heads], is the mean over prompts of each prompt's mean ‖X_h W_hᵀ‖₁: the
    L1 norm of what the head adds to the residual stream. A statistic that is not among the needs is a KeyError.

    Args:
        needs: Which statistics: of MOMENTS, ABSOLUTE and CONTRIBUTION.
        weight: [hidden_size, n], for the contribution.
        heads: How many heads there are, for the contribution.
    """

    def __init__(self, needs: Collection[str], weight: torch.Tensor | None = None, heads: int = 0) -> None:
        """weight: [hidden_size, n], and heads, where the contribution is needed."""
        self.needs, self.weight, self.heads = needs, weight, heads
        self.tokens = self.prompts = 0
        # those that are needed
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, x: torch.Tensor) -> None:
        """Add the input of some prompts.

        Args:
            x: Float tensor [prompts, tokens, n], one prompt per row.
        """
        prompts, length, columns = x.shape
        count, x = prompts * length, x.detach().float()
        if MOMENTS in self.needs:
            # Chan's update: the mean's square is never subtracted from the sum of squares
            rows = x.view(count, columns)
            mean = rows.mean(0)
            squares = (rows - mean).square_().sum(0)
            mean, total = _wide(mean), self.tokens + count
            before = self._sums.get("mean", 0.0)
            delta = mean - before
            between = delta.square() * (self.tokens * count / total)
            self._sums["squares"] = self._sums.get("squares", 0.0) + _wide(squares) + between
            self._sums["mean"] = before + delta * (count / total)
        if ABSOLUTE in self.needs:
            self._sums[ABSOLUTE] = self._sums.get(ABSOLUTE, 0.0) + _wide(x.abs().mean(1).sum(0))
        if CONTRIBUTION in self.needs:
            assert self.weight is not None, "the contribution is made of inputs and weights"
            width = columns // self.heads
            norms = [
                (x[..., h * width : (h + 1) * width] @ self.weight[:, h * width : (h + 1) * width].float().T)
                .abs_().sum(2).mean(1).sum()
                for h in range(self.heads)
            ]  # fmt: skip
            self._sums[CONTRIBUTION] = self._sums.get(CONTRIBUTION, 0.0) + _wide(torch.stack(norms))
        self.tokens, self.prompts = self.tokens + count, self.prompts + prompts

    @property
    def mean(self) -> torch.Tensor:
        """The mean of each column."""
        return self._sums["mean"].float()

    @property
    def variance(self) -> torch.Tensor:
        """The variance of each column."""
        return (self._sums["squares"] / self.tokens).float()

    @property
    def norm(self) -> torch.Tensor:
        """The L2 norm of each column."""
        return (self._sums["squares"] + self._sums["mean"].square() * self.tokens).sqrt().float()

    @property
    def absolute(self) -> torch.Tensor:
        """The mean absolute value of each column."""
        return (self._sums[ABSOLUTE] / self.prompts).float()

    @property
    def contribution(self) -> torch.Tensor:
        """The mean L1 norm of what each head adds to the residual stream."""
        return (self._sums[CONTRIBUTION] / self.prompts).float()

    def finite(self) -> bool:
        """Return whether every sum is finite."""
        return all(torch.isfinite(value).all() for value in self._sums.values())


def _wide(sums: torch.Tensor) -> torch.Tensor:
    """In float64, which Apple's GPUs do not have."""
    return (sums.cpu() if sums.device.type == "mps" else sums).double()


def batches_of(prompts: Sequence[torch.Tensor], tokens: int) -> list[torch.Tensor]:
    """Stack neighbouring prompts of one length.

    Args:
        prompts: LongTensors [length].
        tokens: How many tokens a batch has at most; a longer prompt is a batch of its own.

    Returns:
        LongTensors [prompts, length].
    """
    batches: list[list[torch.Tensor]] = []
    for prompt in prompts:
        last = batches[-1] if batches else None
        if last and len(last[0]) == len(prompt) and (len(last) + 1) * len(prompt) <= tokens:
            last.append(prompt)
        else:
            batches.append([prompt])
    return [torch.stack(batch) for batch in batches]


def with_batches(model, prompts: Sequence[torch.Tensor], function: Callable):
    """Call a function with batches, again with smaller ones as long as memory runs out.

    Args:
        model: The model; its device says how large batches are at first.
        prompts: LongTensors [length].
        function: Takes the batches.

    Returns:
        What the function returns.

    Raises:
        RunError: Memory does not hold a single prompt.
    """
    longest = max(map(len, prompts), default=0)
    too_large = (
        f"{len(prompts)} calibration prompts of up to {longest} tokens do not fit in memory; "
        "use a smaller `nsamples` or `calibration_seq_len`"
    )

    def run(tokens: int):
        return function(batches_of(prompts, tokens))

    return halved(run, tokens_for(model), longest, "batches of {} tokens", too_large)


def collect(
    model,
    batches: Sequence[torch.Tensor],
    groups: Iterable[Group],
    needs: Collection[str],
    changed: Changed | None = None,
) -> dict[str, Inputs]:
    """Collect statistics of the inputs of every layer's o_proj and down_proj.

    Args:
        model: A causal language model in evaluation mode.
        batches: LongTensors [prompts, length].
        groups: The model's groups.
        needs: Which statistics, of ACTIVATIONS.
        changed: Called with a layer's number and statistics when it is measured; while the context that it returns
            lasts, the layer is changed, and the layers behind are measured on the changed layer's output.

    Returns:
        {weight of an output projection: statistics of its input}.

    Raises:
        RunError: An input is not finite; the message names layer and projection.
    """
    layers: dict[int, list[Group]] = {}
    for group in groups:
        if group.axis in (HEADS, MLP):
            layers.setdefault(group.own_layer, []).append(group)
    found: dict[str, Inputs] = {}
    for layer in walk(model, batches):
        measured: dict[str, Inputs] = {}
        with Hooks() as hooks:
            for group in layers[layer.index]:
                name = output_projection(group).parameter
                module = model.get_submodule(name.removesuffix(".weight"))
                measured[name] = _inputs(group, module.weight, needs)
                hooks.on_input(module, measured[name].add)
            layer.run()
        for name, inputs in measured.items():
            if not inputs.finite():
                what = f"layer {layer.index}: what {name} reads is NaN or Inf on the calibration data"
                raise not_finite(what, model.get_parameter(name).dtype)
        found.update(measured)
        if changed:
            with changed(layer.index, measured):
                layer.run()
    return found


def _inputs(group: Group, weight: torch.Tensor, needs: Collection[str]) -> Inputs:
    if group.axis == MLP:
        return Inputs(set(needs) - {CONTRIBUTION})
    return Inputs(needs, weight.detach().T if output_projection(group).dim == 0 else weight.detach(), group.units)
