"""One progress bar for the whole library: on a terminal, after a second, with the time left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
DELAY = 1.0  # seconds before a bar appears: short work stays silent
ENOUGH = 0.01  # of the work, before a pace is told where there is no terminal
QUIET = 15.0  # seconds after which a command says how far it is where there is no terminal


class Spoken:
    """What a command does now, for its log: said at once, and again, with how far it is, where it takes long."""

    def __init__(self) -> None:
        self.text, self.note, self.since = "", "", time.monotonic()

    def now(self, text: str) -> None:
        """Something else begins."""
        self.text, self.note, self.since = text, "", time.monotonic()
        print(text, flush=True)

    def again(self) -> None:
        """Still the same."""
        seconds = time.monotonic() - self.since
        print(f"{self.text.strip()} {self.note or f'{seconds:.0f} s so far'}", flush=True)


_spoken: list[Spoken] = []  # the last one is told by the bars


@contextmanager
def lines() -> Iterator[Callable[[str], None]]:
    """Yield `now(text)`, which prints what begins; without a terminal the text comes again every `QUIET` seconds.

    Bars inside then tell how far they are, so that a log is never silent for long, whatever takes the time.
    """
    spoken, over = Spoken(), threading.Event()

    def repeat() -> None:
        while not over.wait(QUIET):
            if spoken.text:
                spoken.again()

    thread = threading.Thread(target=repeat, daemon=True)
    if not sys.stderr.isatty():
        _spoken.append(spoken)
        thread.start()
    try:
        yield spoken.now
    finally:
        over.set()
        if thread.is_alive():
            thread.join()
            _spoken.remove(spoken)


@contextmanager
def bar(
    description: str, total: int | None, *, done: int = 0, show: bool | None = None
) -> Iterator[Callable[..., None]]:
    """Yield `update(n=1, **fields)`; `show` None means on a terminal only. Fields print behind the bar.

    A `total` of None is one that nobody knows: it counts, and there is no time left. `done` was done before, and says
    nothing of the pace.
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        yield _told(_spoken[-1], description, total, done) if _spoken and show is None else lambda n=1, **fields: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
    task = progress.add_task(description, total=total, completed=done, note="")
    started = time.monotonic()
    running = False

    def update(n: int = 1, **fields: str) -> None:
        nonlocal running
        progress.update(task, advance=n, note="  ".join(f"{k} {v}" for k, v in fields.items()))
        if not running and time.monotonic() - started > DELAY:
            progress.start()
            running = True

    try:
        yield update
    finally:
        if running:
            progress.stop()


def _told(spoken: Spoken, description: str, total: int | None, done: int) -> Callable[..., None]:
    """The update of a bar that is told in lines."""
    began, before = time.monotonic(), done

    def update(n: int = 1, **fields: str) -> None:
        nonlocal done
        done += n
        if total is None:
            spoken.note = f"{description} {done}"
            return
        new, left = done - before, ""
        if new and new >= ENOUGH * (total - before):
            left = ", " + time_left((time.monotonic() - began) * (total - done) / new)
        spoken.note = f"{description} {done}/{total}{left}" if done < total else ""

    return update


def time_left(seconds: float) -> str:
    """A time in words, no more precise than an estimate is.

    >>> time_left(30), time_left(200), time_left(9000)
    ('under a minute left', 'about 3 min left', 'about 2.5 h left')
    """
    minutes = seconds / 60
    if minutes < 1:
        return "under a minute left"
    return f"about {minutes:.0f} min left" if minutes < 90 else f"about {minutes / 60:.1f} h left"


def track(items: Iterable[T], description: str, *, total: int | None = None, show: bool | None = None) -> Iterator[T]:
    """Iterate over `items` under a bar; `total` defaults to `len(items)`."""
    count = total if total is not None else len(items)  # type: ignore[arg-type]
    with bar(description, count, show=show) as update:
        for item in items:
            yield item
            update()
