"""Which of a row's entries are kept, by their scores.

These are n of every m neighbours, a share of the row, or those above a threshold. Of equal scores the earlier entry
stays. A score that is NaN is kept, so that it shows.
"""

import torch

# scores
FEW = 2**15


def kept_n_of_m(scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Keep the n highest of every m neighbours, and of a short last group of `rest` entries ⌈n/m · rest⌉.

    Args:
        scores: Float tensor [..., width].
        n: How many stay.
        m: Of how many.

    Returns:
        BoolTensor like `scores`.
    """
    width = scores.shape[-1]
    whole = width // m * m
    parts = [_highest(scores[..., :whole].unflatten(-1, (-1, m)), n).flatten(-2)] if whole else []
    if rest := width - whole:
        parts.append(_highest(scores[..., whole:], -(-n * rest // m)))
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def kept_share(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """Return which entries stay: of every row the `kept_count` highest, so that `ratio` of them go.

    Args:
        scores: Float tensor [..., width].
        ratio: The share that goes.

    Returns:
        BoolTensor like `scores`.
    """
    count = kept_count(scores.shape[-1], ratio)
    lowest = scores.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, level = scores > lowest, scores == lowest
    wanted = count - above.sum(-1, keepdim=True)
    return above | level & (level.cumsum(-1) <= wanted) | scores.isnan()


def kept_count(width: int, ratio: float) -> int:
    """Return ⌊width · (1 − ratio) + 1e-6⌋, at least 1."""
    return max(1, int(width * (1 - ratio) + 1e-6))


def _highest(groups: torch.Tensor, n: int) -> torch.Tensor:
    """Bool like `groups` [..., m]: the n highest of the last axis."""
    if groups.is_cuda or groups.numel() <= FEW:
        first = groups.sort(dim=-1, descending=True, stable=True).indices[..., :n]
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, first, True) | groups.isnan()
    # A CPU counts faster than it sorts: how many of its few neighbours go before each.
    groups = groups.movedim(-1, 0).contiguous()
    m = len(groups)
    before = torch.zeros(groups.shape, dtype=torch.int16, device=groups.device)
    for j in range(m - 1):
        wins = groups[j] >= groups[j + 1 :]
        before[j + 1 :] += wins
        before[j] += m - 1 - j - wins.sum(0, dtype=torch.int16)
    return ((before < n) | groups.isnan()).movedim(0, -1)
