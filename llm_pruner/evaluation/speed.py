"""How fast causal language models prefill and decode, measured in turns, and what memory they need for it.

The modes are "eager" and, on a GPU, "cuda_graph": prefill and decode step each captured once and replayed; where that
fails the mode holds only a "reason". All models get the same random prompts, decode greedily and go on past an end of
text. Prefill is one forward pass over the prompts into an empty static cache, with logits for the last position;
choosing a token completes the time to the first one; decode is the other new_tokens - 1 steps, all sequences counted.
The models of a round run one after the other, and every round begins with another one, so that drift of the machine
hits all alike. A layer with a sliding window holds the whole sequence; the window is in the mask.

Peak memory is that of the model's parameters and buffers and of an eager run, on the GPU or else in the process's
resident memory; None where it is not known (only Linux tells).
"""

import ctypes
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, StaticLayer

from llm_pruner.console import progress
from llm_pruner.errors import UsageError, computing
from llm_pruner.model.size import size_of

QUANTITIES = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_seconds")


@computing("a run over prompts", "use a smaller `speed_batch_size`, `prompt_len` or `new_tokens`")
@torch.inference_mode()
def measure(
    models: Mapping[str, PreTrainedModel], batch_size: int = 1, prompt_len: int = 128, new_tokens: int = 64,
    repeats: int = 5, seed: int = 0,
) -> dict[str, dict]:  # fmt: skip
    """Measure speed and peak memory of models, where they live and in evaluation mode.

    Args:
        models: {name: model}.
        batch_size: Sequences.
        prompt_len: Tokens of each prompt.
        new_tokens: Tokens that are decoded for each.
        repeats: Rounds.
        seed: Of the prompts.

    Returns:
        {name: {"parameters": number, "bytes": of the parameters, "peak_memory": bytes or None, "modes": {mode:
        {"prefill_tokens_per_second": [one per round], "decode_tokens_per_second": […], "time_to_first_token_seconds":
        […]}}}}. A mode that fails holds only a "reason".

    Raises:
        UsageError: A model has no max_position_embeddings for so many tokens, or new_tokens is less than 2.
    """
    check_lengths({name: model.config for name, model in models.items()}, prompt_len, new_tokens)
    vocabulary = min(model.get_input_embeddings().weight.shape[0] for model in models.values())
    prompts = torch.randint(vocabulary, (batch_size, prompt_len), generator=torch.Generator().manual_seed(seed))
    measured, runs = {}, {}
    for name, model in models.items():
        # imports and kernels are no part of the peak
        generate(eager(model, prompts[:, :1], 2), 2)
        steps = eager(model, prompts, new_tokens)
        peak = _peak_memory(model, partial(generate, steps, new_tokens))
        found = {"eager": steps} | ({"cuda_graph": _graphs(model, steps, new_tokens)} if _gpus(model) else {})
        runs[name] = {mode: own for mode, own in found.items() if isinstance(own, Steps)}
        measured[name] = {
            **size_of(model)._asdict(),
            "peak_memory": peak,
            "modes": {
                mode: {quantity: [] for quantity in QUANTITIES} if mode in runs[name] else {"reason": own}
                for mode, own in found.items()
            },
        }
    for name, model in models.items():
        if _gpus(model):
            # each capture made the allocator give its memory back
            generate(runs[name]["eager"], new_tokens)
    order = [name for turn in range(repeats) for name in turn_of(list(models), turn)]
    for name in progress(order, desc="speed", unit="run"):
        for mode, steps in runs[name].items():
            prefill, choice, decode = generate(steps, new_tokens)[1]
            values = (batch_size * prompt_len / prefill, batch_size * (new_tokens - 1) / decode, prefill + choice)
            for quantity, value in zip(QUANTITIES, values, strict=True):
                measured[name]["modes"][mode][quantity].append(value)
    return measured


def ratios(measured: Mapping[str, dict], dense: str) -> dict[str, dict]:
    """Compare the speed of models with that of one of them.

    The summaries are of the ratios of tokens per second in the same round. A mode that one of the two lacks is left
    out.

    Args:
        measured: What `measure` returned.
        dense: The name of the model that the others are compared with.

    Returns:
        {name: {mode: {"prefill" or "decode": summary}}}.

    Raises:
        KeyError: There is no such model.
    """
    result: dict[str, dict] = {name: {} for name in measured if name != dense}
    for name, modes in result.items():
        for mode, base in measured[dense]["modes"].items():
            own = measured[name]["modes"].get(mode, {"reason": "not measured"})
            if "reason" not in own and "reason" not in base:
                modes[mode] = {
                    phase: summary([a / b for a, b in zip(own[quantity], base[quantity], strict=True)])
                    for phase, quantity in zip(("prefill", "decode"), QUANTITIES)
                }
    return result


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the median, lowest and highest of some values. StatisticsError when there are none."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def turn_of(names: list[str], turn: int) -> list[str]:
    """Return the order of a round: each name goes first, second … as often as the others.

    Args:
        names: The names.
        turn: The number of the round.
    """
    start = turn % len(names)
    return names[start:] + names[:start]


class Steps(NamedTuple):
    """One way to run a model on given prompts.

    Attributes:
        reset: Empties the cache.
        prefill: Reads the prompts and returns the logits of the last position, [batch, 1, vocabulary].
        decode: Feeds `token` and puts the next one there.
        token: LongTensor [batch, 1].
        now: Returns seconds, when the model's GPUs have done all that they were given.
    """

    reset: Callable[[], object]
    prefill: Callable[[], torch.Tensor]
    decode: Callable[[], object]
    token: torch.Tensor
    now: Callable[[], float]


