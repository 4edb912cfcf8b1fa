"""Sums over samples, chunk by chunk, from which an inspection's numbers follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from pathsum.data import Dataset
from pathsum.errors import DataError
from pathsum.expansion import Expansion, judge
from pathsum.inspect import Inspection
from pathsum.knobs import Knobs
from pathsum.paths import path_counts
from pathsum.spectrum import Spectrum


@dataclass
class Tally:
    """Sums over samples from which every number of an `Inspection` follows; parts are in units of the logits."""

    eps: float  # rounding unit of the precision used
    num: int = 0
    correct: int = 0
    output: float = 0.0  # Σ‖f‖², as are the following
    gap: float = 0.0
    sums: dict[str, Any] = field(default_factory=dict)  # arrays over orders or lengths
    means: list[Any] = field(default_factory=list)  # of each chunk's samples
    longer: bool = False

    def add(self, expansion: Expansion, spectrum: Spectrum, y: Tensor) -> None:
        """Take one chunk's results."""
        f = spectrum.output.double()
        if not bool(f.isfinite().all()):
            raise DataError(
                "the network's output is not finite (its training diverged, or its weights are damaged); "
                "inspect another checkpoint"
            )
        self.num += len(y)
        self.correct += int((f.argmax(1) == y).sum())
        self.output += float(f.square().sum())
        self.gap += float((spectrum.terms.double().sum(0) - f).square().sum())
        self.longer = spectrum.longer
        parts = expansion.contributions().double()
        partial = parts.cumsum(0)
        for name, values in {
            "order": parts.square().sum((1, 2)),
            "remainder": (f - partial).square().sum((1, 2)),
            "order_correct": (partial.argmax(2) == y).sum(1),
            "length": spectrum.energy().sum(1),
            "length_correct": spectrum.accuracy(y) * len(y),
        }.items():
            array = np.asarray(values, dtype=float)
            self.sums[name] = array if name not in self.sums else self.sums[name] + array
        self.means.append(spectrum.per_sample()["mean_length"].to_numpy())

    def result(self, net: Knobs, data: Dataset) -> Inspection:
        """The numbers, as shares of samples and of the norm of the logits."""
        sums, scale = self.sums, self.output or 1.0
        orders = pd.DataFrame(
            {
                "order": range(len(sums["order"])),
                "norm": np.sqrt(sums["order"] / scale),
                "remainder": np.sqrt(sums["remainder"] / scale),
                "accuracy": sums["order_correct"] / self.num,
            }
        )
        num_slots = len(sums["length"])
        names = [str(k) for k in range(num_slots)]
        counts = [*path_counts(len(net.branches)), *[0] * num_slots]
        paths = counts[:num_slots]
        if self.longer:
            names[-1], paths[-1] = f">{num_slots - 2}", sum(counts[num_slots - 1 :])
        share = sums["length"] / (sums["length"].sum() or 1.0)
        lengths = pd.DataFrame(
            {
                "length": names,
                "paths": pd.Series(paths, dtype=object),
                "norm": np.sqrt(sums["length"] / scale),
                "share": share,
                "accuracy": sums["length_correct"] / self.num,
            }
        )
        floor = 1e3 * self.eps * max(1.0, float(orders["norm"].max()))
        branches = net.anatomy.table().assign(lam=net.lam.tolist())
        branches["shape"] = branches["shape"].str.partition("×")[2]  # of one sample
        return Inspection(
            name=type(net.model).__name__,
            about=type(net.model).__name__,
            data=data.name,
            num_samples=self.num,
            accuracy=self.correct / self.num,
            branches=branches,
            orders=orders,
            verdict=judge(orders["remainder"].tolist(), floor),
            lengths=lengths,
            longer=self.longer,
            mean_length=float(np.arange(num_slots) @ share),
            conservation=(self.gap / scale) ** 0.5,
            sample_lengths=np.concatenate(self.means),
        )
