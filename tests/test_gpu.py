"""The same results on a GPU as on the CPU. Run by `make test-gpu` where there is one."""

import copy

import pytest
import torch

from llm_pruner.evaluate.perplexity import perplexity
from llm_pruner.surgery import cut
from llm_pruner.trace import trace_groups
from tests import tiny
from tests.steps import planned

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", tiny.CASES)
def test_trace_score_and_cut_where_the_model_lives(case):
    model = tiny.model(case)
    on_gpu = copy.deepcopy(model).cuda()
    assert trace_groups(on_gpu) == trace_groups(model)
    groups, plan, config = planned(on_gpu, tiny.axes(case)["all"])
    assert plan == planned(model, tiny.axes(case)["all"])[1]
    new, expected = cut(on_gpu, groups, plan, config), cut(model, groups, plan, config)
    assert {p.device.type for p in new.parameters()} == {b.device.type for b in new.buffers()} | {"cuda"} == {"cuda"}
    assert all(torch.equal(a.cpu(), b) for a, b in zip(new.state_dict().values(), expected.state_dict().values()))
    assert perplexity(new, tiny.tokens(4, 16)) == pytest.approx(perplexity(expected, tiny.tokens(4, 16)), rel=1e-3)


def test_the_command_on_the_gpu(command, tmp_path):
    done = command("--model", "demo", "--pruning_ratio", "0.5", "--device", "cuda")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pruned" / "demo-r0.50" / "report.json").is_file()
