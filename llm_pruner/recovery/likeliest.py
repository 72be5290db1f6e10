"""A teacher's distribution of the next token by its k likeliest tokens and the mass of all others.

With K the k tokens, p the teacher's distribution and q the student's, both at temperature T, the loss is

    T²·[ Σ_{i∈K} p_i·(log p_i − log q_i)  +  p_R·(log p_R − log q_R) ],    p_R = 1 − Σ_{i∈K} p_i,  q_R likewise.

This is T²·KL of both distributions after all tokens outside K have become one. By the log sum inequality (Cover and
Thomas, Elements of Information Theory, theorem 2.7.1) it is at most T²·KL(p ‖ q), and it is equal where p_i/q_i is the
same for all i outside K, so also where K is the whole vocabulary. Without the second term the gradient is biased, see
arxiv.org/abs/2503.16870.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

# the smallest float16, so that no stored value is infinite
LEAST = -65504.0
# a vocabulary of so many tokens has two bytes for each index
SHORT = 2**16


@dataclass(frozen=True)
class Likeliest:
    """What is known of n distributions.

    Attributes:
        log_p: Log-probabilities of the k likeliest tokens, the likeliest first, float [n, k].
        tokens: Which tokens these are, LongTensor [n, k].
        log_rest: Log of the mass of all other tokens, float [n]; −inf where there are none.
    """

    log_p: torch.Tensor
    tokens: torch.Tensor
    log_rest: torch.Tensor


def likeliest_of(logits: torch.Tensor, k: int, temperature: float = 1.0) -> Likeliest:
    """Return the k likeliest tokens of the distributions that logits stand for.

    Args:
        logits: [n, vocab_size].
        k: At most vocab_size.
        temperature: What the logits are divided by.
    """
    log_p = logits.float().div(temperature).log_softmax(-1)
    values, tokens = log_p.topk(k)
    return Likeliest(values, tokens, _log_rest(log_p, tokens))


def likeliest_loss(logits: torch.Tensor, wanted: Likeliest, temperature: float = 1.0) -> torch.Tensor:
    """Return the loss of each token against what is known of the teacher, by the formula above.

    Args:
        logits: The student's, [n, vocab_size].
        wanted: The teacher's distributions, at the same temperature.
        temperature: T.

    Returns:
        [n], in nats.
    """
    log_q = logits.float().div(temperature).log_softmax(-1)
    loss = F.kl_div(log_q.gather(-1, wanted.tokens), wanted.log_p, reduction="none", log_target=True).sum(-1)
    if wanted.tokens.shape[-1] < log_q.shape[-1]:
        rest = F.kl_div(_log_rest(log_q, wanted.tokens), wanted.log_rest, reduction="none", log_target=True)
        # the limit of p·log p at 0
        loss = loss + rest.where(wanted.log_rest.isfinite(), 0.0)
    return loss * temperature**2


def _log_rest(log_p: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log of the mass outside `tokens`, [n], summed there: 1 − Σ p_i would lose it where it is small."""
    return log_p.scatter(-1, tokens, -torch.inf).logsumexp(-1)


def record(k: int, vocab_size: int) -> np.dtype:
    """Return how one distribution is stored: 4·k + 4 bytes, or 6·k + 4 for a vocabulary of more than 65,536 tokens.

    Args:
        k: Tokens that are kept.
        vocab_size: Tokens that there are.
    """
    index = "<u2" if vocab_size <= SHORT else "<i4"
    return np.dtype([("values", "<f2", (k,)), ("tokens", index, (k,)), ("log_rest", "<f4")])


def packed(known: Likeliest, kind: np.dtype) -> np.ndarray:
    """Return distributions as records, [n].

    Values are relative to that of the likeliest token: float16 is exact near 0, where most of the mass is. What is
    subtracted follows from the sum, which is 1.

    Args:
        known: The distributions.
        kind: Their `record`.
    """
    rows = np.empty(len(known.log_rest), kind)
    rows["values"] = (known.log_p - known.log_p[:, :1]).clamp_min(LEAST).half().cpu().numpy()
    rows["tokens"] = known.tokens.cpu().numpy()
    rows["log_rest"] = known.log_rest.float().cpu().numpy()
    return rows


def unpacked(rows: np.ndarray, device: torch.device) -> Likeliest:
    """Return the distributions that records stand for; all probabilities of one sum to 1.

    Args:
        rows: Of `packed`, [n].
        device: Where the tensors go.
    """
    values = torch.from_numpy(rows["values"].copy()).to(device).float()
    tokens = torch.from_numpy(rows["tokens"].astype(np.int32)).to(device).long()
    log_rest = torch.from_numpy(rows["log_rest"].copy()).to(device)
    log_known = torch.log(-torch.expm1(log_rest))
    return Likeliest(values.log_softmax(-1) + log_known[:, None], tokens, log_rest)
