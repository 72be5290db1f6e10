"""Text that a model writes itself, sampled from its own distribution: for calibration without data.

Source of the idea: LLM-QAT (Liu et al. 2023, arXiv:2305.17888); of the questions with answers, Magpie (Xu et al. 2024,
arXiv:2406.08464).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llm_pruner.calibration.layerwise import not_finite
from llm_pruner.calibration.memory import halved, tokens_for
from llm_pruner.calibration.windows import check_vocabulary
from llm_pruner.console import log, progress
from llm_pruner.errors import UsageError
from llm_pruner.files import set_aside, write_whole

# tokens in the caches of all windows of a batch, for each token of a forward pass
CACHED = 8
# stands for the question while a chat template is asked how a user's turn begins
QUESTION = "⟦question⟧"
WINDOWS = "windows"


def self_written(model: Any, tokenizer: Any, count: int, length: int, seed: int) -> list[torch.Tensor]:
    """Sample windows from a model at temperature 1, without truncation of its distribution.

    A window begins with the start token (BOS, or EOS where a tokenizer has none). With a chat template, every second
    one begins as a user's turn does instead: the model writes the question, the template what stands between it and the
    answer, and the model the answer. A window is the same whatever other windows are sampled beside it: each has random
    numbers of its own, and a token is where the cumulative distribution exceeds the number.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        count: How many windows.
        length: Tokens of each.
        seed: Of the random numbers.

    Returns:
        LongTensors [length] on the CPU.

    Raises:
        UsageError: The tokenizer has no start token, or one that the model does not know.
        RunError: The logits are not finite, or memory does not hold a single window.
    """
    numbers = torch.rand(count, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    start, (turn, between) = _start(tokenizer), _turn(tokenizer)
    chats = list(range(1, count, 2)) if 0 < len(turn) < length else []
    plain = [place for place in range(count) if place not in set(chats)]
    found: dict[int, torch.Tensor] = {}
    with progress(total=count * length, desc="self-written text", unit="token") as bar:
        for opening, then, places in (([start], [], plain), (turn, between, chats)):
            if places:
                check_vocabulary(max(opening), model.get_input_embeddings().num_embeddings)
                written = _written(model, opening, then, numbers[places], bar)
                found |= dict(zip(places, written, strict=True))
    return [found[place] for place in range(count)]


def kept(path: Path, write, count: int, length: int) -> list[torch.Tensor]:
    """Return the windows that an earlier run left in a file, or write them and leave them there.

    Args:
        path: The file, whose name tells the model and all else that the windows follow from.
        write: Returns the windows.
        count: How many there are.
        length: Tokens of each.

    Returns:
        LongTensors [length].
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    if path.exists():
        try:
            found = load_file(path)[WINDOWS]
            if found.dtype == torch.long and tuple(found.shape) == (count, length):
                log(f"self-written text taken from {path}")
                return list(found)
        except (OSError, SafetensorError, KeyError):
            pass
        log(f"note: {path} holds no text of this run; set aside as {set_aside(path).name}")
    windows = write()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda partial: save_file({WINDOWS: torch.stack(windows)}, partial))
    return windows


def _start(tokenizer: Any) -> int:
    """The token that a text begins with."""
    found = next((own for own in (tokenizer.bos_token_id, tokenizer.eos_token_id) if own is not None), None)
    if found is None:
        raise UsageError("the tokenizer has neither a BOS nor an EOS token, so the model has nothing to begin with")
    return found


def _turn(tokenizer: Any) -> tuple[list[int], list[int]]:
    """(the tokens before a question, those between it and its answer) by the chat template; none without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return [], []
    asked = [{"role": "user", "content": QUESTION}]
    try:
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Exception:
        # of jinja2, or whatever the template raises
        return [], []
    before, question, behind = text.partition(QUESTION)
    ids = [tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"] for part in (before, behind)]
    return (ids[0], ids[1]) if question else ([], [])


class _Between:
    """What a template puts between questions and answers, in the windows of a batch: it follows its own first token."""

    def __init__(self, ids: Sequence[int], rows: int) -> None:
        self.ids = ids
        # of the tokens between, how many each window has
        self.written = [0] * rows

    def instead(self, sampled: torch.Tensor) -> torch.Tensor:
        """Return the tokens of the batch, LongTensor [windows, 1], that follow: those that were sampled, or these."""
        if not self.ids:
            return sampled
        tokens = sampled.flatten().tolist()
        for row, token in enumerate(tokens):
            place = self.written[row]
            if 0 < place < len(self.ids) or place == 0 and token == self.ids[0]:
                tokens[row] = self.ids[place]
                self.written[row] += 1
        return torch.tensor(tokens, device=sampled.device)[:, None]


def _written(
    model: Any, opening: Sequence[int], then: Sequence[int], numbers: torch.Tensor, bar: Any
) -> list[torch.Tensor]:
    """Windows that begin alike, one for each row of numbers [windows, length]; in batches that memory holds."""
    count, length = numbers.shape
    too_large = f"a window of {length} tokens that the model writes does not fit in memory; use a smaller "
    too_large += "`calibration_seq_len`, or another text than self"

    def run(size: int) -> list[torch.Tensor]:
        return [window for some in numbers.split(size) for window in _batch(model, opening, then, some, bar)]

    size = max(1, min(count, CACHED * tokens_for(model) // length))
    return halved(run, size, 2, "batches of {} windows", too_large)


@torch.no_grad()
def _batch(model: Any, opening: Sequence[int], then: Sequence[int], numbers: torch.Tensor, bar: Any) -> torch.Tensor:
    """LongTensor [windows, length]. then: what follows its own first token, once."""
    rows, length = numbers.shape
    between = _Between(then, rows)
    given = torch.tensor([list(opening)] * rows, device=model.device)
    parts, cache, finite = [given], None, torch.tensor(True)
    for place in range(len(opening), length):
        made = model(input_ids=given, past_key_values=cache, use_cache=True)
        cache = made.past_key_values
        chances = made.logits[:, -1].float().softmax(-1)
        # Apple's GPUs have no float64
        sums = (chances.cpu() if chances.device.type == "mps" else chances).double().cumsum(-1)
        finite = finite.to(sums.device) & sums[:, -1].isfinite().all()
        aimed = numbers[:, place, None].to(sums.device) * sums[:, -1:]
        sampled = torch.searchsorted(sums, aimed, right=True).clamp(max=sums.shape[-1] - 1)
        given = between.instead(sampled).to(model.device)
        parts.append(given)
        bar.update(rows)
    if not finite:
        raise not_finite("the logits are NaN or Inf on text that the model writes itself", model.dtype)
    return torch.cat(parts, 1).cpu()
