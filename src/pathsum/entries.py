"""All runs below a folder, of whatever command: what each is, how far it came, and which are asked for.

A store's runs, and those that `pathsum.train.fit` recorded alone (as by `pathsum train` and the demo), are both
entries; a folder that holds a damaged one is an entry too, so that one of them does not hide the others.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pathsum import runs
from pathsum.errors import CheckpointError, OutputError, PathsumError
from pathsum.progress import track
from pathsum.storage import locked, read_json, writing
from pathsum.store import SUMMARY, Store, request_of
from pathsum.sweeping import lease
from pathsum.sweeping.config import key_of
from pathsum.training.options import DEFAULT_STEPS

MOST_LEVELS = 4  # below the folder given: a study in a folder of studies keeps its runs at the third
DAMAGED = "damaged"
TRACES = (runs.ROWS, runs.CHECKPOINT, lease.ATTEMPTS)  # which a run leaves, whatever became of its configuration


@dataclass(frozen=True)
class Entry:
    """One run as it is found; `error` says why it failed, or what of it cannot be read."""

    folder: Path
    name: str  # of its folder, below the one that was looked through
    key: str = ""  # of a store's run
    status: str = DAMAGED
    reason: str = ""
    error: str = ""
    config: dict[str, Any] = field(default_factory=dict)  # by column: data, model.depth, train.lr, ...
    environment: dict[str, Any] = field(default_factory=dict)
    attempts: tuple[lease.Attempt, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)
    per_epoch: int | None = None

    @property
    def in_store(self) -> bool:
        """Whether a sweep asked for it."""
        return bool(self.key)

    @property
    def step(self) -> int:
        """Of its last row."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def steps(self) -> int | None:
        """How many were asked for; None where that depends on data that nobody loaded yet."""
        epochs, steps = self.config.get("train.epochs"), self.config.get("train.steps")
        if epochs is None:
            return (steps or DEFAULT_STEPS) if self.config else None
        return max(1, round(epochs * self.per_epoch)) if self.per_epoch else None

    @property
    def best_test(self) -> float | None:
        """The best test accuracy so far."""
        found = [row["test_accuracy"] for row in self.rows if row.get("test_accuracy") is not None]
        return self.summary.get("best_test", max(found, default=None))

    @property
    def host(self) -> str:
        """The machine of the last attempt, where that is recorded."""
        return str(self.attempts[-1].record.get("host", "")) if self.attempts else ""

    @cached_property
    def age(self) -> float:
        """Seconds since its last sign of life."""
        files = [self.folder / name for name in (runs.CONFIG, runs.ROWS, runs.CHECKPOINT, runs.DONE)]
        times = [path.stat().st_mtime for path in files if path.exists()] + [a.beat for a in self.attempts]
        return max(0.0, time.time() - max(times, default=time.time()))

    def describe(self) -> str:
        """What tells it from its neighbors, in words; for a damaged one what is wrong."""
        c = self.config
        if not c:
            return self.error
        lr = c.get("train.lr")
        words = [
            str(c.get("data", "")).partition(":")[0],
            f"depth {c['model.depth']}" if c.get("model.depth") is not None else str(c.get("model_class", "")),
            f"λ={c['model.scale']}" if c.get("model.scale") else "",
            str(c.get("model.norm") or ""),
            f"lr {lr:g}" if lr is not None else "",
            f"seed {c['train.seed']}" if c.get("train.seed") else "",
        ]
        return " ".join(filter(None, words))

    def to_json(self) -> dict[str, Any]:
        """One flat row: what it is now, its results, configuration, versions and hardware."""
        return {
            "run": self.name,
            "key": self.key,
            "status": self.status,
            "step": self.step,
            "steps": self.steps,
            "attempts": len(self.attempts),
            "host": self.host,
            **{name: self.summary.get(name) for name in (*SUMMARY, "initial_loss", "best_val")},
            "best_test": self.best_test,
            "reason": self.reason,
            "error": self.error,
            "folder": str(self.folder),
            **self.config,
            **{f"environment.{name}": value for name, value in self.environment.items()},
        }


def gather(root: Path, *, show: bool | None = None) -> list[Entry]:
    """Every run at or below `root`, sorted by folder. Raises `PathsumError` where there is no such folder."""
    if not root.is_dir():
        raise PathsumError(f"no folder {root}; give one that holds runs, as --out or --store of an earlier command")
    found = sorted(folders(root, MOST_LEVELS, set()))
    return [read(folder, root) for folder in track(found, "reading runs", show=show)]


