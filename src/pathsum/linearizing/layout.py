"""Where the slopes are: the units of one run on one sample, the axis of their channels, the depth they make."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from ..care import tensors_in, untouched
from ..errors import NoUnitsError, PathsumError
from ..functions import NONLINEAR, NORMS, UNITS, WEIGHTED
from ..recording import Recorder
from ..training.contexts import mode

By = Literal["channel", "layer", "element"]
FAMILY = frozenset(
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus hardswish hardtanh".split()
)  # near αa for some α; sigmoid, tanh and the like are gates in many models, and taken only where asked for
CHANNELS_SECOND = ("conv", "batch_norm", "group_norm", "instance_norm")


@dataclass(frozen=True)
class Site:
    """One nonlinear unit: one call, so that a module used twice is two of them."""

    index: int
    name: str
    kind: str
    shape: tuple[int, ...]  # of one sample
    scalars: int  # per inference
    slopes: tuple[int, ...] | None  # the shape of its α; None: it stays as it is

    @property
    def num(self) -> int:
        """How many slopes it has."""
        return 0 if self.slopes is None else math.prod(self.slopes)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Site:
        """A site from JSON, where tuples are lists."""
        slopes = stored["slopes"]
        return cls(**{**stored, "shape": tuple(stored["shape"]), "slopes": None if slopes is None else tuple(slopes)})


def observe(model: nn.Module, inputs: tuple[Any, ...]) -> Recorder:
    """The graph of one run in eval mode; the model stays as it was."""
    recorder = Recorder(model)
    for t in tensors_in(inputs):
        recorder.add_input(t)
    with mode(model, training=False), untouched(model), torch.no_grad(), recorder:
        model(*inputs)
    return recorder


def sites_of(names: Sequence[str], recorder: Recorder, by: By, chosen: Sequence[str] | None) -> tuple[Site, ...]:
    """The units with the shapes of their slopes; `names` as the knobs have them.

    Raises `NoUnitsError` where nothing is left to linearize, `PathsumError` for a choice that is no unit.
    """
    kinds = [call.kind for call in recorder.units]
    picked = _family(kinds) if chosen is None else _picked(names, kinds, recorder, chosen)
    sites = []
    for index, (name, call) in enumerate(zip(names, recorder.units, strict=True)):
        shape = recorder.nodes[call.node].shape
        slopes = _slopes(shape[1:], by, second=_second(recorder, call.node, len(shape))) if index in picked else None
        sites.append(Site(index, name, call.kind, shape[1:], math.prod(shape), slopes))
    return tuple(sites)


def _family(kinds: Sequence[str]) -> set[int]:
    picked = {index for index, kind in enumerate(kinds) if kind in FAMILY}
    if not picked:
        there = ", ".join(sorted(set(kinds)))
        hint = f"its units are {there}: if they are no gates, choose them with units=['*']" if there else ""
        raise NoUnitsError(
            "the model has no nonlinear units of the ReLU family (ReLU, PReLU, ELU, GELU, SiLU, …)"
            + (f"; {hint}" if hint else ": nothing to linearize")
        )
    return picked


def _picked(names: Sequence[str], kinds: Sequence[str], recorder: Recorder, chosen: Sequence[str]) -> set[int]:
    """The units with names or kinds that match one of the patterns."""
    picked: set[int] = set()
    others = {f"{module}.{kind}" if module else kind: kind for kind, module in _not_elementwise(recorder)}
    for pattern in chosen:
        found = {i for i, (name, kind) in enumerate(zip(names, kinds, strict=True)) if matches(pattern, name, kind)}
        if not found:
            for name, kind in others.items():
                if matches(pattern, name, kind):
                    raise PathsumError(
                        f"units={pattern!r} is {kind} ('{name}'), which is not elementwise: αa + (1−α)φ(a) needs a "
                        f"function of one number; choose among the {len(names)} units that net.units lists"
                    )
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "net.units lists them"
            raise PathsumError(f"units={pattern!r} matches no nonlinear unit of the model; {hint}")
        picked |= found
    if not picked:
        raise NoUnitsError("units=[] chooses nothing: name units, or leave it out for all of the ReLU family")
    return picked


def matches(pattern: str, name: str, kind: str) -> bool:
    """Whether a pattern is a call's name or kind, or the module it is in."""
    return (
        pattern in (name, kind, name.partition("#")[0]) or fnmatchcase(name, pattern) or name.startswith(pattern + ".")
    )


def _not_elementwise(recorder: Recorder) -> list[tuple[str, str]]:
    """Kind and module of the other nonlinear calls."""
    kinds = [
        ("glu" if getattr(func, "__name__", "") == "glu" else NONLINEAR.get(func, ""), module)
        for func, module in recorder.steps
        if func not in UNITS
    ]
    return [(kind, module) for kind, module in kinds if kind]


def _second(recorder: Recorder, number: int, ndim: int) -> bool:
    """Whether the channels are axis 1, by the nearest layer before; else they are the last."""
    waiting = set(recorder.nodes[number].inputs)
    while waiting:
        latest = max(waiting)
        waiting.remove(latest)
        node = recorder.nodes[latest]
        if node.weighted or node.func in NORMS:
            kind = WEIGHTED.get(node.func) or NORMS.get(node.func, "")
            return kind.startswith(CHANNELS_SECOND)
        waiting |= set(node.inputs)
    return ndim in (4, 5)


def _slopes(shape: tuple[int, ...], by: By, *, second: bool) -> tuple[int, ...]:
    """The shape of α for a unit of one sample's shape: a vector where the knobs know its axis, else with ones."""
    if by == "layer" or not shape:
        return ()
    if by == "element":
        return shape
    maps = len(shape) in (3, 4)
    if len(shape) == 1 or second == maps:
        return (shape[0],) if second and maps else (shape[-1],)
    return (shape[0], *(1,) * (len(shape) - 1)) if second else (*(1,) * (len(shape) - 1), shape[-1])


def rounds(recorder: Recorder, nonlinear: Sequence[bool]) -> int:
    """Units with anything nonlinear left on the way from input to output that has most of them.

    The number of rounds of communication that the units cost secure inference. Every tensor of the run counts as a
    possible output.
    """
    bent = {call.node for call, keep in zip(recorder.units, nonlinear, strict=True) if keep}
    depth = [0] * len(recorder.nodes)
    for number, node in enumerate(recorder.nodes):
        depth[number] = max((depth[i] for i in node.inputs), default=0) + (number in bent)
    return max(depth, default=0)
