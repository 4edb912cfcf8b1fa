"""An inspection in words: tables on the terminal, and a page whose sentences are chosen by the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import figures, page

if TYPE_CHECKING:
    import pandas as pd

    from pathsum.inspection import Inspection
    from pathsum.tasks import Task

PERCENT = ("share", "accuracy", "agreement")
MOST_ROWS = 24  # of a table on the terminal
VERDICTS = {
    "converged": "the orders add up to the network: a few terms of the expansion are the network",
    "plateaued": "further orders hardly close the gap; where branches hold ReLUs the orders add up to another "
    "function, since gates switch between λ = 0 and the real λ, and no order sees that",
    "diverging": "the orders do not add up: the expansion in λ says little about this network",
}


def show(result: Inspection) -> None:
    """Print everything but the figures."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    console.print(f"\n[bold]{escape(result.name)}[/bold]: {escape(result.about)}")
    for note in result.notes:
        console.print(escape(note))
    console.print(f"{escape(headline(result))}\n")
    grid(console, "Residual branches: skip + λ·branch", shown(result.branches))
    grid(console, f"Expansion in λ: {result.verdict} ({result.verdict.reason})", shown(result.orders))
    bound = "at least " if result.is_bound else ""
    title = f"Path lengths: mean {bound}{result.mean_length:.3g} blocks; their sum is off by {result.conservation:.1e}"
    grid(console, title, shown(busy(result.lengths)))


def grid(console: Any, title: str, frame: pd.DataFrame) -> None:
    """Print a table, its middle left out where it is long."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in frame.columns:
        table.add_column(name, justify="right" if page.is_number(frame[name]) else "left", header_style="dim")
    rows = [[page.number(v) if isinstance(v, float) else str(v) for v in row] for row in frame.to_numpy(object)]
    half = MOST_ROWS // 2
    for row in rows if len(rows) <= MOST_ROWS else rows[:half]:
        table.add_row(*row)
    if len(rows) > MOST_ROWS:
        table.add_row(f"… {len(rows) - 2 * half} more", *[""] * (len(frame.columns) - 1))
        for row in rows[-half:]:
            table.add_row(*row)
    console.print(table, "", sep="\n")


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with shares as percentages."""
    frame = frame.copy()
    for name in PERCENT:
        if name in frame:
            frame[name] *= 100
    return frame.rename(columns={name: f"{name} (%)" for name in PERCENT})


def busy(lengths: pd.DataFrame) -> pd.DataFrame:
    """The lengths up to the last that carries anything."""
    some = (lengths["share"] > 1e-9).to_numpy().nonzero()[0]
    return lengths.iloc[: int(some.max(initial=0)) + 1]


def headline(result: Inspection) -> str:
    """The result in two sentences."""
    n = len(result.branches)
    bound = "at least " if result.is_bound else ""
    task = result.task
    claim = task.claim.format(
        value=result.value,
        num=result.num_samples,
        rows=result.num_rows,
        data=result.data,
        samples=task.samples if result.num_samples != 1 else task.sample,
    )
    if "loss" in result.scores:
        claim += f" (cross-entropy {result.scores['loss']:.3g} nats, perplexity {perplexity(result)})"
    first = (
        f"{claim} through {n} residual blocks, but the mean path is {bound}{result.mean_length:.2g} blocks long."
        if result.mean_length < n / 2
        else f"{claim}; the mean path passes {bound}{result.mean_length:.2g} of {n} residual blocks."
    )
    return f"{first} {enough(result)}"


def perplexity(result: Inspection) -> str:
    """exp(loss): among how many equally likely tokens the network is, as it were, undecided."""
    import math

    loss = result.scores["loss"]
    return page.number(math.exp(loss) if loss < 700 else math.inf)


def enough(result: Inspection) -> str:
    """How long paths must be for the score of the network, less a point."""
    score = result.task.lead
    if score.name == "accuracy" and result.value <= 0.02:
        return "With so few right answers, parts of it cannot be told from the whole by their accuracy."
    reach = (result.lengths[score.name] >= result.value - 0.01).to_numpy()
    lasting = reach[::-1].cumprod()[::-1].astype(bool)  # from here on, for good
    at = int(lasting.argmax())
    n = len(result.branches)
    if (result.longer and at == len(reach) - 1) or at >= n:
        return score.needs
    paths = f"Paths through at most {at} of the {n} blocks" if at else "The path that skips every block"
    reached = float(result.lengths[score.name].iloc[at])
    ending = {"s": "", "es": ""} if at else {"s": "s", "es": "es"}
    does = score.reach.format(**ending, reached=reached, whole=result.value, samples=result.task.samples)
    return f"{paths} {does}."


