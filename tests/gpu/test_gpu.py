"""The same results on a GPU as on the CPU. Run by `make test-gpu` where there is one."""

import copy
from types import SimpleNamespace

import pytest
import torch

from llm_pruner.calibration.self_written import self_written
from llm_pruner.config.recipe import Recipe
from llm_pruner.evaluation import speed
from llm_pruner.evaluation.perplexity import perplexity
from llm_pruner.model.surgery import cut
from llm_pruner.model.trace import trace_groups
from tests.support import tiny
from tests.support.recipes import METHODS, deep
from tests.support.reconstructing import method_of
from tests.support.steps import planned, pruned

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", tiny.CASES)
def test_trace_score_and_cut_where_the_model_lives(case):
    model = tiny.model(case)
    on_gpu = copy.deepcopy(model).cuda()
    assert trace_groups(on_gpu) == trace_groups(model)
    groups, plan, config = planned(on_gpu, tiny.axes(case)["all"])
    assert plan == planned(model, tiny.axes(case)["all"])[1]
    new, expected = cut(on_gpu, groups, plan.kept, config), cut(model, groups, plan.kept, config)
    assert {p.device.type for p in new.parameters()} == {b.device.type for b in new.buffers()} | {"cuda"} == {"cuda"}
    assert all(torch.equal(a.cpu(), b) for a, b in zip(new.state_dict().values(), expected.state_dict().values()))
    assert perplexity(new, tiny.tokens(4, 16)) == pytest.approx(perplexity(expected, tiny.tokens(4, 16)), rel=1e-3)


