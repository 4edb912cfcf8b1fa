"""`pathsum linearize`: from a trained network to the units it can do without."""

from __future__ import annotations

import signal
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum.linearizing.options import LinearizeOptions
from pathsum.training.options import TrainConfig, TrainOptions

if TYPE_CHECKING:
    from pathsum.data import Dataset
    from pathsum.linearizing.result import Linearized
    from pathsum.resolve import Target

HISTORY = "history.csv"


@dataclass(frozen=True, kw_only=True)
class LinearizeCommand(LinearizeOptions, TrainOptions):
    """Make the units of a trained network linear, and see which it can do without.

    Every nonlinear unit becomes αa + (1−α)φ(a), and the slopes α are learned under a prior that draws them to 1, where
    a unit is linear. How far: --omega, the strength of the prior; or a target, --target-units (a unit counts as its
    share of nonlinear channels), --target-relus (scalars an inference, the price of private inference) or
    --target-length (average path length). By channel paths of many lengths remain, by layer the network gets shallower.
    Prints accuracy before and after, and what is left of each unit; writes alpha.safetensors, weights.safetensors,
    units.csv and history.csv. After an interruption, even a kill, the same command continues where it stopped.

    MODEL is a folder that pathsum wrote, FILE.py:FUNCTION, torchvision:NAME, timm:NAME or hf:NAME, as for inspect.

    Examples:
      pathsum linearize runs/train/he --target-units 4 --epochs 10
      pathsum linearize nets.py:resnet20 --weights resnet20.safetensors --data cifar10:data/cifar10 \\
          --mean .485 .456 .406 --std .229 .224 .225 --by channel --target-length 4 --epochs 60 --batch-size 128
      pathsum linearize nets.py:resnet20 --weights resnet20.safetensors --data cifar10:data/cifar10 --by layer \\
          --target-length 4 --epochs 60 --out lin/layer
      pathsum linearize runs/train/he --omega 0.02 --no-cotrain --alpha lin/first --out lin/second
    """

    model: str
    """The trained network: FOLDER, FILE.py:FUNCTION, torchvision:NAME, timm:NAME or hf:NAME."""
    data: str | None = None
    """digits, cifar10:PATH, cifar100:PATH, or a hub id. A checkpoint of pathsum may know."""
    weights: Path | None = None
    """A .safetensors file for a MODEL that takes one."""
    lr: float = 0.01
    """Learning rate of the weights, constant."""
    alpha: Path | None = None
    """Start from the slopes in this folder, of an earlier linearization, rather than from 0."""
    mean: tuple[float, ...] | None = None
    """Subtracted from pixels/255, a number per channel; by default as the model was trained, else the data's."""
    std: tuple[float, ...] | None = None
    """What that is divided by, likewise."""
    train_limit: int | None = None
    """Train on a random subset of so many images, classes balanced."""
    test_limit: int | None = None
    """Test on a random subset of so many images."""
    device: str | None = None
    """cpu or cuda; by default cuda where there is one."""
    out: Path | None = None
    """Folder for the result; by default pathsum-linearize/NAME."""
    resume: bool = True
    """Continue, or return, what the folder holds; with no-resume it must be empty."""

    def __post_init__(self) -> None:
        LinearizeOptions.__post_init__(self)
        self.config  # noqa: B018  (checks what training is given)

    @property
    def config(self) -> TrainConfig:
        """How the weights are trained."""
        return TrainConfig(lr=self.lr, **{f.name: getattr(self, f.name) for f in fields(TrainOptions)})

    @property
    def options(self) -> LinearizeOptions:
        """How the slopes are."""
        return LinearizeOptions(**{f.name: getattr(self, f.name) for f in fields(LinearizeOptions)})

    def run(self) -> int:
        """Linearize, print and write the result; returns the exit code (interrupted: 128 + signal)."""
        from rich.console import Console

        from pathsum.linearize import run_linearize
        from pathsum.resolve import resolve
        from pathsum.storage import write_atomic
        from pathsum.sweeping.work import default_device

        target = resolve(self.model, weights=self.weights)
        out = self.out or Path("pathsum-linearize") / target.name
        device = self.device or default_device()
        data = self.images(target, device)
        console = Console()
        console.print(f"{target.about}; {data!r} on {device}", soft_wrap=True)
        result = run_linearize(
            target.model.to(device), data, self.options, self.config, alpha=self.alpha, out=out, resume=self.resume
        )
        if result.status == "interrupted":
            console.print("Interrupted; the same command continues.")
            return 128 + signal.Signals[result.reason]
        if result.status != "done":
            console.print(
                f"{result.status.capitalize()} ({result.reason}): nothing to use was written. Lower --lr or "
                "--alpha-lr, and give another --out",
                soft_wrap=True,
            )
            return 1
        write_atomic(out / HISTORY, result.history_table().to_csv(index=False))
        show(console, result)
        console.print(f"Slopes, weights, tables: {out}", soft_wrap=True)
        console.print(f"Next: pathsum merge {self.model} {out}, with the same --data and --weights", soft_wrap=True)
        return 0

    def images(self, target: Target, device: str) -> Dataset:
        """The data, with the mean and standard deviation that the model was trained with, where known."""
        from pathsum.data import load

        source = target.source(self.data)
        data = load(source, device=device, train_limit=self.train_limit, test_limit=self.test_limit, seed=self.seed)
        return target.normalized(data, self.mean, self.std)


def show(console: Any, result: Linearized) -> None:
    """Print what is left of each unit, and the result in a sentence."""
    from rich.table import Table

    table = Table("unit", "kind", "slopes", "nonlinear", "scalars", "mean α")
    for row in result.table().to_dict("records"):
        table.add_row(
            row["unit"],
            row["kind"],
            f"{row['slopes']:,}",
            f"{row['nonlinear']:.1%}",
            f"{row['relus']:,}",
            f"{row['mean_alpha']:.3f}",
        )
    console.print(table)
    console.print(repr(result), soft_wrap=True, highlight=False)
    if result.forced:
        console.print(
            f"{result.forced} slopes were made linear from further than the band when the ramp ended: more steps, or a "
            "higher alpha_lr, would let the prior take them there."
        )