def sections(result: Inspection, folder: Path) -> list[str]:
    """The blocks of a page about one network; figures and tables also go to files in `folder`."""
    n = len(result.branches)
    art, tables = folder / "figures", folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    for name in ("branches", "orders", "lengths"):
        getattr(result, name).to_csv(tables / f"{name}.csv", index=False)
    task = result.task
    panels = len(task.scores)
    scores = figures.draw(
        lambda *axes: figures.scores_by_length(axes, result.lengths, task, result.scores),
        art,
        f"{task.lead.name}-by-length",
        columns=panels,
        size=(7.6 if panels == 1 else 4.8 * panels, 3.6),
    )
    share = figures.draw(
        lambda ax: figures.share_by_length(ax, result.lengths, result.mean_length, task.lead.name), art, "path-lengths"
    )
    orders = figures.draw(
        lambda *axes: figures.orders(axes, result.orders, task, result.scores, result.verdict),
        art,
        "orders",
        columns=1 + panels,
        size=(9.6 if panels == 1 else 3.9 * (1 + panels), 3.9),
    )
    samples = figures.draw(lambda ax: figures.sample_lengths(ax, result.sample_lengths, task), art, task.samples)
    return [
        page.facts(
            {
                **first_facts(result),
                "residual blocks": str(n),
                "mean path length": f"{'≥ ' if result.is_bound else ''}{result.mean_length:.2g} blocks",
                "orders in λ": str(result.verdict),
                "sum is off by": f"{result.conservation:.1e}",
            }
        ),
        page.heading("How long are the paths that do the work?"),
        page.paragraph(
            f"Each of the {n} residual blocks adds its branch to what passes by it, so the output is a sum over "
            f"all 2{superscript(n)} ways through the network: each block is either passed or skipped. Grouped by the "
            "number of blocks passed, the parts add up to the output exactly. A block is one residual branch: a layer "
            "of a transformer mostly has two, attention and MLP."
        ),
        page.figure(
            scores,
            f"{capital(' and '.join(score.label for score in task.scores))} if only paths through at most so many "
            f"blocks are summed; the dashed line is the whole network. {enough(result)}",
        ),
        page.figure(
            share,
            f"How much of the output comes through how many blocks (share of the squared norm). {about_share(result)}",
        ),
        page.figure(
            samples,
            f"The mean path length of each {task.sample}. {about_samples(result)}",
        ),
        page.heading("How much of it is in the first orders?"),
        page.paragraph(
            "Put one knob λ on all branches and expand the network in λ: order 0 is the network without branches, "
            "order k adds every combination of k branches, as they act at λ = 0. What the orders leave out is the "
            "remainder; they explain the network only where it is small."
        ),
        page.figure(
            orders,
            "Left: size of each order, and what is left out after it, relative to the output; then: "
            f"{' and '.join(score.name for score in task.scores)} of the orders so far. Verdict {result.verdict}: "
            f"{VERDICTS[result.verdict]} ({result.verdict.reason}).",
        ),
        page.heading("The numbers"),
        page.details("Path lengths", page.table(shown(busy(result.lengths)), lengths_caption(task))),
        page.details("Orders in λ", page.table(shown(result.orders), orders_caption(task))),
        page.details("Residual branches", page.table(result.branches, "Each join is skip + λ·branch.")),
    ]


def first_facts(result: Inspection) -> dict[str, str]:
    """The network's own score, or that there is none."""
    if "loss" in result.scores:
        return {result.task.lead.label: f"{result.value:.2%}", "perplexity": perplexity(result)}
    return {"accuracy": "–"} if result.accuracy is None else {result.task.lead.label: f"{result.accuracy:.2%}"}


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def meanings(task: Task, of: str) -> str:
    """What the columns of the scores hold."""
    text = "".join(f"; {score.name}: {score.label}, {of}" for score in task.scores)
    return text + ("; perplexity: exp(loss)" if any(score.name == "loss" for score in task.scores) else "") + "."


def lengths_caption(task: Task) -> str:
    return (
        "paths: how many of this length there are; norm: of their sum, relative to the output; share: of the squared "
        f"norms{meanings(task, 'of all paths up to this length')}"
    )


def orders_caption(task: Task) -> str:
    return (
        "norm: of this order with its power of λ, relative to the output; remainder: what the orders so far leave out"
        f"{meanings(task, 'of the orders so far')}"
    )


def about_share(result: Inspection) -> str:
    """What the spectrum of lengths looks like."""
    n, total = len(result.branches), float(result.lengths["norm"].pow(2).sum())
    bound = "at least " if result.is_bound else ""
    relation = "partly cancel" if total > 1.5 else "reinforce each other" if total < 0.67 else "are nearly orthogonal"
    return (
        f"The mean is {bound}{result.mean_length:.2g} of {n} blocks; the parts {relation}: their squared norms add up "
        f"to {total:.2g} times that of the output."
    )


def about_samples(result: Inspection) -> str:
    """How much samples differ."""
    import numpy as np

    low, middle, high = np.quantile(result.sample_lengths, [0.05, 0.5, 0.95])
    spread = "differ in depth" if high - low > 0.1 * middle else "hardly differ in depth"
    return (
        f"To this network {result.task.samples} {spread}: nine in ten lie between {low:.3g} and {high:.3g} blocks, "
        f"half of all below {middle:.3g}."
    )


def superscript(number: int) -> str:
    """Digits as an exponent."""
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def publish(
    result: Inspection, out: Path, *, settings: Mapping[str, Any], marker: str, overwrite: bool = False
) -> None:
    """Write report.html, figures/ (PNG, SVG) and tables/ (CSV) into `out`, whole or not at all."""
    from pathsum.runs import environment
    from pathsum.storage import write_json

    record = {**settings, "environment": environment()}
    with page.staged(out, marker=marker, overwrite=overwrite) as folder:
        html = page.page(
            f"{result.name} as a sum over paths",
            page.paragraph(headline(result), "lead"),
            page.paragraph(f"{result.about}. {' '.join(result.notes)}".strip(), "soft"),
            *sections(result, folder),
            page.heading("How this was made"),
            page.settings(record),
        )
        (folder / "report.html").write_text(html, encoding="utf-8")
        names = ("name", "about", "notes", "data", "num_samples", "num_rows", "accuracy", "scores")
        numbers = {key: getattr(result, key) for key in names}
        paths = {key: getattr(result, key) for key in ("mean_length", "conservation", "longer")}
        verdict = {"verdict": str(result.verdict), "reason": result.verdict.reason}
        write_json(folder / marker, {**page.jsonable(record), "result": {**numbers, **paths, **verdict}})
