"""Which parameter axes are coupled, found with torch-pruning's dependency graph. No other file knows it.

    model (meta, CPU or GPU; only names and shapes are read)
      → its tracing proxy
      → DependencyGraph → coupled (module, side) with positions, in proxy widths
      → Groups in the model's widths

The structure does not depend on the widths, the cost of a dependency graph does, so the graph is made
of a tracing proxy (proxy.py), whose attention leaves out RoPE and softmax: their index mappings do not settle.
The proxy has one kv head per query head; the coupling is the same, read in kv heads where there are groups.
"""

import contextlib
import gc
import re
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch_pruning import _helpers
from torch_pruning.dependency import DependencyGraph
from torch_pruning.dependency.node import Node
from transformers.pytorch_utils import Conv1D

from llm_pruner.errors import PlanError, RunError
from llm_pruner.model.axes import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYER, MLP, Axis
from llm_pruner.model.families import Family, family_of, widths_of
from llm_pruner.model.groups import Group, Member, group_name
from llm_pruner.model.proxy import PROXY, build_proxy, conv1d_to_linear, replace_attention


@dataclass(frozen=True)
class _Side:
    """The output or input side of a module of the proxy, or a bare parameter, with its (position, unit) pairs."""

    target: nn.Module | nn.Parameter
    out: bool
    pairs: tuple[tuple[int, int], ...]


def trace_groups(model: Any, time_limit: float = 120.0) -> list[Group]:
    """Find the groups of a model.

    Args:
        model: A causal language model of transformers; the meta device will do.
        time_limit: Seconds after which tracing gives up, in the main thread.

    Returns:
        `hidden`, then for each layer `layers.N.heads`, `layers.N.kv_heads` and `layers.N.mlp`, then those of axes that
        have a trace of their own.

    Raises:
        PlanError: The family is not supported, or the model is not as the family's tracing proxy says.
        RunError: Tracing takes longer than `time_limit`; the message names the module.
    """
    family = family_of(model.config.model_type)
    proxy = build_proxy(model.config)
    names = {module: name for name, module in proxy.named_modules()}
    attention = replace_attention(proxy, family)
    conv1d_to_linear(proxy)
    with _time_limit(time_limit, names), _no_garbage_collection():
        graph = _dependency_graph(proxy)
        hidden = _coupled(graph, proxy.get_input_embeddings(), True, PROXY[HIDDEN])
        heads = [_coupled(graph, parts["out"], False, PROXY[HIDDEN]) for parts in attention.values()]
        # what reads neither the residual stream nor the heads reads the neurons of an MLP
        known = {side.target for side in hidden if not side.out} | {parts["out"] for parts in attention.values()}
        neurons = [
            _coupled(graph, module, False, module.in_features)
            for module in graph.module2node
            if isinstance(module, nn.Linear) and module not in known
        ]
    return _Scale(model, proxy, family, attention).groups(hidden, heads, neurons)


def _dependency_graph(proxy: Any) -> DependencyGraph:
    graph = DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad():
        # the norms' weights are found as "unwrapped": that is what is wanted
        warnings.simplefilter("ignore")
        return graph.build_dependency(
            proxy,
            example_inputs={"input_ids": torch.zeros(1, 2, dtype=torch.long), "use_cache": False},
            output_transform=lambda output: output.logits,
            verbose=False,
        )


def _coupled(graph: DependencyGraph, module: nn.Module, out: bool, units: int) -> list[_Side]:
    """Everything that loses a position when a unit of one side of `module` goes.

    One walk along the graph's edges and index mappings: linear in the edges. (`get_pruning_group` renews all
    mappings for each group and compares all pairs, which is quadratic in the layers.)
    """
    pruner = graph.get_pruner_of_module(module)
    handler = pruner.prune_out_channels if out else pruner.prune_in_channels
    pending = [(graph.module2node[module], handler, [_helpers._HybridIndex(i, i) for i in range(units)])]
    found: dict[tuple, set[tuple[int, int]]] = {}
    while pending:
        node, handler, indices = pending.pop()
        key = (node, graph.is_out_channel_pruning_fn(handler))
        pairs = {(index.idx, index.root_idx) for index in indices}
        known = found.setdefault(key, set())
        if pairs <= known:
            continue
        known |= pairs
        for dependency in node.dependencies:
            if dependency.is_triggered_by(handler):
                mapped = indices
                for mapping in dependency.index_mapping:
                    if mapping is not None:
                        mapped = mapping(mapped)
                if mapped:
                    pending.append((dependency.target, dependency.handler, mapped))
    owners = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.Parameter)
    return [
        _Side(node.module, out, tuple(sorted(found[node, out])))
        for node, out in found
        if isinstance(node.module, owners)
    ]


