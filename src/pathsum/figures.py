"""How every figure looks: one palette, one size, PNG and SVG files, and SVG that follows a page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pathsum.tasks import Score, Task

# Okabe & Ito (2008): told apart with every common color blindness, in print and on a dark page.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
FAILURES = {"diverged": "x", "frozen": "v"}  # the mark of a run that did not finish
INK, GRID = "#1f2328", "#d0d7de"
STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",  # the same on every machine
    "svg.hashsalt": "pathsum",  # the same on every run
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the house style; the reader's own matplotlib settings are back afterwards."""
    import matplotlib
    from cycler import cycler

    settings: Any = {**STYLE, "axes.prop_cycle": cycler(color=PALETTE)}
    with matplotlib.rc_context(settings):
        yield


def draw(
    plot: Callable[..., Any],
    folder: Path | None,
    name: str,
    *,
    rows: int = 1,
    columns: int = 1,
    size: tuple[float, float] = (7.6, 3.6),
) -> str:
    """Call `plot(*axes)` on a new figure, write NAME.png and NAME.svg into `folder`, return SVG for a page.

    `size` is in inches; axes come row by row; without a folder nothing is written. No window, no global figure:
    pyplot is not used.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=size)
        plot(*figure.subplots(rows, columns, squeeze=False).flat)
        figure.draw_without_rendering()  # lays out, which takes long: once, not for every file
        figure.set_layout_engine("none")
        svg = svg_text(figure)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{name}.png", dpi=160)
            (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    return themed(svg)


def svg_text(figure: Figure) -> str:
    """The figure as SVG without a date, so that the same figure gives the same file."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def themed(svg: str) -> str:
    """SVG to stand inside a page: no prolog or metadata, transparent, its colors variables of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    svg = svg.replace("#ffffff", "var(--page)").replace(INK, "var(--ink)").replace(GRID, "var(--line)")
    for number, color in enumerate(PALETTE, 1):
        svg = svg.replace(color, f"var(--c{number})")
    return svg.strip()


def scores_by_length(axes: Sequence[Axes], lengths: pd.DataFrame, task: Task, whole: Mapping[str, float]) -> None:
    """Each score of paths up to each length, and of the whole network."""
    for ax, score in zip(axes, task.scores, strict=True):
        score_by(ax, range(len(lengths)), lengths, score, whole[score.name], "paths up to this length")
        ax.set(xlabel="longest path allowed (residual blocks passed)")
        name_lengths(ax, lengths, task.lead.name)
        ax.legend(loc="best")


def score_by(ax: Axes, x: Any, table: pd.DataFrame, score: Score, whole: float, label: str) -> None:
    """A score of partial sums, and of the whole network as a dashed line."""
    scale, unit, text = (100, " (%)", f"{whole:.1%}") if score.percent else (1, "", f"{whole:.3g}")
    values = scale * table[score.name]
    ax.plot(x, values, "o-", color=PALETTE[0], label=label)
    ax.axhline(scale * whole, color=PALETTE[1], ls="--", lw=1.5, label=f"whole network, {text}")
    ax.set(ylabel=f"{score.label}{unit}")
    if score.name == "loss":
        log_axis(ax.yaxis)
    else:
        ax.set_ylim(min(0.0, float(values.min())), 1.02 * scale)


def share_by_length(ax: Axes, lengths: pd.DataFrame, mean_length: float, score: str) -> None:
    """Share of each path length in the energy of the output's parts."""
    ax.bar(range(len(lengths)), 100 * lengths["share"], color=PALETTE[0], width=0.8)
    ax.axvline(mean_length, color=PALETTE[1], ls="--", lw=1.5, label=f"mean length {mean_length:.2g} blocks")
    ax.set(xlabel="path length (residual blocks passed)", ylabel="share of energy (%)")
    ax.grid(axis="x", visible=False)
    name_lengths(ax, lengths, score)
    ax.legend(loc="upper right")


