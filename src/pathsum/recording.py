"""The record of one run: which call made each tensor, from which tensors; the joins and units among the calls."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .care import tensors_in
from .ends import Reads
from .flow import Template, template
from .functions import (
    ADDITIONS,
    MATRIX_PRODUCTS,
    NONLINEAR,
    PRODUCTS,
    RANDOM,
    SCALINGS,
    SHAPED_LIKE,
    STILL,
    UNITS,
    WEIGHTED,
    counts,
    ignored,
)
from .graph import Graph, Join, Node

_CALL = nn.Module._call_impl.__code__


@dataclass
class Call:
    """A call of a nonlinearity."""

    step: int
    node: int
    module: str
    kind: str


class Recorder(TorchFunctionMode):
    """Watches one run and keeps the graph of tensors by number; tensors themselves are not kept alive."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(m): n for n, m in model.named_modules()}
        self.graph = Graph()
        self.nodes = self.graph.nodes
        self.reads = Reads(model)
        self.steps: list[tuple[Any, str]] = []
        self.operands: list[list[int | None]] = []  # of each step: the nodes among its positional arguments
        self.where: dict[int, tuple[weakref.ref, int]] = {}
        self.joins: list[Join] = []
        self.units: list[Call] = []
        self.noise: dict[int, weakref.ref] = {}
        self.calls: dict[int, Template] = {}  # step -> its arguments, tensors replaced by their numbers
        self.scaled: dict[int, tuple[int, float]] = {}  # node of x·number -> its step, and the number

    def node_of(self, t: Any) -> int | None:
        found = self.where.get(id(t))
        return found[1] if found is not None and found[0]() is t else None

    def add_node(self, t: Tensor, node: Node) -> int:
        node.shape = tuple(t.shape)
        number = self.graph.add(node)
        self.where[id(t)] = (weakref.ref(t), number)
        return number

    def add_input(self, t: Tensor) -> None:
        self.add_node(t, Node(-1, (), 0, content=t.is_floating_point() or t.is_complex()))

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if ignored(func) or counts(func, args):
            return self.marked(func, args, func(*args, **kwargs))
        read = args[:1] if func in SHAPED_LIKE else (args, kwargs)
        inputs = [n for t in tensors_in(read) if (n := self.node_of(t)) is not None]
        operands = [self.node_of(a) for a in args]
        join = self.join_at(func, args, kwargs) if func in ADDITIONS and len(inputs) > 1 else None
        call = template((args, kwargs), self.node_of) if inputs else None  # a call in place changes its arguments
        out = func(*args, **kwargs)
        step = len(self.steps)
        module = self.module_path()
        self.steps.append((func, module))
        self.operands.append(operands)
        self.reads.see(args, kwargs, operands, inputs, out)
        if not inputs:  # parameters and constants among themselves: no part of the flow
            return self.marked(func, args, out)
        self.calls[step] = call
        target = args[0] if func is torch.Tensor.__setitem__ else out
        for slot, t in enumerate(tensors_in(target)):
            node = self.made_by(func, args, kwargs, inputs)
            node.step, node.module, node.slot = step, module, slot
            number = self.add_node(t, node)
            if join is not None:
                join.step, join.node, join.func, join.module, join.shape = step, number, func, module, node.shape
                self.joins.append(join)
                self.graph.joined[number] = join
            if func in SCALINGS:
                self.note_scaling(number, step, args, operands)
            if func in UNITS and isinstance(out, Tensor):
                self.units.append(Call(step, number, module, UNITS[func]))
        return out

    def marked(self, func: Any, args: tuple, out: Any) -> Any:
        """`out`, noted as noise where it is drawn at random or made of what is."""
        if isinstance(out, Tensor) and (func in RANDOM or any(self.is_noise(a) for a in args)):
            self.noise[id(out)] = weakref.ref(out)
        return out

    def is_noise(self, value: Any) -> bool:
        found = self.noise.get(id(value))
        return found is not None and found() is value

    def made_by(self, func: Any, args: tuple, kwargs: dict, inputs: list[int]) -> Node:
        """The node of a tensor that this call made."""
        nodes = self.nodes
        ancestors = 0
        for n in inputs:
            ancestors |= nodes[n].ancestors
        weighted = func in WEIGHTED or (func in MATRIX_PRODUCTS and self.has_weight(args))
        zero = func in ADDITIONS and any(isinstance(a, int | float) and a == 0 for a in args)  # of sum([…])
        return Node(
            -1,
            tuple(dict.fromkeys(inputs)),
            ancestors,
            func,
            weighted=weighted,
            nonlinear=func in NONLINEAR or (func in PRODUCTS and len(inputs) > 1),
            still=func in STILL or zero,
            content=weighted or any(nodes[n].content for n in inputs),
        )

    def has_weight(self, args: tuple) -> bool:
        """A product with a matrix that does not come from the input."""
        return any(a.ndim >= 2 and self.node_of(a) is None for a in tensors_in(args))

    def note_scaling(self, number: int, step: int, args: tuple, operands: list[int | None]) -> None:
        """Remember x·s for a number s that does not depend on the input."""
        for x, s in ((0, 1), (1, 0)):
            if len(args) > 1 and operands[x] is not None and operands[s] is None:
                value = args[s]
                if self.is_noise(value):  # stochastic depth: no λ of the model's own
                    continue
                if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
                    self.scaled[number] = (step, float(value))

    def module_path(self) -> str:
        """Qualified name of the innermost module whose forward is running."""
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code is _CALL:
                name = self.names.get(id(frame.f_locals.get("self")))
                if name is not None:
                    return name
            frame = frame.f_back  # type: ignore[assignment]
        return ""

    def join_at(self, func: Any, args: tuple, kwargs: dict) -> Join | None:
        """The join this addition is going to make, if it makes one; where and what it makes is filled in later."""
        if len(args) < 2:
            return None
        first, second = self.node_of(args[0]), self.node_of(args[1])
        if first is None or second is None or args[0].shape != args[1].shape:
            return None
        found = self.graph.join_of(first, second)
        if found is None:
            return None
        kind, alpha = ADDITIONS[func], kwargs.get("alpha", 1)
        signs = (-1, 1) if kind == "rsub" else (1, -1 if kind in ("sub", "subtract") else 1)
        skip, branch = found.skip, 1 - found.skip
        branch_node = (first, second)[branch]
        own, lam = "", 1.0
        if alpha != 1 and branch == (kind != "rsub"):  # alpha goes with the second argument, of rsub with the first
            own, lam = "alpha", float(alpha)
        elif alpha != 1:
            return None  # the skip is the scaled argument: no λ of a branch
        elif branch_node in self.scaled:
            own, lam = "mul", self.scaled[branch_node][1]
        return Join(
            step=-1,
            node=-1,
            func=None,
            module="",
            shape=(),
            skip=skip,
            branch=branch,
            skip_node=(first, second)[skip],
            branch_node=branch_node,
            root=found.root,
            identity=found.identity,
            modules=found.modules,
            signs=(signs[skip], signs[branch]),
            own=own,
            lam=lam,
        )
