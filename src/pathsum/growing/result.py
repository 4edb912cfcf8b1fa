"""What growing and shrinking give back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from pathsum.figures import PALETTE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Growth:
    """A deeper net that computes what the shallower one did; made by `grow`."""

    net: nn.Module
    optimizer: torch.optim.Optimizer | None  # of `net`, with the old one's memory; None where none was given
    new_blocks: tuple[str, ...]  # their names in `net`
    error: float  # ‖new − old‖/‖old‖ of the outputs on the inputs given
    depth: int  # blocks now
    rows: tuple[dict[str, object], ...] = field(repr=False)

    def table(self) -> pd.DataFrame:
        """A line for each residual branch: its block, whether it is new, λ, and the factor on its last layer."""
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=["block", "branch", "new", "lam", "factor"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw λ of every branch, old ones filled, new ones open."""
        from matplotlib import pyplot as plt

        ax = plt.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax
        table = self.table()
        for new, face in ((False, PALETTE[0]), (True, "none")):
            part = table[table["new"] == new]
            label = "new, at zero" if new else "old"
            ax.plot(part.index + 1, part["lam"], "o", label=label, color=PALETTE[0], markerfacecolor=face)
        ax.set(xlabel="residual branch", ylabel="λ", ylim=(min(0.0, 1.1 * table["lam"].min()), None))
        ax.legend()
        return ax

    def __repr__(self) -> str:
        return (
            f"Growth({len(self.new_blocks)} new blocks, {self.depth} in all; outputs differ by {self.error:.1e}; "
            f"optimizer {'carried' if self.optimizer is not None else 'not given'})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.table().to_html(index=False)}"


@dataclass(frozen=True, eq=False)
class Shrinkage:
    """A shallower net without the dead blocks of the old one; made by `shrink`."""

    net: nn.Module
    optimizer: torch.optim.Optimizer | None
    removed: tuple[str, ...]  # blocks, by their names in the old net
    error: float  # ‖new − old‖/‖old‖ of the outputs on the inputs given
    depth: int  # blocks left
    tol: float
    rows: tuple[dict[str, object], ...] = field(repr=False)

    def table(self) -> pd.DataFrame:
        """A line for each branch of the old net: block, ‖λF‖/‖skip‖ at most, whether dead, what became of it."""
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=["block", "branch", "contribution", "dead", "fate"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw each branch's contribution, those of removed blocks crossed out, and the tolerance."""
        from matplotlib import pyplot as plt

        ax = plt.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax
        table = self.table()
        for removed, mark, label in ((False, "o", "kept"), (True, "x", "removed")):
            part = table[(table["fate"] == "removed") == removed]
            ax.plot(part.index + 1, part["contribution"], mark, color=PALETTE[int(removed)], label=label)
        ax.axhline(self.tol, color=PALETTE[1], ls="--", lw=1, label="tolerance")
        ax.set(xlabel="residual branch", ylabel="‖λF(z)‖ / ‖z‖, at most")
        smallest = table["contribution"][table["contribution"] > 0].min()
        ax.set_yscale("symlog", linthresh=float(smallest) if smallest == smallest else 1e-6)
        ax.legend()
        return ax

    def __repr__(self) -> str:
        gone = f"{len(self.removed)} dead blocks removed" if self.removed else "no dead block"
        return f"Shrinkage({gone}, {self.depth} left; outputs differ by {self.error:.1e})"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.table().to_html(index=False)}"
