"""Networks people use, tiny, with what their definitions imply; and checks of pathsum on them by hooks of its own.

A branch is scaled or deleted here by multiplying the outputs of the modules that end it, with PyTorch's forward hooks:
nothing of pathsum's machinery takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import pathsum as ps
from tests.cases import randomize

End = str | tuple[str, ...]  # the module that ends a branch, or those that end its summands; "name#2" is a second call


@dataclass(frozen=True)
class Net:
    """A model, and the joins that its definition implies.

    ends: for each join, in the order they are computed, the modules whose outputs make up its branch linearly; or a
    function of the model that says so. why: how the definition gives their number. smooth: no kinks, so analytic in λ.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    joins: int
    why: str
    ends: Sequence[End] | Callable[[nn.Module], Sequence[End]]
    smooth: bool = True
    units: int | None = None
    named: dict[str, Tensor] = field(default_factory=dict)

    def made(self) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]:
        """The model in float64 and eval mode, no weight, norm or token where it starts out; and its inputs."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build()
        generator = torch.Generator().manual_seed(1)
        model = randomize(model.double().eval(), generator)
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        with torch.no_grad():
            for p in model.parameters():  # of unit gain: transformers' start at 0.02, layer scales at zero
                if p.ndim > 1 or not bool(p.any()):
                    inputs = 1 if id(p) in tables else p[0].numel()
                    p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / inputs**0.5)
        return model, tuple(map(double, self.inputs)), {k: double(v) for k, v in self.named.items()}

    def branch_ends(self, model: nn.Module) -> list[tuple[str, ...]]:
        ends = self.ends(model) if callable(self.ends) else self.ends
        return [(end,) if isinstance(end, str) else tuple(end) for end in ends]


def double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def each(count: int, *patterns: str) -> list[str]:
    """All patterns for index 0, then for index 1, …"""
    return [p.format(i) for i in range(count) for p in patterns]


@contextmanager
def multiplied(model: nn.Module, ends: Sequence[tuple[str, ...]], factors: Sequence[float]) -> Iterator[None]:
    """Within: branch i is multiplied by factors[i], by forward hooks on the modules that end it."""
    wanted: dict[str, dict[int, float]] = {}
    for group, factor in zip(ends, factors, strict=True):
        for end in group:
            name, _, call = end.partition("#")
            wanted.setdefault(name, {})[int(call or 0)] = factor
    handles = []
    for name, by_call in wanted.items():
        handles.append(model.get_submodule(name).register_forward_hook(Multiply(by_call)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Multiply:
    """A forward hook that multiplies the output of call k (of every call: 0)."""

    def __init__(self, by_call: dict[int, float]) -> None:
        self.by_call = by_call
        self.calls = 0

    def __call__(self, module: nn.Module, args: Any, out: Any) -> Any:
        self.calls += 1
        factor = self.by_call.get(0, self.by_call.get(self.calls, 1.0))
        return (factor * out[0], *out[1:]) if isinstance(out, tuple) else factor * out


def output(model: nn.Module, inputs: tuple, named: dict) -> Tensor:
    """The model's own output tensor: itself, `.logits` or `.last_hidden_state`."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels of whole layers, which round differently
    try:
        with torch.no_grad():
            out = model(*inputs, **named)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if isinstance(out, Tensor):
        return out
    return next(t for k in ("logits", "last_hidden_state") if (t := getattr(out, k, None)) is not None)


# ------------------------------------------------------------------------------- orders, by scaling all branches


def interpolated(f: Callable[[float], Tensor], order: int) -> list[tuple[Tensor, float]]:
    """Coefficients of t^0 … t^order of f at 0, each with an estimate of its relative error, from values of f alone.

    Chebyshev interpolation on [−r, r] at degree 12 errs by 1e-16/r^k (rounding) and (r/R)^(13−k) (what is cut, R the
    distance to the next singularity). Neither is known, so r runs over a range, and for each order the two neighbors
    that agree best are taken; their difference is the estimate.
    """
    degree = 12
    unit = torch.cos(torch.pi * (torch.arange(degree + 1).double() + 0.5) / (degree + 1))
    vander = torch.stack([unit**k for k in range(degree + 1)], 1)
    fits = []
    for radius in (0.4, 0.2, 0.1, 0.05, 0.02, 0.01):
        values = torch.stack([f(radius * float(u)) for u in unit])
        slow = torch.linalg.solve(vander, values.flatten(1)).view_as(values)
        fits.append([slow[k] / radius**k for k in range(order + 1)])
    return [closest([fit[k] for fit in fits]) for k in range(order + 1)]


