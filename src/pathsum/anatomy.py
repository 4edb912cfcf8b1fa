"""Find the residual joins and the nonlinear units of any model by running it once.

A *join* is an addition of two same-shaped tensors with a common ancestor, where from the nearest one the *skip* passes
no nonlinearity and at most a projection, and the *branch* passes at least one weighted layer more. A *unit* is a call
of a nonlinearity. Sites are calls, not modules: one ReLU module called three times is three units. No hooks: the run
is watched by a `TorchFunctionMode`, and the model is left as it was.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .care import refuse_compiled, tensors_in, untouched
from .errors import PathsumError
from .functions import (
    ACTIVATION_MODULES,
    ADDITIONS,
    FOLDABLE,
    FRESH,
    NONLINEAR,
    NORMS,
    PASSING,
    PRODUCTS,
    SCALINGS,
    UNITS,
    WEIGHTED,
    ignored,
)
from .sites import Anatomy, Branch, Step, Unit

_CALL = nn.Module._call_impl.__code__


def anatomy(model: nn.Module, *inputs: Any, **kwargs: Any) -> Anatomy:
    """The residual joins and nonlinear units of `model`, found by running it once on `inputs`.

    Costs one forward pass. The model's weights, buffers, mode and the random state stay as they were.
    Raises `ModeError` for a compiled model.
    """
    return record(model, inputs, kwargs)[0]


def record(model: nn.Module, inputs: tuple, kwargs: dict) -> tuple[Anatomy, Any]:
    """Run the model once; its anatomy and what it returned."""
    if not isinstance(model, nn.Module):
        raise PathsumError(
            f"anatomy needs a torch.nn.Module, got {type(model).__name__}: "
            "wrap a function in a Module whose forward calls it"
        )
    refuse_compiled(model)
    recorder = _Recorder(model)
    for t in (*tensors_in(inputs), *tensors_in(kwargs)):
        recorder.add_node(t, _Node(-1, (), 0))
    with untouched(model), torch.no_grad(), recorder:
        out = model(*inputs, **kwargs)
    return _assemble(recorder, out), out


@dataclass
class _Node:
    """A tensor in the recorded run: the call that made it and the tensors it was made from."""

    step: int
    inputs: tuple[int, ...]
    ancestors: int  # bit i: node i is an ancestor; a node is one of its own
    func: Any = None
    module: str = ""
    weighted: bool = False
    nonlinear: bool = False
    shape: tuple[int, ...] = ()


class _Recorder(TorchFunctionMode):
    """Watches one run and keeps the graph of tensors by number; tensors themselves are not kept alive."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(m): n for n, m in model.named_modules()}
        self.activations = {n for n, m in model.named_modules() if isinstance(m, ACTIVATION_MODULES)}
        self.nodes: list[_Node] = []
        self.steps: list[tuple[Any, str]] = []
        self.where: dict[int, tuple[weakref.ref, int]] = {}
        self.joins: list[dict[str, Any]] = []
        self.units: list[dict[str, Any]] = []
        self.scaled: dict[int, dict[str, Any]] = {}  # node of x·number -> its operand, value and step

    def node_of(self, t: Any) -> int | None:
        found = self.where.get(id(t))
        return found[1] if found is not None and found[0]() is t else None

    def add_node(self, t: Tensor, node: _Node) -> int:
        number = len(self.nodes)
        node.ancestors |= 1 << number
        node.shape = tuple(t.shape)
        self.nodes.append(node)
        self.where[id(t)] = (weakref.ref(t), number)
        return number

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if ignored(func):
            return func(*args, **kwargs)
        inputs = [n for t in (*tensors_in(args), *tensors_in(kwargs)) if (n := self.node_of(t)) is not None]
        operands = [self.node_of(a) for a in args]
        shapes = [tuple(a.shape) if isinstance(a, Tensor) else None for a in args]
        out = func(*args, **kwargs)
        step = len(self.steps)
        module = self.module_path()
        self.steps.append((func, module))
        if not inputs:  # parameters and constants among themselves: no part of the flow
            return out
        if func in UNITS and isinstance(out, Tensor):
            self.units.append(
                {
                    "module": module,
                    "kind": UNITS[func],
                    "shape": tuple(out.shape),
                    "step": step,
                    "inputs": inputs,
                }
            )
        product = func in PRODUCTS
        ancestors = 0
        for n in inputs:
            ancestors |= self.nodes[n].ancestors
        join = self.join_at(func, args, kwargs, operands, shapes) if func in ADDITIONS else None
        target = args[0] if func is torch.Tensor.__setitem__ else out
        for t in tensors_in(target):
            node = _Node(
                step,
                tuple(dict.fromkeys(inputs)),
                ancestors,
                func,
                module,
                weighted=func in WEIGHTED or (product and func not in SCALINGS and self.has_weight(args)),
                nonlinear=func in NONLINEAR or (product and len(set(inputs)) > 1 and len(inputs) > 1),
            )
            number = self.add_node(t, node)
            if join is not None:
                join |= {
                    "step": step,
                    "node": number,
                    "module": module,
                    "func": func,
                    "shape": tuple(t.shape),
                }
                self.joins.append(join)
            if func in SCALINGS:
                self.note_scaling(number, step, args, operands)
        return out

    def has_weight(self, args: tuple) -> bool:
        """A product with a matrix that does not come from the input."""
        return any(isinstance(a, Tensor) and a.ndim >= 2 and self.node_of(a) is None for a in tensors_in(args))

    def note_scaling(self, number: int, step: int, args: tuple, operands: list[int | None]) -> None:
        """Remember x·s for a number s that does not depend on the input."""
        for x, s in ((0, 1), (1, 0)):
            if operands[x] is not None and len(args) > 1 and operands[s] is None:
                value = args[s]
                if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
                    self.scaled[number] = {"operand": operands[x], "lam": float(value), "step": step}

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

    def join_at(
        self, func: Any, args: tuple, kwargs: dict, operands: list[int | None], shapes: list[Any]
    ) -> dict[str, Any] | None:
        """The join this addition makes, if it makes one."""
        if len(args) < 2 or operands[0] is None or operands[1] is None or shapes[0] != shapes[1]:
            return None
        for skip, branch in ((0, 1), (1, 0)):
            skip_node, node = operands[skip], operands[branch]
            assert skip_node is not None
            assert node is not None
            found = self.paths(skip_node, node)
            if found is None:
                continue
            kind = ADDITIONS[func]
            second = -1 if kind in ("sub", "subtract") else 1
            signs = (-1, 1) if kind == "rsub" else (1, second)
            own, lam = "", 1.0
            alpha = kwargs.get("alpha", 1)
            if branch == 1 and alpha != 1:
                own, lam = "alpha", float(alpha)
            elif alpha == 1 and node in self.scaled:
                own, lam = "mul", self.scaled[node]["lam"]
            elif alpha != 1:
                return None  # the skip is the scaled argument: no λ of a branch
            return found | {
                "skip": skip,
                "branch": branch,
                "signs": (signs[skip], signs[branch]),
                "own": own,
                "lam": lam,
                "branch_node": node,
                "skip_node": skip_node,
            }
        return None

    def paths(self, skip: int, branch: int) -> dict[str, Any] | None:
        """Whether from the nearest common ancestor `skip` and `branch` are what their names say."""
        nodes = self.nodes
        common = nodes[skip].ancestors & nodes[branch].ancestors
        if not common:
            return None
        root = common.bit_length() - 1
        skip_weights, skip_bent, _ = self.between(root, skip)
        branch_weights, _, modules = self.between(root, branch)
        if not skip_bent and skip_weights <= 1 and branch_weights > skip_weights:
            return {"root": root, "identity": root == skip, "modules": modules}
        # x + a + b: the stream through an earlier join is its skip.
        for join in self.joins:
            if join["node"] == skip:
                return self.paths(join["skip_node"], branch)
        return None

    def between(self, root: int, end: int) -> tuple[int, bool, list[str]]:
        """Most weighted layers on a path from root to end, whether any is nonlinear, and the modules passed."""
        nodes = self.nodes
        weights, bent, modules = {root: 0}, {root: False}, []
        ancestors = nodes[end].ancestors
        for j in range(root + 1, end + 1):
            node = nodes[j]
            if not ((ancestors >> j) & 1 and (node.ancestors >> root) & 1):
                continue
            before = [i for i in node.inputs if i in weights]
            weights[j] = max((weights[i] for i in before), default=0) + node.weighted
            bent[j] = any(bent[i] for i in before) or node.nonlinear
            modules.append(node.module)
        return weights.get(end, 0), bent.get(end, False), modules


