"""The work on runs, whoever asks for it: claim, train, release; the same in a local worker and on a cluster."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pathsum.data import Dataset, load
from pathsum.errors import OutputError, PathsumError
from pathsum.storage import BusyError
from pathsum.store import Store
from pathsum.sweeping.config import RunConfig
from pathsum.sweeping.lease import Lease
from pathsum.train import FitResult, fit
from pathsum.training.contexts import threads as using_threads

HARD = 1.25  # times the memory limit: from here on there is no time for a checkpoint
LOOK = 0.25  # seconds between two looks at the memory


@dataclass(frozen=True)
class Outcome:
    """What became of one run in one attempt: a status of `FitResult`, "failed", "error", "memory" or "taken"."""

    run: str  # its folder
    status: str
    reason: str = ""  # of an end before its time
    best_test: float | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


class Claim(NamedTuple):
    """A run and the right to work on it."""

    config: RunConfig
    lease: Lease


def work_one(config: Mapping[str, Any] | RunConfig, root: str | Path, **options: Any) -> Outcome:
    """Train one run of the store `root` unless it is finished or another holds it; see `work_group`."""
    return work_group([config], root, **options)[0]


def work_group(
    configs: Sequence[Mapping[str, Any] | RunConfig],
    root: str | Path,
    *,
    owner: str = "",
    device: str | None = None,
    threads: int | None = None,
    memory: int | None = None,
    stacked: bool | None = None,
    timeout: float = 60.0,
    max_attempts: int = 5,
    progress: bool | None = False,
    claimed: Callable[[list[str]], None] | None = None,
) -> list[Outcome]:
    """Train runs of the store `root`, several as one program; returns what became of each, in order.

    configs: `RunConfig`s or their JSON; several must agree in all but what a stack may differ in.
    device: by default cuda where there is one. memory: bytes this process may hold before it stops the run.
    stacked: train even one run as a stack, so that its rows do not depend on its company; by default several are.
    claimed: called with the folders of the runs that will be worked on.

    An error of a run is recorded with it and returned; `OutputError` (disk full or read-only) is raised, since the
    next run would meet it too. SIGTERM makes the runs write a checkpoint and come back "interrupted".
    """
    store = Store(root, timeout=timeout, max_attempts=max_attempts)
    asked = [c if isinstance(c, RunConfig) else RunConfig.from_json(c) for c in configs]
    store.register(asked)
    leases = [store.claim(config, owner) for config in asked]
    held = [Claim(config, lease) for config, lease in zip(asked, leases, strict=True) if lease is not None]
    if claimed is not None:
        claimed([claim.config.folder for claim in held])
    how = How(device or default_device(), len(held) > 1 if stacked is None else stacked, progress)
    with using_threads(threads), guarded(held, timeout, memory) as guard:
        outcomes = {outcome.run: outcome for outcome in _train(store, held, how, guard)}
    return [outcomes.get(config.folder) or Outcome(config.folder, "taken") for config in asked]


class How(NamedTuple):
    """How to train."""

    device: str
    stacked: bool
    progress: bool | None


class Guard:
    """What the thread beside a training found: a lost lease, or too much memory."""

    def __init__(self, held: Sequence[Claim], memory: int | None) -> None:
        self.held, self.memory = held, memory
        self.error = ""
        self.over = threading.Event()

    def watch(self, beat: float) -> None:
        """Until it is over: heartbeats, and a look at the memory; tell this process to stop where it must."""
        beaten = 0.0
        while not self.over.wait(LOOK if self.memory else beat):
            used = resident() if self.memory else 0
            if self.memory and used > self.memory:
                self.error = too_much(used, self.memory)
                if used > HARD * self.memory:
                    self.release_all()
                    os.kill(os.getpid(), signal.SIGKILL)
                stop_self()
            if time.monotonic() - beaten < beat:
                continue
            beaten = time.monotonic()
            beats = [claim.lease.heartbeat() for claim in self.held]  # every one of them
            if not all(beats):
                stop_self()

    def release_all(self) -> None:
        """Record why, for there will be no other time."""
        for claim in self.held:
            with suppress(OutputError):
                claim.lease.release("memory", self.error)


@contextmanager
def guarded(held: Sequence[Claim], timeout: float, memory: int | None) -> Iterator[Guard]:
    """Heartbeats and memory limit while the block runs."""
    guard = Guard(held, memory)
    thread = threading.Thread(target=guard.watch, args=(min(timeout / 6, 10.0),), daemon=True)
    thread.start()
    try:
        yield guard
    finally:
        guard.over.set()
        thread.join()


def stop_self() -> None:
    """Ask this process's training for a checkpoint and an end."""
    if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None):  # outside `fit` it would kill
        os.kill(os.getpid(), signal.SIGTERM)


