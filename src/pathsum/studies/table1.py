"""Table 1 of Dherin & Munn 2025 (arXiv 2510.03470, Appendix A.2): which runs it asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pathsum.errors import PathsumError
from pathsum.nets.memory import Mode
from pathsum.nets.tower import Encoder, Init
from pathsum.studies.study import DIGITS_VALIDATION, Evidence, on_data
from pathsum.sweeping.config import RunConfig
from pathsum.train import TrainConfig
from pathsum.training.options import Precision

SETTINGS = (("batch", "1"), (None, "1"), (None, "1/n"), (None, "1/sqrt(n)"))  # norm and λ, the table's rows
PAPER: dict[tuple[str, str], dict[int, str]] = {  # percent ± standard error
    ("batch", "1"): {10: "90.0 ± 0.1", 100: "89.02 ± 0.1", 1000: "88.33 ± 0.1"},
    ("none", "1"): {10: "85.19 ± 0.3", 100: "–", 1000: "–"},
    ("none", "1/n"): {10: "87.87 ± 0.1", 100: "87.53 ± 0.2", 1000: "81.52 ± 0.4"},
    ("none", "1/sqrt(n)"): {10: "88.0 ± 0.1", 100: "89.02 ± 0.09", 1000: "86.82 ± 0.3"},
}
Preset = Literal["paper", "h200", "small", "smoke"]


@dataclass(frozen=True, kw_only=True)
class Table1:
    """Towers with batch norm and λ = 1, and without it and λ = 1, 1/n, 1/√n, at several depths and learning rates.

    The defaults are the paper's. What it leaves open: LeCun initialization (flax's default), the stem keeps its batch
    norm in every row, the last batch norm of a branch starts at 1, crops are cut from a border of 4 pixels after a
    random box of 60 to 100 % of the area was enlarged, and the best evaluation is sought once an epoch.
    """

    data: str = ""
    """cifar10:PATH (parquet folder, or the official archive), a hub id, or digits."""
    train_limit: int | None = None
    """Train on a random subset of so many images, classes balanced."""
    test_limit: int | None = None
    """Test on a random subset of so many images."""
    depths: tuple[int, ...] = (10, 100, 1000)
    """Residual blocks, two convolutions each: the table's columns."""
    width: tuple[int, ...] = (256, 256, 128)
    """Channels: one number, or one for each depth."""
    lrs: tuple[float, ...] = tuple(2.0**-k for k in range(10, 0, -1))
    """Learning rates to choose from."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of initialization, order of the data, and augmentation."""
    steps: int = 160_000
    """Optimizer steps of a run."""
    batch_size: int = 64
    """Images in a batch."""
    val_size: int = 0
    """Training images held out, to choose the learning rate and the evaluation by; the paper held out none."""
    eval_every: int | None = 781
    """Steps between evaluations, of which the best counts; 781 is an epoch of CIFAR-10."""
    augment: bool = True
    """Random enlargement, crops and mirror images; for the digits better without."""
    encoder: Encoder | None = None
    """Stem; by default imagenet (the paper's), and conv3x3 for the digits."""
    stem_norm: bool = True
    """Batch norm in the stem, in every row of the table."""
    zero_init_last: bool = False
    """Start the last batch norm of each branch at zero, as flax's example does."""
    init: Init = "lecun"
    """Initialization of the weights."""
    precision: Precision = "fp32"
    """Arithmetic of convolutions and matrix products: fp32, tf32 (on GPUs), or bf16."""
    activations: Mode = "plain"
    """What blocks keep for the gradient: plain (everything), checkpoint or reverse (little, for deep wide towers)."""
    margin: float = 3.0
    """Points of accuracy within which λ = 1/√n counts as good as batch norm (the paper: 2.0, 0.0 and 1.5)."""

    @property
    def widths(self) -> dict[int, int]:
        """The width at each depth."""
        return dict(zip(self.depths, self.width * (len(self.depths) if len(self.width) == 1 else 1), strict=True))

    def at_depths(self, depths: tuple[int, ...]) -> Table1:
        """The same at other depths: each as wide as the next shallower one here."""
        shallower = [max((k for k in self.depths if k <= depth), default=min(self.depths)) for depth in depths]
        return replace(self, depths=depths, width=tuple(self.widths[k] for k in shallower))

    def validate(self) -> None:
        """Raise PathsumError for what is no study."""
        if not self.data:
            raise PathsumError(
                "this preset needs CIFAR-10; give it as --data cifar10:PATH, or as --data uoft-cs/cifar10"
            )
        for name in ("depths", "width", "lrs", "seeds"):
            values = getattr(self, name)
            if not values:
                raise PathsumError(f"--{name} is empty, expected one value or more")
            if name != "width" and len(set(values)) < len(values):
                raise PathsumError(f"--{name} {' '.join(map(str, values))}: a value is given twice; leave one out")
        if len(self.width) not in (1, len(self.depths)):
            raise PathsumError(
                f"--width has {len(self.width)} values for {len(self.depths)} depths; give one, or one for each depth"
            )
        if min(self.depths) < 1:
            raise PathsumError(f"--depths {min(self.depths)} is not possible: λ = 1/n needs a depth of 1 or more")
        if not self.margin >= 0:
            raise PathsumError(f"--margin is {self.margin:g}, expected points of accuracy, 0 or more")

    def runs(self) -> list[RunConfig]:
        """The runs, the deepest first: of them the others' time hangs."""
        self.validate()
        return [
            self.run_config(depth, norm, scale, lr, seed)
            for depth in sorted(self.depths, reverse=True)
            for norm, scale in SETTINGS
            for lr in self.lrs
            for seed in self.seeds
        ]

    def run_config(self, depth: int, norm: str | None, scale: str, lr: float, seed: int) -> RunConfig:
        """One run."""
        model: dict[str, Any] = {
            "depth": depth,
            "width": self.widths[depth],
            "encoder": self.encoder or ("conv3x3" if self.data == "digits" else "imagenet"),
            "norm": norm,
            "stem_norm": self.stem_norm,
            "zero_init_last": self.zero_init_last and norm is not None,
            "init": self.init,
            "scale": scale,
        }
        train = TrainConfig(
            lr=lr,
            seed=seed,
            steps=self.steps,
            batch_size=self.batch_size,
            val_size=self.val_size,
            eval_every=self.eval_every,
            augment=self.augment,
            crop_scale=(0.6, 1.0) if self.augment else None,
            precision=self.precision,
        )
        return RunConfig(
            data=self.data,
            train_limit=self.train_limit,
            test_limit=self.test_limit,
            model=model,
            activations=self.activations,
            train=train,
        )

    def gather(self, found: Any) -> Evidence:
        """What the runs among `found` have recorded."""
        return Evidence.gather(self.runs(), found)