def _assemble(recorder: _Recorder, out: Any) -> Anatomy:
    nodes, joins = recorder.nodes, recorder.joins
    readers: list[list[int]] = [[] for _ in nodes]
    for j, node in enumerate(nodes):
        for i in node.inputs:
            readers[i].append(j)
    for join in joins:  # a scaled branch that something else reads too is not the join's alone
        if join["own"] == "mul" and len(readers[join["branch_node"]]) > 1:
            join["own"], join["lam"] = "", 1.0
    names = numbered([_join_name(j) for j in joins])
    branches = tuple(
        Branch(
            index=k,
            name=name,
            module=common_prefix(j["modules"]),
            shape=j["shape"],
            lam=j["lam"],
            identity=j["identity"],
            after=_readers_of(recorder, j["node"], readers),
            call=_call_text(j["func"]),
            modules=tuple(dict.fromkeys(j["modules"])),
            step=j["step"],
            skip=j["skip"],
            branch=j["branch"],
            signs=j["signs"],
            own=j["own"],
            last=_last_layer(recorder, j["branch_node"], readers),
        )
        for k, (j, name) in enumerate(zip(joins, names, strict=True))
    )
    unit_names = numbered([_unit_name(u, recorder) for u in recorder.units])
    units = tuple(
        Unit(index=k, name=name, kind=u["kind"], shape=u["shape"], step=u["step"])
        for k, (u, name) in enumerate(zip(recorder.units, unit_names, strict=True))
    )
    scalings = {recorder.scaled[j["branch_node"]]["step"]: k for k, j in enumerate(joins) if j["own"] == "mul"}
    depths = _depths(recorder, out, readers)
    last = _last_reads(recorder, out, readers)
    steps = tuple(Step(func, module, depths[i], i in last) for i, (func, module) in enumerate(recorder.steps))
    return Anatomy(branches, units, steps, scalings)


