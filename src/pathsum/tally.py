"""Sums over samples, chunk by chunk, from which an inspection's numbers follow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pathsum.errors import DataError
from pathsum.expansion import Expansion, judge
from pathsum.inspection import Inspection
from pathsum.knobs import Knobs
from pathsum.paths import path_counts
from pathsum.spectrum import Spectrum
from pathsum.tasks import Chunk, Probe, Task


@dataclass
class Tally:
    """Sums over samples from which every number of an `Inspection` follows; parts are in units of the output."""

    task: Task
    eps: float  # rounding unit of the precision used
    num: int = 0
    num_rows: int = 0
    output: float = 0.0  # Σ‖f‖²
    whole: dict[str, float] = field(default_factory=dict)  # scores of the whole network
    orders: dict[str, np.ndarray] = field(default_factory=dict)
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    means: list[np.ndarray] = field(default_factory=list)  # of each chunk's samples
    longer: bool = False

    def add(self, expansion: Expansion, spectrum: Spectrum, chunk: Chunk) -> None:
        """Take one chunk's results."""
        f = chunk.rows(spectrum.output)
        if not bool(f.isfinite().all()):
            raise DataError(
                "the network's output is not finite (its training diverged, or its weights are damaged); "
                "inspect another checkpoint"
            )
        self.num += len(chunk)
        self.num_rows += len(f)
        self.output += float(f.square().sum())
        self.longer = spectrum.longer
        for score in self.task.scores:
            self.whole[score.name] = self.whole.get(score.name, 0.0) + float(score.of(f, f, chunk.labels).sum())
        lam = expansion.lam
        self.collect(self.orders, ((lam**k * chunk.rows(term)) for k, term in enumerate(expansion.terms)), f, chunk)
        energy = self.collect(self.lengths, map(chunk.rows, spectrum.terms), f, chunk)
        share = energy / energy.sum(0).clamp_min(torch.finfo(torch.float64).tiny)
        self.means.append((torch.arange(len(share), dtype=share.dtype) @ share).numpy())

    def collect(self, sums: dict[str, np.ndarray], parts: Iterable[Tensor], f: Tensor, chunk: Chunk) -> Tensor:
        """Add to the sums over parts, one part (rows, features) at a time; the energy of each, (parts, samples)."""
        partial = torch.zeros_like(f)
        owner = chunk.owner()
        found, energies = [], []
        for part in parts:
            partial += part
            squares = part.square().sum(1)
            energies.append(torch.zeros(len(chunk), dtype=squares.dtype).index_add_(0, owner, squares))
            scores = {s.name: s.of(partial, f, chunk.labels).sum() for s in self.task.scores}
            found.append({"norm": squares.sum(), "remainder": (f - partial).square().sum(), **scores})
        for name in found[0]:
            array = np.array([float(row[name]) for row in found])
            sums[name] = array if name not in sums else sums[name] + array
        return torch.stack(energies)

    def result(self, net: Knobs, probe: Probe) -> Inspection:
        """The numbers, as means over rows and shares of the norm of the output."""
        scale = self.output or 1.0
        orders = pd.DataFrame(
            {
                "order": range(len(self.orders["norm"])),
                "norm": np.sqrt(self.orders["norm"] / scale),
                "remainder": np.sqrt(self.orders["remainder"] / scale),
                **self.scored(self.orders),
            }
        )
        num_slots = len(self.lengths["norm"])
        names = [str(k) for k in range(num_slots)]
        counts = [*path_counts(len(net.branches)), *[0] * num_slots]
        paths = counts[:num_slots]
        if self.longer:
            names[-1], paths[-1] = f">{num_slots - 2}", sum(counts[num_slots - 1 :])
        share = self.lengths["norm"] / (self.lengths["norm"].sum() or 1.0)
        lengths = pd.DataFrame(
            {
                "length": names,
                "paths": pd.Series(paths, dtype=object),
                "norm": np.sqrt(self.lengths["norm"] / scale),
                "share": share,
                **self.scored(self.lengths),
            }
        )
        floor = 1e3 * self.eps * max(1.0, float(orders["norm"].max()))
        branches = net.anatomy.table().assign(lam=net.lam.tolist())
        branches["shape"] = branches["shape"].str.partition("×")[2]  # of one sample
        return Inspection(
            name=type(net.model).__name__,
            about=type(net.model).__name__,
            data=probe.data,
            task=probe.task,
            num_samples=self.num,
            num_rows=self.num_rows,
            scores={name: total / self.num_rows for name, total in self.whole.items()},
            branches=branches,
            orders=orders,
            verdict=judge(orders["remainder"].tolist(), floor),
            lengths=lengths,
            longer=self.longer,
            mean_length=float(np.arange(num_slots) @ share),
            conservation=float(np.sqrt(self.lengths["remainder"][-1] / scale)),
            sample_lengths=np.concatenate(self.means),
            notes=(*probe.notes, *filter(None, [probe.task.note])),
        )

    def scored(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Mean scores, and of a loss its perplexity too."""
        columns = {score.name: sums[score.name] / self.num_rows for score in self.task.scores}
        if "loss" in columns:
            with np.errstate(over="ignore"):
                columns["perplexity"] = np.exp(columns["loss"])
        return columns
