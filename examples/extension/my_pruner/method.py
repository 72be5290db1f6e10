"""A method: `--method angular_distance --target num_hidden_layers=N`."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from llm_pruner.calibration.layerwise import walk
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.errors import UsageError
from llm_pruner.methods import Pruned
from llm_pruner.model.depth import make_shallow
from llm_pruner.reconstruction.planned import Form, Planned


@dataclass(frozen=True)
class AngularDistance:
    """Remove the run of n layers that turns the last token of a prompt the least: arccos(cos(x_l, x_l+n)) / pi.

    Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers, arxiv.org/abs/2403.17887.
    """

    seed: int = 0

    name = "angular_distance"
    axes = ()
    searches = False
    removes_layers = True
    calibration = Calibration(nsamples=16, seq_len=512)

    def usual_axes(self, request, before, family):
        return ()

    def check(self, draft):
        if not draft.removes_layers or draft.widths[0] != draft.traced.counter.before:
            raise UsageError(
                "angular_distance removes whole layers: give `target` num_hidden_layers=N and nothing else"
            )

    def needs_text(self, draft):
        return True

    def outline(self, draft):
        planned = self._planned(draft, range(len(draft.widths)))
        return planned.plan, planned.config

    def prune(self, model, draft, prompts=None, journal=None):
        if not prompts:
            raise UsageError("angular_distance needs calibration prompts")
        stream = []
        for layer in walk(model, [prompt[None] for prompt in prompts]):
            layer.run()
            for hidden in (layer.stream, layer.outputs) if layer.index == 0 else (layer.outputs,):
                stream.append(torch.cat([prompt[:, -1].float() for prompt in hidden]))
        number = len(stream) - 1 - len(draft.widths)
        turned = [F.cosine_similarity(x, y).clamp(-1, 1) for x, y in zip(stream, stream[number:])]
        distance = [(cosine.arccos() / torch.pi).mean().item() for cosine in turned]
        first = distance.index(min(distance))
        layers = [layer for layer in range(len(stream) - 1) if not first <= layer < first + number]
        planned = self._planned(draft, layers)
        make_shallow(model, layers)
        return Pruned(model, planned.plan, planned.config, {"distance": distance})

    def _planned(self, draft, layers):
        planned = Planned.of(draft.traced, Form(draft.widths, tuple(layers)))
        return replace(planned, plan=replace(planned.plan, importance=self.name, seed=self.seed))