def common_prefix(paths: list[str]) -> str:
    """The deepest module that holds all of these."""
    split = [p.split(".") if p else [] for p in paths]
    if not split:
        return ""
    prefix = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        prefix.append(parts[0])
    return ".".join(prefix)


def numbered(names: list[str]) -> list[str]:
    """Names made unique: a name used more than once gets #1, #2, … in order."""
    total = Counter(names)
    seen: dict[str, int] = {}
    out = []
    for n in names:
        seen[n] = seen.get(n, 0) + 1
        out.append(f"{n}#{seen[n]}" if total[n] > 1 else n)
    return out


def _join_name(join: dict[str, Any]) -> str:
    path = common_prefix(join["modules"]) or join["module"]
    return f"{path}.add" if path else "add"


def _call_text(func: Any) -> str:
    name = func.__name__
    return {"add": "a + b", "add_": "a += b", "sub": "a − b", "sub_": "a −= b", "__rsub__": "b − a"}.get(name, name)


def _unit_name(unit: dict[str, Any], recorder: _Recorder) -> str:
    path = unit["module"]
    if path in recorder.activations:
        return path
    return f"{path}.{unit['kind']}" if path else unit["kind"]


def _readers_of(recorder: _Recorder, node: int, readers: list[list[int]]) -> tuple[str, ...]:
    """Nonlinearities and norms that read a join's result directly."""
    found = [UNITS.get(recorder.nodes[j].func) or NORMS.get(recorder.nodes[j].func) for j in readers[node]]
    return tuple(dict.fromkeys(name for name in found if name))


def _last_layer(recorder: _Recorder, node: int, readers: list[list[int]]) -> str:
    """The layer whose result, scaled or dropped out at most, is the branch; "" if that result or layer is shared."""
    nodes = recorder.nodes
    while len(readers[node]) == 1 and (node in recorder.scaled or nodes[node].func in PASSING):
        node = nodes[node].inputs[0]
    found = nodes[node]
    layer = found.func in FOLDABLE
    calls = sum(func is found.func and module == found.module for func, module in recorder.steps)
    return found.module if layer and len(readers[node]) == 1 and calls == 1 else ""


def _depths(recorder: _Recorder, out: Any, readers: list[list[int]]) -> list[int | None]:
    """Per step: how many branches every way from its result to the output passes (None: it is not used)."""
    nodes = recorder.nodes
    depth: list[int | None] = [None] * len(nodes)
    for t in _output_tensors(out):
        n = recorder.node_of(t)
        if n is not None:
            depth[n] = 0
    through = {(j["node"], j["branch_node"]): j for j in recorder.joins}
    for i in range(len(nodes) - 1, -1, -1):
        for j in readers[i]:
            beyond = depth[j]
            if beyond is None:
                continue
            join = through.get((j, i))
            cost = beyond + (1 if join is not None and join["skip_node"] != i else 0)
            depth[i] = cost if depth[i] is None else min(cost, depth[i])  # type: ignore[type-var]
    by_step: list[int | None] = [None] * len(recorder.steps)
    for node, d in zip(nodes, depth, strict=True):
        if node.step >= 0 and d is not None:
            by_step[node.step] = d if by_step[node.step] is None else min(d, by_step[node.step])  # type: ignore[type-var]
    return by_step


def _last_reads(recorder: _Recorder, out: Any, readers: list[list[int]]) -> set[int]:
    """Steps that are the last to read their first argument (a join: its skip), whose memory nobody else shares."""
    nodes = recorder.nodes
    kept = {recorder.node_of(t) for t in _output_tensors(out)}
    skips = {j["step"]: j["skip_node"] for j in recorder.joins}
    found = set()
    for number, node in enumerate(nodes):
        if node.func not in FRESH or number in kept or not readers[number]:
            continue
        reading = [nodes[r] for r in readers[number]]
        final = max(reading, key=lambda r: r.step)
        if sum(r.step == final.step for r in reading) > 1 or any(r.func not in FRESH for r in reading):
            continue
        wanted = skips.get(final.step, final.inputs[0])
        if wanted == number and (final.step in skips or len(reading) == 1):
            found.add(final.step)
    return found


def _output_tensors(out: Any) -> Iterator[Tensor]:
    yield from tensors_in(out if not hasattr(out, "to_tuple") else tuple(out.values()))
