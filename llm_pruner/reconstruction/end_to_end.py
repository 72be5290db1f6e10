"""All layers optimised together towards the dense model's logits, without a label and without the dense model.

Layer by layer, every direction of the residual stream counts alike, and each layer is fitted before those behind it are
there. A pass or two over the text in which the whole pruned model sees where its logits differ take what that leaves.
The dense model's logits are made again from its last hidden states, which the walk through the layers kept.
"""

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.functional import cross_entropy, pad

from llm_pruner.calibration.layerwise import enter, walk
from llm_pruner.console import progress
from llm_pruner.errors import computing
from llm_pruner.model.divergence import kl
from llm_pruner.model.layers import decoder_layers, layer_number
from llm_pruner.model.memory import give_back
from llm_pruner.model.precision import has_quick_bfloat16
from llm_pruner.model.skeleton import skeleton
from llm_pruner.model.surgery import place
from llm_pruner.reconstruction.logits import logits_of, pieces
from llm_pruner.reconstruction.tokens import Tokens

# of a weight's root mean square over the root of its inputs, per step, at first: wider layers add up more of them
RATE = 8e-3
# of Adam
BETAS, EPSILON = (0.9, 0.98), 1e-12
# of all steps, in which the rate rises
WARM_UP = 0.1
# tokens of a step
STEP = 512
# KL may become so many times as large where the loss falls
RISE = 1.1
# of the last token of a prompt, which predicts nothing
NO_LABEL = -100
# parameters of all layers: more are not optimised together unless that is asked for, since that takes 6 bytes of each
LARGEST = 2**30


@dataclass(frozen=True)
class Teacher:
    """Calibration text and the dense model's logits of it, as what those are made of.

    Attributes:
        model: The end of the dense model: a model without layers.
        tokens: The calibration batches.
        stream: The dense model's last hidden states, [prompts, tokens, hidden_size] for each batch.
    """

    model: Any
    tokens: Tokens
    stream: Sequence[torch.Tensor]

    @classmethod
    def of(cls, dense, tokens: Tokens, stream: Sequence[torch.Tensor]) -> "Teacher":
        """Make one of the dense model, which may be emptied afterwards.

        Args:
            dense: The dense model.
            tokens: The calibration batches.
            stream: Its last hidden states, for each batch.
        """
        model = skeleton(dense.config).eval()
        for name, parameter in dense.named_parameters():
            if layer_number(name) is None:
                place(model, name, parameter.data, requires_grad=False)
        for name, buffer in dense.named_buffers():
            if layer_number(name) is None:
                model.get_buffer(name).data = buffer.data
        model.tie_weights()
        return cls(model, tokens, stream)

    def some(self, share: float, least: int, compared: float = 1.0) -> "Teacher":
        """Return a teacher of less text.

        Args:
            share: Of the text that is fitted on.
            least: Tokens that are fitted on, as far as there are so many.
            compared: Of the text that is held out.
        """
        tokens, held = self.tokens, self.tokens.held_places
        gone = set(held[max(1, round(compared * len(held))) :])
        places = [place for place in tokens.places(max(share * tokens.fitted_size, least)) if place not in gone]
        return Teacher(self.model, tokens.at(places), [self.stream[place] for place in places])


