"""Tables of text as Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SYMBOLS = {  # what a plain LaTeX document has no letters for
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "λ": r"$\lambda$", "±": r"$\pm$", "√": r"$\surd$",
    "–": "--", "−": "$-$", "≥": r"$\ge$", "≤": r"$\le$", "×": r"$\times$", "…": r"\dots{}",
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A table of text: the first `num_labels` columns name the row; rows come in groups."""

    header: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], ...], ...]
    caption: str = ""
    notes: tuple[str, ...] = ()
    num_labels: int = 1


def markdown(grid: Grid) -> str:
    """The table in Markdown: caption, table, notes."""
    aligned = ["---"] * grid.num_labels + ["--:"] * (len(grid.header) - grid.num_labels)
    rows = [grid.header, tuple(aligned), *(row for group in grid.groups for row in group)]
    lines = ["| " + " | ".join(text.replace("|", r"\|") for text in row) + " |" for row in rows]
    return "\n\n".join(part for part in (grid.caption, "\n".join(lines), *grid.notes) if part) + "\n"


def latex(grid: Grid, label: str) -> str:
    """The table in LaTeX, for `\\usepackage{booktabs}`; a rule between groups."""
    columns = "l" * grid.num_labels + "r" * (len(grid.header) - grid.num_labels)
    groups = ["".join(f"{latex_row(row)}\n" for row in group) for group in grid.groups]
    notes = "".join(f"\\par\\smallskip\\footnotesize {escape(note)}\n" for note in grid.notes)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{escape(grid.caption)}}}\n\\label{{{label}}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{latex_row(grid.header)}\n\\midrule\n"
        + "\\midrule\n".join(groups)
        + f"\\bottomrule\n\\end{{tabular}}\n{notes}\\end{{table}}\n"
    )


def latex_row(row: Sequence[str]) -> str:
    """One line of a tabular."""
    return " & ".join(escape(text) for text in row) + r" \\"


def escape(text: str) -> str:
    """Text for LaTeX; a root of a letter is a root.

    >>> print(escape("λ = 1/√n: 88.0 ± 0.1 %"))
    $\\lambda$ = 1/$\\sqrt{n}$: 88.0 $\\pm$ 0.1 \\%
    """
    parts = re.split(r"√(\w)", text)
    return "".join(
        f"$\\sqrt{{{part}}}$" if k % 2 else "".join(SYMBOLS.get(letter, letter) for letter in part)
        for k, part in enumerate(parts)
    )
