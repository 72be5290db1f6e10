"""From the form that a search chose to a plan: widths, which layers stay, and whether lm_head gets its own weight."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm_pruner.model.axes import LAYERS, Layers
from llm_pruner.model.depth import at_full_depth, renumbered, shallow_config
from llm_pruner.model.untie import untied_config
from llm_pruner.shape.draft import Traced
from llm_pruner.shape.plan import Plan, make_plan


@dataclass(frozen=True)
class Form:
    """What a model is to become.

    Attributes:
        after: The widths of each layer that stays.
        layers: Those that stay, None for all.
        untied: Whether lm_head no longer shares its weight with the embeddings.
    """

    after: Layers
    layers: tuple[int, ...] | None = None
    untied: bool = False


@dataclass(frozen=True)
class Planned:
    """A plan and what belongs to it.

    Attributes:
        form: What the model is to become.
        dense: The model that is reconstructed, with its tie undone where the form says so.
        stays: The model of its layers that stay.
        plan: Of those.
        config: Of the pruned model.
        wide: Per layer of the dense model, the widths that it gets as far as it stays; of the others they mean nothing.
    """

    form: Form
    dense: Traced
    stays: Traced
    plan: Plan
    config: Any
    wide: Layers

    @classmethod
    def of(cls, traced: Traced, form: Form, biases: bool = False) -> "Planned":
        """Make the plan of a form of a model.

        Args:
            traced: The dense model.
            form: Its widths and layers, and whether its embeddings are untied.
            biases: Whether the output projections have biases afterwards.

        Raises:
            PlanError: As in `make_plan`.
        """
        counter = traced.counter
        dense = Traced.of(untied_config(traced.config), counter.before) if form.untied else traced
        stays = Traced.of(shallow_config(dense.config, form.layers), counter.before) if form.layers else dense
        plan, config = make_plan(stays.model, stays.groups, form.after, biases)
        if stays is traced:
            return cls(form, dense, stays, plan, config, plan.after)
        before, _ = make_plan(traced.model, traced.groups, counter.full, biases)
        changes: dict[str, Any] = {"tie_word_embeddings": False} if form.untied else {}
        changes |= {LAYERS.field: len(form.layers)} if form.layers else {}
        counts = {name: getattr(before, name) for name in ("parameters_before", "decoder_before", "bytes_before")}
        plan = replace(plan, config=plan.config | changes, **counts)
        if not form.layers:
            return cls(form, dense, stays, plan, config, plan.after)
        plan = replace(plan, layers=list(form.layers), num_layers_before=counter.num_layers)
        wide = at_full_depth(form.after, form.layers, plan.before, counter.num_layers)
        return cls(form, dense, stays, plan, config, wide)

    def named(self, by_name: Mapping) -> dict:
        """Return what belongs to groups or parameters of the dense model, by their names in the pruned one."""
        if self.form.layers is None:
            return dict(by_name)
        names = {name: renumbered(name, self.form.layers) for name in by_name}
        return {new: by_name[name] for name, new in names.items() if new}