def folders(root: Path, levels: int, seen: set[Path]) -> Iterator[Path]:
    """The folders that are runs, and do not lie in another."""
    if is_run(root):
        yield root
        return
    try:
        below = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return  # not ours to read
    for path in below if levels else ():
        if (real := path.resolve()) not in seen:  # links may go in circles
            seen.add(real)
            yield from folders(path, levels - 1, seen)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, a damaged one included; the configuration of something else makes none."""
    try:
        config = read_json(folder / runs.CONFIG)
    except CheckpointError:
        return (folder / runs.CONFIG).exists() or any((folder / name).exists() for name in TRACES)
    return runs.REQUEST in config or {"train", "model"} <= config.keys()


def read(folder: Path, root: Path) -> Entry:
    """The run in `folder`; one that cannot be read is told as damaged."""
    name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
    known: dict[str, Any] = {}
    try:
        record = read_json(folder / runs.CONFIG)
        known["environment"] = record.get("environment", {})
        known["per_epoch"] = _per_epoch(record)
        if runs.REQUEST in record:
            request = request_of(folder)
            known["key"], known["config"] = key_of(request), dict(leaves(request, without=("name",)))
        else:
            known["config"] = _alone(record)
        known["summary"] = read_json(folder / runs.DONE) if (folder / runs.DONE).is_file() else {}
        known["rows"] = tuple(runs.read_rows(folder / runs.ROWS))
        known["attempts"] = attempts = tuple(lease.read_all(folder))
        if attempts:
            known["environment"] = attempts[-1].record.get("environment") or known["environment"]
            known["error"] = str(attempts[-1].end.get("error", ""))
        known["reason"] = str(known["summary"].get("reason", ""))
        store = Store(folder.parent)
        status = store.state_of(folder) if runs.REQUEST in record else _state_alone(folder, known["summary"])
        return Entry(folder, name, status=status, **known)
    except (PathsumError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        why = str(error) if isinstance(error, PathsumError) else f"{type(error).__name__}: {error}"
        parts = {part: value for part, value in known.items() if part not in ("error", "reason")}
        return Entry(folder, name, error=" ".join(why.split()), **parts)


def _per_epoch(record: Mapping[str, Any]) -> int | None:
    """Steps of an epoch, once the data were at hand."""
    if "data" not in record:
        return None
    return int((record["data"]["train_size"] - record["train"]["val_size"]) // record["train"]["batch_size"])


def _alone(record: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run that `fit` recorded alone, under the names that a store's has."""
    data, model = record.get("data", {}), record["model"]
    made = {"data": data.get("name", ""), "model": model.get("config") or {}, "model_class": model.get("class", "")}
    return dict(leaves({**made, "train": record["train"]}))


def _state_alone(folder: Path, summary: Mapping[str, Any]) -> str:
    """The status of a run that no sweep asked for: whoever trains it holds its lock."""
    if summary:
        return str(summary.get("status", "done"))
    try:
        import fcntl

        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "running"
    except (OSError, ImportError):
        pass
    return "interrupted"


def leaves(values: Mapping[str, Any], prefix: str = "", without: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings as ("outer.inner", value); lists as JSON.

    >>> dict(leaves({"data": "digits", "train": {"lr": 0.1, "crop_scale": [0.6, 1.0], "steps": None}}))
    {'data': 'digits', 'train.lr': 0.1, 'train.crop_scale': '[0.6, 1.0]', 'train.steps': None}
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        elif name not in without:
            yield f"{prefix}{name}", json.dumps(value) if isinstance(value, list) else value


def find(entries: Sequence[Entry], word: str, root: Path) -> Entry:
    """The one run whose name or key is, or else begins with, `word`; a path to its folder will do."""
    path = os.path.abspath(word)
    exact = [e for e in entries if word in (e.name, e.folder.name, e.key) or os.path.abspath(e.folder) == path]
    found = exact or [e for e in entries if any(n.startswith(word) for n in (e.name, e.folder.name, e.key))]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(entry.name for entry in found[:3]) + (", …" if len(found) > 3 else "")
        raise PathsumError(f"{word!r} begins {len(found)} runs of {root} ({some}); give more of the key or name")
    raise PathsumError(f"no run of {root} begins with {word!r}; see 'pathsum runs ls --store {root}'")


def remove(entry: Entry) -> None:
    """Remove a run for good, its folder and nothing else. Raises `OutputError` where a live process holds it."""
    folder = entry.folder
    if folder.is_symlink():
        raise OutputError(f"{folder} is a link to a run elsewhere, which stays; remove the link yourself")
    if entry.in_store or (folder / lease.ATTEMPTS).exists():
        try:
            Store(folder.parent).remove(folder)
        except CheckpointError as error:
            raise OutputError(
                f"cannot tell whether a process still holds {folder} ({error}); where none does, remove the folder "
                "yourself"
            ) from None
        return
    import shutil

    with locked(folder), writing(folder):
        away = folder.with_name(f".{folder.name}.removed")
        folder.rename(away)
    with writing(folder):
        shutil.rmtree(away)


def chosen(entries: Iterable[Entry], status: Sequence[str] = (), where: Sequence[str] = ()) -> list[Entry]:
    """Those with one of these statuses for which every condition holds, such as "model.depth=100" or "lr<0.1"."""
    from pathsum.conditions import parse

    entries = list(entries)
    names = {name: None for entry in entries for name in entry.to_json()}
    conditions = [parse(text, list(names)) for text in where] if entries else []
    return [
        entry
        for entry in entries
        if (not status or entry.status in status)
        # Of a run whose configuration cannot be read no condition is known to hold, not even norm!=batch.
        and (entry.config or not conditions)
        and all(holds(entry.to_json()) for holds in conditions)
    ]
