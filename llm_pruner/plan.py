"""The plan: which units stay and what the configuration becomes. Plain data; nothing here changes a model."""

import copy
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from llm_pruner.architectures import Layers, Widths, family_of, resize, widths_of
from llm_pruner.errors import PlanError, RunError, UsageError
from llm_pruner.groups import FIELD, HEADS, HIDDEN, MLP, Group, reader
from llm_pruner.console import aligned

FORMAT = 2
COMPENSATE = ("none", "bias")


@dataclass(frozen=True)
class Plan:
    """What pruning will do to a model of `model_type` whose widths are `before`.

    after: the widths of every decoder layer. kept: {group name: sorted indices of the units that stay}, or None
    while nothing is scored. parameters_*: exact counts, tied tensors once; decoder_*: those of attention and MLP,
    i.e. of all tensors that heads or neurons run through; bytes_*: all, in the checkpoint's dtype.
    config: what changes in the model's configuration. importance, seed, calibration: how `kept` was chosen, on which
    text. compensate: what makes up for what goes. layers, num_layers_before: those of the model that stay, of how many;
    None where all do.
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
    config: dict = field(default_factory=dict)
    importance: str | None = None
    seed: int | None = None
    calibration: dict | None = None
    compensate: str = "none"
    layers: list[int] | None = None
    num_layers_before: int | None = None
    kept: dict[str, list[int]] | None = None

    @property
    def num_hidden_layers(self) -> int:
        return len(self.after)

    def widths_after(self) -> dict[str, int | list[int]]:
        """{name: width}, a list with one for each layer where they differ."""
        every = {name: [getattr(layer, name) for layer in self.after] for name in self.before.asdict()}
        return {name: widths if len(set(widths)) > 1 else widths[0] for name, widths in every.items()}

    def removed(self) -> dict[str, float]:
        """{name: the share of it that goes, over all layers}; `decoder` and `parameters` beside the widths."""
        shares = {}
        for name in FIELD.values():
            shares[name] = 1 - sum(getattr(layer, name) for layer in self.after) / (
                getattr(self.before, name) * len(self.after)
            )
        shares["decoder"] = 1 - self.decoder_after / self.decoder_before
        shares["parameters"] = 1 - self.parameters_after / self.parameters_before
        return shares

    def table(self, requested: Mapping[str, float] | None = None) -> str:
        """Before → after, with what was achieved beside what was asked for (by the names of `removed`)."""
        shares, requested = self.removed(), requested or {}
        rows = [("", "before", "after", "removed", "requested")]

        def row(label, name, before, after, share):
            asked = f"{requested[name]:.4f}" if name in requested else ""
            rows.append((label, f"{before:,}", after, f"{share:.4f}", asked))

        if self.layers is not None:
            number = self.num_layers_before
            row("num_hidden_layers", "layers", number, f"{len(self.layers)}", 1 - len(self.layers) / number)
        for name, width in self.widths_after().items():
            if name in shares:
                span = f"{width:,}" if isinstance(width, int) else f"{min(width):,}–{max(width):,}"
                row(name, name, getattr(self.before, name), span, shares[name])
        row("attention + MLP", "decoder", self.decoder_before, f"{self.decoder_after:,}", shares["decoder"])
        row("parameters", "parameters", self.parameters_before, f"{self.parameters_after:,}", shares["parameters"])
        row("bytes", "bytes", self.bytes_before, f"{self.bytes_after:,}", 1 - self.bytes_after / self.bytes_before)
        return aligned(rows)

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON."""
        data = {"format": FORMAT, **asdict(self)}
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text(json.dumps(data) + "\n", encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise RunError(f"the plan cannot be written to {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Reads what `save` wrote. UsageError when the file is not such a plan."""
        try:
            data = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--plan {path}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"--plan {path} is not JSON: {error}") from error
        try:
            if data.pop("format") != FORMAT:
                raise ValueError(f"it has another format than {FORMAT}")
            data["before"] = Widths(**data["before"])
            data["after"] = tuple(Widths(**layer) for layer in data["after"])
            plan = cls(**data)
            widths = [width for layer in (plan.before, *plan.after) for width in layer.asdict().values()]
            if not plan.after or not all(type(width) is int and width > 0 for width in widths):
                raise ValueError("a width is not a whole number of at least 1")
            if not isinstance(plan.kept, dict) or not all(isinstance(units, list) for units in plan.kept.values()):
                raise ValueError("it does not list the kept units of each group")
            if not isinstance(plan.importance, str) or type(plan.seed) is not int or plan.compensate not in COMPENSATE:
                raise ValueError("it does not say how its units were chosen")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"--plan {path} is not a plan of this program: {error}") from error
        return plan


