"""Figures 1 and 2 from the tables behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import figures
from pathsum.studies.capacity_results import CURVES, Point, means
from pathsum.studies.study import Choice

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LABELS = {
    "train_loss": "training loss (nats)",
    "test_accuracy": "test accuracy (%)",
    "complexity": "geometric complexity",
}
MARKS = {"test": "o", "validation": "s"}
FLOOR = 0.04  # of the axis: where what failed is marked


def label(scale: str) -> str:
    """A rule as mathematics.

    >>> label("n^-1.5"), label("1/sqrt(n)"), label("0.3")
    ('$n^{-1.5}$', '$1/\\\\sqrt{n}$', '$0.3$')
    """
    inner = scale.replace("sqrt(n)", r"\sqrt{n}")
    base, power, exponent = inner.partition("^")
    return f"${base}^{{{exponent}}}$" if power else f"${inner}$"


def shades(num: int) -> list[Any]:
    """Colors for ascending λ, dark to bright, all of them to be seen on white and on black."""
    from matplotlib import colormaps

    return [colormaps["plasma"](0.02 + 0.80 * k / max(num - 1, 1)) for k in range(num)]


def figure1(points: Sequence[Point], curves: pd.DataFrame, folder: Path | None, name: str = "figure1") -> str:
    """Loss, accuracy and complexity against steps; a color a λ, mean over seeds, its standard error as a band."""

    def plot(*axes: Any) -> None:
        trained = [each for each in points if each.done]
        for ax, column in zip(axes, CURVES, strict=True):
            for each, color in zip(trained, shades(len(trained)), strict=True):
                part = curves[(curves["scale"] == each.scale) & (curves["status"] == "done")]
                band(ax, part, column, f"λ = {label(each.scale)} ({each.lam:.2g})", color)
            ax.set(xlabel="step", ylabel=LABELS[column])
        # A failed run ends within its first steps: one cross, where it ends, at the top of the panel of the loss.
        for each in points:
            if each.failed:
                failures(axes[0], each, curves)
        for ax in (axes[0], axes[2]):
            figures.log_axis(ax.yaxis)
        axes[1].set_ylim(0, None)
        failed = [each for each in points if each.failed]
        if failed:
            axes[0].set_title(f"✕ failed: λ = {', '.join(label(each.scale) for each in failed)}", fontsize=10)
        figures.shared_legend(axes)

    return figures.draw(plot, folder, name, columns=3, size=(13.5, 4.8))


def band(ax: Axes, part: pd.DataFrame, column: str, name: str, color: Any) -> None:
    """One λ: the mean over seeds, and a band of one standard error on either side."""
    factor = 100 if column == "test_accuracy" else 1
    line = means(part, column)
    if not len(line):
        return
    mean, error = factor * line["mean"], factor * line["error"].fillna(0)
    ax.plot(line["step"], mean, color=color, lw=1.6, label=name)
    ax.fill_between(line["step"], mean - error, mean + error, color=color, alpha=0.2, lw=0)


def failures(ax: Axes, point: Point, curves: pd.DataFrame) -> None:
    """Where the failed runs of one λ ended, as marks at the top of the panel of the loss."""
    part = curves[(curves["scale"] == point.scale) & curves["status"].isin(list(figures.FAILURES))]
    for status, runs in part.groupby("status"):
        ends = runs.groupby("seed")["step"].max()
        mark = figures.FAILURES[str(status)]
        ax.plot(ends, [0.97] * len(ends), mark, color=figures.INK, ms=7, mew=1.8, transform=ax.get_xaxis_transform())


def figure2(points: Sequence[Point], choices: Sequence[Choice], folder: Path | None, name: str = "figure2") -> str:
    """Maximum accuracy, and complexity there, against λ: means with standard errors; what failed at the foot."""

    def plot(*axes: Any) -> None:
        for ax, value in zip(axes, ("accuracy", "complexity"), strict=True):
            for k, choice in enumerate(choices):
                errors(ax, points, choice, value, shift=0.16 * (k - (len(choices) - 1) / 2), color=figures.PALETTE[k])
            ax.set_xlabel(f"λ, as a power of n = {depth(points)} and as a number" if depth(points) else "λ")
            ax.set_xticks(range(len(points)), [f"{label(each.scale)}\n{each.lam:.2g}" for each in points], fontsize=9)
            ax.set_xlim(-0.6, len(points) - 0.4)
            ax.grid(axis="x", visible=False)
        axes[0].set_ylabel("maximum test accuracy (%)")
        axes[1].set_ylabel("geometric complexity at that step")
        if any(each.done for each in points):
            figures.log_axis(axes[1].yaxis)
        for ax in axes:
            for k, each in enumerate(points):
                foot(ax, k, each)
        figures.shared_legend(axes)

    return figures.draw(plot, folder, name, columns=2, size=(13.5, 5.0))


def depth(points: Sequence[Point]) -> int:
    """n, from a λ that is 1/n or a power; 0 where there is none."""
    return next((round(1 / each.lam) for each in points if each.scale == "1/n"), 0)


def errors(ax: Axes, points: Sequence[Point], choice: Choice, value: str, *, shift: float, color: str) -> None:
    """One way of choosing the maximum."""
    import numpy as np

    known = [(k + shift, getattr(each, value)[choice]) for k, each in enumerate(points) if each.done]
    if not known:
        return
    x, found = zip(*known, strict=True)
    error = np.nan_to_num([each.error for each in found])
    name = "by test accuracy, as in the paper" if choice == "test" else "by validation accuracy"
    ax.errorbar(
        x,
        [each.mean for each in found],
        yerr=error,
        fmt=f"{MARKS[choice]}-",
        color=color,
        capsize=4,
        lw=1.2,
        label=name,
    )


def foot(ax: Axes, x: int, point: Point) -> None:
    """A mark for a λ at which runs failed, with their number where not all did."""
    for status, mark in figures.FAILURES.items():
        count = getattr(point, status)
        if not count:
            continue
        place = ax.get_xaxis_transform()
        ax.plot([x], [FLOOR], mark, color=figures.INK, ms=9, mew=2, transform=place)
        if count < point.n:
            ax.text(x, FLOOR + 0.04, f"{count} of {point.n}", ha="center", fontsize=8, transform=place)