def name_lengths(ax: Axes, lengths: pd.DataFrame, score: str) -> None:
    """The names of the lengths, the last of which may be ">32"; a far tail that carries and changes nothing is cut."""
    settled = (lengths[score] - lengths[score].iloc[-1]).abs() < 1e-6
    busy = (lengths["share"] > 1e-4) | ~settled
    last = min(len(lengths) - 1, max(int(busy.to_numpy().nonzero()[0].max(initial=0)) + 3, 5))
    every = max(1, -(-last // 12))
    ticks = list(range(0, last + 1, every))
    ax.set_xticks(ticks, [str(lengths["length"].iloc[k]) for k in ticks])
    ax.set_xlim(-0.6, last + 0.6)


def orders(axes: Sequence[Axes], table: pd.DataFrame, task: Task, whole: Mapping[str, float], verdict: str) -> None:
    """Sizes of the orders and what they leave out, beside the scores of the partial sums."""
    columns = 2 if len(axes) < 3 else 1
    error_by_order(axes[0], table, verdict, columns)
    for ax, score in zip(axes[1:], task.scores, strict=True):
        score_by(ax, table["order"], table, score, whole[score.name], "orders 0 to k")
        ax.set(xlabel="order k in λ", title=f"{score.name.capitalize()} of the partial sum")
        ax.set_xticks(table["order"])
        legend_below(ax, columns)


def error_by_order(ax: Axes, orders: pd.DataFrame, verdict: str, columns: int) -> None:
    """What the partial sums of the expansion leave out, beside the size of each order."""
    ax.bar(orders["order"], orders["norm"], color=PALETTE[5], width=0.7, label="size of this order")
    ax.plot(orders["order"], orders["remainder"], "o-", color=PALETTE[1], label="left out after it")
    ax.set(xlabel="order k in λ", ylabel="relative to the output", yscale="log", title=f"Orders: {verdict}")
    ax.set_xticks(orders["order"])
    ax.grid(axis="x", visible=False)
    legend_below(ax, columns)


def legend_below(ax: Axes, columns: int) -> None:
    """The legend under the axis, where it covers nothing."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)


def sample_lengths(ax: Axes, lengths: np.ndarray, task: Task) -> None:
    """How the mean path length differs between samples."""
    from matplotlib.ticker import MaxNLocator

    ax.hist(lengths, bins=min(30, max(5, len(lengths) // 8)), color=PALETTE[0], edgecolor="#ffffff", linewidth=0.5)
    article = "an" if task.sample[0] in "aeiou" else "a"
    ax.set(xlabel=f"mean path length of {article} {task.sample} (residual blocks)", ylabel=f"number of {task.samples}")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="x", visible=False)


def sweep(ax: Axes, lines: Mapping[str, pd.DataFrame], colors: Mapping[str, int]) -> None:
    """Best test accuracy against learning rate, one line a setting; rates that failed stand on the floor."""
    for step, (name, part) in enumerate(lines.items()):
        part = part.sort_values("lr")
        color = PALETTE[colors[name] % len(PALETTE)]
        done = part[part["done"] > 0]
        error = 100 * done["best_test_se"].fillna(0)
        ax.errorbar(done["lr"], 100 * done["best_test"], yerr=error, fmt="o-", capsize=3, color=color, label=name)
        floor = 2.5 + 4 * step  # side by side where two settings fail at one rate
        for status, marker in FAILURES.items():
            failed = part[part[status] > 0]
            ax.plot(failed["lr"], [floor] * len(failed), marker, color=color, ms=8, mew=2)
    ax.set(xscale="log", xlabel="learning rate", ylim=(0, 102))
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    rates = sorted({rate for part in lines.values() for rate in part["lr"]})
    ax.xaxis.set_major_locator(FixedLocator(rates if len(rates) <= 8 else rates[:: -(-len(rates) // 8)]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def curve(
    loss: Axes, accuracy: Axes, rows: Sequence[Mapping[str, Any]], status: str, label: str, color: str, *, cap: float
) -> None:
    """One run's training loss (shown up to `cap`) and test accuracy; a mark at its end says if it failed."""
    # Before the first step there is no training loss; later on a missing one was not finite.
    losses = [(row["step"], min(row["train_loss"] or cap, cap)) for row in rows if row["step"] > 0]
    accuracies = [(row["step"], 100 * row["test_accuracy"]) for row in rows if row["test_accuracy"] is not None]
    for ax, points in ((loss, losses), (accuracy, accuracies)):
        if points:
            ax.plot(*zip(*points, strict=True), color=color, lw=1.7, label=label)
        if points and status in FAILURES:
            ax.plot(*points[-1], FAILURES[status], color=color, ms=9, mew=2.5)
    accuracy.set(xlabel="step", ylim=(0, 102))


def log_axis(axis: Any) -> None:
    """A log axis with plain numbers, finer steps where it spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set_yscale("log")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def shared_legend(axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them, each name once."""
    from matplotlib.lines import Line2D

    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    marks = {status: mark for status, mark in FAILURES.items() if any(has_mark(ax, mark) for ax in axes)}
    for status, mark in marks.items():
        found[status] = Line2D([], [], ls="", marker=mark, color=INK, ms=8, mew=2)
    figure = axes[0].get_figure()
    if figure is not None and found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(5, len(found)))


def has_mark(ax: Axes, mark: str) -> bool:
    """Whether a failure is marked in a panel."""
    import numpy as np

    return any(line.get_marker() == mark and len(np.atleast_1d(line.get_xdata())) for line in ax.get_lines())
