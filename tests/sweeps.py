"""Tiny sweeps for the tests, also as a command: `python -m tests.sweeps ROOT NUM`, to be killed or starved."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pathsum.errors import PathsumError
from pathsum.store import RunConfig, Store
from pathsum.sweep import sweep
from pathsum.sweeping import lease
from pathsum.train import WALL_CLOCK, TrainConfig

TOWER = {"depth": 2, "width": 4, "encoder": "conv3x3"}


def run(*, model=None, data="digits", **train) -> RunConfig:
    """One tiny run."""
    options = {"steps": 20, "batch_size": 16, "augment": False, "checkpoint_every": 5, "threads": 1, **train}
    return RunConfig(data=data, test_limit=50, model={**TOWER, **(model or {})}, train=TrainConfig(**options))


def many(num: int, steps: int = 40) -> list[RunConfig]:
    """Runs with learning rates of their own; the last one diverges."""
    good = [run(lr=round(0.01 * (1 + k), 3), steps=steps, seed=k) for k in range(num - 1)]
    return [*good, run(lr=1e6, steps=steps, divergence_window=10)]


def timeless(rows):
    """Rows without what no seed determines."""
    return [{name: value for name, value in row.items() if name not in WALL_CLOCK} for row in rows]


def recorded(store: Store, configs) -> dict[str, list]:
    """The rows of each run, as read back."""
    return {run.folder.name: timeless(run.rows) for run in store.runs(configs)}


def start(root: Path, num: int, *, steps: int = 40, workers: int = 2, memory: int = 0) -> subprocess.Popen:
    """A sweep of `many` in a process of its own."""
    command = [sys.executable, "-m", "tests.sweeps", str(root), str(num), str(steps), str(workers), str(memory)]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def running(store: Store) -> list[int]:
    """The processes that hold a run now."""
    holders = [lease.holder(folder, store.timeout) for folder in store.folders()]
    return [holder.record["pid"] for holder in holders if holder is not None]


def wait_for(condition, seconds: float = 60.0, *, every: float = 0.005):
    """What `condition()` gives as soon as it gives something; asked `every` so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError("waited in vain")


def kill(pid: int) -> None:
    """SIGKILL, for a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main() -> int:
    given = list(map(int, sys.argv[2:]))
    num, steps, workers, memory = [*given, *(1, 40, 2, 0)[len(given) :]]
    try:
        result = sweep(
            many(num, steps),
            Store(sys.argv[1], max_attempts=1000),
            workers=workers,
            memory=memory or None,
            device="cpu",
        )
    except PathsumError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result.counts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
