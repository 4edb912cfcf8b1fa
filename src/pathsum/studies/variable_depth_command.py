"""`pathsum study variable-depth`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pathsum.studies.open_command import OpenOptions, Say
from pathsum.studies.variable_depth import PRESETS, Preset, VariableDepthStudy

if TYPE_CHECKING:
    from pathsum.studies.answers import Findings


@dataclass(frozen=True, kw_only=True)
class VariableDepthCommand(OpenOptions, VariableDepthStudy):
    """Does encouraging variable depth from scratch pay, against ordinary training of a residual network?

    Towers train for the same number of steps: ordinary; with slopes α of their units learned from the first step under
    a sparsity prior, by channel and by layer, to matched path lengths; with a prior of fixed strength; and with fewer
    blocks from the start. Writes accuracy, path length, its spread and nonlinear scalars, and paired differences with
    95 % intervals. An open question of arXiv 2506.14386: the answer is whatever the intervals say. After an
    interruption the same command continues.

    Presets: smoke (under a minute, digits), small (two cores, under ten minutes, digits), cifar10 (needs --data). The
    other options begin as the preset has them.

    Examples:
      pathsum study variable-depth --preset smoke
      pathsum study variable-depth --depth 16 --seeds 0 1 2 3 4 --out studies/variable-depth
      pathsum study variable-depth --preset cifar10 --data cifar10:data/cifar10 --device cuda
    """

    kind: ClassVar[type[Any]] = VariableDepthStudy
    preset: Preset = "small"
    """Where the other options begin."""
    out: Path = Path("pathsum-variable-depth")
    """Folder for runs, page, tables and figure."""

    def train(self, study: Any, folder: Path, say: Say) -> None:
        from pathsum.studies.variable_depth import train_all

        train_all(study, folder, say)

    def findings(self, study: Any, folder: Path) -> Findings | None:
        from pathsum.studies.variable_depth_page import findings

        return findings(study, folder)


def parse_variable_depth(args: Sequence[str]) -> VariableDepthCommand:
    """Read the options; those not given are the preset's."""
    from pathsum.studying import from_preset

    command: VariableDepthCommand = from_preset(VariableDepthCommand, PRESETS, "variable-depth", args)
    return command
