"""The plan: which units stay and what the configuration becomes. Plain data; nothing here changes a model."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_pruner.config.limits import COMPENSATE, MOST_LAYERS, MOST_SEED, MOST_WIDTH, ORDERS
from llm_pruner.console import aligned
from llm_pruner.errors import PlanError, RunError, UsageError, shown
from llm_pruner.files import read_json, write_text
from llm_pruner.model.axes import (
    HEADS,
    KV_HEADS,
    LAYER,
    LAYERS,
    MODEL,
    VOCAB,
    Axis,
    Layers,
    Widths,
    heads_per_group,
    uneven_heads,
)
from llm_pruner.model.families import axes_of, family_of, resize, widths_of
from llm_pruner.model.groups import (
    Group,
    bias_of,
    group_name,
    output_projection,
    prunable,
    read_group_name,
    shapes_after,
    units_after,
)
from llm_pruner.model.per_layer import per_layer_config
from llm_pruner.model.skeleton import meta_model
from llm_pruner.validation import Rule, check, either, fields, filled, list_of, mapping, maybe, one_of, text, whole

# of a plan's file
SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Plan:
    """What pruning will do to a model.

    Attributes:
        model_type: Of the model.
        before: The widths of its layers.
        after: The widths of every decoder layer that stays.
        parameters_before: Exact count, tied tensors once; `parameters_after` likewise.
        decoder_before: Those of attention and MLP, i.e. of all tensors that heads or neurons run through.
        bytes_before: Of all parameters, in the checkpoint's dtype.
        config: What changes in the model's configuration.
        importance: The criterion, or the method, that chose `kept`.
        order: Whether the lowest scores went (standard), the highest (reversed) or any (random).
        seed: Of everything random in that choice.
        calibration: The text that scores were measured on.
        compensate: How the removed units are compensated for: `bias` or `none`.
        layers: Those of the model that stay; None where all do.
        num_layers_before: How many there were, where layers go.
        kept: {group name: ascending indices of the units that stay}, or None while nothing is scored.
    """

    model_type: str
    before: Widths
    after: Layers
    parameters_before: int
    parameters_after: int
    decoder_before: int
    decoder_after: int
    bytes_before: int
    bytes_after: int
    config: dict[str, Any] = field(default_factory=dict)
    importance: str | None = None
    order: str = "standard"
    seed: int | None = None
    calibration: dict[str, Any] | None = None
    compensate: str = "none"
    layers: list[int] | None = None
    num_layers_before: int | None = None
    kept: dict[str, list[int]] | None = None

    @property
    def units(self) -> dict[str, list[int]]:
        """`kept`, of a plan whose units have been chosen."""
        assert self.kept is not None, "the units have not been chosen yet"
        return self.kept

    @property
    def num_hidden_layers(self) -> int:
        """How many decoder layers stay."""
        return len(self.after)

    def widths_after(self) -> dict[str, int | list[int]]:
        """Return {configuration field: width}, a list with one for each layer where they differ."""
        every = {axis.field: [layer[axis] for layer in self.after] for axis in self.before}
        return {name: widths if len(set(widths)) > 1 else widths[0] for name, widths in every.items()}

    def removed(self) -> dict[str, float]:
        """Return the share of each axis that goes, over all layers, by its configuration field.

        `decoder` and `parameters` are there beside the axes.
        """
        number = len(self.after)
        shares = {
            axis.field: 1 - sum(layer[axis] for layer in self.after) / (self.before[axis] * number)
            for axis in self.before.prunable
        }
        shares["decoder"] = 1 - self.decoder_after / self.decoder_before
        shares["parameters"] = 1 - self.parameters_after / self.parameters_before
        return shares

    def table(self, requested: Mapping[str, float] | None = None) -> str:
        """Return before and after as a table, with what was achieved beside what was asked for.

        Args:
            requested: The shares that were asked for, by the names of `removed`.
        """
        shares, requested = self.removed(), requested or {}
        rows = [("", "before", "after", "removed", "requested")]

        def row(label: str, name: str, before: int, after: str, share: float) -> None:
            asked = f"{requested[name]:.4f}" if name in requested else ""
            rows.append((label, f"{before:,}", after, f"{share:.4f}", asked))

        number = self.num_layers_before
        if self.layers is not None and number is not None:
            row(LAYERS.field, LAYERS.name, number, f"{len(self.layers)}", 1 - len(self.layers) / number)
        widths = self.widths_after()
        for axis in self.before.prunable:
            width = widths[axis.field]
            span = f"{width:,}" if isinstance(width, int) else f"{min(width):,}–{max(width):,}"
            row(axis.field, axis.field, self.before[axis], span, shares[axis.field])
        row("attention + MLP", "decoder", self.decoder_before, f"{self.decoder_after:,}", shares["decoder"])
        row("parameters", "parameters", self.parameters_before, f"{self.parameters_after:,}", shares["parameters"])
        row("bytes", "bytes", self.bytes_before, f"{self.bytes_after:,}", 1 - self.bytes_after / self.bytes_before)
        return aligned(rows)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON.

        Args:
            path: The file.

        Raises:
            RunError: It cannot be written.
        """
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {"before": self.before.by_field(), "after": [layer.by_field() for layer in self.after]}
        try:
            write_text(Path(path), json.dumps({"schema": SCHEMA_VERSION, **values}) + "\n")
        except OSError as error:
            raise RunError(f"the plan cannot be written to {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan that `save` wrote.

        Args:
            path: The file.

        Raises:
            UsageError: It is no such plan; the message names the field.
        """
        where = f"`plan` {path}"
        data = read_json(Path(path).expanduser(), "`plan`", unique=True)
        if not isinstance(data, dict) or not {"model_type", "kept"} <= set(data):
            raise UsageError(f"{where} is not a plan of this program")
        if data.pop("schema", None) != SCHEMA_VERSION:
            raise UsageError(f"{where} has another schema than {SCHEMA_VERSION}; create it again")
        if unknown := set(data) - set(SCHEMA):
            raise UsageError(f"{where} has the unknown field {shown(min(unknown))}; create it again")
        axes = tuple(axis for axis in axes_of(data["model_type"]) if axis.is_width)
        own = {axis.field for axis in axes}
        if isinstance(data.get("before"), dict) and VOCAB.field in data["before"] and VOCAB.field not in own:
            axes = (*axes, VOCAB)
        names = tuple(axis.field for axis in axes)
        widths = {axis.field: whole(1, MOST_WIDTH) for axis in axes}
        # a layer may have lost its attention or its MLP
        left = widths | {axis.field: whole(0, MOST_WIDTH) for axis in axes if axis.prunable and axis.scope == LAYER}
        rules = {"before": fields(widths, names, others=False), "after": filled(fields(left, names, others=False))}
        check(data, SCHEMA | rules, where, required=REQUIRED)
        before, *after = (_widths(own, axes) for own in (data["before"], *data["after"]))
        plan = cls(**data | {"before": before, "after": tuple(after)})
        plan._check(where)
        return plan

    def _check(self, where: str) -> None:
        """UsageError for fields that contradict each other. Whether they fit a model is for `check_replay`."""
        if self.layers is not None:
            raise UsageError(f"{where}: layers: {shown(self.layers)} must be null: whole layers are not replayed")
        for index, layer in enumerate(self.after):
            for axis, width in layer.items():
                if width > self.before[axis]:
                    raise UsageError(f"{where}: layer {index} keeps {width} of {self.before[axis]} {axis.field}")
            if uneven_heads(layer):
                raise UsageError(f"{where}: layer {index} has query heads that do not go evenly into its kv heads")
        if uneven_heads(self.before):
            raise UsageError(f"{where}: before: its query heads do not go evenly into its kv heads")
        for name, units in self.units.items():
            self._check_kept(name, units, where)

    def _check_kept(self, name: str, units: list[int], where: str) -> None:
        found = read_group_name(name, self.before.prunable)
        if found is None or (found[1] or 0) >= len(self.after):
            raise UsageError(f"{where}: kept: {shown(name)} is no group of {len(self.after)} layers")
        axis, layer = found
        count = self.after[layer or 0][axis]
        if any(low >= high for low, high in itertools.pairwise(units)) or len(units) != count:
            raise UsageError(f"{where}: kept: {name} must be {count} ascending units, not {shown(units)}")
        if units and units[-1] >= self.before[axis]:
            raise UsageError(f"{where}: kept: {name}: there is no unit {units[-1]}")


def _widths(by_field: Mapping[str, int], axes: Iterable[Axis]) -> Widths:
    return Widths({axis: by_field[axis.field] for axis in axes})


COUNT = whole(1, 2**62)


def _kept(value: Any) -> str | None:
    if not isinstance(value, dict):
        return "the kept units of each group"
    wrong = [units for units in value.values() if list_of(whole(0, MOST_WIDTH))(units)]
    return f"the kept units of each group, not {shown(wrong[0])}" if wrong else None


SCHEMA: dict[str, Rule] = {
    "model_type": text,
    "before": mapping,
    "after": filled(mapping),
    **dict.fromkeys(("parameters_before", "parameters_after", "decoder_before", "decoder_after"), COUNT),
    **dict.fromkeys(("bytes_before", "bytes_after"), COUNT),
    "config": mapping,
    "importance": text,
    "seed": whole(0, MOST_SEED),
    "calibration": maybe(
        fields({"data": either(text, filled(text)), "nsamples": maybe(COUNT), "seq_len": maybe(COUNT)})
    ),
    "order": one_of(ORDERS),
    "compensate": one_of(COMPENSATE),
    "layers": maybe(list_of(whole(0, MOST_LAYERS))),
    "num_layers_before": maybe(whole(1, MOST_LAYERS)),
    "kept": _kept,
}
REQUIRED = tuple(
    name for name in SCHEMA if name not in ("config", "calibration", "order", "layers", "num_layers_before")
)


def make_plan(model: Any, groups: Iterable[Group], after: Layers, biases: bool = False) -> tuple[Plan, Any]:
    """Return the plan without its kept units, and the new configuration.

    Args:
        model: The model; the meta device will do.
        groups: Its groups.
        after: The widths of every layer afterwards.
        biases: Whether o_proj and down_proj get a bias where they have none.

    Raises:
        PlanError: No class holds the shape, or its parameters are not those that a cut would leave.
    """
    groups = list(groups)
    config, before = model.config, widths_of(model.config)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    expected = shapes_after(shapes, groups, after)
    outputs = [group for group in groups if biases and group.has_output and units_after(group, after)]
    wanted = {bias_of(output_projection(group).parameter) for group in outputs}
    new_config, found = _configured(config, before, after, wanted - set(shapes), expected)
    old, new = config.to_dict(), new_config.to_dict()
    size = next(iter(parameters.values())).element_size()
    sizes = {name: parameters[name].element_size() if name in parameters else size for name in found}
    inside = prunable(groups)
    count = {name: math.prod(shape) for name, shape in shapes.items()}
    count_after = {name: math.prod(shape) for name, shape in found.items()}
    plan = Plan(
        model_type=config.model_type,
        before=before,
        after=tuple(after),
        parameters_before=sum(count.values()),
        parameters_after=sum(count_after.values()),
        decoder_before=sum(count[name] for name in inside),
        decoder_after=sum(count_after.get(name, 0) for name in inside),
        bytes_before=sum(number * parameters[name].element_size() for name, number in count.items()),
        bytes_after=sum(number * sizes[name] for name, number in count_after.items()),
        config={name: value for name, value in new.items() if old.get(name) != value},
    )
    return plan, new_config


def _configured(
    config: Any, before: Widths, after: Layers, new_biases: set[str], expected: Mapping[str, tuple]
) -> tuple[Any, dict[str, tuple]]:
    """Return (the new config, {parameter: shape} of the model it builds).

    It is of a stock class where one holds the shape, else of one whose layers have widths of their own. PlanError when
    what it builds is not what is `expected`.
    """
    alike = len(set(after)) == 1 and all(after[0].values())
    if alike:
        try:
            new_config = resize(config, after[0], biases=bool(new_biases))
            found = _shapes(new_config)
            if new_biases <= set(found):
                return new_config, _check_shapes(new_config, expected, found)
        except PlanError:
            if not new_biases:
                raise
    # then only biases are missing
    base = after[0] if alike else before.common(after[0])
    family = family_of(config.model_type)
    overrides = [
        {axis.field_of(family): layer[axis] for axis in before.prunable if layer[axis] != base[axis]} for layer in after
    ]
    modules = sorted({name.split(".", 3)[-1].removesuffix(".bias") for name in new_biases})
    new_config = per_layer_config(resize(config, base), overrides, modules)
    return new_config, _check_shapes(new_config, expected, _shapes(new_config))


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in meta_model(config).named_parameters()}


def _check_shapes(config: Any, expected: Mapping[str, tuple], found: dict[str, tuple]) -> dict[str, tuple]:
    wrong = [name for name, shape in expected.items() if found.get(name) != shape]
    wrong += [name for name in found if name not in expected and not name.endswith(".bias")]
    if wrong:
        name, built = wrong[0], config.model_type
        raise PlanError(f"{built} builds {name} as {found.get(name)}, the cut would leave {expected.get(name)}")
    return found


def check_replay(plan: Plan, config: Any, groups: Iterable[Group]) -> None:
    """Raise a PlanError unless the plan was made for a model of this shape and names units of it.

    Args:
        plan: The plan.
        config: The configuration of the model.
        groups: Its groups.
    """
    widths = widths_of(config)
    if (plan.model_type, plan.num_hidden_layers) != (config.model_type, config.num_hidden_layers):
        raise PlanError(
            f"the plan is for {plan.model_type} with {plan.num_hidden_layers} layers, "
            f"this model is {config.model_type} with {config.num_hidden_layers}"
        )
    for axis, width in plan.before.items():
        if widths[axis] != width:
            raise PlanError(f"the plan is for {axis.field}={width}, this model has {widths[axis]}")
    by_name = {group.name: group for group in groups}
    if set(plan.units) != set(by_name):
        raise PlanError(f"the plan's groups are not this model's: {sorted(set(plan.units) ^ set(by_name))[:3]}")
    common = [axis for axis in widths if axis.scope == MODEL or not axis.prunable]
    if len({tuple(layer[axis] for axis in common) for layer in plan.after}) > 1:
        raise PlanError(f"the plan's layers differ in {' or '.join(a.field for a in common)}, which all have in common")
    for name, kept in plan.units.items():
        count = units_after(by_name[name], plan.after)
        legal = all(type(unit) is int and 0 <= unit < by_name[name].units for unit in kept)
        if not legal or kept != sorted(set(kept)) or len(kept) != count:
            raise PlanError(f"the plan's {name} is not {count} ascending units of {by_name[name].units}")
    size = heads_per_group(plan.before)
    for name, group in by_name.items():
        if group.axis == HEADS:
            kv_heads = plan.units[group_name(KV_HEADS, group.layer)]
            smaller = heads_per_group(plan.after[group.own_layer])
            if [head // size for head in plan.units[name]] != [kv for kv in kv_heads for _ in range(smaller)]:
                raise PlanError(f"the plan's {name} does not keep {smaller} query heads in each kv head it keeps")
