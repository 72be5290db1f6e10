"""The vocabulary of a model and its configuration cut to the tokens that stay, and the plan that says so.

It is cut before anything else: what follows sees a dense model of fewer tokens, which gives the logits of the dense
model at the tokens that stay.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from llm_pruner.model.axes import VOCAB, Layers, Widths
from llm_pruner.model.groups import Group, Member, group_name
from llm_pruner.model.skeleton import meta_model
from llm_pruner.model.surgery import cut
from llm_pruner.shape.counter import ParameterCounter
from llm_pruner.shape.plan import Plan
from llm_pruner.vocabulary.ids import renumbered

# what chose the units of a plan in which nothing but tokens goes
COUNTS = "token counts"


def vocabulary_group(model: Any) -> Group:
    """Return the group of the tokens: rows of the embeddings and of lm_head, which may be one tensor.

    Args:
        model: A causal language model; the meta device will do.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = {names[id(embeddings.weight)]: "embedding"}
    if head is not None:
        found.setdefault(names[id(head.weight)], "linear")
        if getattr(head, "bias", None) is not None:
            found[names[id(head.bias)]] = "bias"
    members = tuple(Member(name, 0, role) for name, role in found.items())
    return Group(group_name(VOCAB), VOCAB, None, embeddings.weight.shape[0], members)


@dataclass(frozen=True)
class VocabularyCut:
    """Which tokens of a model stay.

    Attributes:
        dense: The configuration of the model.
        ids: The tokens that stay, ascending; the new id of each is its place.
    """

    dense: Any
    ids: tuple[int, ...]

    @cached_property
    def new(self) -> dict[int, int]:
        """{old id: new id}."""
        return {old: place for place, old in enumerate(self.ids)}

    @cached_property
    def changes(self) -> dict[str, Any]:
        """What changes in the configuration: the number of tokens, and the ids of special ones."""
        return {VOCAB.field: len(self.ids), **renumbered(self.dense.to_dict(), self.new)}

    @cached_property
    def config(self) -> Any:
        """The configuration of the model of fewer tokens."""
        config = copy.deepcopy(self.dense)
        for name, value in self.changes.items():
            setattr(config, name, value)
        return config

    @cached_property
    def removed(self) -> tuple[int, int]:
        """How many parameters go, and how many bytes they have."""
        model = meta_model(self.dense)
        group = vocabulary_group(model)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        counter = ParameterCounter(shapes, (group,), Widths({VOCAB: group.units}), 1)
        number = round(counter.total(counter.full) - counter.total(counter.everywhere(Widths({VOCAB: len(self.ids)}))))
        return number, number * model.get_input_embeddings().weight.element_size()

    @property
    def digest(self) -> str:
        """What tells these tokens from others of the same model."""
        return hashlib.sha256(repr(self.ids).encode()).hexdigest()[:16]

    @property
    def share(self) -> float:
        """Which share of the tokens goes."""
        return 1 - len(self.ids) / self.dense.vocab_size

    def applied(self, model: Any) -> Any:
        """Return the model of fewer tokens.

        Args:
            model: The dense model, which gives up its tensors.
        """
        config = copy.deepcopy(self.config)
        config.dtype, config._attn_implementation = model.dtype, model.config._attn_implementation
        group = vocabulary_group(model)
        narrow = cut(model, [group], {group.name: list(self.ids)}, config)
        generation = narrow.generation_config
        for name, value in renumbered(generation.to_dict(), self.new).items() if generation is not None else ():
            setattr(generation, name, value)
        return narrow

    def told(self, plan: Plan) -> Plan:
        """Return the plan of the dense model.

        Args:
            plan: What is done to the model of fewer tokens.
        """
        parameters, size = self.removed
        is_copy = set(plan.after) == {plan.before} and not plan.layers
        return replace(
            plan,
            before=plan.before.but({VOCAB: self.dense.vocab_size}),
            after=tuple(layer.but({VOCAB: len(self.ids)}) for layer in plan.after),
            parameters_before=plan.parameters_before + parameters,
            bytes_before=plan.bytes_before + size,
            config={**self.changes, **plan.config},
            importance=COUNTS if is_copy else plan.importance,
            kept=None if plan.kept is None else {**plan.kept, group_name(VOCAB): list(self.ids)},
        )


def tokens_of(plan: Plan) -> tuple[int, ...] | None:
    """Return the tokens that a plan keeps; None where it says nothing about them."""
    return tuple(plan.units[group_name(VOCAB)]) if VOCAB in plan.before else None


def without_tokens(plan: Plan) -> Plan:
    """Return the plan of the model of fewer tokens, without what `VocabularyCut.told` added.

    Args:
        plan: The plan of the dense model.
    """
    if VOCAB not in plan.before:
        return plan
    before, *after = _without(plan.before, *plan.after)
    kept = {name: units for name, units in plan.units.items() if name != group_name(VOCAB)}
    return replace(plan, before=before, after=tuple(after), kept=kept)


def _without(*layers: Widths) -> Layers:
    return tuple(Widths({axis: number for axis, number in layer.items() if axis != VOCAB}) for layer in layers)


def matching_tokens(own: Any, other: Any) -> list[int] | None:
    """Return the id that each token of a tokenizer has in another one; None where that lacks one.

    Args:
        own: The tokenizer.
        other: The other one, such as that of the model whose vocabulary was cut.
    """
    there = other.get_vocab()
    found = [there.get(token) for token, _ in sorted(own.get_vocab().items(), key=lambda item: item[1])]
    known: Sequence[int] = [number for number in found if number is not None]
    return list(known) if len(known) == len(found) else None
