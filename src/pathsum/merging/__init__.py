"""Compose what became linear: a plain, shallower module equal to the linearized net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from pathsum.care import check_same
from pathsum.errors import PathsumError
from pathsum.knobs import Knobs
from pathsum.modes import copied
from pathsum.progress import track
from pathsum.results import batch_size, check_count, check_eval
from pathsum.values import Alpha

from .costs import Decide, Prices
from .lowering import Writer
from .merged import Merged, measured
from .planning import Planner
from .program import mark_units, scaled_sums, traced, without_dropout, without_writes
from .regions import Reader, names_of

# The weights of a composed map are rounded once, and its sums are taken in another order.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}

__all__ = ["Merged", "merge"]


def merge(
    net: Knobs,
    alpha: Alpha,
    *inputs: Any,
    decide: Decide | Mapping[str, bool] = "latency",
    batches: Sequence[int] = (1, 64),
    labels: Tensor | Sequence[int] | None = None,
    progress: bool | None = None,
    **kwargs: Any,
) -> Merged:
    """A plain module equal to `net(*inputs, alpha=alpha)`, in which layers with nothing nonlinear between are one.

    Channels with α = 1 are linear. Composed are linear∘linear, conv∘conv (kernel k₁ + (k₂ − 1)s₁, stride s₁s₂),
    BatchNorm, additions of parallel linear ways (a skip is W + I), blocks that are linear as a whole; the linear
    channels of a layer go past its unit on a way of their own. Only what is exact, borders included: docs/merge.md.

    decide: what is composed, of what can be: what takes less time on this machine ("latency": each layer is timed
    once at the shapes of `inputs`), less arithmetic ("flops"), everything ("always"), nothing ("never"), or a
    choice by name of a layer, `{"blocks.0.up": True}`, and by latency for the others.
    batches: batch sizes at which original and result are timed for the report; () for none.
    labels: of the inputs, for accuracies in the report.

    The module is a `torch.fx.GraphModule` of torch's own layers: for the shape of one sample as in `inputs`, and any
    batch size. It is checked on `inputs` before it is returned.

    Raises `LambdaError` for the α of another model, `ModeError` in train mode, `PathsumError` for a model that
    torch.fx cannot trace, `ProbeError` where the result differs by more than 1e-5 (relative, float32).

    >>> import torch, pathsum as ps
    >>> mlp = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    >>> x = torch.randn(8, 4)
    >>> merged = ps.merge(ps.knobs(mlp, x), 1.0, x, decide="flops", batches=())
    >>> [type(m).__name__ for m in merged.model.children()]
    ['Linear']
    """
    if not isinstance(net, Knobs):
        raise PathsumError(f"merge needs knobs, got {type(net).__name__}: net = pathsum.knobs(model, x)")
    way, wanted = ways_of(decide)
    num_samples = batch_size(inputs, kwargs)
    for batch in batches:
        check_count("batches", batch, least=1)
    check_eval(net.model)
    example = next((p for p in net.model.parameters() if p.is_floating_point()), torch.zeros(()))
    prices = Prices(way, example.dtype, example.device)
    values = [a.to(example) if isinstance(a, Tensor) else float(a) for a in net.check_alpha(alpha) or []]
    model = net.model if net.lam_values is None else net.fold(*copied(inputs), **copied(kwargs))

    graph = prepared(net, model, values, inputs, kwargs)
    fixed = frozenset(name for name, on in wanted.items() if not on)
    reader = Reader(graph, fold_norms=way != "never", kept=fixed)
    regions = reader.regions()
    known = {name for region in regions for name in names_of(region.items)}
    unknown = sorted(set(wanted) - known)
    if unknown:
        raise PathsumError(
            f"decide names {', '.join(map(repr, unknown))}, no layer that could be composed; there are: "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    planner, writer = Planner(prices, wanted), Writer(graph, example.dtype, example.device)
    for region in track(regions, "merging", total=len(regions), show=progress):
        writer.region(region, planner.plan(region.items))
    made = writer.finish()
    check_same(Linearized(net, values), made, copied(inputs), copied(kwargs), TOLERANCE, "the merged model")
    plain = Writer(prepared(net, model, values, inputs, kwargs), example.dtype, example.device).finish()
    return measured(
        {"original": net.model, "linearized": plain, "merged": made},
        net,
        values,
        planner.decisions[::-1],
        way,
        inputs,
        kwargs,
        batches=batches,
        labels=labels,
        num_samples=num_samples,
        rounds=graph.meta["rounds"],
    )


def ways_of(decide: Any) -> tuple[Decide, dict[str, bool]]:
    """The unit of the decision, and the user's own choices."""
    if isinstance(decide, Mapping) and all(isinstance(k, str) and isinstance(v, bool) for k, v in decide.items()):
        return "latency", dict(decide)
    if decide in get_args(Decide):
        return decide, {}
    raise PathsumError(
        f"decide={decide!r}: give one of {', '.join(map(repr, get_args(Decide)))}, or a choice by layer such as "
        "{'blocks.0.up': True}"
    )


def prepared(
    net: Knobs, model: nn.Module, alpha: list[float | Tensor], inputs: tuple, kwargs: dict[str, Any]
) -> fx.GraphModule:
    """The model as a graph without in-place calls, with linear units left out and α noted at the others."""
    with torch.no_grad():
        anatomy = net.calls(copied(inputs), copied(kwargs))
    graph = traced(model, copied(inputs), copied(kwargs))
    without_writes(graph)
    mark_units(graph, net, alpha, anatomy)
    without_dropout(graph)
    scaled_sums(graph)
    return graph


class Linearized(nn.Module):
    """The net under one α."""

    def __init__(self, net: Knobs, alpha: list[float | Tensor]) -> None:
        super().__init__()
        self.net, self.alpha = net, alpha

    @torch.no_grad()
    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.net(*copied(inputs), alpha=self.alpha, **copied(kwargs))
