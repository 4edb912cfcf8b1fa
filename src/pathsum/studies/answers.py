"""The outputs of a study of an open question: checks that the measurement is sound, answers, page, tables, figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import figures, page
from pathsum.storage import finite, write_atomic, write_json
from pathsum.studies.parts import check_frame, options, settings
from pathsum.studies.study import Check, environments
from pathsum.studies.tables import Grid, markdown

if TYPE_CHECKING:
    import pandas as pd

    from pathsum.runs import Run

MARKER = "study.json"


@dataclass(frozen=True)
class Answer:
    """What the numbers say to a question, whichever way: no claim that could fail."""

    question: str
    where: str
    numbers: str
    answer: str


@dataclass(frozen=True)
class Findings:
    """All that is written of a study. `plot(*axes)` draws the figure of `columns` panels."""

    name: str
    title: str
    about: str
    caption: str
    plot: Any
    columns: int
    tables: Mapping[str, tuple[pd.DataFrame, str]]  # file name: table and caption; those without one are not shown
    checks: Sequence[Check]
    answers: Sequence[Answer]
    runs: Sequence[Run]


def write(study: Any, found: Findings, out: Path) -> None:
    """Write page, CSV, Markdown, figure and study.json into `out`, the page last."""
    import pandas as pd

    out.mkdir(parents=True, exist_ok=True)
    record = {
        "study": found.name,
        "options": options(study),
        "checks": [vars(check) for check in found.checks],
        "answers": [vars(answer) for answer in found.answers],
        "environment": environments(found.runs),
    }
    write_json(out / MARKER, finite(page.jsonable(record)))
    answers = pd.DataFrame([asdict(answer) for answer in found.answers])
    frames = {name: table for name, (table, _) in found.tables.items()}
    for name, frame in {**frames, "checks": check_frame(found.checks), "answers": answers}.items():
        write_atomic(out / f"{name}.csv", frame.to_csv(index=False))
    write_atomic(out / "report.md", text(found, answers))
    svg = figures.draw(found.plot, out / "figures", found.name, columns=found.columns, size=(5.0 * found.columns, 4.2))
    write_atomic(out / "report.html", html(study, found, svg))


def html(study: Any, found: Findings, svg: str) -> str:
    """The page."""
    counts = Counter(check.verdict for check in found.checks)
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return page.page(
        found.title,
        *(page.paragraph(f"{a.question} ({a.where}) {a.answer}: {a.numbers}.", "lead") for a in found.answers[:3]),
        page.paragraph(found.about),
        page.figure(svg, found.caption),
        *(page.table(table, caption) for table, caption in found.tables.values() if caption),
        page.heading("Answers"),
        *(page.paragraph(f"{a.question} {a.where}: {a.answer}; {a.numbers}.") for a in found.answers),
        page.heading(f"Is the measurement sound? {said}"),
        *(page.paragraph(f"{c.claim} ({c.where}): {c.verdict}; {c.numbers}.") for c in found.checks),
        page.heading("How this was made"),
        page.paragraph("Beside this page: its tables as CSV, report.md, study.json; the figure as PNG and SVG."),
        page.settings({**settings(study), **environments(found.runs)}),
    )


def text(found: Findings, answers: pd.DataFrame) -> str:
    """The answers and the shown tables in Markdown."""
    parts = [f"# {found.title}", found.about, markdown(grid(answers, "Answers", labels=len(answers.columns)))]
    parts += [markdown(grid(table, caption)) for table, caption in found.tables.values() if caption]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def grid(table: pd.DataFrame, caption: str, *, labels: int = 1) -> Grid:
    """A table as text, numbers as pages have them."""
    rows = tuple(tuple(map(page.cell, row)) for row in table.itertuples(index=False, name=None))
    return Grid(tuple(map(str, table.columns)), (rows,), caption, num_labels=labels)
