"""`sweep`: many training runs, several at a time, in a store from which any interruption is continued."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pathsum.errors import PathsumError
from pathsum.store import ENDED, RunConfig, Store
from pathsum.sweeping.request import Request
from pathsum.sweeping.work import Outcome, work_group, work_one

if TYPE_CHECKING:
    import pandas as pd

    from pathsum.runs import Run

__all__ = ["Outcome", "RunConfig", "Store", "SweepResult", "sweep", "work_group", "work_one"]

ENGINES = ("local", "inline", "ray")
MOST_WORKERS = 8  # by default


@dataclass(frozen=True, repr=False)
class SweepResult:
    """What a sweep came to: its store, its runs, how many of each status, and the seconds this sitting took."""

    store: Store
    configs: tuple[RunConfig, ...]
    counts: dict[str, int]
    seconds: float

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        return f"SweepResult({len(self.configs)} runs in {self.store.root}: {counts}, {self.seconds:.1f} s)"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.table().to_html(index=False)}"

    def table(self) -> pd.DataFrame:
        """A row a run: status, results, configuration."""
        return self.store.status(self.configs)

    def rows(self) -> pd.DataFrame:
        """The rows of all runs, with their configuration."""
        return self.store.rows(self.configs)

    def runs(self) -> list[Run]:
        """The runs, as `pathsum.report` takes them."""
        return self.store.runs(self.configs)

    def refuse_failed(self) -> None:
        """Raise `PathsumError` where runs failed, with the first error."""
        failed = [config for config in self.configs if self.store.state(config) == "failed"]
        if failed:
            raise PathsumError(
                f"{len(failed)} of {len(self.configs)} runs failed, the first {failed[0].describe()}: "
                f"{self.store.error(failed[0])}; the same command tries them again"
            )


def sweep(
    configs: Iterable[RunConfig],
    store: Store | str | Path,
    *,
    workers: int | None = None,
    memory: int | None = None,
    stack: int = 1,
    engine: Literal["local", "inline", "ray"] = "local",
    address: str | None = None,
    gpus: float | None = None,
    cpus: float | None = None,
    shared: bool | None = None,
    device: str | None = None,
    retry: bool = False,
    describe: Callable[[RunConfig], str] = RunConfig.describe,
    progress: bool | None = None,
) -> SweepResult:
    """Train all runs that are not finished in `store`; what a kill interrupts continues from its checkpoint.

    configs: duplicates count once. workers: processes (default: one per core, 8 at most), each with its share of
    the cores as threads (or OMP_NUM_THREADS). memory: bytes a worker may hold; over it the run stops with a
    checkpoint, and counts as failed after some attempts. stack: how many networks of one architecture a worker
    trains as one program.
    engine: `"local"` processes, `"inline"` in this process one after the other, or `"ray"`: tasks on the cluster at
    `address` ("auto": the one of this machine), each with `cpus` (default 1) and `gpus` (a share, by default one GPU
    where there are any). shared: whether its nodes see the store at the same path; by default they are asked, and
    where not all do, run folders are sent there and back. workers are then the tasks at a time, by default as many
    as fit, and `memory` is reserved for each.
    device: by default cuda where there is one. retry: try runs again that failed in an earlier sweep.
    describe: names a run in what is shown; progress: False shows nothing.

    Runs that diverge or freeze are results; one that fails does not stop the others, and its error is in
    `.table()`. Raises `OutputError` (disk full or read-only; nothing finished is lost), `CheckpointError` (a
    folder of the store holds another run), `PathsumError`, and KeyboardInterrupt after Ctrl-C or SIGTERM, once
    every run is safely on the disk (its argument is the signal's name where that was not Ctrl-C).
    """
    store = store if isinstance(store, Store) else Store(store)
    _check(workers=workers, memory=memory, stack=stack)
    if engine not in ENGINES:
        raise PathsumError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    request = Request(address, cpus, gpus, shared, workers, memory, device)
    request.check(engine)
    began = time.monotonic()
    asked = store.register(configs, retry=retry)
    left = [config for config in asked if store.state(config) not in ENDED]
    if left and engine == "local":
        _local(store, left, workers, memory, stack, device, describe, progress)
    elif left and engine == "inline":
        _inline(store, left, memory, device, describe, progress)
    elif left:
        from pathsum.sweeping.ray_engine import sweep_on_cluster

        sweep_on_cluster(store, left, request, stack=stack, describe=describe, progress=progress)
    counts = Counter(store.state(config) for config in asked)
    return SweepResult(store, tuple(asked), dict(counts.most_common()), time.monotonic() - began)


def _check(*, workers: int | None, memory: int | None, stack: int) -> None:
    for name, value in (("--workers", workers), ("--memory", memory), ("--stack", stack)):
        if value is not None and value < 1:
            raise PathsumError(f"{name} is {value}, expected 1 or more")


def _local(
    store: Store,
    left: Sequence[RunConfig],
    workers: int | None,
    memory: int | None,
    stack: int,
    device: str | None,
    describe: Callable[[RunConfig], str],
    progress: bool | None,
) -> None:
    """Supervise worker processes on this machine."""
    from pathsum.sweeping.crew import Crew
    from pathsum.sweeping.display import Display
    from pathsum.sweeping.supervisor import Supervisor

    count = min(workers or min(cores(), MOST_WORKERS), len(left))
    options = {
        "root": str(store.root.resolve()),
        "owner": f"sweep {os.getpid()}",
        "device": device,
        "memory": memory,
        "stacked": stack > 1,
        "timeout": store.timeout,
        "max_attempts": store.max_attempts,
    }
    crew = Crew(options, threads=share(count))
    display = Display(store, len(left), describe, workers=count, show=progress)
    with terminable(), display:
        Supervisor(store, left, crew, display, workers=count, stack=stack).run()


def _inline(
    store: Store,
    left: Sequence[RunConfig],
    memory: int | None,
    device: str | None,
    describe: Callable[[RunConfig], str],
    progress: bool | None,
) -> None:
    """Train the runs in this process, in order; those that others hold are left to them."""
    from pathsum.sweeping.display import Display

    options = {"timeout": store.timeout, "max_attempts": store.max_attempts, "memory": memory, "device": device}
    with Display(store, len(left), describe, workers=1, show=progress) as display:
        for config in left:
            outcome = work_one(config, store.root, **options)
            while outcome.status in ("error", "memory"):
                display.setback(config, outcome.status, outcome.reason)
                outcome = work_one(config, store.root, **options)
            if outcome.status == "interrupted":
                raise KeyboardInterrupt(outcome.reason)
            state = store.state(config)
            if state in ENDED:
                reason = store.error(config) if state == "failed" else outcome.reason
                display.finished(config, state, reason, store.summary(config))


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is as Ctrl-C, but for its name, where signals can be handled: in the main thread."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if here else None
    try:
        yield
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


def share(workers: int) -> int:
    """CPU threads of each of so many workers: an even share of the cores, unless OMP_NUM_THREADS says otherwise."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) > 0 else max(1, cores() // workers)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
