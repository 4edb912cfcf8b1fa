"""An inspection: what a network is as a sum over paths, measured on many samples in bounded memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pathsum.errors import ControlFlowError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import nn

    from pathsum.data import Dataset
    from pathsum.data.text import Text
    from pathsum.expansion import Expansion, Verdict
    from pathsum.knobs import Knobs
    from pathsum.spectrum import Spectrum
    from pathsum.tasks import Chunk, Probe, Task

LENGTHS = 32  # path lengths shown one by one where `max_length` is not given
CHUNK = 50  # samples at a time, or fewer,
ELEMENTS = 1 << 25  # so that no series of inputs or outputs holds many more numbers than these


@dataclass(frozen=True)
class Inspection:
    """What a network is as a sum over paths, on `num_samples` images or texts; scores as its `task` defines them.

    A `norm` is that of a part of the output over all samples, divided by the norm of the output: ‖part‖/‖f‖. Parts
    can cancel, so norms need not add up to 1. `share` is a length's part of Σ‖v_k‖², as in `pathsum.Spectrum`. All of
    this is over the rows of the output that the task is about: one a sample, or one a token.
    """

    name: str
    about: str
    data: str
    task: Task
    num_samples: int
    num_rows: int
    scores: dict[str, float]  # of the whole network
    branches: pd.DataFrame  # branch, lam, shortcut, after, shape, call
    orders: pd.DataFrame  # order, norm, remainder (‖f − Σ_{j≤k}‖/‖f‖), scores (of the partial sum)
    verdict: Verdict
    lengths: pd.DataFrame  # length, paths, norm, share, scores (of paths up to this length)
    longer: bool  # the last length stands for all longer ones
    mean_length: float  # in blocks; the last length counts as its least
    conservation: float  # ‖Σ_k v_k − f‖/‖f‖
    sample_lengths: np.ndarray  # (num_samples,) mean path length of each sample
    notes: tuple[str, ...] = ()  # what was done to the samples, and what the scores are

    @property
    def value(self) -> float:
        """The whole network's leading score."""
        return self.scores[self.task.lead.name]

    @property
    def accuracy(self) -> float | None:
        """Share of rows that the whole network has right; None where nothing says what is right."""
        return self.scores.get("accuracy")

    @property
    def is_bound(self) -> bool:
        """Whether the longer paths hold enough to move the mean length by a percent: it is then a lower bound."""
        if not self.longer:
            return False
        most = float(self.lengths["share"].iloc[-1]) * (len(self.branches) - len(self.lengths) + 1)
        return most > 0.01 * self.mean_length

    def __repr__(self) -> str:
        return (
            f"Inspection({self.name}: {len(self.branches)} branches, {self.task.lead.name} {self.value:.2%}, "
            f"{self.verdict}, mean path length {self.mean_length:.3g})"
        )


def inspect(
    model: nn.Module,
    data: Dataset | Text,
    *,
    order: int = 8,
    max_length: int | None = None,
    recompute: Collection[str] = (),
    chunk_size: int | None = None,
    dtype: Literal["float32", "float64"] = "float32",
    output: str | int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Inspection:
    """Expand `model` in λ and by path length on the test images of a data set, or on a text, in chunks.

    The model is converted to `dtype` and put in eval mode; `output` names the output to look at, `recompute` is as in
    `pathsum.spectrum`. Memory: one chunk's
    series, and a few numbers a sample. Raises DataError where images or tokens do not fit the model, NoJoinsError for
    a model without branches.
    """
    from pathsum.data.text import Text
    from pathsum.probes import image_probe, text_probe

    ready(model, dtype)
    if isinstance(data, Text):
        probe = text_probe(model, data, output=output, seed=seed)
    else:
        probe = image_probe(model, data, dtype=dtype, output=output)
    return measure(
        model,
        probe,
        order=order,
        max_length=max_length,
        recompute=recompute,
        chunk_size=chunk_size,
        output=output,
        progress=progress,
    )


def ready(model: nn.Module, dtype: str) -> None:
    """The model in eval mode and in this precision."""
    import torch

    model.eval().to(getattr(torch, dtype))


def measure(
    model: nn.Module,
    probe: Probe,
    *,
    order: int = 8,
    max_length: int | None = None,
    recompute: Collection[str] = (),
    chunk_size: int | None = None,
    output: str | int | None = None,
    progress: bool | None = None,
) -> Inspection:
    """Expand `model` in λ and by path length on all samples of a probe; options as in `inspect`."""
    import torch

    import pathsum as ps
    from pathsum.progress import bar
    from pathsum.tally import Tally

    chunk = probe.chunk(0, 2)
    net = ps.knobs(model, *chunk.inputs, output=output, **chunk.kwargs)
    net.need_joins()
    longest = min(LENGTHS, len(net.branches)) if max_length is None else max_length
    max_length = longest if longest < len(net.branches) else None  # no slot for longer ones where there are none
    tally = Tally(probe.task, eps=torch.finfo(next(model.parameters()).dtype).eps)
    with torch.no_grad(), bar("inspecting", probe.num, show=progress) as update:
        size = chunk_size or fitting(net, chunk, slots=max(order, longest) + 2)
        for start in range(0, probe.num, size):
            chunk = probe.chunk(start, size)
            net, expansion, spectrum = both(net, chunk, order, {"max_length": max_length, "recompute": recompute})
            tally.add(expansion, spectrum, chunk)
            update(len(chunk))
    result = tally.result(net, probe)
    if recompute:
        note = f"For the paths up to each length, {' and '.join(recompute)} were computed anew, not frozen."
        result = replace(result, notes=(*result.notes, note))
    return result


def fitting(net: Knobs, chunk: Chunk, slots: int) -> int:
    """How many samples at a time keep a series of the input, and of the output, within bounds."""
    inputs = next(iter((*chunk.inputs, *chunk.kwargs.values())))
    out = net.pick(net(*chunk.inputs, **chunk.kwargs))
    most = slots * max(inputs[0].numel(), out[0].numel())
    return max(1, min(CHUNK, ELEMENTS // most))


def both(net: Knobs, chunk: Chunk, order: int, lengths: dict[str, Any]) -> tuple[Knobs, Expansion, Spectrum]:
    """Orders and lengths of one chunk, with knobs made anew where its control flow is another (with padding, say)."""
    import pathsum as ps

    def run(net: Knobs) -> tuple[Knobs, Expansion, Spectrum]:
        options: dict[str, Any] = {"progress": False, **chunk.kwargs}
        expansion = ps.expand(net, *chunk.inputs, order=order, **options)
        return net, expansion, ps.spectrum(net, *chunk.inputs, **lengths, **options)

    try:
        return run(net)
    except ControlFlowError:
        again = ps.knobs(net.model, *chunk.inputs, output=net.output, **chunk.kwargs)
        if [b.name for b in again.branches] != [b.name for b in net.branches]:
            raise
        return run(again)
