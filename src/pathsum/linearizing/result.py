"""What a linearization gives back, and its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import runs
from ..errors import CheckpointError
from ..knobs import Knobs, as_knobs
from ..storage import read_json, read_tensors, write_atomic, write_json, write_tensors, writing
from ..training.result import FitResult, Status
from ..values import Alpha
from .layout import Site, rounds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from .slopes import Slopes

ALPHA, WEIGHTS, RECORD, TABLE = "alpha.safetensors", "weights.safetensors", "linearized.json", "units.csv"


@dataclass(frozen=True, eq=False, repr=False)
class Linearized:
    """A network some of whose units are linear: `net(x, alpha=alpha)`, or this result called on x.

    alpha: one entry a unit of `net.units`, exactly 1 where it became linear. net: a copy of the one given, with the
    weights after training. units_left: nonlinear units, each as the share of its channels (or elements) that are
    nonlinear. relus: nonlinear scalars per inference. rounds: nonlinear depth, the most units with anything nonlinear
    left on one way through the network. parameters: slopes learned. forced: slopes that were not near 1 when the
    budget's last moment came. history: one row an evaluation.
    """

    alpha: list[float | Tensor]
    net: Knobs
    by: str
    sites: tuple[Site, ...]
    units_left: float
    relus: int
    rounds: int
    parameters: int
    accuracy_before: float | None
    accuracy_after: float | None
    status: Status
    reason: str
    reached: bool | None  # the target; None where there was none
    forced: int
    history: list[dict[str, Any]]

    @classmethod
    def of(cls, model: Slopes, fit: FitResult) -> Linearized:
        """The result of a run, as far as it came."""
        alpha = model.alpha()
        left = shares(alpha)
        accuracies = [row["test_accuracy"] for row in fit.rows if row["test_accuracy"] is not None]
        return cls(
            alpha=alpha,
            net=model.net,
            by=model.options.by,
            sites=model.sites,
            units_left=sum(left),
            relus=round(sum(share * site.scalars for share, site in zip(left, model.sites, strict=True))),
            rounds=rounds(model.recorder, [share > 0 for share in left]),
            parameters=model.slopes.numel(),
            accuracy_before=accuracies[0] if accuracies else None,
            accuracy_after=accuracies[-1] if accuracies else None,
            status=fit.status,
            reason=fit.reason,
            reached=None if model.budget is None else model.met,
            forced=int(model.control[2]),
            history=fit.rows,
        )

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.net(*inputs, alpha=self.alpha, **kwargs)

    def __repr__(self) -> str:
        known = self.accuracy_before is not None and self.accuracy_after is not None
        accuracy = f", accuracy {self.accuracy_before:.2%} → {self.accuracy_after:.2%}" if known else ""
        target = {None: "", True: "", False: ", target not reached"}[self.reached]
        return (
            f"Linearized({self.status}, by {self.by}: {self.units_left:.4g} of {len(self.sites)} units left, "
            f"{self.relus:,} nonlinear scalars, {self.rounds} rounds{accuracy}{target})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.table().to_html(index=False)}"

    def table(self) -> pd.DataFrame:
        """The units: slopes, the share still nonlinear, nonlinear scalars per inference, the mean α."""
        import pandas as pd

        rows = [
            {
                "unit": site.name,
                "kind": site.kind,
                "slopes": site.num,
                "nonlinear": share,
                "relus": round(share * site.scalars),
                "mean_alpha": float(torch.as_tensor(value).double().mean()),
            }
            for site, share, value in zip(self.sites, shares(self.alpha), self.alpha, strict=True)
        ]
        return pd.DataFrame(rows, columns=["unit", "kind", "slopes", "nonlinear", "relus", "mean_alpha"])

    def history_table(self) -> pd.DataFrame:
        """The evaluations: step, losses, test accuracy, ω, units and scalars left."""
        import pandas as pd

        return pd.DataFrame(self.history)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Test accuracy against the nonlinear units left, along the run."""
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots()
        rows = [row for row in self.history if row["test_accuracy"] is not None]
        ax.plot([row["units"] for row in rows], [row["test_accuracy"] for row in rows], "o-", label=f"by {self.by}")
        ax.set(xlabel="nonlinear units left", ylabel="test accuracy")
        ax.invert_xaxis()
        return ax

    def save(self, folder: str | Path) -> Path:
        """Write α, weights, a record with the history, and the table of units; returns the folder."""
        folder = Path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        names = [site.name for site in self.sites]
        alpha = {f"{i:04d}": torch.as_tensor(value) for i, value in enumerate(self.alpha)}
        write_tensors(folder / ALPHA, alpha, {"units": names, "by": self.by})
        write_tensors(folder / WEIGHTS, self.net.state_dict())
        write_atomic(folder / TABLE, self.table().to_csv(index=False))
        plain = {
            name: getattr(self, name)
            for name in (
                "by units_left relus rounds parameters accuracy_before accuracy_after status reason reached forced "
                "history"
            ).split()
        }
        write_json(
            folder / RECORD,
            {**plain, "sites": [asdict(site) for site in self.sites], "model": runs.model_record(self.net.model)},
        )
        return folder

    @classmethod
    def load(cls, folder: str | Path, net: nn.Module, *inputs: Any) -> Linearized:
        """Read what `save` wrote, for a network of the same architecture, which takes the weights.

        `inputs` are needed where `net` has no knobs yet. Raises `CheckpointError` where files are missing or damaged,
        or are of another model.
        """
        folder = Path(folder)
        record = read_json(folder / RECORD)
        knobbed = as_knobs(net, inputs, {})
        alpha = load_alpha(folder, knobbed)
        runs.load_weights(knobbed, folder / WEIGHTS)
        try:
            sites = tuple(Site.read(site) for site in record.pop("sites"))
            record.pop("model")
            made = cls(alpha=alpha, net=knobbed, sites=sites, **record)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder / RECORD} is no record of a linearization ({error}); linearize again"
            ) from None
        if len(sites) != len(alpha):
            raise CheckpointError(
                f"{folder / RECORD} lists {len(sites)} units, and {ALPHA} has {len(alpha)}: files of two runs were "
                "mixed; linearize again"
            )
        return made


