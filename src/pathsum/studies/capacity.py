"""Section 4.2 of Dherin & Munn 2025 (arXiv 2510.03470, Appendix A.3): the runs that Figures 1 and 2 share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pathsum.errors import PathsumError
from pathsum.nets.tower import Encoder, Init
from pathsum.scaling import parse_rule
from pathsum.studies.study import DIGITS_VALIDATION, Evidence, on_data
from pathsum.sweeping.config import RunConfig
from pathsum.train import TrainConfig
from pathsum.training.options import Precision

# "n" among the exponents of Appendix A.3 is a slip for n^-1, as Figure 1's caption has it.
TRAINED = ("0", "n^-2", "n^-1.5", "n^-1.2", "1/n", "n^-0.8", "1/sqrt(n)")
FAILED = ("n^-0.4", "n^-0.3", "1")  # these "all failed"
Preset = Literal["paper", "small", "smoke"]


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Towers of one depth without norm in the branches, at several λ and one learning rate, watched as they train.

    The defaults are the paper's. What it leaves open: LeCun initialization (flax's default), the stem keeps its batch
    norm, crops are cut from a border of 4 pixels after a random box of 60 to 100 % of the area was enlarged, the best
    evaluation is sought once an epoch, and geometric complexity is that of the logits in the normalized pixels, in eval
    mode, on a fixed balanced subset of the training images.
    """

    data: str = ""
    """cifar10:PATH (parquet folder, or the official archive), a hub id, or digits."""
    train_limit: int | None = None
    """Train on a random subset of so many images, classes balanced."""
    test_limit: int | None = None
    """Test on a random subset of so many images."""
    depth: int = 16
    """Residual blocks, two convolutions each."""
    width: int = 256
    """Channels."""
    scales: tuple[str, ...] = (*TRAINED, *FAILED)
    """Rules for λ."""
    lr: float = 0.3
    """Learning rate, constant."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of initialization, order of the data, and augmentation."""
    steps: int = 100_000
    """Optimizer steps of a run."""
    batch_size: int = 64
    """Images in a batch."""
    val_size: int = 0
    """Training images held out, to choose the evaluation by as well; the paper held out none."""
    eval_every: int = 781
    """Steps between evaluations, and between measurements of geometric complexity; 781 is an epoch of CIFAR-10."""
    probe_size: int = 256
    """Training images that geometric complexity is the mean over."""
    augment: bool = True
    """Random enlargement, crops and mirror images; for the digits better without."""
    encoder: Encoder | None = None
    """Stem; by default imagenet (the paper's), and conv3x3 for the digits."""
    stem_norm: bool = True
    """Batch norm in the stem."""
    init: Init = "lecun"
    """Initialization of the weights."""
    precision: Precision = "fp32"
    """Arithmetic of convolutions and matrix products: fp32, tf32 (on GPUs), or bf16."""

    def validate(self) -> None:
        """Raise PathsumError for what is no study."""
        if not self.data:
            raise PathsumError(
                "this preset needs CIFAR-10; give it as --data cifar10:PATH, or as --data uoft-cs/cifar10"
            )
        for name in ("scales", "seeds"):
            values = getattr(self, name)
            if not values:
                raise PathsumError(f"--{name} is empty, expected one value or more")
            if len(set(values)) < len(values):
                raise PathsumError(f"--{name} {' '.join(map(str, values))}: a value is given twice; leave one out")
        if self.depth < 1:
            raise PathsumError(f"--depth {self.depth} is not possible: λ = 1/n needs a depth of 1 or more")
        if any(parse_rule(scale).learned for scale in self.scales):
            raise PathsumError("--scales has a learned λ, which is no point on an axis of λ; leave it out")

    @property
    def lams(self) -> dict[str, float]:
        """The rules and their λ, ascending."""
        found = {parse_rule(scale).text: parse_rule(scale).values(self.depth)[0] for scale in self.scales}
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def runs(self) -> list[RunConfig]:
        """The runs, all seeds of a λ together, so that those that diverge are over at once."""
        self.validate()
        return [self.run_config(scale, seed) for scale in reversed(self.lams) for seed in self.seeds]

    def run_config(self, scale: str, seed: int) -> RunConfig:
        """One run."""
        model: dict[str, Any] = {
            "depth": self.depth,
            "width": self.width,
            "encoder": self.encoder or ("conv3x3" if self.data == "digits" else "imagenet"),
            "norm": None,
            "stem_norm": self.stem_norm,
            "init": self.init,
            "scale": scale,
        }
        train = TrainConfig(
            lr=self.lr,
            seed=seed,
            steps=self.steps,
            batch_size=self.batch_size,
            val_size=self.val_size,
            eval_every=self.eval_every,
            augment=self.augment,
            crop_scale=(0.6, 1.0) if self.augment else None,
            precision=self.precision,
            observe=("complexity",),
            observe_every=self.eval_every,
            observe_size=self.probe_size,
        )
        return RunConfig(
            data=self.data, train_limit=self.train_limit, test_limit=self.test_limit, model=model, train=train
        )

    def gather(self, found: Any) -> Evidence:
        """What the runs among `found` have recorded."""
        return Evidence.gather(self.runs(), found)


PRESETS: dict[Preset, Capacity] = {
    "paper": Capacity(),
    # Some 20 minutes of two cores: `--dry-run` times a step, and says 3 min for 2,500 steps of a run on two busy cores;
    # 21 runs x 1,500 steps of that are 38 min of one core, 19 of two, and the other 9 runs fail within their first
    # steps. An evaluation on 1,400 images takes as long as 7 steps, complexity as long as 5. 1,500 steps are 60 epochs
    # of 1,600 images, the paper's are 128.
    "small": Capacity(
        train_limit=2_000,
        test_limit=1_000,
        width=16,
        seeds=(0, 1, 2),
        steps=1_500,
        val_size=400,
        eval_every=100,
        probe_size=64,
    ),
    # Shows that all parts work: seconds, and no result worth quoting.
    "smoke": Capacity(
        data="digits",
        test_limit=200,
        depth=4,
        width=8,
        lr=0.1,
        seeds=(0, 1),
        steps=120,
        batch_size=32,
        val_size=DIGITS_VALIDATION,
        eval_every=20,
        probe_size=32,
        augment=False,
    ),
}
# How a preset is run: networks a program, programs at a time. A stack rounds otherwise than a network alone does.
HOW: dict[str, dict[str, Any]] = {"small": {"stack": 5}, "smoke": {"stack": 5}}


def preset(name: Preset, data: str = "") -> Capacity:
    """A preset on other data, see `on_data`."""
    return on_data(PRESETS[name], data, name=name)
