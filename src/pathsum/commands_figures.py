"""`pathsum study figure1` and `figure2`: two views of the same runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pathsum.studies.capacity import HOW, Capacity, Preset, preset
from pathsum.studies.parts import HELD, Words
from pathsum.studying import StudyOptions, part, read

if TYPE_CHECKING:
    from pathsum.studies.study import Check, Evidence
    from pathsum.studies.tables import Grid


@dataclass(frozen=True, kw_only=True)
class FigureCommand(StudyOptions, Capacity):
    """What both figures have in common."""

    name: ClassVar[str]
    words: ClassVar[Words] = HELD

    preset: Preset = "small"
    """Where the other options begin."""
    store: Path | None = None
    """Store of runs, which both figures share; by default the folder runs beside --out."""

    @property
    def study(self) -> Capacity:
        """The study alone."""
        return part(self, Capacity)

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self.store or self.out.parent / "runs"

    def table(self, evidence: Evidence) -> Grid:
        """The numbers behind the figures, to be printed."""
        from pathsum.studies.capacity_results import grid

        return grid(self.study, evidence)

    def write(self, evidence: Evidence) -> list[Check]:
        """Write the report."""
        from pathsum.studies.capacity_page import write

        return write(self.name, self.study, evidence, self.out)


@dataclass(frozen=True, kw_only=True)
class Figure1Command(FigureCommand):
    """Reproduce Figure 1 of "On residual network depth": λ as a control of capacity, while networks train.

    Trains towers of 16 blocks without norm in the branches at ten λ from 0 to 1, at several seeds, and draws training
    loss, test accuracy and geometric complexity against steps, beside the paper's claims as checks. After an
    interruption the same command continues. figure2 shows the same runs, and trains none that the store has.

    Presets: smoke (under a minute, digits), small (2 cores, about 20 minutes; CIFAR-10 with --data, else the digits),
    paper (Appendix A.3 as it is, 50 runs of 100,000 steps). The other options begin as the preset has them.

    Examples:
      pathsum study figure1 --preset smoke
      pathsum study figure1 --preset small --data cifar10:data/cifar10 --out studies/figure1
    """

    name: ClassVar[str] = "figure1"
    marker: ClassVar[str] = "figure1.json"

    out: Path = Path("pathsum-figures/figure1")
    """Folder for the page, tables and figures."""


@dataclass(frozen=True, kw_only=True)
class Figure2Command(FigureCommand):
    """Reproduce Figure 2 of "On residual network depth": maximum test accuracy, and complexity there, against λ.

    Shows the runs of figure1, and trains those that are not in the store: training itself is described there. The
    maximum is taken by test accuracy, as in the paper, and by accuracy on held-out images, side by side.

    Presets: smoke (under a minute, digits), small (2 cores, about 20 minutes; CIFAR-10 with --data, else the digits),
    paper (Appendix A.3 as it is, 50 runs of 100,000 steps). The other options begin as the preset has them.

    Examples:
      pathsum study figure2 --preset small --data cifar10:data/cifar10 --out studies/figure2
    """

    name: ClassVar[str] = "figure2"
    marker: ClassVar[str] = "figure2.json"

    out: Path = Path("pathsum-figures/figure2")
    """Folder for the page, tables and figures."""


Command = TypeVar("Command", Figure1Command, Figure2Command)


def parse_figure1(args: Sequence[str]) -> Figure1Command:
    """Read the options; those not given are the preset's."""
    return parse(Figure1Command, args)


def parse_figure2(args: Sequence[str]) -> Figure2Command:
    """Read the options; those not given are the preset's."""
    return parse(Figure2Command, args)


def parse(command: type[Command], args: Sequence[str]) -> Command:
    """Read the options of one of the two."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", default="small")
    first.add_argument("--data", default="")
    name: Any = "small"
    try:
        known, _ = first.parse_known_args(list(args))
        begin, name = preset(known.preset, known.data), known.preset
    except (argparse.ArgumentError, KeyError):
        begin = preset("small")  # tyro says what is wrong
    options = {field.name: getattr(begin, field.name) for field in fields(Capacity)}
    default = command(**options, **HOW.get(name, {}), preset=name)
    found: Command = read(command, default, f"pathsum study {command.name}", args)
    return found
