"""Every hyper-parameter of a training run, checked when it is given."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from pathsum.errors import PathsumError

Precision = Literal["fp32", "tf32", "bf16"]
Measured = Literal["complexity", "lengths", "orders", "lam", "gradient"]
DEFAULT_STEPS = 1000
FREE = ("threads", "tensorboard", "checkpoint_every")  # may differ on resuming: they leave the rows alone
OBSERVING = ("observe", "observe_every", "observe_size")  # say nothing where nothing is observed


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What one training run and `pathsum train` have in common; the paper's values where it gives them."""

    steps: int | None = None
    """Optimizer steps; 1000 where neither steps nor epochs are given."""
    epochs: float | None = None
    """Passes over the training images, instead of steps; fractions are fine."""
    batch_size: int = 64
    """Images in a batch."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW; the learning rate is constant."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay of either optimizer."""
    augment: bool = True
    """Random crops, and mirrored images where the data allow it."""
    crop_pad: int | None = None
    """Pixels of black border from which crops are cut; by default an eighth of the image, 4 at 32×32."""
    crop_scale: tuple[float, float] | None = None
    """Also enlarge a random box of this share of the area, such as 0.6 1.0."""
    val_size: int = 0
    """Training images held out for validation; accuracy is then also reported at the best validation."""
    eval_every: int | None = None
    """Steps between evaluations; by default ten evaluations a run."""
    eval_batch_size: int = 250
    """Images in a batch of an evaluation; changes nothing but speed and memory."""
    seed: int = 0
    """Seed of the batches' order, of augmentation, and of dropout."""
    divergence_window: int = 50
    """Steps for which the loss must stay above its start, without falling, to count as diverged."""
    frozen_window: int = 100
    """Steps in which no weight moves, or the evaluation loss does not, that count as frozen."""
    frozen_tolerance: float = 1e-5
    """Relative change of the evaluation loss that counts as none."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; by default one every 30 seconds."""
    tensorboard: bool = False
    """Also write the rows for TensorBoard."""
    threads: int | None = None
    """CPU threads; by default PyTorch's setting is left alone."""
    precision: Precision = "fp32"
    """Arithmetic of convolutions and matrix products: fp32, tf32 (on GPUs), or bf16 by autocast; weights stay fp32."""
    observe: tuple[Measured, ...] = ()
    """Record of the network on a fixed probe set: geometric complexity, path lengths, orders in λ, λ, gradients."""
    observe_every: int | None = None
    """Steps between observations; by default so many that they should take less than a tenth of the time."""
    observe_size: int = 64
    """Training images in the probe set."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise PathsumError(f"steps={self.steps} and epochs={self.epochs}: give one of them, not both")
        least = {
            "steps": 1, "batch_size": 1, "val_size": 0, "eval_every": 1, "eval_batch_size": 1,
            "divergence_window": 2, "frozen_window": 1, "checkpoint_every": 1, "threads": 1, "crop_pad": 0,
            "observe_every": 1, "observe_size": 1,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise PathsumError(f"{name} is {value}, expected {bound} or more")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise PathsumError(f"epochs is {self.epochs}, expected a positive number")
        if self.optimizer not in ("sgd", "adamw"):
            raise PathsumError(f"optimizer is {self.optimizer!r}, expected 'sgd' or 'adamw'")
        for k, name in enumerate(self.observe):
            if name not in get_args(Measured) or name in self.observe[:k]:
                raise PathsumError(f"observe has {name!r}; give {', '.join(get_args(Measured))}, each once at most")
        if self.precision not in get_args(Precision):
            raise PathsumError(f"precision is {self.precision!r}, expected 'fp32', 'tf32' or 'bf16'")
        for name in ("momentum", "weight_decay", "frozen_tolerance"):
            value, limit = getattr(self, name), 1 if name == "momentum" else math.inf
            if not 0 <= value < limit:
                raise PathsumError(f"{name} is {value}, expected 0 <= {name} < {limit}")

    def padding(self, height: int) -> int:
        """Pixels of border for the crops of images of that height."""
        return height // 8 if self.crop_pad is None else self.crop_pad


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainOptions):
    """Every hyper-parameter of one training run, as JSON can hold it.

    >>> TrainConfig(lr=0.1, steps=300).optimizer
    'sgd'
    """

    lr: float = 0.1
    """Learning rate, constant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lr < math.inf:
            raise PathsumError(f"lr is {self.lr}, expected a finite number, 0 or more")

    def num_steps(self, per_epoch: int) -> int:
        """How many optimizer steps this asks for, where an epoch has `per_epoch`."""
        if self.epochs is not None:
            return max(1, round(self.epochs * per_epoch))
        return self.steps or DEFAULT_STEPS


def train_record(config: TrainOptions) -> dict[str, Any]:
    """The options as a run records them; those on observing only where something is observed."""
    options = asdict(config)
    return {name: value for name, value in options.items() if config.observe or name not in OBSERVING}
