"""The outputs of the comparison by path length: page, figures, tables; pure functions of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import figures, page
from pathsum.runs import environment
from pathsum.storage import finite, write_atomic, write_json
from pathsum.studies.intervals import mean_interval
from pathsum.studies.parts import HELD, check_frame, options, settings
from pathsum.studies.path_length import ARMS, PathLength, start_name
from pathsum.studies.path_length_checks import checks
from pathsum.studies.path_length_results import differences, gather, histograms, pairs, summary
from pathsum.studies.study import Check
from pathsum.studies.tables import Grid, latex, markdown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MARKER = "study.json"
VIEWS = (("napl", "average path length (units)"), ("relus", "nonlinear scalars"), ("rounds", "rounds"))
HOW = (
    "Matching: the layer-wise arm goes first, to the first length at or below each share of the original; the "
    "channel-wise arm then gets that length as its target. It stops at the first channel that meets it, so its paths "
    "are never longer, and shorter by less than one channel. The slopes of either arm are taken in the order in which "
    "they come near 1, and both have the same images, steps and rates."
)
SUCCESSIVE = (
    "Each point starts from the one before, slopes and weights, so that later points have had more steps: the same "
    "number in both arms."
)


def write(study: PathLength, root: Path, out: Path) -> list[Check]:
    """Write everything into the folder `out`, the page last; returns the checks."""
    out.mkdir(parents=True, exist_ok=True)
    table = gather(study, root)
    verdicts = checks(study, table)
    record = {
        "study": "path-length-vs-accuracy",
        "options": shown(study),
        "progress": progress(study, table),
        "checks": [vars(check) for check in verdicts],
        "environment": environment(),
    }
    write_json(out / MARKER, finite(page.jsonable(record)))
    paired = pairs(table)
    frames = {
        "points": table,
        "pairs": paired,
        "summary": summary(table),
        "differences": differences(paired),
        "histograms": histograms(study, root),
        "checks": check_frame(verdicts, HELD),
    }
    for name, frame in frames.items():
        write_atomic(out / f"{name}.csv", frame.to_csv(index=False))
    tables = arms_grid(table), difference_grid(paired)
    write_atomic(out / "tables.md", "\n".join(map(markdown, tables)))
    labels = "tab:path-length", "tab:path-length-difference"
    write_atomic(out / "tables.tex", "\n".join(latex(t, label) for t, label in zip(tables, labels, strict=True)))
    write_atomic(out / "report.html", build(study, table, verdicts, out / "figures"))
    return verdicts


def shown(study: PathLength) -> dict[str, Any]:
    """The options, without places of this machine."""
    values = options(study) | {"model": None if study.model is None else start_name(study.model)}
    return values | {"weights": None if study.weights is None else study.weights.name}


def progress(study: PathLength, table: pd.DataFrame) -> str:
    """How far the study is."""
    total = len(list(study.points()))
    return f"{total} points" if len(table) == total else f"partial: {len(table)} of {total} points"


def arms_grid(table: pd.DataFrame) -> Grid:
    """A line for each point and arm."""
    header = (
        "start", "arm", "path length", "std", "functional", "scalars", "rounds", "units", "accuracy (%)", "lost",
        "slopes", "slopes (%)",
    )  # fmt: skip
    groups: dict[Any, list[tuple[str, ...]]] = {}
    for row in summary(table).to_dict("records"):
        line = (
            begin(row), row["arm"], f"{row['napl']:.2f}", f"{row['napl_std']:.2f}", number(row["functional"]),
            f"{row['relus']:,.0f}", f"{row['rounds']:.1f}", f"{row['units']:.2f}",
            plus_minus(row["accuracy"], row["accuracy_half"]), plus_minus(row["loss"], row["loss_half"]),
            f"{row['slopes']:,.0f}", f"{row['slopes_percent']:.3f}",
        )  # fmt: skip
        groups.setdefault((row["start"], row["start_at"], row["point"]), []).append(line)
    return Grid(
        header,
        tuple(map(tuple, groups.values())),
        "Accuracy and what is left, by arm.",
        (
            "Means over the seeds, ± half the width of the 95 % interval (t). Path length: NAPL; std: of a path on the "
            "walk; functional: by energy, of some test images; scalars and rounds: nonlinear, per inference; lost: "
            "points of accuracy below the start; slopes: the arm's parameter overhead, and as a share of the weights.",
        ),
        num_labels=2,
    )


def difference_grid(paired: pd.DataFrame) -> Grid:
    """A line for each point, and pooled."""
    header = ("start", "point", "path length", "by layer (%)", "by channel (%)", "channel − layer", "95 % interval")
    groups: dict[Any, list[tuple[str, ...]]] = {}
    for row in differences(paired).to_dict("records"):
        ends = f"{row['low']:+.2f} … {row['high']:+.2f}".replace("-", "−") if row["low"] == row["low"] else "–"
        line = (
            begin(row), row["point"], f"{row['napl']:.2f}", f"{row['accuracy_layer']:.2f}",
            f"{row['accuracy_channel']:.2f}", f"{row['difference']:+.2f}".replace("-", "−"), ends,
        )  # fmt: skip
        groups.setdefault((row["start"], row["start_at"]), []).append(line)
    return Grid(
        header,
        tuple(map(tuple, groups.values())),
        "Points of accuracy, by channel less by layer, at matched path lengths, paired by seed.",
        ("Pooled: the mean over a seed's points, then over seeds.",),
        num_labels=2,
    )


def begin(row: Any) -> str:
    """The start of a line, in words."""
    return str(row["start"]) if row["start_at"] == 1 else f"{row['start']} at {row['start_at']:.0%}"


def number(value: float) -> str:
    return f"{value:.2f}" if value == value else "–"


def plus_minus(mean: float, half: float) -> str:
    text = f"{mean:.2f}" + (f" ± {half:.2f}" if half == half else "")
    return text.replace("-", "−")


def build(study: PathLength, table: pd.DataFrame, verdicts: Sequence[Check], folder: Path | None = None) -> str:
    """The page; the figures also go into `folder`."""
    from pathsum.studies.parts import frame, lead_words

    paired = pairs(table)
    blocks = []
    for (start, at), ours in table.groupby(["start", "start_at"], sort=False):
        name = begin({"start": start, "start_at": at})
        curves = figures.draw(
            partial(draw, ours), folder, f"{start}-{at:g}".replace("/", "-"), columns=3, size=(12.0, 4.0)
        )
        blocks.append(page.figure(curves, f"Accuracy on the test images from {name}; bars: 95 % interval over seeds."))
    if len(paired):
        gaps = figures.draw(partial(draw_gaps, paired), folder, "difference", size=(7.6, 3.8))
        blocks.append(page.figure(gaps, "By channel less by layer, paired by seed, with 95 % intervals; dots: seeds."))
    arms, gap = arms_grid(table), difference_grid(paired)
    return page.page(
        "Path length against accuracy: by channel and by layer",
        page.paragraph(f"{progress(study, table)}. The claims' checks: {lead_words(verdicts, HELD)}.", "lead"),
        page.paragraph(about(study, table)),
        page.paragraph(HOW + (f" {SUCCESSIVE}" if study.successive else "")),
        *blocks,
        page.table(frame(gap), " ".join((gap.caption, *gap.notes))),
        page.table(frame(arms), " ".join((arms.caption, *arms.notes))),
        page.heading("Do the claims hold here?"),
        *(page.paragraph(f"{c.claim} ({c.where}): {HELD[c.verdict]}; {c.numbers}.") for c in verdicts),
        page.heading("The price of private inference"),
        page.paragraph(
            "Nonlinear scalars are what secure inference pays in traffic, rounds what it pays in latency. At the same "
            "path length the arms differ in both: whole layers take their rounds with them, channels leave a few in "
            "every layer."
        ),
        page.heading("How this was made"),
        page.paragraph(
            "Beside this page: points.csv (every point of every seed), pairs.csv, summary.csv, differences.csv, "
            "histograms.csv, checks.csv; tables.md, tables.tex; study.json; the figures as PNG and SVG."
        ),
        page.settings({**settings(study), **shown_texts(study), **environment()}),
    )


def shown_texts(study: PathLength) -> dict[str, Any]:
    """What `settings` would show of this machine, without it."""
    return {name: shown(study)[name] for name in ("model", "weights")}


def about(study: PathLength, table: pd.DataFrame) -> str:
    """What was done, in words."""
    accuracy = mean_interval((100 * table.drop_duplicates(["start", "start_at", "seed"])["accuracy_start"]).tolist())
    what = (
        f"a plain network of {len(study.widths)} layers, trained here"
        if study.model is None
        else f"{start_name(study.model)}, trained before"
    )
    overhead = "; ".join(
        f"by {arm} {ours['slopes'].mean():,.0f} slopes, {ours['slopes_share'].mean():.3%} of the weights"
        for arm, ours in ((arm, table[table["arm"] == arm]) for arm in ARMS)
        if len(ours)
    )
    return (
        f"From {what} ({accuracy.mean:.2f} % on the test images), {study.steps:,} steps of {study.batch_size} images "
        f"for each point, the last {study.settle:.0%} of them at a tenth of the rate, SGD with momentum at "
        f"{study.lr:g}, slopes at {study.alpha_lr:g}{', prior by saliency' if study.saliency else ''}"
        f"{f', {study.distill:.0%} of the loss by distillation' if study.distill else ''}, {len(study.seeds)} seeds. "
        f"Overhead while linearizing: {overhead}."
    )


def draw(table: pd.DataFrame, *axes: Axes) -> None:
    """Accuracy against path length, nonlinear scalars and rounds: means with intervals, and the seeds."""
    lines = summary(table)
    for ax, (column, label) in zip(axes, VIEWS, strict=True):
        for arm, color in zip(ARMS, figures.PALETTE, strict=False):
            ours, each = lines[lines["arm"] == arm], table[table["arm"] == arm]
            ax.plot(each[column], 100 * each["accuracy"], ".", ms=3, alpha=0.5, color=color)
            ax.errorbar(
                ours[column], ours["accuracy"], yerr=ours["accuracy_half"].fillna(0), fmt="o-", capsize=3, color=color,
                label=f"by {arm}",
            )  # fmt: skip
        ax.plot(
            table[f"{column}_start"].mean(), 100 * table["accuracy_start"].mean(), "s", color=figures.INK, label="start"
        )
        ax.set_xlabel(label)
        ax.set_xlim(left=0)
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, 0), min(high, 100))  # intervals of few seeds know no bounds
    axes[0].set_ylabel("test accuracy (%)")
    figures.shared_legend(axes)


def draw_gaps(paired: pd.DataFrame, ax: Axes) -> None:
    """The paired difference against path length."""
    for ((start, at), ours), color in zip(
        paired.groupby(["start", "start_at"], sort=False), figures.PALETTE * 3, strict=False
    ):
        groups = [
            (group["napl_layer"].mean(), mean_interval(group["difference"].tolist()))
            for _, group in ours.groupby("point")
        ]
        x, found = zip(*groups, strict=True)
        halves = [0.0 if one.half != one.half else one.half for one in found]
        ax.plot(ours["napl_layer"], ours["difference"], ".", ms=4, alpha=0.6, color=color)
        ax.errorbar(
            x, [one.mean for one in found], yerr=halves, fmt="o-", capsize=3, color=color,
            label=begin({"start": start, "start_at": at}),
        )  # fmt: skip
    ax.axhline(0, color=figures.INK, lw=1)
    ax.set(xlabel=VIEWS[0][1], ylabel="channel − layer (points)")
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -100), min(high, 100))
    ax.legend(loc="upper right")