def make_plan(model, groups: Iterable[Group], after: Layers, biases: bool = False) -> tuple[Plan, object]:
    """The plan without its indices, and the new configuration. `model` may be on the meta device.

    biases: o_proj and down_proj get a bias where they have none.
    PlanError when no class holds the shape, or its parameters are not those that a cut would leave.
    """
    groups = list(groups)
    config, before = model.config, widths_of(model.config)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    expected = shapes_after(shapes, groups, before, after)
    wanted = {bias_of(reader(group).parameter) for group in groups if group.kind in (HEADS, MLP)} if biases else set()
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
        decoder_after=sum(count_after[name] for name in inside),
        bytes_before=sum(number * parameters[name].element_size() for name, number in count.items()),
        bytes_after=sum(number * sizes[name] for name, number in count_after.items()),
        config={name: value for name, value in new.items() if old.get(name) != value},
    )
    return plan, new_config


def prunable(groups: Iterable[Group]) -> set[str]:
    """The parameters of attention and MLP: those that heads or neurons run through."""
    return {member.parameter for group in groups if group.kind != HIDDEN for member in group.members}


def bias_of(weight: str) -> str:
    """The name of the bias beside the weight called `weight`."""
    return weight.removesuffix("weight") + "bias"


def _configured(config, before: Widths, after: Layers, new_biases: set[str], expected: Mapping[str, tuple]):
    """(new config, {parameter: shape} of the model it builds): a stock class where one holds the shape, else one
    whose layers have widths of their own. PlanError when what it builds is not what is `expected`."""
    from llm_pruner.per_layer import per_layer_config

    if len(set(after)) == 1:
        try:
            new_config = resize(config, after[0], biases=bool(new_biases))
            found = _shapes(new_config)
            if new_biases <= set(found):
                return new_config, _check_shapes(new_config, expected, found)
        except PlanError:
            if not new_biases:
                raise
    alike = len(set(after)) == 1  # then only biases are missing
    base = after[0] if alike else replace(before, hidden_size=after[0].hidden_size)
    names = {name: name for name in FIELD.values()}
    names["intermediate_size"] = family_of(config.model_type).intermediate_size
    overrides = [
        {own: getattr(layer, name) for name, own in names.items() if getattr(layer, name) != getattr(base, name)}
        for layer in after
    ]
    modules = sorted({name.split(".", 3)[-1].removesuffix(".bias") for name in new_biases})
    new_config = per_layer_config(resize(config, base), overrides, modules)
    return new_config, _check_shapes(new_config, expected, _shapes(new_config))


def _shapes(config) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in meta_model(config).named_parameters()}


def _check_shapes(config, expected: Mapping[str, tuple], found: dict[str, tuple]) -> dict[str, tuple]:
    wrong = [name for name, shape in expected.items() if found.get(name) != shape]
    wrong += [name for name in found if name not in expected and not name.endswith(".bias")]
    if wrong:
        name, built = wrong[0], config.model_type
        raise PlanError(f"{built} builds {name} as {found.get(name)}, the cut would leave {expected.get(name)}")
    return found


def meta_model(config):
    """A model of `config` without weights, on the meta device, in the dtype that the config names."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # a copy: building a model writes its dtype into the config
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=config.dtype or torch.float32)


def units_after(group: Group, after: Sequence[Widths]) -> int:
    """How many units of the group there are when the layers have the widths `after`."""
    return getattr(after[group.layer or 0], FIELD[group.kind])


def shapes_after(shapes, groups: Iterable[Group], before: Widths, after: Layers) -> dict[str, tuple[int, ...]]:
    """The parameters' shapes when the layers have the widths `after`."""
    result = {name: list(shape) for name, shape in shapes.items()}
    removed = {}
    for group in groups:
        units = group.units - units_after(group, after)
        removed.update({(m.parameter, m.axis, m.start): units * m.width for m in group.members})
    for (parameter, axis, _), positions in removed.items():
        result[parameter][axis] -= positions
    return {name: tuple(shape) for name, shape in result.items()}
