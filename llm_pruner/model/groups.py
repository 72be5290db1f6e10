"""Groups: which positions of which parameters go together when a unit is removed.

Pure data. A fused qkv, a grouped-query head or a gate_up pair differ from the separate layout only
in the positions of their members, so nothing that works on groups knows about layouts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llm_pruner.model.axes import HEADS, KV_HEADS, LAYER, MODEL, Axis, Layers, Widths

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Member:
    """One axis of one parameter, cut in units: unit u owns the `width` positions from `start + u * stride` on.

    Attributes:
        parameter: The name of the parameter.
        dim: The axis of its tensor.
        role: What the parameter is: linear, bias, embedding, layernorm or rmsnorm.
        start: The first position of unit 0.
        stride: From the first position of a unit to that of the next.
        width: How many neighbouring positions a unit owns.
        reads: Whether the units are the inputs of a linear layer, as heads are of o_proj and neurons of down_proj.
    """

    parameter: str
    dim: int
    role: str
    start: int = 0
    stride: int = 1
    width: int = 1
    reads: bool = False

    def positions(self, units: "torch.Tensor") -> "torch.Tensor":
        """Return the positions of some units on the axis.

        Args:
            units: LongTensor [k].

        Returns:
            LongTensor [k · width].
        """
        import torch

        first = self.start + units * self.stride
        return (first[:, None] + torch.arange(self.width)).flatten()


@dataclass(frozen=True)
class Group:
    """Units of an axis, such as heads or MLP neurons, which are removed whole.

    Attributes:
        name: Such as `hidden` or `layers.3.mlp`.
        axis: The axis that shrinks when units go.
        layer: The number of the layer; None for units that run through the whole model, as hidden channels do.
        units: How many units there are.
        members: What goes along with them.
    """

    name: str
    axis: Axis
    layer: int | None
    units: int
    members: tuple[Member, ...]

    @property
    def has_output(self) -> bool:
        """Whether its units are the inputs of a projection to the residual stream, as heads and neurons are."""
        return self.layer is not None and any(member.reads for member in self.members)

    def removed(self, kept: Iterable[int]) -> list[int]:
        """Return the units that go, ascending, where those of `kept` stay."""
        return sorted(set(range(self.units)) - set(kept))

    @property
    def own_layer(self) -> int:
        """The number of the layer that the group is inside of."""
        assert self.layer is not None, f"{self.name} runs through the whole model"
        return self.layer


def group_name(axis: Axis, layer: int | None = None) -> str:
    """Return the name of the group of an axis: of a layer, or the one that runs through the whole model."""
    return axis.name if layer is None else f"layers.{layer}.{axis}"


def read_group_name(name: str, known: Iterable[Axis]) -> tuple[Axis, int | None] | None:
    """Return the axis, one of those known, and the layer that a group is named after; None where it is no such name."""
    layer, _, last = name.removeprefix("layers.").rpartition(".")
    axis = next((axis for axis in known if axis.name == last), None)
    if axis is None:
        return None
    number = int(layer) if axis.scope == LAYER and layer.isdecimal() and len(layer) < 6 else None
    return (axis, number) if name == group_name(axis, number) and (number is None) == (axis.scope == MODEL) else None


def group_of(groups: Iterable[Group], axis: Axis, layer: int | None = None) -> Group:
    """Return the group of an axis: of a layer, or the one that runs through the whole model.

    Args:
        groups: The groups of the model.
        axis: The axis.
        layer: The number of the layer; None for the whole model.
    """
    return next(group for group in groups if group.axis == axis and group.layer == layer)


def output_projection(group: Group) -> Member:
    """Return the member whose inputs are the units of a group that has an output: o_proj's or down_proj's."""
    return next(member for member in group.members if member.reads)


def emptied(groups: Iterable[Group], left: Callable[[Group], float]) -> tuple[str, ...]:
    """Return how the names of the parameters begin that go with an attention or an MLP of which no unit is left.

    Such a module goes whole: with its norms, and with the bias of its output projection.

    Args:
        groups: The groups.
        left: Returns how many units of a group are left.

    Returns:
        Names of modules with a dot behind, such as `model.layers.3.self_attn.`.
    """
    without = [group for group in groups if group.has_output and not left(group)]
    return tuple(output_projection(group).parameter.rsplit(".", 2)[0] + "." for group in without)


def attention_units(heads: Group, kv_heads: Group, axis: Axis) -> Group:
    """Return the group in whose units attention is scored, with every projection that goes along.

    Query heads (`axis` heads) take their key and value heads along where queries are not grouped; where they are, only
    the query rows and the output columns belong to a unit. Kv groups (`axis` kv_heads) are a key and a value head with
    all their query heads.

    Args:
        heads: The group of query heads of a layer.
        kv_heads: The group of kv heads of the same layer.
        axis: HEADS or KV_HEADS.
    """
    per_group = heads.units // kv_heads.units
    if axis == KV_HEADS:
        whole = tuple(_widen(member, per_group) for member in heads.members)
        return replace(kv_heads, members=whole + kv_heads.members)
    if per_group == 1:
        return replace(heads, members=heads.members + kv_heads.members)
    return heads


def _widen(member: Member, factor: int) -> Member:
    """The same axis in units of `factor` neighbours."""
    if factor == 1:
        return member
    if member.stride != member.width:
        raise ValueError(f"the units of {member.parameter} are not contiguous; {factor} of them are not one block")
    return replace(member, stride=member.stride * factor, width=member.width * factor)


def units_of(groups: Iterable[Group]) -> list[Group]:
    """Return every group in the units that can be ranked on their own, with all that goes along with them."""
    by_name = {group.name: group for group in groups}
    ranked = []
    for group in by_name.values():
        if group.axis == HEADS:
            ranked.append(attention_units(group, by_name[group_name(KV_HEADS, group.layer)], HEADS))
        elif group.axis == KV_HEADS:
            ranked.append(attention_units(by_name[group_name(HEADS, group.layer)], group, KV_HEADS))
        else:
            ranked.append(group)
    return ranked


def kept_positions(
    groups: Iterable[Group], kept: Mapping[str, list[int]], shapes: Mapping[str, tuple[int, ...]]
) -> "dict[str, dict[int, torch.Tensor]]":
    """Return the positions that stay, for every axis of a parameter that gets shorter.

    Positions that no member owns stay.

    Args:
        groups: The groups.
        kept: {group name: indices of the units that stay}.
        shapes: {parameter: its shape}.

    Returns:
        {parameter: {axis: ascending LongTensor of positions}}.
    """
    import torch

    masks: dict[str, dict[int, torch.Tensor]] = {}
    for group in groups:
        units = torch.as_tensor(kept[group.name], dtype=torch.long)
        if len(units) == group.units:
            continue
        removed = torch.ones(group.units, dtype=torch.bool)
        removed[units] = False
        removed = removed.nonzero().flatten()
        for member in group.members:
            axes = masks.setdefault(member.parameter, {})
            length = shapes[member.parameter][member.dim]
            mask = axes.setdefault(member.dim, torch.ones(length, dtype=torch.bool))
            mask[member.positions(removed)] = False
    return {
        name: {axis: mask.nonzero().flatten() for axis, mask in sorted(axes.items())} for name, axes in masks.items()
    }


def prunable(groups: Iterable[Group]) -> set[str]:
    """Return the names of the parameters of attention and MLP, that is those that heads or neurons run through."""
    return {member.parameter for group in groups if group.axis.scope == LAYER for member in group.members}


def bias_of(weight: str) -> str:
    """Return the name of the bias beside a weight."""
    return weight.removesuffix("weight") + "bias"


def units_after(group: Group, after: Sequence[Widths]) -> int:
    """Return how many units of a group are left.

    Args:
        group: The group.
        after: The widths of every layer afterwards.
    """
    return after[group.layer or 0][group.axis]


def shapes_after(
    shapes: Mapping[str, tuple[int, ...]], groups: Iterable[Group], after: Layers
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters when the layers have other widths.

    Args:
        shapes: {parameter: its shape}.
        groups: The groups.
        after: The widths of every layer.

    Returns:
        {parameter: its shape then}, without those of modules that go whole.
    """
    groups = list(groups)
    result = {name: list(shape) for name, shape in shapes.items()}
    removed = {}
    for group in groups:
        units = group.units - units_after(group, after)
        removed.update({(m.parameter, m.dim, m.start): units * m.width for m in group.members})
    for (parameter, axis, _), positions in removed.items():
        result[parameter][axis] -= positions
    gone = emptied(groups, lambda group: units_after(group, after))
    return {name: tuple(shape) for name, shape in result.items() if not name.startswith(gone)}
