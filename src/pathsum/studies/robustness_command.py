"""`pathsum study robustness`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pathsum.studies.open_command import OpenOptions, Say
from pathsum.studies.robustness import PRESETS, Preset, RobustnessStudy

if TYPE_CHECKING:
    from pathsum.studies.answers import Findings


@dataclass(frozen=True, kw_only=True)
class RobustnessCommand(OpenOptions, RobustnessStudy):
    """Is a network of variable depth (linearized by channel) more robust than a shallower one (by layer)?

    Each seed's tower, or your network (--model), is linearized in both ways from the same weights to the same average
    path lengths, and attacked by FGSM and PGD within L∞ balls. Writes accuracy against radius, and the paired
    difference of the arms with 95 % intervals, at matched path length and at matched accuracy. An open question of
    arXiv 2506.14386: the answer is whatever the intervals say. After an interruption the same command continues.

    Presets: smoke (under a minute, digits), small (two cores, under ten minutes, digits), cifar10 (needs --data). The
    other options begin as the preset has them.

    Examples:
      pathsum study robustness --preset smoke
      pathsum study robustness --seeds 0 1 2 3 4 --out studies/robustness
      pathsum study robustness --model nets.py:resnet20 --weights resnet20.safetensors --data cifar10:data/cifar10 \\
          --mean .485 .456 .406 --std .229 .224 .225 --epsilons .004 .008 --linear-steps 500
    """

    kind: ClassVar[type[Any]] = RobustnessStudy
    preset: Preset = "small"
    """Where the other options begin."""
    out: Path = Path("pathsum-robustness")
    """Folder for runs, page, tables and figure."""

    def train(self, study: Any, folder: Path, say: Say) -> None:
        from pathsum.studies.robustness import train_all

        train_all(study, folder, say)

    def findings(self, study: Any, folder: Path) -> Findings | None:
        from pathsum.studies.robustness_page import findings

        return findings(study, folder)


def parse_robustness(args: Sequence[str]) -> RobustnessCommand:
    """Read the options; those not given are the preset's."""
    from pathsum.studying import from_preset

    command: RobustnessCommand = from_preset(RobustnessCommand, PRESETS, "robustness", args)
    return command
