"""Runs on a terminal: a table that fits it, and all there is to know about one."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pathsum import page
from pathsum.entries import DAMAGED, Entry

ORDER = ("running", "interrupted", "waiting", "done", "diverged", "frozen", "failed", DAMAGED)
STYLE = {"running": "cyan", "done": "green", "diverged": "yellow", "frozen": "yellow", "failed": "red", DAMAGED: "red"}
BARS = "▁▂▃▄▅▆▇█"
SHORTEST_KEY = 6
WIDE = 240  # columns where nobody's terminal would be overrun
LAST_ROWS = 5
GAP, LEAST_WHAT = 2, 28  # columns between two of the table's, and for what a run is


def console() -> Any:
    """Where to print: as wide as the terminal, and wide enough for whole lines where there is none."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=max(WIDE, shutil.get_terminal_size().columns))


def table(entries: Sequence[Entry], width: int) -> Any:
    """A line a run, as wide as `width`: what does not fit is shortened, and where little fits some columns go."""
    from rich.table import Table
    from rich.text import Text

    short = labels(entries)
    columns: dict[str, list[str]] = {
        "run": [short[entry.folder] for entry in entries],
        "what": [what(entry) for entry in entries],
        "status": [entry.status for entry in entries],
        "step": [progress(entry) for entry in entries],
        "tries": [str(len(entry.attempts)) if entry.in_store else "" for entry in entries],
        "host": [cut(entry.host, 16) for entry in entries],
        "best test": ["" if entry.best_test is None else f"{entry.best_test:.1%}" for entry in entries],
        "age": [age(entry.age) for entry in entries],
    }
    for spare in ("", "host", "tries", "age"):
        columns.pop(spare, None)
        taken = sum(max(map(len, [name, *column])) for name, column in columns.items() if name != "what")
        room = width - taken - GAP * len(columns)
        if room >= LEAST_WHAT:
            break
    columns["what"] = [cut(text, max(room, 1)) for text in columns["what"]]
    made = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        right = name in ("step", "tries", "best test", "age")
        made.add_column(name, no_wrap=True, overflow="ellipsis", justify="right" if right else "left")
    for cells in zip(*columns.values(), strict=True):
        made.add_row(*(Text(cell, STYLE.get(cell, "")) for cell in cells))
    return made


def what(entry: Entry) -> str:
    """What a run is, and of a failed one why it failed."""
    if entry.status == DAMAGED:
        return "cannot be read, see below" if not entry.config else entry.describe()
    return entry.describe() + (f": {entry.error}" if entry.status == "failed" and entry.error else "")


