"""`pathsum study length-vs-complexity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pathsum.studies.length_complexity import PRESETS, LengthComplexityStudy, Preset
from pathsum.studies.open_command import OpenOptions, Say

if TYPE_CHECKING:
    from pathsum.studies.answers import Findings


@dataclass(frozen=True, kw_only=True)
class LengthComplexityCommand(OpenOptions, LengthComplexityStudy):
    """Do complex or difficult images take longer paths through a trained network?

    Measures for each test image the functional path length (nonlinear units passed, exact) and the mean order of the
    spectrum (residual branches passed), and correlates their ranks with compressed size, total variation, share of
    high frequencies and contrast of the image, and with its loss, margin and entropy; with 95 % intervals. On towers
    trained here, or on your network (--model, with --seeds 0). An open question of arXiv 2506.14386: the answer is
    whatever the intervals say. After an interruption the same command continues.

    Presets: smoke (seconds, digits), small (two cores, minutes, digits), cifar10 (needs --data). The other options
    begin as the preset has them.

    Examples:
      pathsum study length-vs-complexity --preset smoke
      pathsum study length-vs-complexity --depth 16 --out studies/complexity
      pathsum study length-vs-complexity --model nets.py:resnet20 --weights resnet20.safetensors --seeds 0 \\
          --data cifar10:data/cifar10 --mean .485 .456 .406 --std .229 .224 .225
    """

    kind: ClassVar[type[Any]] = LengthComplexityStudy
    preset: Preset = "small"
    """Where the other options begin."""
    out: Path = Path("pathsum-length-vs-complexity")
    """Folder for runs, page, tables and figure."""

    def train(self, study: Any, folder: Path, say: Say) -> None:
        from pathsum.studies.length_complexity import train_all

        train_all(study, folder, say)

    def findings(self, study: Any, folder: Path) -> Findings | None:
        from pathsum.studies.length_complexity_page import findings

        return findings(study, folder)


def parse_length_complexity(args: Sequence[str]) -> LengthComplexityCommand:
    """Read the options; those not given are the preset's."""
    from pathsum.studying import from_preset

    command: LengthComplexityCommand = from_preset(LengthComplexityCommand, PRESETS, "length-vs-complexity", args)
    return command
