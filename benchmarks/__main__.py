"""`python -m benchmarks [THEME …] [--quick]`: measure, print, and write rows to benchmarks/results/."""

from __future__ import annotations

import argparse
import warnings

import pandas as pd
from rich.console import Console
from rich.table import Table

from . import expansion, language, spectrum
from .timing import save

THEMES = {"expansion": expansion.bench, "spectrum": spectrum.bench, "language": language.bench}


def show(found: list[dict]) -> None:
    table = Table("case", "side", "ms", "× against")
    for row in pd.DataFrame(found).itertuples():
        table.add_row(row.case, row.side, f"{1e3 * row.seconds:.1f}", f"{row.ratio:.2f} × {row.against}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("themes", nargs="*", choices=[*THEMES, []], help="which (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing written: does it run?")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    for theme in args.themes or THEMES:
        found = THEMES[theme](quick=args.quick)
        show(found)
        if not args.quick:
            print(f"rows written to {save(found, theme)}")


if __name__ == "__main__":
    main()
