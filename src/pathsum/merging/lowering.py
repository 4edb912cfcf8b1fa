"""The plan written into the graph: plain torch layers, additions, and units with a slope."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from .maps import Map
from .planning import Keep, Merge, Piece, Split
from .regions import Bend, Layer, Region

_RELU_LIKE = ("relu", "leaky_relu")


class Writer:
    """Adds nodes and modules to one graph."""

    def __init__(self, net: fx.GraphModule, dtype: torch.dtype, device: torch.device) -> None:
        self.net, self.graph = net, net.graph
        self.dtype, self.device = dtype, device
        self.count = 0

    def region(self, region: Region, pieces: list[Piece]) -> None:
        """Put the pieces in the place of a region; nothing is done where all of it stays."""
        if not changed(pieces):
            return
        with self.graph.inserting_before(region.end):
            made = self.pieces(region.source, pieces)
        region.end.replace_all_uses_with(made)

    def pieces(self, x: fx.Node, pieces: list[Piece]) -> fx.Node:
        for piece in pieces:
            x = self.piece(x, piece)
        return x

    def piece(self, x: fx.Node, piece: Piece) -> fx.Node:
        if isinstance(piece, Merge):
            return self.map(x, piece.map)
        if isinstance(piece, Split):
            y = self.map(x, piece.into)
            y = self.copy(piece.bend.node, y)
            y.meta["alpha"] = y.meta["alpha"][~piece.bend.linear]
            return self.call(operator.add, self.map(y, piece.out), self.map(x, piece.past))
        item = piece.item
        if isinstance(item, Bend):
            return self.copy(item.node, x)
        if isinstance(item, Layer):
            return self.copy(item.nodes[0], x) if len(item.nodes) == 1 else self.map(x, item.map)
        a, b = (self.pieces(x, part) for part in piece.parts)
        return self.call(operator.add, a, b)

    def copy(self, node: fx.Node, x: fx.Node) -> fx.Node:
        """The node again, reading another tensor."""
        made = self.graph.node_copy(node, lambda n: x if n is node.args[0] else n)
        made.meta = dict(node.meta)
        return made

    def call(self, func: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(func, args)

    def map(self, x: fx.Node, m: Map) -> fx.Node:
        y = self.module(x, m.module(self.dtype, self.device))
        return self.call(operator.add, y, self.constant(m.bias)) if m.plane else y  # type: ignore[arg-type]

    def module(self, x: fx.Node, module: nn.Module) -> fx.Node:
        self.count += 1
        name = f"merged{self.count}"
        self.net.add_submodule(name, module)
        return self.graph.call_module(name, (x,))

    def constant(self, value: Tensor) -> fx.Node:
        self.count += 1
        name = f"merged{self.count}"
        self.net.register_buffer(name, value.to(self.dtype).to(self.device).contiguous())
        return self.graph.get_attr(name)

    def units(self) -> None:
        """αa + (1 − α)φ(a) in plain calls; of ReLU and its leaky form a PReLU, or the larger slope by a comparison."""
        for node in list(self.graph.nodes):
            alpha = node.meta.get("alpha")
            if alpha is None or not bool(alpha.any()):
                continue
            a = node.args[0] if node.args else node.kwargs["input"]
            with self.graph.inserting_before(node):
                made = self.unit(node, a, alpha, len(node.meta["shape"]))
            node.replace_all_uses_with(made)

    def unit(self, node: fx.Node, a: fx.Node, alpha: Tensor, ndim: int) -> fx.Node:
        slope = self.leak(node)
        if slope is not None and (alpha.ndim == 0 or (alpha.ndim == 1 and ndim != 3)):
            values = (alpha + (1 - alpha) * slope).reshape(-1)
            prelu = nn.PReLU(len(values), dtype=self.dtype, device=self.device)
            prelu.weight.data.copy_(values)
            return self.module(a, prelu.eval())
        wide = alpha.view(-1, *(1,) * (ndim - 2)) if alpha.ndim == 1 and ndim in (4, 5) else alpha
        if slope is not None:
            low = self.call(operator.mul, a, self.constant(wide + (1 - wide) * slope))
            return self.call(torch.where, self.call(operator.gt, a, 0), a, low)
        bent = self.copy(node, a)
        bent.meta.pop("alpha")
        straight = self.call(operator.mul, a, self.constant(wide))
        return self.call(operator.add, straight, self.call(operator.mul, bent, self.constant(1 - wide)))

    def leak(self, node: fx.Node) -> float | None:
        """The slope below 0 of a unit that is linear on both sides of it."""
        if node.meta["kind"] not in _RELU_LIKE:
            return None
        if node.meta["kind"] == "relu":
            return 0.0
        if node.op == "call_module":
            return float(self.net.get_submodule(str(node.target)).negative_slope)  # type: ignore[arg-type]
        value = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
        return float(value) if isinstance(value, int | float) else None

    def finish(self) -> fx.GraphModule:
        """The graph's code, compiled, without what nothing reads; nothing of it is ours."""
        self.units()
        self.graph.eliminate_dead_code()
        plain = fx.Graph()
        plain.output(plain.graph_copy(self.graph, {}))
        for node in plain.nodes:
            node.meta = {}
        plain.lint()
        return fx.GraphModule(self.net, plain, self.net._get_name()).eval()


def changed(pieces: list[Piece]) -> bool:
    """Whether anything is composed in these."""
    return any(
        not isinstance(p, Keep)
        or (isinstance(p.item, Layer) and len(p.item.nodes) > 1)
        or any(changed(part) for part in p.parts)
        for p in pieces
    )