@pytest.mark.parametrize("name", ["amp by parameters", "flap", "wanda_sp", "taylor"])
@pytest.mark.parametrize("case", ["llama", "qwen3", "phi3", "gemma3_text"])
def test_methods_choose_the_same_units(case, name):
    """And the compensated models compute the same."""
    model = deep(case)
    plans = [planned(copy.deepcopy(model).to(device), None, **METHODS[name])[1] for device in ("cuda", "cpu")]
    assert plans[0] == plans[1]
    on_gpu, on_cpu = (pruned(copy.deepcopy(model).to(device), None, **METHODS[name]) for device in ("cuda", "cpu"))
    torch.testing.assert_close(tiny.logits(on_gpu.cpu()), tiny.logits(on_cpu), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("case", ["llama", "llama_tied", "gpt2"])
def test_reconstruct_works_where_the_model_lives(case):
    """As well as on the CPU: units that are all but equally good may be others."""
    on_gpu, on_cpu = (
        method_of(tiny.model(case).to(device), pruning_ratio=0.5, epochs=2) for device in ("cuda", "cpu")
    )  # fmt: skip
    assert {parameter.device.type for parameter in on_gpu.model.parameters()} == {"cuda"}
    assert {name: p.shape for name, p in on_gpu.model.named_parameters()} == {
        name: p.shape for name, p in on_cpu.model.named_parameters()
    }
    assert on_gpu.notes["kl"] == pytest.approx(on_cpu.notes["kl"], rel=0.1)
    assert on_gpu.notes["kl_plain"] == pytest.approx(on_cpu.notes["kl_plain"], rel=1e-2)


@torch.inference_mode()
@pytest.mark.parametrize("case", ["llama", "mistral", "qwen3", "phi3", "gemma3_text", "gpt2", "gpt_neox"])
def test_cuda_graphs_decode_what_eager_steps_do(case):
    """Twice, and other models do not get in the way; measured, the mode gives no reason why it is not available."""
    model, prompts = tiny.model(case, tie_word_embeddings=False).cuda(), tiny.tokens(3, 12)
    steps = speed.eager(model, prompts, 20)
    expected = speed.generate(steps, 20)[0]
    assert len(expected.unique()) > 3
    graphs = speed.captured(steps)
    assert torch.equal(speed.generate(graphs, 20)[0], expected)
    measured = speed.measure({"a": model, "b": tiny.model("llama").cuda()}, prompt_len=12, new_tokens=20, repeats=2)
    assert torch.equal(speed.generate(graphs, 20)[0], expected)
    for result in measured.values():
        assert result["peak_memory"] > result["bytes"]
        for mode in ("eager", "cuda_graph"):
            assert set(result["modes"][mode]) == set(speed.QUANTITIES), result["modes"][mode]


def test_the_command_on_the_gpu(command, tmp_path):
    done = command("--model", "demo", "--pruning_ratio", "0.5", "--device", "cuda")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pruned" / "demo-r0.50" / "report.json").is_file()


def test_recovery_in_bfloat16(tmp_path):
    from llm_pruner import prune_checkpoint
    from llm_pruner.config.prune import PruneOptions
    from llm_pruner.config.recover import RecoverOptions
    from llm_pruner.recovery.run import recover

    half = str(tmp_path / "half")
    prune_checkpoint(PruneOptions(model="demo", pruning_ratio=0.5, importance="magnitude", save_model=half))
    for method in ("distil", "lora"):
        made = recover(RecoverOptions(model=half, method=method, steps=60, save_model=f"{half}-{method}"))
        assert made.training.precision == "bf16"
        assert made.perplexity.after < 0.7 * made.perplexity.before
    cached = RecoverOptions(
        model=half, method="distil", steps=60, save_model=f"{half}-cached", nsamples=64,
        teacher_cache=str(tmp_path / "cache"),
    )  # fmt: skip
    made = recover(cached)
    assert made.perplexity.after < 0.7 * made.perplexity.before


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(n=8, m=16),
        Recipe(n=2, m=4, transform="shift"),
        Recipe(ratio=0.5),
        Recipe(ratio=0.5, select="threshold", criterion="wanda"),
        Recipe(n=8, m=16, transform="learnable", scaling=True, permutation=True),
        Recipe(n=8, m=16, transform="variance", causal=True),
    ],
    ids=lambda recipe: recipe.label,
)
def test_a_sparse_model_decodes_by_the_kernel_what_plain_torch_does(recipe, dtype):
    """As CUDA graphs too."""
    from llm_pruner.sparsity.calibration import sparsify_activations
    from llm_pruner.sparsity.decode import speed_up
    from llm_pruner.sparsity.linear import sparse_layers

    plain, fast = (tiny.model("llama", dtype=dtype).cuda() for _ in range(2))
    for model in (plain, fast):
        sparsify_activations(model, recipe, [tiny.tokens(2, 32, seed).cuda() for seed in range(2)])
    assert speed_up(fast) == len(sparse_layers(fast))
    limit = 1e-5 if dtype == torch.float32 else 2**-7
    for layer, other in zip(sparse_layers(plain).values(), sparse_layers(fast).values(), strict=True):
        x = torch.randn(1, 1, layer.in_features, device="cuda", dtype=dtype)
        y = layer(x).float()
        assert ((other(x).float() - y).norm() / y.norm()).item() < limit
    prompts = tiny.tokens(1, 8)
    steps = speed.eager(fast, prompts, 6)
    tokens = speed.generate(steps, 6)[0]
    assert torch.equal(speed.generate(speed.captured(steps), 6)[0], tokens)


@torch.inference_mode()
def test_two_of_four_weights_in_semi_structured_tensors():
    from llm_pruner.sparsity.semi import semi_structured
    from llm_pruner.sparsity.weights import sparsify_weights

    config = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256}
    model = tiny.model("llama", dtype=torch.bfloat16, head_dim=32, **config).cuda()
    sparsify_weights(model, Recipe(sparse="weights", n=2, m=4))
    expected = tiny.logits(model, tiny.tokens(4, 32).cuda())
    assert semi_structured(model) == 14
    found = tiny.logits(model, tiny.tokens(4, 32).cuda())
    assert ((found - expected).norm() / expected.norm()).item() < 0.02


@pytest.mark.parametrize("case", ["llama", "gemma3_text", "gpt2"])
def test_a_model_writes_the_same_text(case):
    tokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=None, chat_template=None)
    model = tiny.model(case)
    expected = self_written(model, tokenizer, 3, 16, seed=0)
    found = self_written(copy.deepcopy(model).cuda(), tokenizer, 3, 16, seed=0)
    assert torch.equal(torch.stack(found), torch.stack(expected))