class _Scale:
    """From the proxy's sides and positions to the model's parameters and widths."""

    def __init__(self, model: Any, proxy: Any, family: Family, attention: dict[str, dict[str, nn.Module]]) -> None:
        self.family = family
        self.model, self.config = model, model.config
        self.widths = widths_of(model.config)
        self.modules = dict(model.named_modules())
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
        self.order = {name: index for index, name in enumerate(self.shapes)}
        first: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            first.setdefault(id(parameter), name)
        self.canonical = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
        self.names = {module: name for name, module in proxy.named_modules()}
        self.names |= {parameter: name for name, parameter in proxy.named_parameters()}
        self.projections: dict[Any, tuple[str, str]] = {
            module: (f"{name}.{family.out if part == 'out' else family.qkv['qkv'.index(part) % len(family.qkv)]}", part)
            for name, parts in attention.items()
            for part, module in parts.items()
        }

    def groups(self, hidden: list[_Side], heads: list[list[_Side]], neurons: list[list[_Side]]) -> list[Group]:
        w = self.widths
        members = [m for side in hidden for m in self.members(side, PROXY[HIDDEN], w[HIDDEN])]
        groups = [self.group(HIDDEN, None, members)]
        by_layer: dict[int, list[Group]] = {}
        for sides in heads:
            parts = [(m, self.projections[s.target][1]) for s in sides for m in self.attention_members(s)]
            layer = _layer(member.parameter for member, _ in parts)
            for axis, own in ((HEADS, ("q", "out")), (KV_HEADS, ("k", "v"))):
                traced = self.group(axis, layer, (member for member, part in parts if part in own))
                by_layer.setdefault(layer, []).append(traced)
        for sides in neurons:
            members = [m for s in sides for m in self.members(s, PROXY[MLP], w[MLP])]
            layer = _layer(member.parameter for member in members)
            by_layer.setdefault(layer, []).append(self.group(MLP, layer, members))
        coupled = [axis for axis in w.prunable if axis.scope == LAYER and axis.trace is None]
        for layer in sorted(by_layer):
            axes = [group.axis for group in by_layer[layer]]
            if axes != coupled:
                found = ", ".join(map(str, axes))
                raise PlanError(f"layer {layer} is not one attention block and one MLP: found {found}")
            groups += by_layer[layer]
        if len(by_layer) != self.config.num_hidden_layers:
            raise PlanError(f"traced {len(by_layer)} layers of {self.config.num_hidden_layers}")
        groups += [group for axis in self.family.axes if axis.trace for group in axis.trace(self.model)]
        self.check(groups)
        return groups

    def group(self, axis: Axis, layer: int | None, members: Iterable[Member]) -> Group:
        """Return the group of an axis."""
        return Group(group_name(axis, layer), axis, layer, self.widths[axis], self.ordered(members))

    def attention_members(self, side: _Side) -> Iterator[Member]:
        """Return the members in heads, from the layout that the family declares for its projections."""
        name, part = self.projections[side.target]
        if any(position != unit for position, unit in side.pairs) or len(side.pairs) != PROXY[HIDDEN]:
            raise PlanError(f"{name}: the trace does not couple its heads one to one")
        head_dim = self.widths[HEAD_DIM]
        start, stride = 0, head_dim
        if self.family.qkv_layout == "per_head" and part != "out":
            start, stride = "qkv".index(part) * head_dim, 3 * head_dim
        elif self.family.qkv_layout == "concatenated" and part in "kv":
            heads = self.widths[HEADS] + (part == "v") * self.widths[KV_HEADS]
            start = heads * head_dim
        for parameter, axis, role in self.parameters(name, side.target, out=part != "out"):
            yield Member(parameter, axis, role, start, stride, head_dim, reads=part == "out")

    def members(self, side: _Side, proxy_units: int, units: int) -> Iterator[Member]:
        """Return the members in channels: a side holds the units once, or several times in a row (gate_up)."""
        name = self.projections[side.target][0] if side.target in self.projections else self.names[side.target]
        pieces = sorted({position // proxy_units for position, _ in side.pairs})
        if set(side.pairs) != {(piece * proxy_units + unit, unit) for piece in pieces for unit in range(proxy_units)}:
            raise PlanError(f"{name}: the trace does not couple its channels one to one")
        for parameter, axis, role in self.parameters(name, side.target, side.out):
            for piece in pieces:
                yield Member(parameter, axis, role, start=piece * units, reads=role == "linear" and not side.out)

    def parameters(self, name: str, target: Any, out: bool) -> Iterator[tuple[str, int, str]]:
        """Return (parameter, axis, role) of one side of the model's module, or of the parameter, called `name`."""
        # a norm's weight that torch-pruning knows no module for
        if isinstance(target, nn.Parameter):
            yield self.existing(name), 0, "rmsnorm"
            return
        weight = self.existing(f"{name}.weight")
        if isinstance(target, nn.Linear):
            transposed = isinstance(self.modules.get(name), Conv1D)
            yield weight, int(out == transposed), "linear"
            if out and f"{name}.bias" in self.shapes:
                yield self.existing(f"{name}.bias"), 0, "bias"
        elif isinstance(target, nn.Embedding):
            yield weight, 1, "embedding"
        else:
            yield weight, 0, "layernorm"
            if f"{name}.bias" in self.shapes:
                yield self.existing(f"{name}.bias"), 0, "bias"

    def ordered(self, members: Iterable[Member]) -> tuple[Member, ...]:
        """Return each member once (a tied tensor is reached twice), in the order of the model's parameters."""
        return tuple(sorted(set(members), key=lambda m: (self.order[m.parameter], m.dim, m.role, m.start)))

    def existing(self, name: str) -> str:
        if name not in self.canonical:
            raise PlanError(f"{name} is in the traced {self.config.model_type} and not in this model")
        return self.canonical[name]

    def check(self, groups: list[Group]) -> None:
        """Check that every traced axis of every parameter is owned completely, each position once."""
        owned: dict[tuple[str, int], int] = {}
        seen = set()
        for group in groups:
            for m in group.members:
                # a tied tensor is in the residual stream twice
                if (m.parameter, m.dim, m.start) not in seen:
                    seen.add((m.parameter, m.dim, m.start))
                    owned[m.parameter, m.dim] = owned.get((m.parameter, m.dim), 0) + group.units * m.width
        for (parameter, axis), positions in owned.items():
            length = self.shapes[parameter][axis]
            if positions != length:
                raise PlanError(f"{parameter}: axis {axis} has {length} positions, the trace accounts for {positions}")


def _layer(parameters: Iterable[str]) -> int:
    layers = {int(match[1]) for match in (re.search(r"\.(\d+)\.", name) for name in parameters) if match}
    if len(layers) != 1:
        raise PlanError(f"a traced group does not belong to one layer: {sorted(layers)}")
    return layers.pop()


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """The graph grows to many small objects that all stay: scanning them over and over would cost layers²."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _time_limit(seconds: float, names: dict) -> Iterator[None]:
    """Raises RunError in this thread after `seconds`, with the module the trace was at."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            for local in frame.f_locals.values():
                module = local.module if isinstance(local, Node) else local
                if isinstance(module, nn.Module) and names.get(module):
                    raise RunError(f"tracing did not end within {seconds:g} s; it was at {names[module]}")
            frame = frame.f_back
        raise RunError(f"tracing did not end within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
