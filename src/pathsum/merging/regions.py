"""Where a graph is linear: chains of layers, with additions of parallel chains in them, and units linear in part."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .maps import Map, NotExact, compose, dilated, identity, per_channel
from .program import channel_axis


@dataclass(frozen=True, eq=False)
class Layer:
    """An affine layer: a convolution, a linear layer, a BatchNorm; `nodes` holds a BatchNorm made part of it."""

    nodes: tuple[fx.Node, ...]
    names: tuple[str, ...]
    map: Map
    rows: int  # samples, or samples × tokens
    view: bool = False  # a slice, padding, or product with a number: no layer with weights
    norm: bool = False  # goes into the layer before it


@dataclass(frozen=True, eq=False)
class Bend:
    """A unit some of whose channels are linear."""

    node: fx.Node
    linear: Tensor  # which of the channels
    features: bool  # the channels are the last axis
    numel: int


@dataclass(frozen=True, eq=False)
class Sum:
    """An addition of chains that start at one tensor; an empty chain is the identity."""

    node: fx.Node
    parts: tuple[list[Item], ...]
    channels: int
    size: tuple[int, ...]  # positions of what the chains read
    linear: bool
    numel: int


Item = Layer | Bend | Sum


@dataclass(frozen=True, eq=False)
class Region:
    """A maximal chain: what it reads, its items in order, and the node that ends it."""

    source: fx.Node
    items: list[Item]
    end: fx.Node


@dataclass
class Reader:
    """Finds the regions of one graph."""

    net: fx.GraphModule
    fold_norms: bool = True
    kept: frozenset[str] = frozenset()  # layers that are to stay as they are
    seen: dict[fx.Node, tuple[fx.Node, list[Item], int]] = field(default_factory=dict)

    def regions(self) -> list[Region]:
        """All of them, the last one first."""
        for node in self.net.graph.nodes:  # in order, so that no recursion is deep
            self.chain(node)
        found: list[Region] = []
        inside: set[fx.Node] = set()
        for node in reversed(list(self.net.graph.nodes)):
            if node in inside:
                continue
            source, items, _ = self.chain(node)
            if items:
                inside |= set(nodes_of(items))
                found.append(Region(source, items, node))
        return found

    def chain(self, node: fx.Node) -> tuple[fx.Node, list[Item], int]:
        """What leads to this tensor: the tensor it starts from, the items, how many readers of the start are inside."""
        if node not in self.seen:
            self.seen[node] = self.find(node)
        return self.seen[node]

    def before(self, node: fx.Node) -> tuple[fx.Node, list[Item], int]:
        """The chain to a tensor, from the view of one of its readers."""
        if len(node.users) > 1:
            return node, [], 1
        source, items, count = self.chain(node)
        return (source, items, count) if items else (node, [], 1)

    def find(self, node: fx.Node) -> tuple[fx.Node, list[Item], int]:
        single = self.layer(node) or bend_of(node)
        if single is not None:
            source, items, count = self.before(node.args[0])  # type: ignore[arg-type]
            return source, self.joined(items, single), count
        sides = summands(node)
        if sides is not None:
            (a, first, m), (b, second, n) = self.before(sides[0]), self.before(sides[1])
            linear = same_kind([*first, *second])
            if a is b and linear is not None and "shape" in a.meta:
                shape: tuple[int, ...] = a.meta["shape"]
                size = (1,) if linear else shape[2:]
                channels = shape[-1 if linear else 1]
                item = Sum(node, (first, second), channels, size, linear, _numel(node.meta["shape"]))
                if len(a.users) == m + n:
                    source, items, count = self.chain(a)
                    if items:
                        return source, [*items, item], count
                return a, [item], m + n
        return node, [], 1

    def joined(self, items: list[Item], item: Item) -> list[Item]:
        """One item more; a BatchNorm goes into the layer before it."""
        last = items[-1] if items else None
        folds = self.fold_norms and isinstance(item, Layer) and item.norm and isinstance(last, Layer)
        if not folds or last.view or last.norm or self.kept & {*last.names, *item.names}:  # type: ignore[union-attr]
            return [*items, item]
        assert isinstance(last, Layer)
        assert isinstance(item, Layer)
        try:
            made = compose(last.map, item.map)
        except NotExact:
            return [*items, item]
        return [*items[:-1], Layer((*last.nodes, *item.nodes), (*last.names, *item.names), made, last.rows)]

    def layer(self, node: fx.Node) -> Layer | None:
        """The node as an affine layer, if it is one."""
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or "shape" not in source.meta or "shape" not in node.meta:
            return None
        shape: tuple[int, ...] = source.meta["shape"]
        if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
            module = self.net.get_submodule(str(node.target))
            if module._forward_hooks or module._forward_pre_hooks:
                return None
            made, norm = map_of(module, shape), isinstance(module, _BatchNorm)
            if made is not None:
                rows = _numel(shape) // shape[-1] if made.linear else shape[0]
                return Layer((node,), (str(node.target),), made, rows, norm=norm)
        made = scaling_of(node, shape)
        if made is not None:
            return Layer(
                (node,), (node.name,), made, _numel(shape) // shape[-1] if made.linear else shape[0], True, True
            )
        made = view_of(node, shape)
        return None if made is None else Layer((node,), (node.name,), made, shape[0], view=True)


def map_of(module: nn.Module, shape: tuple[int, ...]) -> Map | None:
    """A layer of torch as a map, if it is one on inputs of this shape."""
    with torch.no_grad():
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            bias = None if module.bias is None else module.bias.double()
            return Map(module.weight.double().unsqueeze(-1), bias, (1,), (0,), 1, (1,), linear=True)
        if isinstance(module, _BatchNorm) and not module.training and module.running_mean is not None:
            mean, var = module.running_mean.double(), module.running_var.double()  # type: ignore[union-attr]
            scale = (var + module.eps).rsqrt() * (1.0 if module.weight is None else module.weight.double())
            shift = -mean * scale + (0.0 if module.bias is None else module.bias.double())
            flat = len(shape) == 2
            return per_channel(scale, shift, (1,) if flat else shape[2:], linear=flat)
        if not isinstance(module, _ConvNd) or module.transposed or module.padding_mode != "zeros":
            return None
        if type(module).forward not in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward):
            return None
        size = shape[2:]
        padding: Any = module.padding
        if isinstance(padding, str):
            spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
            if padding == "same" and any(span % 2 for span in spans):
                return None  # more on one side than on the other
            padding = tuple(span // 2 if padding == "same" else 0 for span in spans)
        if len(size) != len(padding):
            return None
        weight = dilated(module.weight.double(), module.dilation)
        own = None if module.bias is None else module.bias.double()
        return Map(weight, own, tuple(module.stride), tuple(padding), module.groups, size)


def scaling_of(node: fx.Node, shape: tuple[int, ...]) -> Map | None:
    """A product with a number; of three axes the last is taken for the channels."""
    if node.op != "call_function" or node.target not in (operator.mul, torch.mul) or node.kwargs or len(shape) < 2:
        return None
    number = node.args[1] if len(node.args) == 2 else None
    if not isinstance(number, int | float):
        return None
    linear = len(shape) <= 3
    made = identity(shape[-1 if linear else 1], (1,) if linear else shape[2:], linear=linear)
    return replace(made, weight=made.weight * number)


def view_of(node: fx.Node, shape: tuple[int, ...]) -> Map | None:
    """Every s-th position, or zero channels more (the shortcut of option A), as a convolution with a 1×1 kernel."""
    if node.op != "call_function" or len(shape) not in (3, 4, 5) or len(node.args) < 2:
        return None
    one = identity(shape[1], shape[2:], linear=False)
    if node.target is operator.getitem and isinstance(node.args[1], tuple) and len(node.args[1]) == len(shape):
        cuts = node.args[1]
        if not all(isinstance(c, slice) and c.start is None and c.stop is None for c in cuts):
            return None
        steps = [c.step or 1 for c in cuts]  # type: ignore[union-attr]
        if steps[:2] != [1, 1] or not all(isinstance(s, int) and s > 0 for s in steps):
            return None
        return Map(one.weight, None, tuple(steps[2:]), one.padding, one.groups, one.size)
    if node.target is F.pad:
        pads: Any
        mode: Any
        value: Any
        pads, mode, value = (*node.args[1:], *("constant", None)[len(node.args) - 2 :])[:3]
        mode, value = node.kwargs.get("mode", mode), node.kwargs.get("value", value)
        plain = isinstance(pads, tuple | list) and all(isinstance(p, int) and p >= 0 for p in pads)
        dims = len(shape) - 2
        if not plain or mode != "constant" or value not in (None, 0) or len(pads) != 2 * (dims + 1):
            return None
        if any(pads[: 2 * dims]):
            return None
        before, after = pads[-2:]
        eye = torch.eye(shape[1], dtype=torch.float64).view(shape[1], shape[1], *(1,) * dims)
        return Map(F.pad(eye, (*(0,) * (2 * dims + 2), before, after)), None, one.stride, one.padding, 1, one.size)
    return None


def bend_of(node: fx.Node) -> Bend | None:
    """The node as a unit that is linear in part, where its channels are those of a layer."""
    alpha, shape = node.meta.get("alpha"), node.meta.get("shape")
    if (
        alpha is None
        or shape is None
        or not node.args
        or not bool((alpha == 1).any())
        or alpha.ndim != 1
        or len(node.args) > 1
    ):
        return None
    if node.meta["kind"] in ("prelu", "rrelu"):  # slopes of its own, one a channel
        return None
    return Bend(node, alpha == 1, channel_axis(shape) == len(shape) - 1, _numel(shape))


def summands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors of one shape that this node adds."""
    function = node.op == "call_function" and node.target in (operator.add, torch.add)
    if not (function or (node.op == "call_method" and node.target == "add")) or node.kwargs or len(node.args) != 2:
        return None
    a, b = node.args
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a is b:
        return None
    same = "shape" in a.meta and a.meta.get("shape") == b.meta.get("shape") == node.meta.get("shape")
    return (a, b) if same else None


def same_kind(items: list[Item]) -> bool | None:
    """Whether all are maps of features (True), or of channels at positions (False); None if some are neither."""
    kinds = {i.map.linear if isinstance(i, Layer) else i.linear for i in items if isinstance(i, Layer | Sum)}
    return kinds.pop() if len(kinds) == 1 else None


def nodes_of(items: list[Item]) -> list[fx.Node]:
    found: list[fx.Node] = []
    for item in items:
        found += item.nodes if isinstance(item, Layer) else (item.node,)
        if isinstance(item, Sum):
            found += [n for part in item.parts for n in nodes_of(part)]
    return found


def names_of(items: list[Item]) -> list[str]:
    """The layers in these, by name."""
    found: list[str] = []
    for item in items:
        if isinstance(item, Layer):
            found += item.names
        elif isinstance(item, Sum):
            found += [n for part in item.parts for n in names_of(part)]
    return found


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
