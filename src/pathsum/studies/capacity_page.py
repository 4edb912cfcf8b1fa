"""The outputs of Figures 1 and 2: page, figure, tables and rows; pure functions of the study and its runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import page
from pathsum.storage import write_atomic, write_json
from pathsum.studies import capacity_plots
from pathsum.studies.capacity import Capacity
from pathsum.studies.capacity_checks import checks
from pathsum.studies.capacity_results import curves, grid, point_lines, points, share
from pathsum.studies.parts import HELD, check_frame, frame, lead, options, said, settings
from pathsum.studies.study import Check, Evidence, environments, record, row_lines, run_lines
from pathsum.studies.tables import Grid, markdown

if TYPE_CHECKING:
    import pandas as pd

TITLES = {"figure1": "Figure 1: λ, capacity and complexity in training", "figure2": "Figure 2: accuracy and λ"}
CAPTIONS = {
    "figure1": "Loss of the training batches (mean since the last evaluation), accuracy on the test images, and "
    "geometric complexity of the logits in the normalized pixels, against steps: mean over the seeds that reached "
    "their end, with a band of one standard error. A cross ends a run that diverged, a triangle one that froze.",
    "figure2": "Left: the maximum test accuracy of a run over its evaluations, right: geometric complexity at that "
    "step; mean ± standard error over seeds. A cross at the foot is a λ at which runs diverged, a triangle one at "
    "which they froze.",
}
PAPER = {
    "figure1": "The paper's Figure 1 has n = 16, width 256 and 100,000 steps of CIFAR-10. It says: the base model (λ "
    "= 0) underfits, with a training loss that reaches a plateau above 1; larger λ fit the data better, up to "
    "interpolation; λ above 1/√n all failed; and complexity rises with λ in a first part of training, after which "
    "the order exactly reverses. It prints no other numbers.",
    "figure2": "The paper's Figure 2 has n = 16, width 256 and 100,000 steps of CIFAR-10. It says: the maximum test "
    "accuracy increases with λ (left), and complexity at that step decreases after a first phase of increase "
    "(right). It prints no numbers.",
}


def write(name: str, study: Capacity, evidence: Evidence, out: Path) -> list[Check]:
    """Write everything about figure `name` into the folder `out`, the page last; returns its checks."""
    out.mkdir(parents=True, exist_ok=True)
    verdicts = checks(study, evidence)[name]
    kept = record(evidence, options(study), verdicts)
    said_in_words = [{**each, "verdict": HELD[each["verdict"]]} for each in kept["checks"]]
    write_json(out / f"{name}.json", {"study": name, **kept, "checks": said_in_words, "observing": share(evidence)})
    write_atomic(out / f"{name}.md", markdown(grid(study, evidence)) + "\n" + markdown(check_grid(verdicts)))
    frames = {
        "points": point_lines(study, evidence),
        "curves": curves(study, evidence),
        "runs": run_lines(evidence),
        "rows": row_lines(evidence),
        "observations": observation_lines(evidence),
        "checks": check_frame(verdicts, HELD),
    }
    for title, lines in frames.items():
        write_atomic(out / f"{title}.csv", lines.to_csv(index=False))
    write_atomic(out / "report.html", build(name, study, evidence, verdicts, out / "figures"))
    return verdicts


def check_grid(verdicts: list[Check]) -> Grid:
    """The checks as text."""
    rows = tuple((check.claim, check.where, HELD[check.verdict], check.numbers) for check in verdicts)
    return Grid(("claim", "where", "verdict", "numbers"), (rows,), "The paper's claims.", (), num_labels=4)


def observation_lines(evidence: Evidence) -> pd.DataFrame:
    """A line for every observation of every run."""
    import pandas as pd

    lines = [
        {"run": config.folder, "scale": config.model["scale"], "seed": config.train.seed, **row}
        for config, run in zip(evidence.configs, evidence.runs, strict=True)
        for row in run.observations
    ]
    return pd.DataFrame(lines)


def build(name: str, study: Capacity, evidence: Evidence, verdicts: list[Check], folder: Path | None = None) -> str:
    """The page; the figure also goes into `folder`."""
    found = points(study, evidence)
    if name == "figure1":
        svg = capacity_plots.figure1(found, curves(study, evidence), folder)
    else:
        svg = capacity_plots.figure2(found, evidence.choices, folder)
    table = grid(study, evidence)
    return page.page(
        TITLES[name],
        page.paragraph(lead(evidence, verdicts, HELD), "lead"),
        page.paragraph(about(study, evidence)),
        page.figure(svg, CAPTIONS[name]),
        page.paragraph(PAPER[name]),
        page.heading("Do the paper's claims hold here?"),
        *said(verdicts, HELD),
        page.heading("The numbers"),
        page.table(frame(table), " ".join((table.caption, *table.notes))),
        page.details("All runs", page.table(evidence.table)),
        page.heading("How this was made"),
        page.paragraph(
            f"Beside this page: {name}.md, points.csv and curves.csv behind the figure; rows.csv with every "
            "evaluation, observations.csv with every measurement of complexity, and runs.csv with every run's "
            f"configuration, versions, hardware and commit; checks.csv; {name}.json; the figure as PNG and SVG."
        ),
        page.settings({**settings(study), "runs": evidence.progress, **environments(evidence.runs)}),
    )


def about(study: Capacity, evidence: Evidence) -> str:
    """What was trained on what, and how complexity was measured."""
    data: dict[str, Any] = next((run.config["data"] for run in evidence.runs if "data" in run.config), {})
    images = f"{data['train_size'] - study.val_size:,} training images" if data else "training images"
    name = {"cifar10": "CIFAR-10", "digits": "handwritten digits"}.get(data.get("name", ""), study.data)
    held_out = f", with {study.val_size:,} more held out for validation" if study.val_size else ""
    observing = share(evidence)
    cost = "" if math.isnan(observing) else f", which took {100 * observing:.1f} % of the runs' time"
    return (
        f"Towers of {study.depth} residual blocks z + λ·F(z) of two convolutions, width {study.width}, trained on "
        f"{images} of {name}{held_out}: {study.steps:,} steps of {study.batch_size} images by SGD with momentum 0.9 at "
        f"learning rate {study.lr:g}, {len(study.seeds)} seeds. Geometric complexity mean ‖∂f/∂x‖² is exact, on the "
        f"same {study.probe_size} training images at every evaluation{cost}."
        + (" The paper's are networks of CIFAR-10, and do not compare with these." if name != "CIFAR-10" else "")
    )