@torch.no_grad()
def last_stream(dense, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return a dense model's last hidden states, [prompts, tokens, hidden_size] for each batch.

    Args:
        dense: In evaluation mode.
        batches: LongTensors [prompts, tokens].

    Raises:
        RunError: They are not finite.
    """
    for layer in walk(dense, batches, "teacher", offload=True):
        layer.run()
    return layer.outputs


@dataclass(frozen=True)
class Held:
    """How well a pruned model does on held-out text, per token.

    Attributes:
        kl: KL(dense ‖ pruned), in nats.
        loss: The next token's negative log-likelihood, in nats.
    """

    kl: float
    loss: float

    def better_than(self, other: "Held") -> bool:
        """Return whether this is better: KL is lower, or the loss is and KL not much higher.

        Of few tokens least squares have made so much that KL may rise a little on others while the loss falls.
        """
        return self.kl < other.kl or (self.loss < other.loss and self.kl < RISE * other.kl)


def optimise_together(model, teacher: Teacher, epochs: int, seed: int = 0) -> tuple[Held, Held]:
    """Bring KL(dense ‖ pruned) down by Adam on all layers at once.

    Embeddings and lm_head stay as they are. So do the layers where held-out text does not gain by it.

    Args:
        model: The pruned model, in evaluation mode; its layers are changed in place, in their dtype.
        teacher: What is left of the dense model, and the text.
        epochs: Passes over the fitted batches.
        seed: Of their order.

    Returns:
        What the held-out batches say before and after.

    Raises:
        RunError: Memory runs out.
    """
    # of the reconstruction, before what takes the most
    give_back()
    with computing("the optimisation of all layers"), contextlib.ExitStack() as stack:
        student = _Student(model, teacher)
        before = student.held_out()
        kept = _kept(student.parameters, stack)
        dtypes = {name: parameter.dtype for name, parameter in student.parameters.items()}
        for parameter in student.parameters.values():
            parameter.data = parameter.data.float()
        with _only(model, student.parameters.values()):
            _descend(student, epochs, seed)
        for name, parameter in student.parameters.items():
            parameter.data = parameter.data.to(dtypes[name])
        after = student.held_out()
        if not after.better_than(before):
            after = before
            for name, values in kept().items():
                student.parameters[name].data.copy_(values)
    return before, after


def _kept(
    parameters: Mapping[str, torch.Tensor], stack: contextlib.ExitStack
) -> Callable[[], Mapping[str, torch.Tensor]]:
    """Keep the values of parameters, for the case that nothing is gained: in a file, or in memory if none can be."""
    try:
        file = stack.enter_context(_written({name: each.data.contiguous() for name, each in parameters.items()}))
    except OSError:
        copies = {name: parameter.data.to("cpu", copy=True) for name, parameter in parameters.items()}
        return lambda: copies
    return lambda: load(file.read())


@contextlib.contextmanager
def _written(values: Mapping[str, torch.Tensor]) -> Iterator[IO[bytes]]:
    """A file without a name, where the system allows that: a run that is killed leaves nothing behind."""
    with tempfile.TemporaryFile() as file:
        file.write(save(dict(values)))
        file.seek(0)
        yield file


class _Adam:
    """Adam of one parameter in little memory: momentum in bfloat16, and one second moment for each row.

    The weights of a row have gradients of about one size. (Adam-mini, Zhang et al. 2024, arXiv 2406.16793.)
    """

    def __init__(self, parameter: torch.Tensor) -> None:
        inputs = parameter.shape[-1] if parameter.ndim else 1
        self.rate = RATE * parameter.square().mean().sqrt().item() / math.sqrt(inputs)
        self.steps = 0
        self.first = torch.zeros_like(parameter, dtype=torch.bfloat16)
        self.second = torch.zeros_like(parameter.mean(-1, keepdim=True))

    @torch.no_grad()
    def step(self, parameter: torch.Tensor, gradient: torch.Tensor, factor: float) -> None:
        """Change a parameter. factor: of the rate."""
        self.steps += 1
        self.first.lerp_(gradient.bfloat16(), 1 - BETAS[0])
        self.second.lerp_(gradient.square().mean(-1, keepdim=True), 1 - BETAS[1])
        first, second = (1 - beta**self.steps for beta in BETAS)
        size = (self.second / second).sqrt_().add_(EPSILON)
        parameter.addcdiv_(self.first.float(), size, value=-factor * self.rate / first)


def _descend(student: "_Student", epochs: int, seed: int) -> None:
    """Each parameter takes its step as soon as its gradient is there, so that no two gradients are held."""
    parts = student.parts()
    steps = epochs * len(parts)
    adams = {parameter: _Adam(parameter.data) for parameter in student.parameters.values()}
    factor = 0.0

    def step(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None, "it has just been made"
        adams[parameter].step(parameter, parameter.grad, factor)
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(step) for parameter in adams]
    generator = torch.Generator().manual_seed(seed)
    order = [each for _ in range(epochs) for each in torch.randperm(len(parts), generator=generator).tolist()]
    for number, each in enumerate(progress(order, desc="optimise", unit="step")):
        rising = min(1.0, (number + 1) / max(1.0, WARM_UP * steps))
        factor = rising * (1.02 + 0.98 * math.cos(math.pi * number / steps)) / 2
        with torch.enable_grad():
            student.backward(*parts[each])
    for hook in hooks:
        hook.remove()


@contextlib.contextmanager
def _only(model, parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """These parameters of a model, and no others, require gradients as long as the context lasts."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_()
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


class _Student:
    """The pruned model, run layer by layer in float32 behind its embeddings."""

    def __init__(self, model, teacher: Teacher) -> None:
        self.model, self.teacher, self.tokens = model, teacher, teacher.tokens
        self.layers: Sequence[nn.Module] = list(decoder_layers(model))
        self.parameters = {
            name: parameter for name, parameter in model.named_parameters() if layer_number(name) is not None
        }

    def parts(self) -> list[tuple[int, slice]]:
        """Return the steps of a pass: (batch, rows), each of about STEP tokens and at least one row."""
        found = []
        for batch, (ids, held) in enumerate(zip(self.tokens.batches, self.tokens.held, strict=True)):
            rows = max(1, STEP // ids.shape[1])
            found += [] if held else [(batch, slice(at, at + rows)) for at in range(0, len(ids), rows)]
        return found

    def run(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the output of the last layer, [prompts, tokens, hidden_size]."""
        hidden, arguments = enter(self.model, ids)
        dtype = next(self.layers[0].parameters()).dtype
        hidden = hidden.to(dtype)
        for layer, (rest, options) in zip(self.layers, arguments, strict=True):
            hidden = layer(hidden.to(next(layer.parameters()).device), *rest, **options)
        return hidden

    def quick(self) -> contextlib.AbstractContextManager:
        """Products in bfloat16 where that is quick; weights, sums and the stream stay in float32."""
        device = next(self.layers[0].parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=has_quick_bfloat16(device))

    def backward(self, batch: int, rows: slice) -> None:
        """Add the gradients of the mean KL of some rows."""
        ids = self.tokens.batches[batch][rows]
        with self.quick():
            found = self.run(ids)
        ahead = found.detach().requires_grad_()
        for error in self._errors(ids, self.teacher.stream[batch][rows], ahead):
            error.backward()
        assert ahead.grad is not None, "there are tokens"
        # a sum until here: the gradients of a mean would be too small for an lm_head in float16
        found.backward(ahead.grad / ids.numel())

    @torch.no_grad()
    def held_out(self) -> Held:
        """Return what the held-out batches say."""
        total = loss = 0.0
        count = predicted = 0
        for batch, held in enumerate(self.tokens.held):
            for row in range(len(self.tokens.batches[batch])) if held else ():
                ids = self.tokens.batches[batch][row : row + 1]
                labels = pad(ids[:, 1:], (0, 1), value=NO_LABEL)
                stream, found = self.teacher.stream[batch][row : row + 1], self.run(ids)
                for part, label, wanted, given in pieces(self.model.config.vocab_size, ids, labels, stream, found):
                    logits = self._logits(part, given).float()
                    total += kl(logits_of(self.teacher.model, part, wanted), logits).sum().item()
                    label = label.flatten().to(logits.device)
                    own = cross_entropy(logits.flatten(0, 1), label, ignore_index=NO_LABEL, reduction="sum")
                    loss += own.item()
                count, predicted = count + ids.numel(), predicted + ids[:, 1:].numel()
        return Held(total / count, loss / max(predicted, 1))

    def _errors(self, ids: torch.Tensor, stream: torch.Tensor, found: torch.Tensor) -> Iterator[torch.Tensor]:
        """The summed KL of a few tokens at a time: their logits are more than all that comes before them."""
        for part, wanted, given in pieces(self.model.config.vocab_size, ids, stream, found):
            with self.quick():
                with torch.no_grad():
                    target = logits_of(self.teacher.model, part, wanted)
                error = kl(target, self._logits(part, given)).sum()
            yield error

    def _logits(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return logits_of(self.model, ids, hidden.to(self.model.get_output_embeddings().weight.dtype))
