import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_pruner.errors import UsageError
from llm_pruner.evaluation import speed
from tests.support import tiny
from tests.support.widths_per_layer import model as per_layer_model

PROMPT, NEW = 12, 14
ATEN = torch.ops.aten
ASKS_THE_DEVICE = (ATEN.item.default, ATEN._local_scalar_dense.default, ATEN.is_nonzero.default, ATEN.equal.default)


def model_of(case: str):
    """A tiny model that does not say the same token again and again, as gemma3's does where embeddings are tied."""
    return tiny.model(case, **({"tie_word_embeddings": False} if case == "gemma3_text" else {}))


def generated(model, prompts: torch.Tensor) -> torch.Tensor:
    model.generation_config.eos_token_id = None
    mask = torch.ones_like(prompts)
    tokens = model.generate(prompts, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return tokens[:, prompts.shape[1] :]


@torch.inference_mode()
def decoded(model, prompts: torch.Tensor, change=lambda steps: steps, times: int = 2) -> list[torch.Tensor]:
    steps = speed.eager(model, prompts, NEW)
    speed.generate(steps, NEW)
    steps = change(steps)
    return [speed.generate(steps, NEW)[0] for _ in range(times)]


class Graph(TorchDispatchMode):
    """A CUDA graph without a GPU: what happens in a capture is kept as calls on the same tensors, and replayed."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in ASKS_THE_DEVICE:
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might …")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


@pytest.fixture
def gpu(monkeypatch):
    """The CPU behaves like a GPU, for what speed.py does with one."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    capturing = []

    class capture(nullcontext):
        def __init__(self, graph, stream):
            super().__init__()
            self.graph = graph

        def __enter__(self):
            capturing.append(self.graph)
            self.graph.__enter__()

        def __exit__(self, *error):
            self.graph.__exit__(*error)
            capturing.pop()
            if error[0]:
                raise RuntimeError("capture failed") from None

    faked = {
        "CUDAGraph": Graph, "graph": capture, "is_current_stream_capturing": lambda: bool(capturing),
        "Stream": lambda device: stream, "current_stream": lambda device: stream, "stream": nullcontext,
        "synchronize": lambda device: None, "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 1000, "max_memory_allocated": lambda device: 1234,
    }  # fmt: skip
    for name, fake in faked.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(speed, "_gpus", lambda model: [model.device])


@pytest.mark.slow
@pytest.mark.parametrize("case", tiny.CASES)
def test_decodes_what_generate_does(case):
    """Windows and all, again after a reset, and with logits for one position at a time."""
    model, prompts, positions = model_of(case), tiny.tokens(3, PROMPT), set()
    expected = generated(model, prompts)
    model.get_output_embeddings().register_forward_hook(lambda module, args, result: positions.add(result.shape[1]))
    assert len(expected.unique()) > 3
    assert all(torch.equal(tokens, expected) for tokens in decoded(model, prompts))
    assert positions == {1}


@pytest.mark.parametrize("case", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_layers_of_different_widths(case):
    model, prompts = per_layer_model(case), tiny.tokens(2, PROMPT)
    assert torch.equal(decoded(model, prompts)[-1], generated(model, prompts))


@pytest.mark.slow
@pytest.mark.parametrize("case", tiny.CASES)
def test_graphs_decode_the_same(gpu, case):
    model, prompts = model_of(case), tiny.tokens(3, PROMPT)
    expected = decoded(model, prompts)[0]
    assert all(torch.equal(tokens, expected) for tokens in decoded(model, prompts, speed.captured))


@torch.inference_mode()
def test_a_prefill_does_not_ask_the_device_whether_the_cache_is_empty():
    steps = speed.eager(tiny.model("llama"), tiny.tokens(), NEW)
    speed.generate(steps, NEW)
    steps.reset()
    with Graph():
        steps.prefill()


def test_result_on_the_cpu():
    models = {"dense": tiny.model("llama"), "half": tiny.model("llama", intermediate_size=40)}
    measured = speed.measure(models, batch_size=2, prompt_len=5, new_tokens=3, repeats=4)
    assert json.loads(json.dumps(measured)) == measured
    assert list(measured) == ["dense", "half"]
    for name, result in measured.items():
        assert set(result) == {"parameters", "bytes", "peak_memory", "modes"}
        assert result["parameters"] == sum(p.numel() for p in models[name].parameters())
        assert result["bytes"] == 4 * result["parameters"]
        assert list(result["modes"]) == ["eager"]
        assert set(result["modes"]["eager"]) == set(speed.QUANTITIES)
        assert all(len(values) == 4 and min(values) > 0 for values in result["modes"]["eager"].values())


def test_tokens_and_seconds(monkeypatch):
    """With a clock that goes on by a second whenever it is read."""
    clock = iter(range(1000))
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    model = tiny.model("llama")
    modes = speed.measure({"a": model}, batch_size=3, prompt_len=7, new_tokens=5, repeats=2)["a"]["modes"]
    assert modes["eager"] == {
        "prefill_tokens_per_second": [21.0, 21.0],
        "decode_tokens_per_second": [12.0, 12.0],
        "time_to_first_token_seconds": [2, 2],
    }


def test_result_on_a_gpu(gpu):
    model = tiny.model("llama")
    result = speed.measure({"a": model}, prompt_len=5, new_tokens=3, repeats=2)["a"]
    assert list(result["modes"]) == ["eager", "cuda_graph"]
    assert all(len(values) == 2 for mode in result["modes"].values() for values in mode.values())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert result["peak_memory"] == result["bytes"] + buffers + 234


def test_a_model_that_cannot_be_captured(gpu):
    models = {"dense": tiny.model("llama"), "asks": tiny.model("llama")}
    models["asks"].lm_head.register_forward_hook(lambda module, args, result: result * result.sum().item())
    measured = speed.measure(models, prompt_len=5, new_tokens=3, repeats=2)
    modes = measured["asks"]["modes"]
    assert modes["cuda_graph"] == {"reason": "RuntimeError: operation not permitted when stream is capturing"}
    assert len(modes["eager"]["decode_tokens_per_second"]) == 2
    assert list(speed.ratios(measured, "dense")["asks"]) == ["eager"]
    assert list(speed.ratios(measured, "asks")["dense"]) == ["eager"]


def test_a_model_on_several_gpus_is_not_captured(gpu, monkeypatch):
    monkeypatch.setattr(speed, "_gpus", lambda model: [model.device, model.device])
    modes = speed.measure({"a": tiny.model("llama")}, prompt_len=5, new_tokens=3, repeats=1)["a"]["modes"]
    assert modes["cuda_graph"] == {"reason": "the model is spread over several GPUs"}


def test_models_take_turns_on_the_same_prompts():
    models = {"a": tiny.model("llama"), "b": tiny.model("gpt2", vocab_size=50), "c": tiny.model("qwen3")}
    prompts = []
    for name, model in models.items():

        def keep(module, args, kwargs, name=name):
            if kwargs["input_ids"].shape[1] == PROMPT:
                prompts.append((name, kwargs["input_ids"].clone()))

        model.register_forward_pre_hook(keep, with_kwargs=True)
    speed.measure(models, batch_size=2, prompt_len=PROMPT, new_tokens=2, repeats=4)
    assert "".join(name for name, _ in prompts[-12:]) == "abc" + "bca" + "cab" + "abc"
    first = prompts[0][1]
    assert first.shape == (2, PROMPT)
    assert first.max() < 50
    assert all(torch.equal(first, other) for _, other in prompts)
    prompts.clear()
    speed.measure(models, batch_size=2, prompt_len=PROMPT, new_tokens=2, repeats=1, seed=1)
    assert not torch.equal(first, prompts[0][1])


def rates(prefill: list[float], decode: list[float]) -> dict:
    return {"prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode}


def test_ratios_are_of_the_same_round():
    measured = {
        "half": {"modes": {"eager": rates([30, 20, 50], [8, 9, 5]), "cuda_graph": rates([8, 8, 8], [1, 2, 3])}},
        "dense": {"modes": {"eager": rates([10, 20, 10], [4, 3, 5]), "cuda_graph": rates([2, 4, 8], [1, 1, 1])}},
        "other": {"modes": {"eager": rates([10, 20, 10], [2, 1.5, 2.5]), "cuda_graph": {"reason": "no"}}},
    }
    assert speed.ratios(measured, "dense") == {
        "half": {
            "eager": {
                "prefill": {"median": 3, "low": 1, "high": 5},
                "decode": {"median": 2, "low": 1, "high": 3},
            },
            "cuda_graph": {
                "prefill": {"median": 2, "low": 1, "high": 4},
                "decode": {"median": 2, "low": 1, "high": 3},
            },
        },
        "other": {
            "eager": {
                "prefill": {"median": 1, "low": 1, "high": 1},
                "decode": {"median": 0.5, "low": 0.5, "high": 0.5},
            }
        },
    }
    with pytest.raises(KeyError, match="third"):
        speed.ratios(measured, "third")


def test_summary():
    assert speed.summary([3.0, 1.0, 2.0, 8.0]) == {"median": 2.5, "low": 1.0, "high": 8.0}


def test_more_tokens_than_positions():
    models = {"long": tiny.model("llama"), "short": tiny.model("gpt2", max_position_embeddings=20)}
    speed.measure(models, prompt_len=15, new_tokens=5, repeats=1)
    with pytest.raises(UsageError, match=r"short: prompt_len 15 \+ new_tokens 6 = 21 .* max_position_embeddings, 20;"):
        speed.measure(models, prompt_len=15, new_tokens=6, repeats=1)


def test_nothing_to_decode():
    with pytest.raises(UsageError, match="new_tokens must be at least 2, not 1"):
        speed.measure({"a": tiny.model("llama")}, new_tokens=1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory of the host is known on Linux")
def test_peak_memory_grows_with_the_model_and_its_cache():
    small, large = tiny.model("llama"), tiny.model("llama", vocab_size=60_000)
    wide = tiny.model("llama", max_position_embeddings=4096, head_dim=32, num_key_value_heads=8)
    size = {"prompt_len": 16, "new_tokens": 4, "repeats": 1}
    measured = speed.measure({"small": small, "large": large}, **size)
    difference = measured["large"]["bytes"] - measured["small"]["bytes"]
    assert difference > 20e6
    assert measured["large"]["peak_memory"] - measured["small"]["peak_memory"] > 0.9 * difference
    short = speed.measure({"wide": wide}, **size)["wide"]["peak_memory"]
    cache = 2 * 2 * 8 * 2048 * 32 * 4  # keys and values, layers, heads, positions, head_dim, bytes
    long = speed.measure({"wide": wide}, **{**size, "prompt_len": 2048})["wide"]["peak_memory"]
    assert long - short > 0.9 * cache


def test_peak_memory_where_it_is_unknown(monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    result = speed.measure({"a": tiny.model("llama")}, prompt_len=5, new_tokens=3, repeats=1)["a"]
    assert result["peak_memory"] is None
    assert len(result["modes"]["eager"]["decode_tokens_per_second"]) == 1