def cut(text: str, width: int) -> str:
    """A text shortened to a width.

    >>> cut("a long name", 7), cut("short", 7)
    ('a long…', 'short')
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def labels(entries: Iterable[Entry]) -> dict[Path, str]:
    """What to call each run: its name, or as much of a key as no other begins with."""
    entries = list(entries)
    keys = {entry.folder.name for entry in entries if entry.key == entry.folder.name}
    pairs = itertools.pairwise(sorted(entry.folder.name for entry in entries))
    common = [shared(a, b) for a, b in pairs if keys & {a, b}]
    length = max(SHORTEST_KEY, max(common, default=0) + 1)
    return {e.folder: str(Path(e.name).parent / e.key[:length]) if e.key == e.folder.name else e.name for e in entries}


def shared(one: str, other: str) -> int:
    """How many letters two words begin with in common; of equal words none, which no more letters tell apart."""
    if one == other:
        return 0
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def progress(entry: Entry) -> str:
    """Step of steps."""
    if entry.status == DAMAGED:
        return ""
    return f"{entry.step}/{'?' if entry.steps is None else entry.steps}"


def age(seconds: float) -> str:
    """A time that has passed, short.

    >>> age(3), age(200), age(5000), age(90000), age(1e7)
    ('3 s', '3 min', '1 h', '25 h', '116 d')
    """
    for unit, size, least in (("d", 86400, 2), ("h", 3600, 1), ("min", 60, 1)):
        if seconds >= least * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def summary(entries: Sequence[Entry], num_all: int, root: Path) -> str:
    """Counts, in a line."""
    counts = Counter(entry.status for entry in entries)
    parts = ", ".join(f"{counts[status]} {status}" for status in ORDER if counts[status])
    of = "" if len(entries) == num_all else f" of {num_all}"
    return f"{len(entries)}{of} run{'s' if num_all != 1 else ''} in {root}{': ' if parts else ''}{parts}"


def show(entry: Entry) -> None:
    """Print everything about one run."""
    import pandas as pd
    from rich.markup import escape

    from pathsum.explain import grid

    out = console()
    out.print(f"\n[bold]{escape(entry.name)}[/bold]  {escape(entry.describe())}", soft_wrap=True)
    out.print(f"{escape(headline(entry))}", soft_wrap=True)
    if entry.error and entry.status != "done":
        out.print(f"[red]{escape(entry.error)}[/red]", soft_wrap=True)
    for name, title in (("train_loss", "training loss"), ("test_accuracy", "test accuracy")):
        if line := curve(entry, name, title):
            out.print(line, soft_wrap=True)
    out.print()
    if entry.rows:
        last = pd.DataFrame(entry.rows[-LAST_ROWS:]).dropna(axis=1, how="all")
        grid(out, "Last rows", last.drop(columns=["lr"], errors="ignore"))
    if entry.attempts:
        grid(out, "Attempts", pd.DataFrame([attempt(a) for a in entry.attempts]))
    for title, values in (("Configuration", entry.config), ("Environment", entry.environment)):
        if values:
            out.print(f"[bold]{title}[/bold]")
            width = max(map(len, values))
            for name, value in values.items():
                out.print(f"  {name:<{width}}  {'none' if value is None else value}", soft_wrap=True, markup=False)
            out.print()
    out.print(f"[bold]Files[/bold] in {escape(str(entry.folder))}", soft_wrap=True)
    for path in sorted(entry.folder.glob("[!.]*")):
        out.print(f"  {path.name}{size(path)}", soft_wrap=True, markup=False)


def headline(entry: Entry) -> str:
    """Status and how it came to it."""
    words = [f"{entry.status}{f': {entry.reason}' if entry.reason else ''}", f"step {progress(entry)}"]
    if entry.best_test is not None:
        words.append(f"best test accuracy {entry.best_test:.2%}")
    if entry.summary.get("seconds"):
        words.append(f"{entry.summary['seconds']:.1f} s of training")
    words.append(f"last sign {age(entry.age)} ago")
    if entry.in_store:
        words.append(f"key {entry.key}")
    return ", ".join(words if entry.status != DAMAGED else [DAMAGED, *words[-2:]])


def attempt(one: Any) -> dict[str, Any]:
    """A row of the table of attempts."""
    began = one.record.get("began")
    ended = one.end.get("time", one.beat)
    return {
        "attempt": one.number,
        "host": one.record.get("host", ""),
        "process": str(one.record.get("pid", "")),
        "began": "" if began is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began)),
        "seconds": ended - began if began is not None else float("nan"),
        "from step": one.record.get("step", 0),
        "ended": str(one.end.get("status", "")),
        "error": str(one.end.get("error", "")),
    }


def curve(entry: Entry, name: str, title: str) -> str:
    """A column of the rows as a line of bars, with its first and last value; empty where there are not two."""
    values = [row[name] for row in entry.rows if row.get(name) is not None]
    if len(values) < 2:
        return ""
    return f"{title:<13}  {spark(values)}  {page.number(values[0])} → {page.number(values[-1])}"


def spark(values: Sequence[float], width: int = 40) -> str:
    """Numbers as bars between the least and the largest, thinned evenly to `width`.

    >>> spark([0, 1, 2, 7]), spark([3, 3]), len(spark(range(1000)))
    ('▁▂▃█', '▁▁', 40)
    """
    num = len(values)
    picked = values if num <= width else [values[i * (num - 1) // (width - 1)] for i in range(width)]
    low, high = min(values), max(values)
    top = len(BARS) - 1
    return "".join(BARS[round(top * (v - low) / (high - low)) if high > low else 0] for v in picked)


def size(path: Path) -> str:
    """The size of a file, to be put behind its name."""
    if path.is_dir():
        return "/"
    num = float(path.stat().st_size)
    for unit in ("B", "KB", "MB"):
        if num < 1000:
            return f"  {num:.0f} {unit}"
        num /= 1000
    return f"  {num:.1f} GB"
