"""From hidden states to logits by the model's own forward, some positions at a time.

What a class does behind its lm_head (scales, caps, a bias of its own) is its own affair: nothing of it is done again
here. While the model is called, the part of it that gives the hidden states gives back those that are there already.
"""

import torch
from torch import nn

from llm_pruner.calibration.hooks import Hooks
from llm_pruner.errors import is_out_of_memory

# tokens that a part is tried on
PREFIX = 16
# of the largest logit: the same, computed in other shapes
NEAR = 0.02


@torch.no_grad()
def body_of(model, window: torch.Tensor) -> tuple[nn.Module | None, int]:
    """Return the part of a model whose hidden states it turns into logits position by position.

    Args:
        model: A causal language model.
        window: LongTensor [length], to try it on.

    Returns:
        The part, None where there is no such one, and the number of logits of each position.
    """
    ids = window[None, :PREFIX].to(model.device)
    wanted = model(input_ids=ids, use_cache=False).logits
    for body in _parts(model):
        try:
            output = body(input_ids=ids, use_cache=False)
            hidden = hidden_states(output)
            pieces = [logits_of(model, body, output, ids[:, own], hidden[:, own]) for own in (slice(1), slice(1, None))]
            if _same(torch.cat(pieces, 1), wanted):
                return body, wanted.shape[-1]
        except Exception as error:
            # whatever a class raises that is not made for this; whole logits it can give
            if is_out_of_memory(error):
                raise
    return None, wanted.shape[-1]


def hidden_states(output) -> torch.Tensor:
    """Return [prompts, tokens, width] of what a body returns."""
    return output[0] if isinstance(output, tuple) else output.last_hidden_state


def logits_of(model, body: nn.Module, output, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return the model's logits where its body gives other hidden states.

    Args:
        model: A causal language model.
        body: Its part of `body_of`.
        output: What the body returned.
        ids: LongTensor [prompts, tokens].
        hidden: [prompts, tokens, width].

    Returns:
        [prompts, tokens, vocabulary].
    """
    if isinstance(output, tuple):
        given = (hidden, *output[1:])
    else:
        given = type(output)(**{**output, "last_hidden_state": hidden})
    with Hooks() as hooks:
        hooks.replace(body, lambda *_, **__: given)
        return model(input_ids=ids, use_cache=False).logits


def _parts(model) -> list[nn.Module]:
    """What may give the hidden states: the model's body, and its decoder where a class calls that directly."""
    parts = [model.base_model, model.get_decoder()]
    return list(dict.fromkeys(part for part in parts if isinstance(part, nn.Module) and part is not model))


def _same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    found, wanted = found.float(), wanted.float()
    size = wanted[wanted.isfinite()].abs().max() if wanted.isfinite().any() else 1.0
    return torch.allclose(found, wanted, rtol=0, atol=float(NEAR * size), equal_nan=True)