class At(nn.Module):
    """A network under α, as `evaluate` takes it."""

    def __init__(self, net: Knobs, alpha: Alpha) -> None:
        super().__init__()
        self.net, self.alpha = net, alpha

    def forward(self, x: Tensor) -> Tensor:
        return self.net.pick(self.net(x, alpha=self.alpha))


def load_alpha(path: str | Path, net: Knobs) -> list[float | Tensor]:
    """α as `Linearized.save` wrote it (a folder or the file), for `net`.

    Raises `CheckpointError` where it is of another model: other units, or shapes that do not fit them.
    """
    path = Path(path) / ALPHA if Path(path).is_dir() else Path(path)
    tensors, state = read_tensors(path)
    names, units = state.get("units"), [unit.name for unit in net.units]
    if not isinstance(names, list) or sorted(tensors) != [f"{i:04d}" for i in range(len(names))]:
        raise CheckpointError(f"{path} holds no α of pathsum; give the {ALPHA} of a linearization")
    if names != units:
        first = next((f"'{a}', not '{b}'" for a, b in zip(names, units, strict=False) if a != b), "the rest is missing")
        raise CheckpointError(
            f"{path} holds α of another model: {len(names)} units for the {len(units)} of "
            f"{type(net.model).__name__}, the first that differs is {first}; give the α of this model"
        )
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    alpha: list[float | Tensor] = []
    for (_, value), unit in zip(sorted(tensors.items()), net.units, strict=True):
        if value.ndim == 0:
            alpha.append(float(value))
            continue
        if not fits(tuple(value.shape), unit.shape):
            raise CheckpointError(
                f"{path}: α of unit {unit.name} has shape {tuple(value.shape)}, which does not fit its "
                f"{unit.shape[1:]} numbers a sample; give the α of this model"
            )
        alpha.append(value.to(like.device))
    return alpha


def fits(alpha: tuple[int, ...], unit: tuple[int, ...]) -> bool:
    """Whether α of a shape goes with a unit's shape, batch included."""
    if len(alpha) == 1 and len(unit) in (4, 5):
        return alpha[0] in (1, unit[1])
    sample = unit[1:]
    return len(alpha) <= len(sample) and all(n in (1, m) for n, m in zip(alpha[::-1], sample[::-1], strict=False))


def shares(alpha: Sequence[float | Tensor]) -> list[float]:
    """The share of each unit that is nonlinear: of its slopes those that are not exactly 1."""
    return [float((torch.as_tensor(value) != 1).double().mean()) for value in alpha]
