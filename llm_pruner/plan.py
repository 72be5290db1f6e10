"""The plan: which units stay and what the configuration becomes. Plain data; nothing here changes a model."""

import copy
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llm_pruner.architectures import Widths, resize, widths_of
from llm_pruner.errors import PlanError, UsageError
from llm_pruner.groups import HEADS, HIDDEN, KV_HEADS, MLP, Group, attention_units

if TYPE_CHECKING:
    import torch

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What pruning will do to a model of `model_type` whose widths are `before`.

    kept: {group name: sorted indices of the units that stay}, or None while nothing is scored.
    parameters_*: exact counts, tied tensors once; bytes_*: the same in the checkpoint's dtype.
    config: what changes in the model's configuration. importance, seed: how `kept` was chosen.
    """

    model_type: str
    num_hidden_layers: int
    before: Widths
    after: Widths
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    config: dict = field(default_factory=dict)
    importance: str | None = None
    seed: int | None = None
    kept: dict[str, list[int]] | None = None

    def table(self, requested: Mapping[str, float] | None = None) -> str:
        """Before → after, with the ratio that was achieved beside the one that was asked for."""
        from llm_pruner.widths import FIELD, achieved

        shares = achieved(self.before, self.after)
        rows = [("", "before", "after", "removed", "requested")]
        for kind, name in FIELD.items():
            ratio = (requested or {}).get(kind)
            asked = "" if ratio is None else f"{ratio:.4f}"
            before, after = getattr(self.before, name), getattr(self.after, name)
            rows.append((name, f"{before:,}", f"{after:,}", f"{shares[kind]:.4f}", asked))
        for name in ("parameters", "bytes"):
            before, after = getattr(self, f"{name}_before"), getattr(self, f"{name}_after")
            rows.append((name, f"{before:,}", f"{after:,}", f"{1 - after / before:.4f}", ""))
        sizes = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = []
        for row in rows:
            cells = [row[0].ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(row[1:], sizes[1:]))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON."""
        data = {"format": FORMAT, **asdict(self)}
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(data) + "\n", encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Reads what `save` wrote. UsageError when the file is not such a plan."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--plan {path}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"--plan {path} is not JSON: {error}") from error
        try:
            if data.pop("format") != FORMAT:
                raise ValueError(f"it has another format than {FORMAT}")
            data["before"], data["after"] = Widths(**data["before"]), Widths(**data["after"])
            plan = cls(**data)
            counts = (*plan.before.asdict().values(), *plan.after.asdict().values(), plan.num_hidden_layers)
            if not all(type(count) is int and count > 0 for count in counts):
                raise ValueError("a width is not a whole number of at least 1")
            if not isinstance(plan.kept, dict) or not all(isinstance(units, list) for units in plan.kept.values()):
                raise ValueError("it does not list the kept units of each group")
            if not isinstance(plan.importance, str) or type(plan.seed) is not int:
                raise ValueError("it does not say how its units were chosen")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"--plan {path} is not a plan of this program: {error}") from error
        return plan


def make_plan(model, groups: Iterable[Group], after: Widths) -> tuple[Plan, object]:
    """The plan without its indices, and the new configuration. `model` may be on the meta device.

    PlanError when no stock class holds the shape, or its parameters are not those that a cut would leave.
    """
    config, before = model.config, widths_of(model.config)
    new_config = resize(config, after)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    expected = shapes_after(shapes, groups, before, after)
    found = {name: tuple(p.shape) for name, p in meta_model(new_config).named_parameters()}
    if expected != found:
        name = next(name for name in {**expected, **found} if expected.get(name) != found.get(name))
        raise PlanError(
            f"{new_config.model_type} builds {name} as {found.get(name)}, the cut would leave {expected.get(name)}"
        )
    old, new = config.to_dict(), new_config.to_dict()
    counts = {
        name: (math.prod(shapes[name]), math.prod(expected[name]), parameters[name].element_size()) for name in shapes
    }
    plan = Plan(
        model_type=config.model_type,
        num_hidden_layers=config.num_hidden_layers,
        before=before,
        after=after,
        parameters_before=sum(before for before, _, _ in counts.values()),
        parameters_after=sum(after for _, after, _ in counts.values()),
        bytes_before=sum(before * size for before, _, size in counts.values()),
        bytes_after=sum(after * size for _, after, size in counts.values()),
        config={name: value for name, value in new.items() if old.get(name) != value},
    )
    return plan, new_config


def meta_model(config):
    """A model of `config` without weights, on the meta device, in the dtype that the config names."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # a copy: building a model writes its dtype into the config
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=config.dtype or torch.float32)


def shapes_after(shapes, groups: Iterable[Group], before: Widths, after: Widths) -> dict[str, tuple[int, ...]]:
    """The parameters' shapes when every group has the units that `after` says."""
    removed = {
        HIDDEN: before.hidden_size - after.hidden_size,
        HEADS: before.num_attention_heads - after.num_attention_heads,
        KV_HEADS: before.num_key_value_heads - after.num_key_value_heads,
        MLP: before.intermediate_size - after.intermediate_size,
    }
    result = {name: list(shape) for name, shape in shapes.items()}
    blocks = {(m.parameter, m.axis, m.start): removed[g.kind] * m.width for g in groups for m in g.members}
    for (parameter, axis, _), positions in blocks.items():
        result[parameter][axis] -= positions
    return {name: tuple(shape) for name, shape in result.items()}


