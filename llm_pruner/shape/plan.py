"""The plan: which units stay and what the configuration becomes. Plain data; nothing here changes a model."""

import copy
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from llm_pruner.config.options import MOST_SEED
from llm_pruner.config.prune import MOST_LAYERS, MOST_WIDTH
from llm_pruner.console import aligned
from llm_pruner.errors import PlanError, RunError, UsageError, shown
from llm_pruner.files import read_json, write_text
from llm_pruner.model.families import Layers, Widths, family_of, resize, widths_of
from llm_pruner.model.groups import (
    FIELD,
    HEADS,
    HIDDEN,
    MLP,
    Group,
    reader,
)
from llm_pruner.validation import (
    Rule,
    check,
    fields,
    filled,
    list_of,
    mapping,
    maybe,
    one_of,
    text,
    whole,
)

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
        try:
            write_text(Path(path), json.dumps({"format": FORMAT, **asdict(self)}) + "\n")
        except OSError as error:
            raise RunError(f"the plan cannot be written to {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Reads what `save` wrote. UsageError, with the field, when the file is not such a plan."""
        where = f"--plan {path}"
        data = read_json(Path(path).expanduser(), "--plan", unique=True)
        if not isinstance(data, dict) or not {"format", "kept"} <= set(data):
            raise UsageError(f"{where} is not a plan of this program")
        if data.pop("format") != FORMAT:
            raise UsageError(f"{where} has another format than {FORMAT}; make it anew")
        if unknown := set(data) - set(SCHEMA):
            raise UsageError(f"{where} has the unknown field {shown(min(unknown))}; make it anew")
        check(data, SCHEMA, where, required=REQUIRED)
        before, after = Widths(**data["before"]), tuple(Widths(**layer) for layer in data["after"])
        plan = cls(**data | {"before": before, "after": after})
        plan._check(where)
        return plan

    def _check(self, where: str) -> None:
        """UsageError for fields that contradict each other. Whether they fit a model is for `check_replay`."""
        if self.layers is not None:
            raise UsageError(f"{where}: layers: {shown(self.layers)} must be null: whole layers are not replayed")
        for index, layer in enumerate(self.after):
            for name, width in layer.asdict().items():
                if width > getattr(self.before, name):
                    raise UsageError(f"{where}: layer {index} keeps {width} of {getattr(self.before, name)} {name}")
            if layer.num_attention_heads % layer.num_key_value_heads:
                raise UsageError(f"{where}: layer {index} has query heads that do not go evenly into its kv heads")
        if self.before.num_attention_heads % self.before.num_key_value_heads:
            raise UsageError(f"{where}: before: its query heads do not go evenly into its kv heads")
        for name, units in self.kept.items():
            layer, _, kind = name.removeprefix("layers.").rpartition(".")
            known = kind in FIELD and (layer.isdecimal() and len(layer) < 6 if kind != HIDDEN else name == HIDDEN)
            if not known or int(layer or 0) >= len(self.after):
                raise UsageError(f"{where}: kept: {shown(name)} is no group of {len(self.after)} layers")
            count = getattr(self.after[int(layer or 0)], FIELD[kind])
            if any(low >= high for low, high in itertools.pairwise(units)) or len(units) != count:
                raise UsageError(f"{where}: kept: {name} must be {count} ascending units, not {shown(units)}")
            if units[-1] >= getattr(self.before, FIELD[kind]):
                raise UsageError(f"{where}: kept: {name}: there is no unit {units[-1]}")


WIDTH = whole(1, MOST_WIDTH)
WIDTHS = fields(dict.fromkeys(Widths.__dataclass_fields__, WIDTH), tuple(Widths.__dataclass_fields__), others=False)
COUNT = whole(1, 2**62)


def _kept(value) -> str | None:
    if not isinstance(value, dict):
        return "the kept units of each group"
    wrong = [units for units in value.values() if filled(whole(0, MOST_WIDTH))(units)]
    return f"the kept units of each group, not {shown(wrong[0])}" if wrong else None


SCHEMA: dict[str, Rule] = {
    "model_type": text,
    "before": WIDTHS,
    "after": filled(WIDTHS),
    **dict.fromkeys(("parameters_before", "parameters_after", "decoder_before", "decoder_after"), COUNT),
    **dict.fromkeys(("bytes_before", "bytes_after"), COUNT),
    "config": mapping,
    "importance": text,
    "seed": whole(0, MOST_SEED),
    "calibration": maybe(fields({"data": text, "nsamples": maybe(COUNT), "seq_len": maybe(COUNT)})),
    "compensate": one_of(COMPENSATE),
    "layers": maybe(list_of(whole(0, MOST_LAYERS))),
    "num_layers_before": maybe(whole(1, MOST_LAYERS)),
    "kept": _kept,
}
REQUIRED = tuple(name for name in SCHEMA if name not in ("config", "calibration", "layers", "num_layers_before"))


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
    from llm_pruner.model.per_layer import per_layer_config

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
