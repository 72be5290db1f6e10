"""From the form that a search chose to a plan: widths, which layers stay, and whether lm_head gets its own weight."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llm_pruner.config.prune import Options
from llm_pruner.model.depth import renumbered, shallow_config, spread
from llm_pruner.model.families import Layers
from llm_pruner.model.untie import untied_config
from llm_pruner.pruning import plan_for
from llm_pruner.shape.draft import Shape, variant
from llm_pruner.shape.plan import Plan


@dataclass(frozen=True)
class Form:
    """What a model is to become. after: the widths of each layer that stays. layers: those, None for all. untied:
    lm_head no longer shares its weight with the embeddings."""

    after: Layers
    layers: tuple[int, ...] | None = None
    untied: bool = False


@dataclass(frozen=True)
class Planned:
    """A plan and what belongs to it. dense: the shape of the model that is rebuilt, with its tie undone where the form
    says so; shape: of its layers that stay. wide: the plan with the widths of all layers of the dense model, as far as
    they stay; what it says of the others means nothing."""

    form: Form
    dense: Shape
    shape: Shape
    plan: Plan
    config: object
    wide: Plan

    @classmethod
    def of(cls, shape: Shape, form: Form, options: Options) -> "Planned":
        """shape: of the model as it was given. PlanError as in `make_plan`."""
        dense = variant(shape, untied_config(shape.skeleton.config)) if form.untied else shape
        own = variant(dense, shallow_config(dense.skeleton.config, form.layers)) if form.layers else dense
        plan, config = plan_for(own.skeleton, own, form.after, options)
        if own is shape:
            return cls(form, dense, own, plan, config, plan)
        before, _ = plan_for(shape.skeleton, shape, shape.ledger.all_layers(shape.ledger.before), options)
        changes = {"tie_word_embeddings": False} if form.untied else {}
        changes |= {"num_hidden_layers": len(form.layers)} if form.layers else {}
        counts = {name: getattr(before, name) for name in ("parameters_before", "decoder_before", "bytes_before")}
        plan = replace(plan, config=plan.config | changes, **counts)
        if not form.layers:
            return cls(form, dense, own, plan, config, plan)
        number = shape.ledger.num_layers
        plan = replace(plan, layers=list(form.layers), num_layers_before=number)
        wide = replace(plan, after=spread(form.after, form.layers, plan.before, number))
        return cls(form, dense, own, plan, config, wide)

    def named(self, by_name: Mapping) -> dict:
        """What belongs to groups or parameters of the dense model, by their names in the pruned one."""
        if self.form.layers is None:
            return dict(by_name)
        names = {name: renumbered(name, self.form.layers) for name in by_name}
        return {new: by_name[name] for name, new in names.items() if new}
