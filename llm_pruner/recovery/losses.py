"""What a recovery minimises, per predicted token: a weighted sum of losses, which are registered by their names.

- text: cross-entropy of the next token.
- logits: T²·KL(teacher ‖ student) of both distributions at temperature T (Hinton et al., arxiv.org/abs/1503.02531).
  Against a cached teacher it is that of its likeliest tokens, see `likeliest`.
- hidden states: ‖h − h_t·P‖² / ‖h_t·P‖² over the streams behind each of the student's layers. P is the identity where
  both streams are equally wide; else it is fitted once by least squares, from the teacher's to the pruned model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from llm_pruner.config.recover import RecoverOptions
from llm_pruner.errors import UsageError
from llm_pruner.model.divergence import kl
from llm_pruner.recovery.likeliest import Likeliest, likeliest_loss
from llm_pruner.registry import Registry

# of the mean diagonal
RIDGE = 1e-3
# which need no more of a teacher than its cache has
CACHED = ("logits", "text")


@dataclass(frozen=True)
class Batch:
    """What losses are computed from; n is the number of predicted tokens.

    Attributes:
        logits: The student's, [n, vocab_size].
        targets: The tokens that follow, [n].
        predicted: Which positions of [windows, length - 1] these are.
        wanted: The teacher's logits, [n, vocab_size]; of a cached teacher its likeliest tokens.
        streams: The student's hidden states behind each layer, [windows, length, width]; empty unless asked for.
        wanted_streams: The teacher's that they should be.
        maps: From the teacher's width to the student's, see `fit_maps`.
        options: Of the recovery.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    predicted: torch.Tensor
    wanted: torch.Tensor | Likeliest
    streams: Sequence[torch.Tensor]
    wanted_streams: Sequence[torch.Tensor]
    maps: Sequence[torch.Tensor | None]
    options: Any


# Each takes a Batch and returns the loss of each predicted token, [n].
LOSSES = Registry(
    "llm_pruner.losses",
    "loss",
    {
        "text": "llm_pruner.recovery.losses:of_text",
        "logits": "llm_pruner.recovery.losses:of_logits",
        "hidden": "llm_pruner.recovery.losses:of_hidden",
    },
)


def of_text(batch: Batch) -> torch.Tensor:
    """Return cross-entropy of the next token."""
    return text_loss(batch.logits, batch.targets)


def of_logits(batch: Batch) -> torch.Tensor:
    """Return the divergence from the teacher's logits at the options' temperature."""
    if isinstance(batch.wanted, Likeliest):
        return likeliest_loss(batch.logits, batch.wanted, batch.options.temperature)
    return kl(batch.wanted, batch.logits, batch.options.temperature)


def of_hidden(batch: Batch) -> torch.Tensor:
    """Return the distance between both models' hidden states."""
    return hidden_loss(batch.streams, batch.wanted_streams, batch.maps)[:, :-1][batch.predicted]


def weights_of(options: RecoverOptions) -> dict[str, float]:
    """Return {name of a loss: its weight} of a distillation.

    Raises:
        UsageError: `losses` names none that is known, a weight is no positive number, or a cached teacher lacks what
            a loss needs.
    """
    weights = {"logits": 1.0, "text": options.ce_weight, "hidden": options.hidden_weight}
    for part in filter(None, (part.strip() for part in (options.losses or "").split(","))):
        name, _, text = part.partition("=")
        LOSSES.get(name)
        try:
            weights[name] = float(text or 1)
        except ValueError:
            weights[name] = -1.0
        if not 0 <= weights[name] < float("inf"):
            raise UsageError(f"losses: {part!r} has no weight; write {name}=0.5")
    weights = {name: weight for name, weight in weights.items() if weight}
    lacking = [name for name in weights if name not in CACHED]
    if options.teacher_cache and lacking:
        raise UsageError(
            f"the loss {lacking[0]!r} needs the teacher, and `teacher_cache` has no more than its likeliest tokens; "
            "leave out one of the two"
        )
    return weights


def text_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each token.

    Args:
        logits: [tokens, vocab_size].
        targets: [tokens].

    Returns:
        [tokens], in nats.
    """
    return F.cross_entropy(logits.float(), targets, reduction="none")


def matched(hidden_states: Sequence[torch.Tensor], layers: Sequence[int]) -> list[torch.Tensor]:
    """Return the teacher's hidden states that the student's should be, behind each of its layers.

    The input of the next layer that was kept is the output of this one.

    Args:
        hidden_states: The teacher's, the embeddings first.
        layers: The teacher's layer that each of the student's was.
    """
    return [hidden_states[layer] for layer in layers[1:]] + [hidden_states[-1]]


def hidden_loss(
    found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], maps: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """Return each token's relative squared distance, the mean over layers.

    Args:
        found: Hidden states [batch, length, width] of the student behind each layer.
        wanted: The teacher's that they should be.
        maps: From the teacher's width to the student's; None where both are alike.

    Returns:
        [batch, length].
    """
    distances = []
    for one, other, project in zip(found, wanted, maps):
        other = other.to(one.device).float()
        if project is not None:
            other = other @ project.to(other.device)
        distances.append((one.float() - other).square().sum(-1) / other.square().sum(-1).clamp_min(1e-12))
    return torch.stack(distances).mean(0)


@torch.no_grad()
def fit_maps(student, teacher, batches: Sequence[torch.Tensor], layers: Sequence[int]) -> list[torch.Tensor | None]:
    """Fit P [teacher's width, student's] for each of the student's layers; None for equal widths.

    Args:
        student: The model that learns.
        teacher: The model that it learns from.
        batches: LongTensors [windows, length] that both models read.
        layers: The teacher's layer that each of the student's was.
    """
    if student.config.hidden_size == teacher.config.hidden_size:
        return [None] * len(layers)
    sums: list = [None] * len(layers)
    for ids in batches:
        h_s, h_t = (
            one(input_ids=ids.to(one.device), use_cache=False, output_hidden_states=True).hidden_states
            for one in (student, teacher)
        )
        for i, (y, x) in enumerate(zip(h_s[1:], matched(h_t, layers))):
            x, y = x.flatten(0, 1).double(), y.flatten(0, 1).double().to(x.device)
            found = (x.T @ x, x.T @ y)
            sums[i] = found if sums[i] is None else tuple(map(torch.add, sums[i], found))
    maps = []
    for square, cross in sums:
        ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
        maps.append(torch.linalg.solve(square + ridge, cross).float())
    return maps
