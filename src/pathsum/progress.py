"""One progress bar for the whole library: on a terminal, after a second, with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
DELAY = 1.0  # seconds before a bar appears: short work stays silent


@contextmanager
def bar(description: str, total: int | None, *, show: bool | None = None) -> Iterator[Callable[..., None]]:
    """Yield `update(n=1, **fields)`; `show` None means on a terminal only. Fields print behind the bar."""
    if show is False or (show is None and not sys.stderr.isatty()):
        yield lambda n=1, **fields: None
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


def track(items: Iterable[T], description: str, *, total: int | None = None, show: bool | None = None) -> Iterator[T]:
    """Iterate over `items` under a bar; `total` defaults to `len(items)`."""
    count = total if total is not None else len(items)  # type: ignore[arg-type]
    with bar(description, count, show=show) as update:
        for item in items:
            yield item
            update()
