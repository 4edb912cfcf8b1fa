"""The outputs of the growth study: page, figure, tables; pure functions of the study and what the runs recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import figures, page
from pathsum.storage import finite, write_atomic, write_json
from pathsum.studies.growth import ARMS, GrowthStudy, Plan
from pathsum.studies.growth_results import Runs, arms, checks, curves
from pathsum.studies.study import Check, environments

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MARKER = "study.json"
UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1.0, "FLOP"))
NAMES = {"shallow": "shallow", "deep": "deep from scratch", "grown": "grown"}


def write(study: GrowthStudy, plan: Plan, found: Runs, out: Path) -> list[Check]:
    """Write everything into the folder `out`, the page last; returns the checks."""
    import pandas as pd

    out.mkdir(parents=True, exist_ok=True)
    verdicts = checks(study, plan, found)
    table = curves(study, plan, found)
    record = {
        "study": "growth",
        "options": options(study),
        "plan": asdict(plan),
        "checks": [vars(check) for check in verdicts],
        "environment": environments(list(found.values())),
    }
    write_json(out / MARKER, finite(page.jsonable(record)))
    frames = {"curves": table, "arms": arms(study, table), "checks": pd.DataFrame(map(asdict, verdicts))}
    for name, frame in frames.items():
        write_atomic(out / f"{name}.csv", frame.to_csv(index=False))
    write_atomic(out / "report.html", build(study, plan, found, table, verdicts, out / "figures"))
    return verdicts


def build(
    study: GrowthStudy,
    plan: Plan,
    found: Runs,
    table: pd.DataFrame,
    verdicts: Sequence[Check],
    folder: Path | None = None,
) -> str:
    """The page; the figure also goes into `folder`."""
    counts = Counter(check.verdict for check in verdicts)
    said = ", ".join(f"{counts[name]} {name}" for name in ("pass", "fail", "not enough data") if counts[name])
    svg = figures.draw(partial(draw, table, plan), folder, "growth", columns=2, size=(10.0, 4.2))
    return page.page(
        "Growing a residual network",
        page.paragraph(f"The checks: {said}.", "lead"),
        page.paragraph(about(study, plan)),
        page.figure(
            svg,
            "Loss and accuracy on the test images against the FLOPs spent; thin lines are seeds, thick ones their "
            f"means. At the dashed line the grown tower goes from {study.shallow} to {study.deep} blocks.",
        ),
        page.table(arms(study, table), "At the end, mean and standard error over the seeds."),
        page.heading("Do the claims hold here?"),
        *(page.paragraph(f"{check.claim}: {check.verdict}; {check.numbers}.") for check in verdicts),
        page.heading("How this was made"),
        page.paragraph("Beside this page: curves.csv, arms.csv, checks.csv, study.json; the figure as PNG and SVG."),
        page.settings({**options(study), "plan": asdict(plan), **environments(list(found.values()))}),
    )


def about(study: GrowthStudy, plan: Plan) -> str:
    """What was trained, in words."""
    return (
        f"Three ways to spend {plan.budget / unit(plan)[0]:.3g} {unit(plan)[1]} on towers of width {study.width}, "
        f"λ = {study.scale}: {plan.deep:,} steps of {study.deep} blocks from scratch; {plan.shallow:,} steps of "
        f"{study.shallow} blocks; or {plan.before:,} steps of {study.shallow} blocks, then new blocks with a last "
        f"layer of zeros ({study.new}, {study.where}), then {plan.after:,} steps of {study.deep}, momentum carried "
        f"over. SGD with momentum 0.9, rate {study.lr:g}, {study.batch_size} images a step, {len(study.seeds)} seeds. "
        "A step is counted forward and backward, stem and decoder included."
    )


def unit(plan: Plan) -> tuple[float, str]:
    """In what to count the FLOPs of a study."""
    return next((size, name) for size, name in UNITS if plan.budget >= size)


def draw(table: pd.DataFrame, plan: Plan, loss: Axes, accuracy: Axes) -> None:
    """Loss and accuracy against FLOPs."""
    size, name = unit(plan)
    for arm, color in zip(ARMS, figures.PALETTE, strict=False):
        part = table[table["arm"] == arm]
        if not len(part):
            continue
        for ax, column, factor in ((loss, "test_loss", 1.0), (accuracy, "test_accuracy", 100.0)):
            for _, one in part.groupby("seed"):
                ax.plot(one["flops"] / size, factor * one[column].astype(float), color=color, lw=0.6, alpha=0.5)
            mean = part.groupby(["flops"])[column].mean()
            ax.plot(mean.index / size, factor * mean, color=color, label=NAMES[arm])
    for ax in (loss, accuracy):
        ax.axvline(plan.growth_at / size, color=figures.INK, ls="--", lw=1, label="growth")
        ax.set_xlabel(f"{name}, forward and backward")
    loss.set_ylabel("test loss (nats)")
    accuracy.set(ylabel="test accuracy (%)", ylim=(0, 102))
    figures.log_axis(loss.yaxis)
    figures.shared_legend((loss, accuracy))


def options(study: GrowthStudy) -> dict[str, Any]:
    """The options, but for the place of the data on this machine, which tells a reader nothing."""
    source = "cifar10:PATH" if study.data.startswith("cifar10:") or Path(study.data).is_absolute() else study.data
    values = {**asdict(study), "data": source}
    return {k: ", ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in values.items()}
