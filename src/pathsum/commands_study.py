"""`pathsum study NAME`: a table or figure of the paper, from its runs to a page; the same command continues it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pathsum.commands_figures import parse_figure1, parse_figure2
from pathsum.errors import PathsumError
from pathsum.studies.growth_command import parse_growth
from pathsum.studies.length_complexity_command import parse_length_complexity
from pathsum.studies.path_length_command import parse_path_length
from pathsum.studies.robustness_command import parse_robustness
from pathsum.studies.table1 import HOW, Preset, Table1, preset
from pathsum.studies.variable_depth_command import parse_variable_depth
from pathsum.studying import StudyOptions, part, read

if TYPE_CHECKING:
    from pathsum.studies.study import Check, Evidence
    from pathsum.studies.tables import Grid


class Runnable(Protocol):
    """A command with its options."""

    def run(self) -> int | None:
        """Do it, and return the exit code."""


@dataclass(frozen=True, kw_only=True)
class Table1Command(StudyOptions, Table1):
    """Reproduce Table 1 of "On residual network depth": does λ = 1/√n replace batch normalization?

    Trains towers of three depths with batch norm, and without it with λ = 1, 1/n and 1/√n, at several learning rates
    and seeds, and writes the table beside the paper's, learning curves, and the paper's claims as checks. After an
    interruption the same command continues, and other options reuse the runs they share.

    Presets: smoke (under a minute, digits), small (2 cores, half an hour; the digits, or CIFAR-10 with --data), h200
    (the column n = 10, an hour of that GPU), paper (Appendix A as it is, 600 runs of 160,000 steps). The other options
    begin as the preset has them.

    Examples:
      pathsum study table1 --preset smoke
      pathsum study table1 --preset small --data cifar10:data/cifar10 --out studies/table1
      pathsum study table1 --preset paper --data uoft-cs/cifar10 --depths 10 --width 256 --dry-run
      pathsum study table1 --preset paper --engine ray --address auto --gpus 0.25   (docs/sweeps.md)
    """

    preset: Preset = "small"
    """Where the other options begin."""
    out: Path = Path("pathsum-table1")
    """Folder for the page, tables and figures."""

    @property
    def study(self) -> Table1:
        """The study alone."""
        return part(self, Table1)

    def table(self, evidence: Evidence) -> Grid:
        """The table, to be printed."""
        from pathsum.studies.table1_results import grid

        return grid(evidence)

    def write(self, evidence: Evidence) -> list[Check]:
        """Write the report."""
        from pathsum.studies.table1_page import write

        return write(self.study, evidence, self.out)


@dataclass(frozen=True)
class ListCommand:
    """Say which studies there are."""

    def run(self) -> None:
        """Print them."""
        width = max(map(len, STUDIES))
        print("Studies, each with --help:\n")
        for name, (_, summary) in STUDIES.items():
            print(f"  pathsum study {name:<{width}}  {summary}")


def parse_table1(args: Sequence[str]) -> Table1Command:
    """Read the options; those not given are the preset's."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", default="small")
    first.add_argument("--data", default="")
    try:
        known, _ = first.parse_known_args(list(args))
        begin = preset(known.preset, known.data)
    except (argparse.ArgumentError, KeyError):
        begin, known = preset("small"), None  # tyro says what is wrong
    name: Any = "small" if known is None else known.preset
    options = {field.name: getattr(begin, field.name) for field in fields(Table1)}
    default = Table1Command(**options, **HOW.get(name, {}), preset=name)
    asked: Table1Command = read(Table1Command, default, "pathsum study table1", args)
    others = asked.depths and asked.depths != begin.depths and asked.width == begin.width
    return replace(asked, width=begin.at_depths(asked.depths).width) if others and len(asked.width) > 1 else asked


STUDIES: dict[str, tuple[Callable[[Sequence[str]], Runnable], str]] = {
    "table1": (parse_table1, "does λ = 1/√n replace batch normalization at depth 10, 100, 1000?"),
    "figure1": (parse_figure1, "training loss, test accuracy and geometric complexity against steps, for ten λ"),
    "figure2": (parse_figure2, "maximum test accuracy and the complexity there against λ; from the runs of figure1"),
    "growth": (parse_growth, "is a net that was grown as good as a deep one from scratch, at equal FLOPs?"),
    "robustness": (parse_robustness, "are nets linearized by channel and by layer differently robust to attacks?"),
    "variable-depth": (parse_variable_depth, "does encouraging variable depth from scratch pay, at equal steps?"),
    "length-vs-complexity": (parse_length_complexity, "do complex inputs take longer paths?"),
    "path-length-vs-accuracy": (
        parse_path_length,
        "linear by channel or by layer: which is more accurate at the same average path length?",
    ),
}


class StudyCommand:
    """`pathsum study`: the first word says which, the others are its options."""

    @staticmethod
    def parse(args: Sequence[str]) -> Runnable:
        """The study asked for, with its options. Raises PathsumError for one that there is not."""
        import difflib

        if not args or args[0] in ("-h", "--help", "help"):
            return ListCommand()
        if args[0] in STUDIES:
            return STUDIES[args[0]][0](args[1:])
        near = difflib.get_close_matches(args[0], STUDIES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "'pathsum study' lists them"
        raise PathsumError(f"'{args[0]}' is not a study, which are {', '.join(STUDIES)}; {hint}")