class _Layer(StaticLayer):
    """A static layer that knows without asking the device that it is empty, so that a prefill needs no mask.

    Not even in a capture, where transformers may not ask. Also for sliding windows: transformers' own layer for them
    counts what it holds in Python, which a replayed graph does not run.
    """

    empty = True

    def update(self, *args, **kwargs):
        self.empty = False
        return super().update(*args, **kwargs)

    def get_seq_length(self):
        return 0 if self.empty else super().get_seq_length()

    def reset(self) -> None:
        super().reset()
        self.empty = True


def eager(model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int) -> Steps:
    """Return the steps of the model as it is, with a static cache.

    A layer's part of the cache is made for the first keys that it gives, so kv heads may differ between layers.

    Args:
        model: In evaluation mode.
        prompts: LongTensor [batch, length].
        new_tokens: Tokens that will be decoded.
    """
    prompts = prompts.to(model.device)
    cache = Cache(layers=[_Layer(prompts.shape[1] + new_tokens) for _ in range(model.config.num_hidden_layers)])
    token, gpus = torch.zeros_like(prompts[:, :1]), _gpus(model)
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    def forward(input_ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=input_ids, past_key_values=cache, use_cache=True, **keep).logits[:, -1:]

    def now() -> float:
        for device in gpus:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return Steps(
        reset=cache.reset,
        prefill=lambda: forward(prompts),
        decode=lambda: token.copy_(forward(token).argmax(-1)),
        token=token,
        now=now,
    )


def captured(steps: Steps) -> Steps:
    """Return eager steps, on one GPU, as two CUDA graphs that work on the same cache and token.

    What changes from step to step (the token, how much the cache holds, and with it positions and mask) lies on the
    device and is updated there by the graph itself: nothing comes from the host. Raises what a failed capture raises.
    """
    device = steps.token.device
    prefill, decode = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    # around the captures too: one that fails leaves its stream the current one
    with torch.cuda.stream(stream):
        # libraries set themselves up, which cannot be captured
        for _ in range(3):
            steps.reset()
            steps.prefill()
            steps.decode()
        steps.reset()
        with torch.cuda.graph(prefill, stream=stream):
            logits = steps.prefill()
        with torch.cuda.graph(decode, stream=stream):
            steps.decode()
    torch.cuda.current_stream(device).wait_stream(stream)

    def replayed() -> torch.Tensor:
        prefill.replay()
        return logits

    return steps._replace(prefill=replayed, decode=decode.replay)


def _graphs(model: PreTrainedModel, steps: Steps, new_tokens: int) -> Steps | str:
    """`steps` as graphs that have run once, or why the model cannot be captured."""
    if len(_gpus(model)) > 1:
        # whose streams one capture does not see
        return "the model is spread over several GPUs"
    try:
        graphs = captured(steps)
        generate(graphs, new_tokens)
    except Exception as error:
        # what a model does in a capture is up to the model; eager it has run
        # a capture that failed fails again when it ends, and says less
        cause = error.__context__ or error
        steps.now()
        return f"{type(cause).__name__}: {str(cause).strip()}".partition("\n")[0]
    return graphs


def generate(steps: Steps, new_tokens: int) -> tuple[torch.Tensor, tuple[float, float, float]]:
    """Run the steps.

    Args:
        steps: How the model is run.
        new_tokens: Tokens to decode.

    Returns:
        The tokens [batch, new_tokens], and the seconds for the prefill, for choosing the first token and for the
        others.
    """
    steps.reset()
    start = steps.now()
    logits = steps.prefill()
    filled = steps.now()
    steps.token.copy_(logits.argmax(-1))
    chosen = steps.now()
    tokens = [steps.token.clone()]
    for _ in range(new_tokens - 1):
        steps.decode()
        tokens.append(steps.token.clone())
    done = steps.now()
    return torch.cat(tokens, dim=1), (filled - start, chosen - filled, done - chosen)


def check_lengths(configs: Mapping[str, object], prompt_len: int, new_tokens: int) -> None:
    """Raise a UsageError when a model has too few positions for so many tokens, or new_tokens is less than 2.

    Args:
        configs: {name: configuration of a model}.
        prompt_len: Tokens of each prompt.
        new_tokens: Tokens that are decoded for each.
    """
    if new_tokens < 2:
        raise UsageError(f"new_tokens must be at least 2, not {new_tokens}: the first one comes from the prefill")
    for name, config in configs.items():
        limit, total = getattr(config, "max_position_embeddings", None), prompt_len + new_tokens
        if limit is not None and total > limit:
            raise UsageError(
                f"{name}: prompt_len {prompt_len} + new_tokens {new_tokens} = {total} tokens are more than its "
                f"max_position_embeddings, {limit}; ask for fewer"
            )


def _gpus(model: PreTrainedModel) -> list[torch.device]:
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)


def _peak_memory(model: PreTrainedModel, run: Callable[[], object]) -> int | None:
    """Bytes of `model` and of what `run` takes besides; what else is in memory does not count. None if unknown."""
    own = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if devices := _gpus(model):
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        before = sum(map(torch.cuda.memory_allocated, devices))
        run()
        return own + sum(map(torch.cuda.max_memory_allocated, devices)) - before
    try:
        # memory that an earlier run freed and malloc kept would not be seen to grow
        ctypes.CDLL(None).malloc_trim(0)
        # VmHWM starts again
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
    except (OSError, AttributeError, TypeError):
        # not Linux, not allowed, another C library, Windows
        run()
        return None
    run()
    return own + _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
