"""A method: `--method block_influence --target num_hidden_layers=N`."""

from dataclasses import dataclass, replace

import torch.nn.functional as F

from llm_pruner.calibration.layerwise import walk
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.errors import UsageError
from llm_pruner.methods import Pruned
from llm_pruner.model.depth import make_shallow
from llm_pruner.reconstruction.planned import Form, Planned


@dataclass(frozen=True)
class BlockInfluence:
    """Remove the layers that turn the residual stream the least, 1 - mean cos(input, output) of each.

    Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, arxiv.org/abs/2403.03853.
    """

    seed: int = 0

    name = "block_influence"
    axes = ()
    searches = False
    removes_layers = True
    calibration = Calibration(nsamples=16, seq_len=512)

    def usual_axes(self, request, before, family):
        return ()

    def check(self, draft):
        if not draft.removes_layers or draft.widths[0] != draft.traced.counter.before:
            raise UsageError("block_influence removes whole layers: give `target` num_hidden_layers=N and nothing else")

    def needs_text(self, draft):
        return True

    def outline(self, draft):
        planned = self._planned(draft, range(len(draft.widths)))
        return planned.plan, planned.config

    def prune(self, model, draft, prompts=None, journal=None):
        if not prompts:
            raise UsageError("block_influence needs calibration prompts")
        influence = []
        for layer in walk(model, [prompt[None] for prompt in prompts]):
            layer.run()
            turned = [F.cosine_similarity(x.float(), y.float(), -1).mean() for x, y in zip(layer.stream, layer.outputs)]
            influence.append(1 - sum(map(float, turned)) / len(turned))
        ranked = sorted(range(len(influence)), key=lambda layer: -influence[layer])
        planned = self._planned(draft, sorted(ranked[: len(draft.widths)]))
        make_shallow(model, planned.form.layers)
        return Pruned(model, planned.plan, planned.config, {"influence": influence})

    def _planned(self, draft, layers):
        planned = Planned.of(draft.traced, Form(draft.widths, tuple(layers)))
        return replace(planned, plan=replace(planned.plan, importance=self.name, seed=self.seed))