def one_sided(f: Callable[[float], Tensor]) -> list[tuple[Tensor, float]]:
    """Coefficients of t^0 and t^1 for t → 0+, likewise: from the cubic through t = 0, h, 2h, 3h for several h.

    h so small that no gate flips on the way: the smallest of some thousand pre-activations is about 1e-4.
    """
    at_zero = f(0.0)
    fits = []
    for h in (1e-5, 1e-6, 1e-7, 1e-8):
        a, b, c = (f(k * h) for k in (1, 2, 3))
        fits.append((-11 * at_zero + 18 * a - 9 * b + 2 * c) / (6 * h))
    return [(at_zero, 0.0), closest(fits)]


def closest(fits: list[Tensor]) -> tuple[Tensor, float]:
    """Of a row of approximations the one that differs least from its neighbor, and by how much (relative)."""
    return min(((b, relative(a, b)) for a, b in pairwise(fits)), key=lambda pair: pair[1])


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm().clamp_min(1e-300))


# ------------------------------------------------------------------------------------------------- the checks


def check(net: Net) -> None:
    """All that can be said of one architecture."""
    model, inputs, named = net.made()
    if net.joins == 0:
        check_no_joins(net, model, inputs, named)
        return
    knobbed = check_joins(net, model, inputs, named)
    check_deletions(net, knobbed, inputs, named)
    check_spectrum(knobbed, inputs, named)
    check_orders(net, knobbed, inputs, named)


def check_no_joins(net: Net, model: nn.Module, inputs: tuple, named: dict) -> None:
    found = ps.anatomy(model, *inputs, **named)
    assert found.branches == ()
    assert len(found.units) == net.units


def check_joins(net: Net, model: nn.Module, inputs: tuple, named: dict) -> ps.Knobs:
    """The number that the definition implies, each with a name of its own; bitwise the model at default knobs."""
    knobbed = ps.knobs(model, *inputs, **named)
    names = [b.name for b in knobbed.branches]
    assert len(names) == net.joins, f"{net.why}; found {names}"
    assert len(set(names)) == len(names)
    assert len({u.name for u in knobbed.units}) == len(knobbed.units)
    assert net.units is None or len(knobbed.units) == net.units
    plain = output(model, inputs, named)
    with torch.no_grad():
        assert torch.equal(knobbed.pick(knobbed.run(inputs, named)[0]), plain)
    return knobbed


def check_deletions(net: Net, knobbed: ps.Knobs, inputs: tuple, named: dict) -> None:
    """λ_i = 0 is the model whose branch i ends in zeros."""
    ends = net.branch_ends(knobbed.model)
    own = [b.lam for b in knobbed.branches]
    for i in range(net.joins):
        lam = [*own[:i], 0.0, *own[i + 1 :]]
        with torch.no_grad():
            got = knobbed.pick(knobbed(*inputs, lam=torch.tensor(lam, dtype=torch.float64), **named))
        with multiplied(knobbed.model, ends, [float(j != i) for j in range(net.joins)]):
            expected = output(knobbed.model, inputs, named)
        assert relative(got, expected) < 1e-12, f"branch {i} ({knobbed.branches[i].name})"
        assert relative(got, output(knobbed.model, inputs, named)) > 1e-9  # it did something


def check_spectrum(knobbed: ps.Knobs, inputs: tuple, named: dict) -> None:
    s = ps.spectrum(knobbed, *inputs, **named)
    assert len(s.terms) == len(knobbed.branches) + 1
    assert s.conservation < 1e-10
    torch.testing.assert_close(s.output, output(knobbed.model, inputs, named), rtol=1e-12, atol=1e-12)


def check_orders(net: Net, knobbed: ps.Knobs, inputs: tuple, named: dict) -> None:
    """Orders against values of the model with all its branches multiplied by t."""
    ends = net.branch_ends(knobbed.model)

    def f(t: float) -> Tensor:
        with multiplied(knobbed.model, ends, [t] * net.joins):
            return output(knobbed.model, inputs, named)

    top = min(3, net.joins) if net.smooth else 1
    slow = interpolated(f, top) if net.smooth else one_sided(f)
    terms = ps.expand(knobbed, *inputs, order=top, **named).contributions()
    for k, (expected, uncertain) in enumerate(slow):
        assert uncertain < 5e-7, f"order {k} is not pinned down by interpolation: {uncertain:.1e}"
        assert relative(terms[k], expected) < 1e-6, f"order {k} is off by {relative(terms[k], expected):.1e}"


__all__ = ["Net", "check", "each", "numbers"]
