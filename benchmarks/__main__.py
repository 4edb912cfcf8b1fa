"""`python -m benchmarks [THEME …] [--quick]`: measure, print, and write rows to benchmarks/results/."""

from __future__ import annotations

import argparse
import warnings

from rich.console import Console
from rich.table import Table

from . import complexity, expansion, jets, language, linearize, memory, merge, spectrum, training
from .timing import save

THEMES = {
    "expansion": expansion.bench,
    "spectrum": spectrum.bench,
    "language": language.bench,
    "jets": jets.bench,
    "training": training.bench,
    "memory": memory.bench,
    "complexity": complexity.bench,
    "linearize": linearize.bench,
    "merge": merge.bench,
}


def show(found: list[dict]) -> None:
    rest = [name for name in ("error", "peak_ratio") if name in found[0]]
    table = Table("case", "side", "ms", "× against", *rest)
    for row in found:
        extra = ["–" if row[name] is None else f"{row[name]:.2g}" for name in rest]
        table.add_row(
            row["case"], row["side"], f"{1e3 * row['seconds']:.1f}", f"{row['ratio']:.2f} × {row['against']}", *extra
        )
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
