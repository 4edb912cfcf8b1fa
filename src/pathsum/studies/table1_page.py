"""The outputs of Table 1: page, figures, tables and rows; pure functions of the study and what the runs recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathsum import page, report
from pathsum.storage import write_atomic, write_json
from pathsum.studies.parts import check_frame, frame, lead, options, said, settings
from pathsum.studies.study import Check, Evidence, environments, record, row_lines, run_lines
from pathsum.studies.table1 import Table1
from pathsum.studies.table1_checks import CONFOUND, checks
from pathsum.studies.table1_results import cell_lines, depths, grid
from pathsum.studies.tables import Grid, latex, markdown

MARKER = "study.json"  # what tells a folder of this study from others


def write(study: Table1, evidence: Evidence, out: Path) -> list[Check]:
    """Write everything into the folder `out`, the page last; returns the checks."""
    out.mkdir(parents=True, exist_ok=True)
    verdicts = checks(evidence, study.margin)
    write_json(out / MARKER, {"study": "table1", **record(evidence, options(study), verdicts)})
    table = grid(evidence)
    write_atomic(out / "table1.md", markdown(table) + "\n" + markdown(check_grid(verdicts)))
    write_atomic(out / "table1.tex", latex(table, "tab:depth"))
    frames = {"table1": cell_lines(evidence), "runs": run_lines(evidence), "rows": row_lines(evidence)}
    for name, lines in {**frames, "checks": check_frame(verdicts)}.items():
        write_atomic(out / f"{name}.csv", lines.to_csv(index=False))
    write_atomic(out / "report.html", build(study, evidence, verdicts, out / "figures"))
    return verdicts


def check_grid(verdicts: Sequence[Check]) -> Grid:
    """The checks as text."""
    rows = tuple((check.claim, check.where, check.verdict, check.numbers) for check in verdicts)
    return Grid(("claim", "depth", "verdict", "numbers"), (rows,), "The paper's claims.", (CONFOUND,), num_labels=4)


def build(study: Table1, evidence: Evidence, verdicts: Sequence[Check], folder: Path | None = None) -> str:
    """The page; figures also go into `folder`."""
    table = grid(evidence)
    chosen = evidence.best(evidence.choices[-1])
    return page.page(
        "Table 1: depth, normalization and λ",
        page.paragraph(lead(evidence, verdicts), "lead"),
        page.paragraph(about(study, evidence)),
        page.table(frame(table), " ".join((table.caption, *table.notes))),
        page.heading("Do the paper's claims hold here?"),
        *said(verdicts),
        page.paragraph(CONFOUND, "soft"),
        page.heading("How does training go?"),
        page.figure(
            report.curve_figure(report.curves(evidence.runs, evidence.table, chosen), folder, "learning-curves"),
            "Loss of the training batches and accuracy on the test images against steps; a line a seed, each setting "
            f"at its best learning rate by {evidence.choices[-1]}. A cross ends a run that diverged, a triangle one "
            "that froze.",
        ),
        page.heading("Which learning rates work?"),
        page.figure(
            report.sweep_figure(evidence.summary, folder),
            "Best test accuracy against learning rate, mean and standard error over seeds. Crosses at the bottom are "
            "rates at which runs diverged, triangles those at which they froze.",
        ),
        page.details("All settings and learning rates", page.table(report.readable(evidence.summary))),
        page.details("All runs", page.table(evidence.table)),
        page.heading("How this was made"),
        page.paragraph(
            "Beside this page: table1.md, table1.tex and table1.csv; rows.csv with every evaluation and runs.csv with "
            "every run's configuration, versions, hardware and commit; checks.csv; study.json; figures as PNG and SVG."
        ),
        page.settings({**settings(study), "runs": evidence.progress, **environments(evidence.runs)}),
    )


def about(study: Table1, evidence: Evidence) -> str:
    """What was trained on what."""
    data: dict[str, Any] = next((run.config["data"] for run in evidence.runs if "data" in run.config), {})
    images = f"{data['train_size'] - study.val_size:,} training images" if data else "training images"
    name = {"cifar10": "CIFAR-10", "digits": "handwritten digits"}.get(data.get("name", ""), study.data)
    columns = ", ".join(f"{depth} (width {study.widths[depth]})" for depth in depths(evidence))
    held_out = f", with {study.val_size:,} more held out for validation" if study.val_size else ""
    return (
        f"Towers of {columns} residual blocks z + λ·F(z) of two convolutions, trained on {images} of {name}{held_out}: "
        f"{study.steps:,} steps of {study.batch_size} images by SGD with momentum 0.9 at a constant learning rate, "
        f"{len(study.lrs)} rates, {len(study.seeds)} seeds. The stem "
        f"{'keeps its' if study.stem_norm else 'has no'} batch norm in every row."
        + (" The paper's numbers are of CIFAR-10, and do not compare with these." if name != "CIFAR-10" else "")
    )
