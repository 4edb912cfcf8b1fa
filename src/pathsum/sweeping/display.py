"""What a sweep shows: a live table on a terminal, elsewhere a line a run."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from pathsum.runs import ROWS, read_rows
from pathsum.store import Store
from pathsum.sweeping.config import RunConfig
from pathsum.sweeping.crew import Hand

ORDER = ("done", "diverged", "frozen", "failed")


class Display:
    """Counts what happens, and shows it: `show` False never, None and True on a terminal as a live table."""

    def __init__(
        self, store: Store, num: int, describe: Callable[[RunConfig], str], *, workers: int, show: bool | None = None
    ) -> None:
        self.store, self.num, self.describe, self.workers = store, num, describe, workers
        self.lines = show is not False and not sys.stderr.isatty()
        self.table = show is not False and sys.stderr.isatty()
        self.interval = 0.25 if self.table else 1.0
        self.counts: Counter[str] = Counter()
        self.elsewhere = 0  # runs that other supervisors' workers hold
        self.effort = self.spent = 0.0  # of the runs that were finished here: what they were, and seconds
        self.live: Any = None
        self.note = ""

    def __enter__(self) -> Self:
        if self.table:
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def finished(self, config: RunConfig, status: str, reason: str, summary: Mapping[str, Any]) -> None:
        """A run has come to its end."""
        self.counts[status] += 1
        if summary.get("seconds"):
            self.spent += summary["seconds"]
            self.effort += effort(config, summary["steps"])
        accuracy = summary.get("best_test")
        text = f"{self.describe(config)}: {status}"
        text += f" ({reason})" if status == "failed" else ""
        text += f", best test accuracy {accuracy:.1%}" if accuracy is not None else ""
        if self.lines:
            print(f"[{self.counts.total()}/{self.num}] {text}", flush=True)
        self.note = text

    def setback(self, config: RunConfig, status: str, reason: str) -> None:
        """A run has to be tried again."""
        self.note = f"{self.describe(config)}: {status}{f' ({reason})' if reason else ''}, to be tried again"
        if self.lines:
            print(self.note, flush=True)

    def update(self, left: Mapping[str, RunConfig], members: Sequence[Hand]) -> None:
        """Draw the table."""
        if self.live is not None:
            self.live.update(self.draw(left, members), refresh=True)

    def draw(self, left: Mapping[str, RunConfig], members: Sequence[Hand]) -> Any:
        """The table: a line of counts, then what each worker does."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for member in members:
            table.add_row(member.label, *self.activity(left, member))
        return Group(Text(self.headline(left, members)), table, Text(self.note, style="dim", overflow="ellipsis"))

    def headline(self, left: Mapping[str, RunConfig], members: Sequence[Hand]) -> str:
        """Counts, and the time left."""
        running = sum(len(member.running) for member in members)
        states = {name: self.counts[name] for name in ORDER} | {
            "running": running,
            "running elsewhere": self.elsewhere,
            "waiting": max(len(left) - running - self.elsewhere, 0),
        }
        parts = [f"{count} {name}" for name, count in states.items() if count]
        return f"{self.counts.total()}/{self.num} runs: {', '.join(parts)}{self.time_left(left, members)}"

    def time_left(self, left: Mapping[str, RunConfig], members: Sequence[Hand]) -> str:
        """How long the rest takes, if a step and block of it costs what it did in the runs that are finished."""
        if not self.effort:
            return ""
        seconds = sum(effort(config) for config in left.values()) * self.spent / self.effort
        now = time.monotonic()
        seconds -= sum(now - member.since for member in members if member.running)
        minutes = max(seconds, 0.0) / max(self.workers, 1) / 60
        if minutes < 1:
            return ", under a minute left"
        return f", about {minutes:.0f} min left" if minutes < 90 else f", about {minutes / 60:.1f} h left"

    def activity(self, left: Mapping[str, RunConfig], member: Hand) -> tuple[str, str]:
        """What a worker does, and how far it is."""
        if not member.running:
            return ("waiting" if member.ready else "starting", "")
        config = left.get(member.running[0])
        rows = read_rows(self.store.root / member.running[0] / ROWS)
        step = rows[-1]["step"] if rows else 0
        steps = config.train.steps if config is not None else None
        more = f" and {len(member.running) - 1} more" if len(member.running) > 1 else ""
        name = member.running[0] if config is None else self.describe(config)
        return f"{name}{more}", f"step {step}/{steps}" if steps else f"step {step}"


def effort(config: RunConfig, steps: int | None = None) -> float:
    """What a run costs, in units of its own kind: blocks times images."""
    if steps is None:
        steps = config.train.steps or (1000 if config.train.epochs is None else round(100 * config.train.epochs))
    return float(steps * config.train.batch_size * (config.model["depth"] + 1))
