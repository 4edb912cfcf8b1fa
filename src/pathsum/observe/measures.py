"""What can be measured on a network while it trains, each a function of a model with knobs and a probe.

Nothing here changes the network: it is measured in eval mode, outside of autocast, and its mode, buffers, gradients and
the random state are afterwards as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathsum.care import untouched
from pathsum.complexity import geometric_complexity
from pathsum.errors import DataError, PathsumError
from pathsum.expansion import expand
from pathsum.groups import own_parameters
from pathsum.knobs import Knobs, knobs
from pathsum.nets.tower import SumOfPaths
from pathsum.observe.probe import Probe
from pathsum.results import full_precision
from pathsum.spectrum import spectrum
from pathsum.training.contexts import mode

Measure = Callable[[Knobs, Probe], Mapping[str, Any]]
Loss = Callable[[Tensor, Tensor], Tensor]
MOST_OUTPUTS = 100  # for a backward pass each
ORDER = 4  # orders in λ that "orders" goes to


def complexity(net: Knobs, probe: Probe) -> dict[str, Any]:
    """`complexity`: the geometric complexity mean_x ‖∂f/∂x‖_F² of the output (Appendix B).

    Exact up to `MOST_OUTPUTS` outputs a sample; else by the same few random probes every time, and then with
    `complexity_error`, the standard error of their chance.
    """
    outputs = net.pick(net.model(*probe.inputs, **probe.kwargs))[0].numel()
    with torch.enable_grad():
        if outputs <= MOST_OUTPUTS:
            return {"complexity": geometric_complexity(net, probe.batches(), progress=False).value}
        found = geometric_complexity(net, probe.batches(), method="hutchinson", progress=False)
    return {"complexity": found.value, "complexity_error": found.probe_stderr}


def lengths(net: Knobs, probe: Probe) -> dict[str, Any]:
    """`mean_length` of paths in blocks, and `length_energy`: mean ‖v_k‖² of the output's part of each length k."""
    found = spectrum(net, *probe.inputs, progress=False, **probe.kwargs)
    return {"mean_length": found.mean_length(), "length_energy": found.energy().mean(1).tolist()}


def orders(net: Knobs, probe: Probe) -> dict[str, Any]:
    """`order_energy`: mean ‖λᵏM_k‖² of the output's orders k = 0, 1, … in λ (Theorem 3.1)."""
    found = expand(net, *probe.inputs, order=min(ORDER, len(net.branches)), progress=False, **probe.kwargs)
    return {"order_energy": found.contributions().double().flatten(2).square().sum(2).mean(1).tolist()}


def lam(net: Knobs, probe: Probe) -> dict[str, Any]:
    """`lam`: λ of each branch, learned ones as they are now."""
    net.need_joins()
    scales = list(net.model.scales) if isinstance(net.model, SumOfPaths) else net.lam.tolist()
    return {"lam": scales}


def gradient(net: Knobs, probe: Probe, loss: Loss = F.cross_entropy) -> dict[str, Any]:
    """`probe_loss` of the whole probe, the norm of its gradient, and that of the part in each branch's weights."""
    if probe.labels is None:
        raise DataError("the gradient of the loss needs labels; give the probe as (x, y)")
    parameters = {id(p): p for p in net.model.parameters() if p.requires_grad}
    with torch.enable_grad():
        value = loss(net.pick(net.model(*probe.inputs, **probe.kwargs)), probe.labels)
        grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    squares = {
        name: 0.0 if grad is None else float(grad.detach().double().square().sum())
        for name, grad in zip(parameters, grads, strict=True)
    }
    each = []
    for branch in net.branches:
        modules = sorted(set(filter(None, branch.modules)))  # the model's own parameters belong to no branch
        names = {id(p) for name in modules for p in own_parameters(net.model, name)}
        each.append(sum(squares.get(name, 0.0) for name in names) ** 0.5)
    whole = sum(squares.values()) ** 0.5
    return {"probe_loss": float(value.detach()), "probe_grad_norm": whole, "branch_grad_norm": each}


MEASURES: dict[str, Measure] = {
    "complexity": complexity,
    "lengths": lengths,
    "orders": orders,
    "lam": lam,
    "gradient": gradient,
}


class Instruments:
    """Measures, ready to be read off one model; its knobs are made at the first reading.

    measures: names, or functions `(net, probe) -> {name: number or list}`; None takes all that model and probe allow
    (`complexity` where the input is real numbers, `gradient` where there are labels, the others where there are joins).
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        measures: Sequence[str | Measure] | None = None,
        loss: Loss = F.cross_entropy,
    ) -> None:
        self.model, self.probe, self.loss = model, probe, loss
        self.measures = None if measures is None else [named(measure) for measure in measures]
        self.net = model if isinstance(model, Knobs) else None

    def read(self, step: int) -> dict[str, Any]:
        """One row: step, what was measured, and the seconds it took."""
        began = time.monotonic()
        row: dict[str, Any] = {"step": step}
        with self.aside():
            net = self.knobs()
            for measure in self.able(net) if self.measures is None else self.measures:
                row.update(gradient(net, self.probe, self.loss) if measure is gradient else measure(net, self.probe))
        return {**row, "seconds": time.monotonic() - began}

    def num_branches(self) -> int:
        """Residual branches of the model."""
        with self.aside():
            return len(self.knobs().branches)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """In eval mode and full precision, without a graph; the model is as before afterwards."""
        with untouched(self.model), mode(self.model, training=False), full_precision(), torch.no_grad():
            yield

    def knobs(self) -> Knobs:
        """The model with knobs."""
        if self.net is None:
            self.net = knobs(self.model, *self.probe.inputs, **self.probe.kwargs)
        return self.net

    def able(self, net: Knobs) -> list[Measure]:
        """The measures that apply."""
        able = {
            "complexity": self.probe.x.is_floating_point(),
            "gradient": self.probe.labels is not None,
        }
        return [measure for name, measure in MEASURES.items() if able.get(name, bool(net.branches))]


def named(measure: str | Measure) -> Measure:
    """The measure of this name; a function is one. Raises `PathsumError` for an unknown name."""
    if not isinstance(measure, str):
        return measure
    if measure not in MEASURES:
        raise PathsumError(f"{measure!r} is no measure: choose from {', '.join(MEASURES)}, or give a function")
    return MEASURES[measure]
