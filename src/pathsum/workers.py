"""Several training runs at once, each in a process with few threads; Ctrl-C leaves all of them resumable."""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathsum.errors import PathsumError
from pathsum.progress import bar
from pathsum.train import FitResult, TrainConfig

MOST_WORKERS = 8


@dataclass(frozen=True)
class Job:
    """One run: a tower's options, a data source, a training configuration, and the folder to record it in."""

    folder: Path
    data: str
    model: dict[str, Any]
    train: TrainConfig


def train_all(
    jobs: Sequence[Job], *, workers: int | None = None, describe: Callable[[Job], str] = lambda job: str(job.folder)
) -> None:
    """Train all jobs that are not finished, `workers` at a time (default: one per core, 8 at most).

    On a terminal there is a progress bar, elsewhere a line a run. Raises PathsumError where a run raised one, and
    KeyboardInterrupt, after Ctrl-C or SIGTERM, once every run is safely on the disk.
    """
    from pathsum.runs import DONE

    if workers is not None and workers < 1:
        raise PathsumError(f"--workers is {workers}, expected 1 or more")
    waiting = [job for job in jobs if not (job.folder / DONE).is_file()]
    if not waiting:
        return
    count = min(workers or min(cores(), MOST_WORKERS), len(waiting))
    context = multiprocessing.get_context("spawn")  # a fork of a process that used OpenMP hangs
    tasks, results, stop = context.Queue(), context.Queue(), context.Event()
    for job in [*waiting, *[None] * count]:
        tasks.put(job)
    processes = [context.Process(target=work, args=(tasks, results, stop), daemon=True) for _ in range(count)]
    here = threading.current_thread() is threading.main_thread()  # elsewhere signals cannot be handled
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if here else None
    try:
        for process in processes:
            process.start()
        collect(processes, results, waiting, describe)
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)
        stop.set()  # for a worker that the signal finds between two jobs
        for process in processes:
            if process.is_alive():
                process.terminate()  # `fit` writes its checkpoint first
        for process in processes:
            if process.pid is not None:
                process.join()


def collect(processes: Sequence[Any], results: Any, waiting: Sequence[Job], describe: Callable[[Job], str]) -> None:
    """Wait for every result; report each."""
    jobs = {job.folder: job for job in waiting}
    with bar("training", len(jobs)) as update:
        for number in range(1, len(jobs) + 1):
            folder, outcome = next_result(processes, results)
            if isinstance(outcome, str):
                raise PathsumError(outcome)
            if outcome.status == "interrupted":
                raise KeyboardInterrupt
            text = describe(jobs[folder])
            update(1, last=text)
            if not sys.stderr.isatty():
                accuracy = "" if outcome.best_test is None else f", best test accuracy {outcome.best_test:.1%}"
                print(f"[{number}/{len(jobs)}] {text}: {outcome.status}{accuracy}", flush=True)


def next_result(processes: Sequence[Any], results: Any) -> tuple[Path, FitResult | str]:
    """The next result; a process that died without one is an error, not an endless wait."""
    while True:
        try:
            return results.get(timeout=1.0)
        except queue.Empty:
            dead = [p.exitcode for p in processes if p.exitcode]
            if dead:
                raise PathsumError(
                    f"a training process ended with code {dead[0]} (-9 means killed, as when memory runs out); "
                    "run the same command again to continue, with fewer --workers if memory was short"
                ) from None


def work(tasks: Any, results: Any, stop: Any) -> None:
    """A worker: train jobs until there are none. Ctrl-C reaches it too, and matters only inside `fit`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from pathsum.data import load
    from pathsum.nets import ResidualTower
    from pathsum.train import fit

    torch.set_num_threads(1)
    load_once = functools.cache(load)
    while (job := tasks.get()) is not None and not stop.is_set():
        try:
            model = ResidualTower(**job.model)
            outcome: FitResult | str = fit(model, load_once(job.data), job.train, out=job.folder, progress=False)
        except PathsumError as error:
            outcome = str(error)
        results.put((job.folder, outcome))
        if isinstance(outcome, str) or outcome.status == "interrupted":
            return


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
