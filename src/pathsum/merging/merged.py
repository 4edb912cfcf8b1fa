"""What merging gave: the module, what was decided, and what it costs before and after."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pathsum.care import tensors_in, untouched
from pathsum.errors import OutputError, PathsumError
from pathsum.knobs import Knobs
from pathsum.lengths import average_path_length
from pathsum.modes import copied
from pathsum.results import accuracy_of
from pathsum.values import Alpha

from .costs import Decide, interleaved
from .planning import Decision
from .program import slopes

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Side:
    """One of the networks compared: as it was, linearized as it is written, merged."""

    name: str
    parameters: int
    flops: float  # of one sample
    relus: int  # nonlinear elements of one sample, whatever the activation
    units: int  # with a nonlinear element
    rounds: int  # the most of them on a way from input to output
    path_length: float | None  # NAPL, in nonlinear units; None where the graph has no paths to count
    seconds: dict[int, float]  # by batch size
    accuracy: float | None = None


@dataclass(frozen=True, eq=False)
class Merged:
    """`model` is a plain module without pathsum in it; the rest says how it came about.

    decisions: what was composed and what was not, and why; before and after are floating-point operations or seconds
    as `decide` says. units: what is left of each.
    """

    model: nn.Module
    sides: tuple[Side, ...]
    decisions: tuple[Decision, ...]
    units: pd.DataFrame = field(repr=False)
    decide: Decide
    inputs: tuple = field(repr=False, default=())  # two samples, for exports
    kwargs: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def composed(self) -> int:
        """How many layers became part of another."""
        return sum(len(d.layers) - 1 for d in self.decisions if d.merged)

    @property
    def report(self) -> pd.DataFrame:
        """The same as `table()`."""
        return self.table()

    def table(self) -> pd.DataFrame:
        """A row each for the original, the linearized net and the merged one."""
        import pandas as pd

        rows = []
        for side in self.sides:
            row: dict[str, Any] = {"net": side.name, "parameters": side.parameters, "MFLOPs": side.flops / 1e6}
            row |= {"ReLUs": side.relus, "nonlinear units": side.units, "rounds": side.rounds}
            row |= {} if side.path_length is None else {"path length": side.path_length}
            row |= {f"ms, batch {b}": 1e3 * s for b, s in side.seconds.items()}
            rows.append(row if side.accuracy is None else row | {"accuracy": side.accuracy})
        return pd.DataFrame(rows).set_index("net")

    def decision_table(self) -> pd.DataFrame:
        """What could be one layer: whether it became one, and why."""
        import pandas as pd

        rows = [{**vars(d), "layers": " ∘ ".join(reversed(d.layers))} for d in self.decisions]
        return pd.DataFrame(rows, columns=["layers", "merged", "why", "before", "after"])

    def __repr__(self) -> str:
        first, last = self.sides[0], self.sides[-1]
        what = (
            f"{self.composed} layers composed into others" if self.composed else "nothing to merge: a plain equal net"
        )
        times = "".join(f", batch {b}: {s / last.seconds[b]:.2f} × as fast" for b, s in first.seconds.items())
        return (
            f"Merged({what}; {first.relus} → {last.relus} ReLUs, {first.flops / 1e6:.3g} → {last.flops / 1e6:.3g} "
            f"MFLOPs{times})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.table().to_html()

    def saved(self, path: str | Path) -> Path:
        """Write the module for any batch size, by suffix: `.onnx` (needs onnx and onnxscript), `.pt2` (torch.export).

        Neither needs pathsum to be read: `onnxruntime.InferenceSession(path)`, `torch.export.load(path).module()`.
        """
        path = Path(path)
        if path.suffix not in (".onnx", ".pt2"):
            raise OutputError(f"{path} has no known suffix: .onnx, or .pt2 for torch.export")
        if not path.parent.is_dir():
            raise OutputError(f"there is no folder {path.parent} to write {path.name} to")
        if path.suffix == ".onnx" and not writes_onnx():
            raise OutputError(f"to write {path.name} torch needs onnx and onnxscript: pip install 'pathsum[onnx]'")
        with warnings.catch_warnings(), silent("torch.onnx"):
            warnings.simplefilter("ignore")  # of torch's exporter, about its own calls
            program = exported(self.model, self.inputs, self.kwargs)
            if path.suffix == ".pt2":
                torch.export.save(program, path)
            else:
                torch.onnx.export(program, f=path, dynamo=True, external_data=False, verbose=False)
        return path


def writes_onnx() -> bool:
    """Whether what torch needs for ONNX files is installed."""
    return bool(find_spec("onnx") and find_spec("onnxscript"))


@contextmanager
def silent(name: str) -> Iterator[None]:
    """Only errors from a logger, for a while: the exporter tells of packages that nothing here needs."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def exported(model: nn.Module, inputs: tuple, kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    """The module as torch.export has it, on inputs of two samples, with the batch size left open."""
    named = inspect.signature(model.forward).bind(*inputs, **kwargs).arguments
    axes = {name: torch.utils._pytree.tree_map(_open_batch, value) for name, value in named.items()}
    return torch.export.export(model, inputs, kwargs, dynamic_shapes=axes)


def _open_batch(value: Any) -> Any:
    return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.ndim and len(value) == 2 else None


def measured(
    nets: dict[str, nn.Module],
    net: Knobs,
    alpha: list[float | Tensor],
    decisions: list[Decision],
    decide: Decide,
    inputs: tuple,
    kwargs: dict[str, Any],
    *,
    batches: Sequence[int],
    labels: Tensor | Sequence[int] | None,
    num_samples: int,
    rounds: tuple[int, int],
) -> Merged:
    """Count and time the three networks."""
    units = unit_table(net, alpha)
    total, left = int(units["elements"].sum()), int(units["nonlinear"].sum())
    lengths = [path_length(net, 0.0), path_length(net, alpha)]
    times: dict[int, dict[str, float]] = {}
    with torch.no_grad(), untouched(net):
        for batch in batches:
            args, named = at_batch((inputs, kwargs), batch)
            runs: dict[str, Any] = {
                name: lambda m=m, args=args, named=named: m(*args, **named) for name, m in nets.items()
            }
            times[batch] = interleaved(runs)
        sides = []
        for name, model in nets.items():
            with FlopCounterMode(display=False) as counter:
                out = model(*copied(inputs), **copied(kwargs))
            if name == "linearized" and labels is not None:
                out = net(*copied(inputs), alpha=alpha, **copied(kwargs))
            original = name == "original"
            sides.append(
                Side(
                    name,
                    sum(p.numel() for p in model.parameters()) + _constants(model, net.model),
                    counter.get_total_flops() / num_samples,
                    total if original else left,
                    len(units) if original else int((units["nonlinear"] > 0).sum()),
                    rounds[0 if original else 1],
                    lengths[0 if original else 1],
                    {batch: t[name] for batch, t in times.items()},
                    None if labels is None else float(accuracy_of(net.pick(out).unsqueeze(0), labels)[0]),
                )
            )
    merged = nets["merged"]
    return Merged(merged, tuple(sides), tuple(decisions), units, decide, *at_batch((inputs, kwargs), 2))


def path_length(net: Knobs, alpha: Alpha) -> float | None:
    """The average path length, where the graph of the model has one."""
    try:
        return average_path_length(net, alpha=alpha)
    except PathsumError:
        return None


def _constants(model: nn.Module, original: nn.Module) -> int:
    """Numbers in buffers that the merged module has and the original has not."""
    known = {name for name, _ in original.named_buffers()}
    return sum(b.numel() for name, b in model.named_buffers() if name not in known)


def unit_table(net: Knobs, alpha: list[float | Tensor]) -> pd.DataFrame:
    """What is left of each unit: its elements of one sample, and the nonlinear ones among them."""
    import pandas as pd

    rows = []
    for unit, value in zip(net.units, alpha, strict=True):
        a = slopes(value, unit)
        elements = prod(unit.shape[1:])
        share = float((a != 1).double().mean())
        row = {"unit": unit.name, "kind": unit.kind, "elements": elements, "nonlinear": round(share * elements)}
        rows.append(row)
    return pd.DataFrame(rows, columns=["unit", "kind", "elements", "nonlinear"])


def at_batch(values: Any, batch: int) -> Any:
    """Inputs of another batch size: the samples again and again."""
    count = len(next(t for t in tensors_in(values) if t.ndim))

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == count:
            return value[torch.arange(batch, device=value.device) % count]
        if isinstance(value, list | tuple):
            return type(value)(cut(v) for v in value)
        return {k: cut(v) for k, v in value.items()} if isinstance(value, dict) else value

    return cut(values)
