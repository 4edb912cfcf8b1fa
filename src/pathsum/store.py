"""A store of runs: one folder each, named by the key of its complete configuration; any number of sweeps share it.

Beside what `pathsum.train.fit` records in it, a run's folder holds the attempts at it (`pathsum.sweeping.lease`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import page, runs
from pathsum.errors import CheckpointError, OutputError, PathsumError
from pathsum.storage import create, dump, read_json, read_state, writing
from pathsum.sweeping import lease
from pathsum.sweeping.config import RunConfig, key_of
from pathsum.sweeping.lease import Attempt, Lease

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ENDED", "FINISHED", "Lease", "RunConfig", "Store"]

FINISHED = ("done", "diverged", "frozen")  # results
ENDED = (*FINISHED, "failed")  # a failed run is no result, but is not tried again by itself
SUMMARY = ("best_test", "test_at_best_val", "final_loss", "seconds")


class Store:
    """The runs below the folder `root`.

    A run is *waiting*, *running* (a live process holds it), *interrupted* (to be resumed), finished (*done*,
    *diverged* or *frozen*, for good), or *failed*: an error that is no accident, or `max_attempts` times a crash or
    a kill without a checkpoint in between. A process that gave no sign for `timeout` seconds counts as dead.
    """

    def __init__(self, root: str | Path, *, timeout: float = 60.0, max_attempts: int = 5) -> None:
        self.root, self.timeout, self.max_attempts = Path(root), timeout, max_attempts

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def folder(self, config: RunConfig) -> Path:
        """Where a run is, or will be."""
        return self.root / config.folder

    def register(self, configs: Iterable[RunConfig], *, retry: bool = False) -> list[RunConfig]:
        """Enter runs that are not here yet; returns each once. `retry`: failed ones may be tried again.

        Raises `CheckpointError` where a folder holds another run than its name says, `OutputError`.
        """
        asked: dict[str, RunConfig] = {}
        for config in configs:
            other = asked.setdefault(config.folder, config)
            if other.key != config.key:
                raise PathsumError(f"two different runs are both named {config.name!r}; give each its own name")
        for config in asked.values():
            folder = self.folder(config)
            if not (folder / runs.CONFIG).is_file():
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                record = {runs.REQUEST: config.to_json(), "environment": lease.environment()}
                create(folder / runs.CONFIG, dump(record))
            self._check(folder, config)
            if retry and self.state(config) == "failed":
                renewed = lease.acquire(folder, "", self.timeout)
                if renewed is not None:
                    renewed.release("retried")
        return list(asked.values())

    def _check(self, folder: Path, config: RunConfig) -> None:
        stored = request_of(folder)
        if key_of(stored) != config.key:
            changed = [line for line in runs.differences(stored, config.to_json()) if not line.startswith("name:")]
            raise CheckpointError(
                f"{folder} holds a run with another configuration ({'; '.join(changed)}, stored -> asked); "
                "choose another output folder, or ask for the stored values"
            )

    def claim(self, config: RunConfig, owner: str = "") -> Lease | None:
        """The right to work on a run; None where it is finished, failed, or held by a live process."""
        folder = self.folder(config)
        if (folder / runs.DONE).is_file():
            return None
        attempts = lease.read_all(folder)
        if attempts and attempts[-1].outcome == "failed":
            return None
        step = self.step(config)
        held = lease.acquire(folder, owner, self.timeout, step=step, environment=lease.environment())
        if held is None:
            return None
        if (folder / runs.DONE).is_file():  # finished after the first look
            held.release("done")
            return None
        failures = fruitless(attempts, step)
        if len(failures) >= self.max_attempts:
            last = failures[-1].end.get("error", "its process was killed, as when memory runs out")
            held.release(
                "failed", f"given up after {len(failures)} attempts without a new checkpoint; the last: {last}"
            )
            return None
        return held

    def step(self, config: RunConfig) -> int:
        """The step of a run's checkpoint; 0 where it has none."""
        return int(read_state(self.folder(config) / runs.CHECKPOINT).get("step", 0))

    def state(self, config: RunConfig) -> str:
        """What a run is now: see the class."""
        return self.state_of(self.folder(config))

    def state_of(self, folder: Path) -> str:
        """The same for the run in a folder."""
        if (folder / runs.DONE).is_file():
            return str(read_json(folder / runs.DONE).get("status", "done"))
        numbers = lease.numbers(folder)
        if not numbers:
            return "waiting"
        if lease.holder(folder, self.timeout) is not None:
            return "running"
        return "failed" if lease.read(folder, numbers[-1]).outcome == "failed" else "interrupted"

    def summary(self, config: RunConfig) -> dict[str, Any]:
        """What a finished run came to; empty while it is none."""
        done = self.folder(config) / runs.DONE
        return read_json(done) if done.is_file() else {}

    def attempts(self, config: RunConfig) -> list[Attempt]:
        """Who worked on a run, where, and how it ended."""
        return lease.read_all(self.folder(config))

    def error(self, config: RunConfig) -> str:
        """Why a run failed; empty where it did not."""
        attempts = self.attempts(config)
        return str(attempts[-1].end.get("error", "")) if attempts else ""

    def folders(self, configs: Iterable[RunConfig] | None = None) -> list[Path]:
        """The folders of these runs, or of all runs here, sorted. Raises `PathsumError` where there is no store."""
        if configs is not None:
            return [self.folder(config) for config in configs]
        if not self.root.is_dir():
            raise PathsumError(f"no folder {self.root}; give the folder of a store of runs")
        return [path.parent for path in sorted(self.root.glob(f"*/{runs.CONFIG}")) if is_entry(path.parent)]

    def find(self, word: str) -> Path:
        """The folder of the run whose name or key begins with `word`."""
        exact = [folder for folder in self.folders() if folder.name == word]
        found = exact or [folder for folder in self.folders() if names(folder, word)]
        if len(found) == 1:
            return found[0]
        if found:
            raise PathsumError(f"{word!r} begins {len(found)} runs of {self.root}; give more of the key")
        raise PathsumError(f"no run of {self.root} begins with {word!r}; see 'pathsum runs ls --store {self.root}'")

    def runs(self, configs: Iterable[RunConfig] | None = None) -> list[runs.Run]:
        """These runs, or all, as `pathsum.report` takes them; those that nobody began are left out."""
        return [runs.read_run(f) for f in self.folders(configs) if (f / runs.ROWS).is_file()]

    def status(self, configs: Iterable[RunConfig] | None = None) -> pd.DataFrame:
        """A row a run: what it is now, how far, by whom, its results, and its configuration."""
        import pandas as pd

        return pd.DataFrame([self.describe(folder) for folder in self.folders(configs)])

    def describe(self, folder: Path) -> dict[str, Any]:
        """One row of `status`."""
        request = request_of(folder)
        numbers = lease.numbers(folder)
        last = lease.read(folder, numbers[-1]) if numbers else None
        rows = runs.read_rows(folder / runs.ROWS)
        summary = read_json(folder / runs.DONE) if (folder / runs.DONE).is_file() else {}
        return {
            "run": folder.name,
            "key": key_of(request),
            "status": self.state_of(folder),
            "step": rows[-1]["step"] if rows else 0,
            "attempts": len(numbers),
            "host": "" if last is None else last.record["host"],
            **{name: summary.get(name) for name in SUMMARY},
            "error": "" if last is None else last.end.get("error", ""),
            **columns(request),
        }

    def rows(self, configs: Iterable[RunConfig] | None = None) -> pd.DataFrame:
        """The rows of these runs, or of all: a column `key`, the row, the run's status and configuration."""
        import pandas as pd

        return pd.DataFrame(list(self._rows(self.folders(configs))))

    def _rows(self, folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
        for folder in folders:
            request = request_of(folder)
            about = {"status": self.state_of(folder), **columns(request)}
            for row in runs.read_rows(folder / runs.ROWS):
                yield {"key": key_of(request), "run": folder.name, **row, **about}

    def remove(self, folder: Path) -> None:
        """Remove a run for good. Raises `OutputError` where a live process holds it."""
        held = lease.acquire(folder, "removal", self.timeout)
        if held is None:
            raise OutputError(f"{folder} is being trained by a live process; stop its sweep first")
        with writing(folder):
            away = folder.with_name(f".{folder.name}.removed")
            folder.rename(away)  # first out of sight, so that nobody meets a half of it
            shutil.rmtree(away)


def fruitless(attempts: Sequence[Attempt], step: int) -> list[Attempt]:
    """The attempts that count against a run: crashed or killed, and not one checkpoint further now.

    One that ran out of memory counts however far it came.
    """
    found: list[Attempt] = []
    for attempt in attempts:
        if attempt.outcome == "retried":
            found = []
        elif attempt.outcome == "memory" or (attempt.outcome in ("died", "error") and attempt.record["step"] >= step):
            found.append(attempt)
    return found


def request_of(folder: Path) -> dict[str, Any]:
    """What was asked of the run in `folder`. Raises `CheckpointError` where it is not the run its name says."""
    request = read_json(folder / runs.CONFIG).get(runs.REQUEST)
    if not isinstance(request, dict):
        raise CheckpointError(f"{folder} holds a run that no sweep asked for; choose another output folder")
    name = request.get("name") or key_of(request)
    if name != folder.name:
        raise CheckpointError(
            f"{folder / runs.CONFIG} is of the run {name}, not of the one its folder is named after: it was changed, "
            "or the folder renamed; put it back, or remove the folder"
        )
    return request


def is_entry(folder: Path) -> bool:
    """Whether a folder is a run of a store, and not one of `pathsum.train.fit` alone."""
    return not folder.name.startswith(".") and runs.REQUEST in read_json(folder / runs.CONFIG)


def names(folder: Path, word: str) -> bool:
    """Whether `word` begins the name or the key of a run."""
    return folder.name.startswith(word) or key_of(request_of(folder)).startswith(word)


def columns(request: dict[str, Any]) -> dict[str, Any]:
    """A configuration as columns: `data`, `model.depth`, `train.lr`, ..."""
    return dict(page.flat({name: value for name, value in request.items() if name != "name"}))