PRESETS: dict[Preset, Table1] = {
    "paper": Table1(),
    # The column n = 10, for an hour of one H200. A step of one network of n blocks is 3 passes x 2 x 64 images x
    # 64 pixels x 9 x 256^2 x 2n = 0.029 n TFLOP; at 40 % of the bf16 peak of 989 TFLOP/s that is 0.73 ms for n = 10.
    # 4 settings x 5 rates x 3 seeds = 60 runs x 50,000 steps (71 epochs) x 0.73 ms = 37 min; 20 evaluations on
    # 15,000 images, a third of a step's cost per image, 60 x 20 x 0.06 s = 1 min; the rest is slack: 26 % of the
    # peak would do. Stacked, so that launches do not bound it. n = 100 costs ten times as much.
    "h200": Table1(
        depths=(10,),
        width=(256,),
        lrs=tuple(2.0**-k for k in (9, 7, 5, 3, 1)),
        seeds=(0, 1, 2),
        steps=50_000,
        val_size=5_000,
        eval_every=2_500,
        precision="bf16",
    ),
    # Half an hour of two cores, six networks (a setting's rates and seeds) a program. CPU seconds of a step of one
    # network with one thread (batch norm, without): n = 1000 of width 8 0.80, 0.31; n = 100 of width 16 0.12, 0.08;
    # n = 10 0.013, 0.011; of an evaluation on 1,500 images 6, 1 and 0.2. n = 1000: 6 runs a setting x (100 steps + 3
    # evaluations): batch norm 590 s, 1/n and 1/sqrt(n) 260 s each, and lambda = 1 fails within its first steps;
    # n = 100: 90 and 2 x 70 s; n = 10: 35 s. Together 1400 s, and half as much again where two threads share a core.
    "small": Table1(
        train_limit=6_000,
        test_limit=1_000,
        width=(16, 16, 8),
        lrs=tuple(2.0**-k for k in (7, 4, 1)),
        seeds=(0, 1),
        steps=100,
        batch_size=32,
        val_size=500,
        eval_every=50,
    ),
    # Shows that all parts work: seconds, and no result worth quoting.
    "smoke": Table1(
        data="digits",
        test_limit=300,
        depths=(2, 4, 8),
        width=(8,),
        lrs=(2.0**-5, 2.0**-3),
        seeds=(0, 1),
        steps=80,
        batch_size=32,
        val_size=DIGITS_VALIDATION,
        eval_every=20,
        augment=False,
    ),
}
# How a preset is run: networks a program, programs at a time. A stack rounds otherwise than a network alone does.
HOW: dict[str, dict[str, Any]] = {"h200": {"stack": 15, "workers": 1}, "small": {"stack": 6}, "smoke": {"stack": 4}}


def preset(name: Preset, data: str = "") -> Table1:
    """A preset on other data, see `on_data`."""
    return on_data(PRESETS[name], data, name=name)
