"""The picture of an anatomy: the stream from left to right, an arc over it for each branch, a tick for each unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import INK, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .sites import Anatomy

BRANCH, MAPPED, UNIT = PALETTE[0], PALETTE[1], PALETTE[2]
AFTER = (PALETTE[3], PALETTE[4], PALETTE[5])  # of joins, by what follows them
LABELS = 24  # names along the axis; of more sites some are left out
LAMBDAS = 16  # λ written on arcs, up to that many joins


def draw_anatomy(anatomy: Anatomy, ax: Axes | None = None) -> Axes:
    """Draw into `ax`, or a new figure as wide as the joins need."""
    sites: Sequence[Any] = anatomy.branches or anatomy.units
    if ax is None:
        from matplotlib import pyplot as plt

        width = min(6 + 0.22 * len(sites), 16)
        ax = plt.subplots(figsize=(width, 4.2), layout="constrained")[1]
    ax.axhline(0, color=INK, lw=1.5, zorder=1)
    draw = draw_joins if anatomy.branches else draw_units_only
    draw(ax, anatomy)
    name_sites(ax, [s.name for s in sites])
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def draw_joins(ax: Axes, anatomy: Anatomy) -> None:
    """Join k stands at x = k + 1; the calls between two joins are spread evenly between them."""
    joins = anatomy.branches
    n = len(joins)
    steps = np.array([-1.0, *(b.step for b in joins), max(len(anatomy.steps), joins[-1].step + 1)])
    at = np.arange(n + 2.0)
    forks = np.interp([b.fork for b in joins], steps, at)
    heights = np.array([b.step - b.fork for b in joins], dtype=float)
    tall = heights.max() > 20 * np.median(heights)  # a long skip over many blocks
    arcs(ax, forks, at[1:-1], heights, log=tall)
    mapped = [k for k, b in enumerate(joins) if not b.identity]
    for k in mapped:
        ax.plot([forks[k], k + 1], [0, 0], color=MAPPED, lw=3, solid_capstyle="butt", zorder=2)
    mark_joins(ax, [", ".join(b.after) for b in joins], small=n > 40)
    draw_units(ax, anatomy, steps, at, forks, heights)
    if n <= LAMBDAS:
        for k, b in enumerate(joins):
            if b.lam != 1:
                place = (forks[k] + k + 1) / 2, heights[k]
                ax.annotate(
                    f"λ={b.lam:.3g}", place, (0, 3), textcoords="offset points", ha="center", color=BRANCH, fontsize=9
                )
    top = heights.max()
    low = -0.09 * top if not tall else 0.0
    ax.set(xlim=(-0.2, n + 1.2), xlabel="residual joins, in the order they are computed", ylabel="calls in the branch")
    ax.set_ylim(low, 1.25 * top)
    if tall:
        ax.set_yscale("symlog", linthresh=float(np.median(heights)))
        ax.set_ylim(-0.3 * float(np.median(heights)), 3 * top)
    else:
        from matplotlib.ticker import MaxNLocator

        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(title(anatomy), loc="left", fontsize=11)
    legend(ax, bool(mapped), bool(anatomy.units))


def arcs(ax: Axes, left: np.ndarray, right: np.ndarray, heights: np.ndarray, *, log: bool) -> None:
    """Half an ellipse for each branch, from its fork to its join."""
    from matplotlib.collections import LineCollection

    angle = np.linspace(0, np.pi, 33)
    x = ((left + right) / 2)[:, None] + ((left - right) / 2)[:, None] * np.cos(angle)
    y = heights[:, None] * np.sin(angle)
    width = 1.8 if len(left) <= 40 else 0.9
    ax.add_collection(LineCollection(list(np.stack([x, y], -1)), colors=BRANCH, linewidths=width, zorder=3))


def mark_joins(ax: Axes, after: list[str], *, small: bool) -> None:
    """A disc for each join, colored by what reads its result first."""
    kinds = list(dict.fromkeys(after))
    colors = {kind: AFTER[i % len(AFTER)] if kind else INK for i, kind in enumerate(kinds)}
    for kind in kinds:
        x = [k + 1 for k, name in enumerate(after) if name == kind]
        label = f"join, then {kind}" if kind else "join"
        ax.plot(x, [0] * len(x), "o", ms=3 if small else 8, color=colors[kind], label=label, zorder=4, clip_on=False)


def draw_units(
    ax: Axes, anatomy: Anatomy, steps: np.ndarray, at: np.ndarray, forks: np.ndarray, heights: np.ndarray
) -> None:
    """A tick for each unit: on the arc of the innermost branch around it, else on the stream."""
    joins = anatomy.branches
    points = []
    for unit in anatomy.units:
        x = float(np.interp(unit.step, steps, at))
        around = [k for k, b in enumerate(joins) if b.fork < unit.step < b.step]
        k = min(around, key=lambda k: heights[k], default=None)
        y = 0.0
        if k is not None:
            radius = (k + 1 - forks[k]) / 2
            y = heights[k] * max(1 - ((x - forks[k]) / radius - 1) ** 2, 0) ** 0.5
        points.append((x, y))
    if points:
        size = 9 if len(points) <= 80 else 4
        ax.plot(*zip(*points, strict=True), "|", color=UNIT, ms=size, mew=1.6 if size > 4 else 0.8, zorder=5)


def draw_units_only(ax: Axes, anatomy: Anatomy) -> None:
    """A network without joins: its units on the line."""
    n = len(anatomy.units)
    ax.plot(range(1, n + 1), [0] * n, "|", color=UNIT, ms=18, mew=2)
    ax.set(xlim=(0, n + 1), ylim=(-1, 1), yticks=[], ylabel="stream")
    ax.set_xlabel("nonlinear units, in the order they are computed")
    ax.set_title(title(anatomy), loc="left", fontsize=11)


def name_sites(ax: Axes, names: list[str]) -> None:
    """Names below the axis, as many as can be read."""
    every = max(1, -(-len(names) // LABELS))
    shown = range(0, len(names), every)
    ax.set_xticks([k + 1 for k in shown], [names[k] for k in shown], rotation=90 if len(names) > 8 else 20, fontsize=8)
    if len(names) <= 8:
        for label in ax.get_xticklabels():
            label.set_horizontalalignment("right")


def title(anatomy: Anatomy) -> str:
    """Numbers of joins and units, and λ where they are not 1."""
    joins, units = len(anatomy.branches), len(anatomy.units)
    words = f"{joins or 'no'} residual join{'s' * (joins != 1)}, {units} unit{'s' * (units != 1)}"
    own = sorted({b.lam for b in anatomy.branches})
    if own in ([], [1.0]):
        return words
    return f"{words}, λ = {own[0]:.3g}" + (f" to {own[-1]:.3g}" if len(own) > 1 else "")


def legend(ax: Axes, mapped: bool, units: bool) -> None:
    """What line, color and tick stand for."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=BRANCH, lw=1.8, label="branch")]
    handles.append(Line2D([], [], color=INK, lw=1.5, label="stream; identity shortcut"))
    if mapped:
        handles.append(Line2D([], [], color=MAPPED, lw=3, label="mapped shortcut"))
    if units:
        handles.append(Line2D([], [], color=UNIT, ls="", marker="|", ms=9, mew=1.6, label="nonlinear unit"))
    handles += [
        Line2D([], [], color=line.get_color(), ls="", marker="o", label=str(line.get_label()))
        for line in ax.get_lines()
        if line.get_marker() == "o"
    ]
    ax.legend(handles=handles, fontsize=8, frameon=False, ncols=3, loc="upper left")
