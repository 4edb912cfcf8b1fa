"""Find the residual joins and the nonlinear units of any model by running it once.

A *join* is an addition of two same-shaped tensors with a common ancestor, where from the nearest one the *skip* passes
no nonlinearity and at most a projection, and the *branch* passes at least one weighted layer more. A *unit* is a call
of a nonlinearity. Sites are calls, not modules: one ReLU module called three times is three units. No hooks: the run
is watched by a `TorchFunctionMode`, and the model is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from .care import refuse_compiled, tensors_in, untouched
from .ends import Tail, fusions
from .errors import PathsumError
from .flow import Flow, Value
from .functions import FRESH, NORMS, UNITS
from .graph import Join
from .naming import common_prefix, numbered
from .recording import Recorder
from .sites import Anatomy, Branch, Step
from .stages import stages_of
from .units import units_of
from .values import Output, pick


def anatomy(model: nn.Module, *inputs: Any, **kwargs: Any) -> Anatomy:
    """The residual joins and nonlinear units of `model`, found by running it once on `inputs`.

    Costs one forward pass. The model's weights, buffers, mode and the random state stay as they were.
    Raises `ModeError` for a compiled model.
    """
    return record(model, inputs, kwargs)[0]


def record(model: nn.Module, inputs: tuple, kwargs: dict, output: Output = None) -> tuple[Anatomy, Any]:
    """Run the model once; its anatomy and what it returned. `output` says where the flow of data ends."""
    if not isinstance(model, nn.Module):
        raise PathsumError(
            f"anatomy needs a torch.nn.Module, got {type(model).__name__}: "
            "wrap a function in a Module whose forward calls it"
        )
    refuse_compiled(model)
    recorder = Recorder(model)
    for t in (*tensors_in(inputs), *tensors_in(kwargs)):
        recorder.add_input(t)
    with untouched(model), torch.no_grad(), recorder:
        out = model(*inputs, **kwargs)
    return _assemble(recorder, model, out, output), out


def _assemble(recorder: Recorder, model: nn.Module, out: Any, output: Output) -> Anatomy:
    nodes, joins = recorder.nodes, recorder.joins
    readers: list[list[int]] = [[] for _ in nodes]
    for j, node in enumerate(nodes):
        for i in node.inputs:
            readers[i].append(j)
    for join in joins:  # a scaled branch that something else reads too is not the join's alone
        if join.own == "mul" and len(readers[join.branch_node]) > 1:
            join.own, join.lam = "", 1.0
    names = numbered([_join_name(j) for j in joins])
    kept = {recorder.node_of(t) for t in _output_tensors(out)}
    tails = [Tail(recorder, j.branch_node, readers, kept) for j in joins]
    stages = stages_of(nodes, joins)
    branches = tuple(
        Branch(
            index=k,
            name=name,
            module=common_prefix(j.modules),
            shape=j.shape,
            lam=j.lam,
            identity=j.identity,
            after=_readers_of(recorder, j.node, readers),
            call=_call_text(j.func),
            modules=tuple(dict.fromkeys(j.modules)),
            step=j.step,
            fork=nodes[j.root].step,
            skip=j.skip,
            branch=j.branch,
            signs=j.signs,
            own=j.own,
            last=tails[k].layer,
            ends=tails[k].ends,
            stuck=tails[k].stuck,
            scale=recorder.reads.scale_of(recorder.scaled[j.branch_node][0]) if j.own == "mul" else None,
            stage=stages[k],
        )
        for k, (j, name) in enumerate(zip(joins, names, strict=True))
    )
    units = units_of(recorder, model)
    scalings = {recorder.scaled[j.branch_node][0]: k for k, j in enumerate(joins) if j.own == "mul"}
    depths = _depths(recorder, out, readers)
    last = _last_reads(recorder, out, readers)
    steps = tuple(
        Step(func, module, depths[i], tuple(last.get(i, ()))) for i, (func, module) in enumerate(recorder.steps)
    )
    return Anatomy(branches, units, steps, scalings, fusions(recorder, readers, kept), _flow(recorder, out, output))


def _flow(recorder: Recorder, out: Any, output: Output) -> Flow:
    """The graph of the run, and the tensor in it that the output is."""
    end = None
    for choice in (output, None):
        with suppress(Exception):  # `output` may be the user's function: its error is raised where the output is needed
            end = recorder.node_of(pick(out, choice)) if end is None else end
    values = tuple(Value(n.step, n.slot, n.inputs, n.shape, n.content) for n in recorder.nodes)
    return Flow(values, recorder.calls, end)


def _join_name(join: Join) -> str:
    path = common_prefix(join.modules) or join.module
    return f"{path}.add" if path else "add"


def _call_text(func: Any) -> str:
    name = func.__name__
    return {"add": "a + b", "add_": "a += b", "sub": "a − b", "sub_": "a −= b", "__rsub__": "b − a"}.get(name, name)


def _readers_of(recorder: Recorder, node: int, readers: list[list[int]]) -> tuple[str, ...]:
    """Nonlinearities and norms that read a join's result directly."""
    found = [UNITS.get(recorder.nodes[j].func) or NORMS.get(recorder.nodes[j].func) for j in readers[node]]
    return tuple(dict.fromkeys(name for name in found if name))


def _depths(recorder: Recorder, out: Any, readers: list[list[int]]) -> list[int | None]:
    """Per step: how many branches every way from its result to the output passes (None: it is not used)."""
    nodes = recorder.nodes
    depth: list[int | None] = [None] * len(nodes)
    for t in _output_tensors(out):
        n = recorder.node_of(t)
        if n is not None:
            depth[n] = 0
    through = {(j.node, j.branch_node): j for j in recorder.joins}
    for i in range(len(nodes) - 1, -1, -1):
        for j in readers[i]:
            beyond = depth[j]
            if beyond is None:
                continue
            join = through.get((j, i))
            cost = beyond + (1 if join is not None and join.skip_node != i else 0)
            depth[i] = cost if depth[i] is None else min(cost, depth[i])  # type: ignore[type-var]
    by_step: list[int | None] = [None] * len(recorder.steps)
    for node, d in zip(nodes, depth, strict=True):
        if node.step >= 0 and d is not None:
            by_step[node.step] = d if by_step[node.step] is None else min(d, by_step[node.step])  # type: ignore[type-var]
    return by_step


def _last_reads(recorder: Recorder, out: Any, readers: list[list[int]]) -> dict[int, list[int]]:
    """Step -> its arguments that nothing reads after it, and whose memory nobody else shares."""
    nodes = recorder.nodes
    kept = {recorder.node_of(t) for t in _output_tensors(out)}
    found: dict[int, list[int]] = {}
    for number, node in enumerate(nodes):
        if node.func not in FRESH or number in kept or not readers[number]:
            continue
        reading = [nodes[r] for r in readers[number]]
        final = max(reading, key=lambda r: r.step)
        if sum(r.step == final.step for r in reading) > 1 or any(r.func not in FRESH for r in reading):
            continue
        operands = recorder.operands[final.step]
        if operands.count(number) == 1:
            found.setdefault(final.step, []).append(operands.index(number))
    return found


def _output_tensors(out: Any) -> Iterator[Tensor]:
    yield from tensors_in(out if not hasattr(out, "to_tuple") else tuple(out.values()))
