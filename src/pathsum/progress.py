"""One progress bar for the whole library: on a terminal, after a second, with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
DELAY = 1.0  # seconds before a bar appears: short work stays silent
QUIET = 15.0  # seconds after which a command says how far it is where there is no terminal
_in_lines = False


@contextmanager
def lines() -> Iterator[None]:
    """Inside, a bar without a terminal is a printed line every `QUIET` seconds, so that a log shows life."""
    global _in_lines
    before, _in_lines = _in_lines, True
    try:
        yield
    finally:
        _in_lines = before


@contextmanager
def bar(description: str, total: int, *, show: bool | None = None) -> Iterator[Callable[..., None]]:
    """Yield `update(n=1, **fields)`; `show` None means on a terminal only. Fields print behind the bar."""
    if show is False or (show is None and not sys.stderr.isatty()):
        yield _printed(description, total) if _in_lines and show is None else lambda n=1, **fields: None
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
    task = progress.add_task(description, total=total, note="")
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


def _printed(description: str, total: int) -> Callable[..., None]:
    """The update of a bar that is printed in lines."""
    began = said = time.monotonic()
    done = 0

    def update(n: int = 1, **fields: str) -> None:
        nonlocal said, done
        done += n
        now = time.monotonic()
        if now - said >= QUIET:
            said = now
            left = time_left((now - began) * (total - done) / max(done, 1))
            print(f"{description}: {done}/{total}, {left}", flush=True)

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
