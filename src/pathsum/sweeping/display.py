"""What a sweep shows: a live table on a terminal, elsewhere a line a run, and one where it is quiet for long."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from pathsum.errors import CheckpointError
from pathsum.progress import QUIET, time_left
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
        self.began = self.said = time.monotonic()  # since when it trains, and is silent
        self.effort = 0.0  # of the runs that were finished in this sitting
        self.before: dict[str, float] = {}  # how much of each run was done before it
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
        self.effort += effort(config) * (self.share(config) - self.before.get(config.folder, 0.0))
        accuracy = summary.get("best_test")
        text = f"{self.describe(config)}: {status}"
        text += f" ({reason})" if status == "failed" else ""
        text += f", best test accuracy {accuracy:.1%}" if accuracy is not None else ""
        self.say(f"[{self.counts.total()}/{self.num}] {text}")
        self.note = text

    def setback(self, config: RunConfig, status: str, reason: str) -> None:
        """A run has to be tried again."""
        self.note = f"{self.describe(config)}: {status}{f' ({reason})' if reason else ''}, to be tried again"
        self.say(self.note)

    def say(self, text: str) -> None:
        """Print a line where there is no terminal."""
        if self.lines:
            self.said = time.monotonic()
            print(text, flush=True)

    def update(self, left: Mapping[str, RunConfig], members: Sequence[Hand]) -> None:
        """Draw the table, or break a long silence."""
        for folder in (folder for member in members for folder in member.running):
            if folder in left and folder not in self.before:
                if not self.before:
                    self.began = time.monotonic()
                self.before[folder] = self.share(left[folder])
        if self.live is not None:
            self.live.update(self.draw(left, members), refresh=True)
        elif self.lines and time.monotonic() - self.said >= QUIET:
            self.say(self.headline(left, members))

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
        starting = sum(not member.ready for member in members)
        states = {name: self.counts[name] for name in ORDER} | {
            "running": running,
            "running elsewhere": self.elsewhere,
            "waiting": max(len(left) - running - self.elsewhere, 0),
        }
        parts = [f"{count} {name}" for name, count in states.items() if count]
        parts += [f"{starting} worker{'s' if starting > 1 else ''} starting"] if starting else []
        return f"{self.counts.total()}/{self.num} runs: {', '.join(parts)}{self.time_left(left, members)}"

    def time_left(self, left: Mapping[str, RunConfig], members: Sequence[Hand]) -> str:
        """How long the rest takes at the pace so far; a run that is under way counts up to its last row."""
        todo, done = sum(effort(config) for config in left.values()), self.effort
        for member in members:
            running = [left[folder] for folder in member.running if folder in left]
            share = self.share(running[0]) if running else 0.0  # a stack goes in step
            todo -= sum(share * effort(config) for config in running)
            done += sum((share - self.before.get(config.folder, share)) * effort(config) for config in running)
        if done <= 0:
            return ""
        return f", {time_left((time.monotonic() - self.began) * max(todo, 0.0) / done)}"

    def share(self, config: RunConfig) -> float:
        """How much of a run is done, by its last row."""
        rows = self.rows(config.folder)
        if not rows:
            return 0.0
        if config.train.epochs is not None:
            return float(rows[-1]["epoch"]) / config.train.epochs
        return float(rows[-1]["step"]) / config.train.num_steps(0)

    def rows(self, folder: str) -> list[dict[str, Any]]:
        """The rows of a run so far; none where they are damaged, which its worker will say."""
        try:
            return read_rows(self.store.root / folder / ROWS)
        except CheckpointError:
            return []

    def activity(self, left: Mapping[str, RunConfig], member: Hand) -> tuple[str, str]:
        """What a worker does, and how far it is."""
        if not member.running:
            return ("waiting" if member.ready else "starting", "")
        config = left.get(member.running[0])
        rows = self.rows(member.running[0])
        step = rows[-1]["step"] if rows else 0
        steps = config.train.steps if config is not None else None
        more = f" and {len(member.running) - 1} more" if len(member.running) > 1 else ""
        name = member.running[0] if config is None else self.describe(config)
        return f"{name}{more}", f"step {step}/{steps}" if steps else f"step {step}"


def effort(config: RunConfig) -> float:
    """What a run costs, in units of its own kind: blocks times images."""
    steps = 100 * config.train.epochs if config.train.epochs is not None else config.train.num_steps(0)
    return float(steps * config.train.batch_size * (config.model["depth"] + 1))