def scored_groups(groups: Iterable[Group], before: Widths, after: Widths) -> list[Group]:
    """The groups whose units have to be ranked to get from `before` to `after`, in the units that are ranked."""
    by_name = {group.name: group for group in groups}
    wanted = []
    for group in by_name.values():
        if (
            group.kind == HIDDEN
            and after.hidden_size != before.hidden_size
            or group.kind == MLP
            and after.intermediate_size != before.intermediate_size
        ):
            wanted.append(group)
        elif group.kind == HEADS and _ranks_heads(before, after):
            wanted.append(attention_units(group, by_name[f"layers.{group.layer}.{KV_HEADS}"], HEADS))
        elif group.kind == KV_HEADS and before.grouped and after.num_key_value_heads != before.num_key_value_heads:
            wanted.append(attention_units(by_name[f"layers.{group.layer}.{HEADS}"], group, KV_HEADS))
    return wanted


def _ranks_heads(before: Widths, after: Widths) -> bool:
    if before.grouped:
        return after.heads_per_group != before.heads_per_group
    return after.num_attention_heads != before.num_attention_heads


def choose(
    groups: Iterable[Group], scores: "Mapping[str, torch.Tensor]", before: Widths, after: Widths
) -> dict[str, list[int]]:
    """{group name: indices of the units that stay}: the highest scores, at equal scores the first.

    Query heads stay in equal number in every kv group that stays, so each finds its keys again.
    """
    kept: dict[str, list[int]] = {}
    for group in groups:
        if group.kind in (HIDDEN, MLP):
            width = after.hidden_size if group.kind == HIDDEN else after.intermediate_size
            kept[group.name] = _highest(scores.get(group.name), group.units, width)
        elif group.kind == KV_HEADS:
            heads = f"layers.{group.layer}.{HEADS}"
            if before.grouped:
                kept[group.name] = _highest(scores.get(group.name), group.units, after.num_key_value_heads)
                kept[heads] = _heads_in(kept[group.name], scores.get(heads), before, after)
            else:
                kept[group.name] = _highest(scores.get(heads), group.units, after.num_attention_heads)
                kept[heads] = kept[group.name]
    return kept


def _heads_in(kv_heads: list[int], scores, before: Widths, after: Widths) -> list[int]:
    size, heads = before.heads_per_group, []
    for kv in kv_heads:
        own = None if scores is None else scores[kv * size : (kv + 1) * size]
        heads += [kv * size + head for head in _highest(own, size, after.heads_per_group)]
    return heads


def _highest(scores, units: int, count: int) -> list[int]:
    if count == units:
        return list(range(units))
    return scores.argsort(descending=True, stable=True)[:count].sort().values.tolist()


def check_replay(plan: Plan, config, groups: Iterable[Group]) -> None:
    """PlanError unless `plan` was made for a model of this shape and names units that such a model has."""
    widths = widths_of(config)
    if (plan.model_type, plan.num_hidden_layers) != (config.model_type, config.num_hidden_layers):
        raise PlanError(
            f"the plan is for {plan.model_type} with {plan.num_hidden_layers} layers, "
            f"this model is {config.model_type} with {config.num_hidden_layers}"
        )
    for name, width in plan.before.asdict().items():
        if getattr(widths, name) != width:
            raise PlanError(f"the plan is for {name}={width}, this model has {getattr(widths, name)}")
    groups = {group.name: group for group in groups}
    if set(plan.kept) != set(groups):
        raise PlanError(f"the plan's groups are not this model's: {sorted(set(plan.kept) ^ set(groups))[:3]}")
    count = {
        HIDDEN: plan.after.hidden_size,
        HEADS: plan.after.num_attention_heads,
        KV_HEADS: plan.after.num_key_value_heads,
        MLP: plan.after.intermediate_size,
    }
    for name, kept in plan.kept.items():
        legal = all(type(unit) is int and 0 <= unit < groups[name].units for unit in kept)
        if not legal or kept != sorted(set(kept)) or len(kept) != count[groups[name].kind]:
            raise PlanError(
                f"the plan's {name} is not {count[groups[name].kind]} ascending units of {groups[name].units}"
            )
    size, smaller = plan.before.heads_per_group, plan.after.heads_per_group
    for name, group in groups.items():
        if group.kind == HEADS:
            kv_heads = plan.kept[f"layers.{group.layer}.{KV_HEADS}"]
            if [head // size for head in plan.kept[name]] != [kv for kv in kv_heads for _ in range(smaller)]:
                raise PlanError(f"the plan's {name} does not keep {smaller} query heads in each kv head it keeps")