def _train(store: Store, held: Sequence[Claim], how: How, guard: Guard) -> list[Outcome]:
    """Train and release runs that are held. A stack that fails is trained one by one, so that the guilty is found."""
    if not held:
        return []
    try:
        results = _fit(store, held, how)
    except BusyError:
        for claim in held:
            claim.lease.release("busy")
        return [Outcome(claim.config.folder, "taken") for claim in held]
    except OutputError:
        for claim in held:
            with suppress(OutputError):
                claim.lease.release("stopped", "a file could not be written")
        raise
    except BaseException as error:
        if len(held) > 1 and isinstance(error, Exception):
            return [outcome for claim in held for outcome in _train(store, [claim], how, guard)]
        outcomes = [_failed(claim, error, guard) for claim in held]
        if not isinstance(error, Exception):
            raise
        return outcomes
    return [_ended(claim, result, guard) for claim, result in zip(held, results, strict=True)]


def _fit(store: Store, held: Sequence[Claim], how: How) -> list[FitResult]:
    """Train one network, or several as one program."""
    first = held[0].config
    data = _load(first.data, how.device, first.train_limit, first.test_limit, first.data_seed)
    models = [claim.config.build(data).to(how.device) for claim in held]
    outs = [store.folder(claim.config) for claim in held]
    if not how.stacked:
        return [fit(models[0], data, first.train, out=outs[0], progress=how.progress)]
    from pathsum.training.stacked import fit_stack

    return fit_stack(models, data, [claim.config.train for claim in held], outs=outs, progress=how.progress)  # type: ignore[arg-type]


def _ended(claim: Claim, result: FitResult, guard: Guard) -> Outcome:
    """Release a run that was trained, to its end or to a signal."""
    status, reason = str(result.status), result.reason
    if status == "interrupted" and guard.error:
        status, reason = "memory", guard.error
    claim.lease.release(status, reason if status == "memory" else "")
    return Outcome(claim.config.folder, status, reason, result.best_test, result.seconds)


def _failed(claim: Claim, error: BaseException, guard: Guard) -> Outcome:
    """Release a run that raised. What pathsum refuses it refuses again; another error may have been an accident."""
    if not isinstance(error, Exception):
        status, text = "interrupted", ""
    elif isinstance(error, PathsumError):
        status, text = "failed", str(error)
    else:
        where = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(str(error).split()) or "no message"
        status, text = "error", f"{type(error).__name__}: {words} ({Path(where.filename).name}, line {where.lineno})"
    if guard.error:
        status, text = "memory", guard.error
    claim.lease.release(status, text)
    return Outcome(claim.config.folder, status, text)


@functools.lru_cache(maxsize=2)
def _load(source: str, device: str, train_limit: int | None, test_limit: int | None, seed: int) -> Dataset:
    return load(source, device=device, train_limit=train_limit, test_limit=test_limit, seed=seed, progress=False)


def default_device() -> str:
    """cuda where there is one, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def too_much(used: int, limit: int) -> str:
    """The error of a run over its memory limit."""
    return (
        f"the worker held {used / 2**20:,.0f} MiB of memory, over its limit of {limit / 2**20:,.0f} MiB; allow more "
        "memory with fewer workers, a smaller batch, or checkpointed activations"
    )


def resident() -> int:
    """Bytes of memory this process holds; where there is no /proc, the most it ever held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
