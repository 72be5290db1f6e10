"""KL divergence of next-token distributions, a few tokens at a time.

A copy of the logits in float32 is often more than all else in a step, and the formula written out makes six of them.
Here each piece stays in the processor's cache, and its gradient is made on the way, in the dtype of the logits.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

# logits of a piece: 1 MiB in float32 on a CPU, 256 MiB on other devices
PIECE, LARGE_PIECE = 2**18, 2**26


def kl(wanted: torch.Tensor, found: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return T²·KL(wanted ‖ found) of each token, whose gradient in the logits `found` is T·(q − p).

    Both distributions are at temperature T (Hinton et al. 2015, arxiv.org/abs/1503.02531).

    Args:
        wanted: Logits [..., vocab_size], which get no gradient.
        found: Logits [..., vocab_size].
        temperature: T, above 0.

    Returns:
        float32 [...], in nats, on the device of `found`.
    """
    flat = _KL.apply(found.flatten(0, -2), wanted.detach().flatten(0, -2), temperature)
    return flat.view(found.shape[:-1])


class _KL(torch.autograd.Function):
    """KL of logits [tokens, vocab_size]."""

    @staticmethod
    def forward(ctx: Any, found: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
        size = max(1, (PIECE if found.device.type == "cpu" else LARGE_PIECE) // found.shape[-1])
        gradient = torch.empty_like(found) if ctx.needs_input_grad[0] else None
        errors = []
        for at in range(0, len(found), size):
            own, other = (
                logits[at : at + size].to(found.device).float().div(temperature).log_softmax(-1)
                for logits in (found, wanted)
            )
            likely = other.exp()
            errors.append((likely * other.sub_(own)).sum(-1))
            if gradient is not None:
                gradient[at : at + size] = own.exp_().sub_(likely).mul_(temperature)
        ctx.save_for_backward(gradient)
        return temperature**2 * torch.cat(errors) if errors else found.new_empty(0, dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, errors: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * errors[:, None].to(gradient.dtype), None, None
