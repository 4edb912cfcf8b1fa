"""Leases: of all processes that want a run one gets it, and what it leaves behind when it dies is noticed.

The attempts at a run are files `attempts/000001.json`, `000002.json`, ... in its folder. Who creates the next
number, which the file system grants to one (`storage.create`), holds the run; the file's modification time is its
heartbeat, and `000001.end.json` beside it says how the attempt ended. An attempt without an end is over when its
heartbeat is older than the timeout, or, on the same machine, when its process is gone. Numbers are never used twice
and no file is ever replaced, so a process that judges from an old look at the folder only fails to create a number
that is taken: it cannot remove a lease younger than the one it saw.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathsum import runs
from pathsum.errors import CheckpointError
from pathsum.storage import create, dump, read_json, writing

ATTEMPTS, END = "attempts", ".end.json"


@dataclass(frozen=True)
class Attempt:
    """One sitting of a process at a run."""

    number: int
    record: dict[str, Any]  # who, where, since when, and from which step
    end: dict[str, Any]  # how it ended; empty where nobody said
    beat: float  # time of the last heartbeat, by the clock of the file system

    def is_over(self, timeout: float, now: float) -> bool:
        """Whether its process has ended, or counts as dead."""
        return bool(self.end) or is_gone(self.record) or now - self.beat > timeout

    @property
    def outcome(self) -> str:
        """How it ended: what its process said, or "died"."""
        return str(self.end.get("status", "died"))


@dataclass(frozen=True)
class Lease:
    """The right to work on a run, until it is released or its heartbeat stops."""

    folder: Path
    number: int

    def heartbeat(self) -> bool:
        """Say that this process is alive; False where another has taken the run over, and this one must stop."""
        if path_of(self.folder, self.number + 1).exists():
            return path_of(self.folder, self.number, END).exists()  # released before, then nothing was taken
        with suppress(OSError):  # a disk that cannot be reached now may be back before the timeout
            os.utime(path_of(self.folder, self.number))
        return True

    def release(self, status: str, error: str = "") -> None:
        """Give the run back and record how this attempt ended."""
        end = {"status": status, "time": time.time(), **({"error": error} if error else {})}
        create(path_of(self.folder, self.number, END), dump(end))


def path_of(folder: Path, number: int, suffix: str = ".json") -> Path:
    """The file of an attempt."""
    return folder / ATTEMPTS / f"{number:06d}{suffix}"


def numbers(folder: Path) -> list[int]:
    """The numbers of all attempts at the run in `folder`, ascending."""
    try:
        names = os.listdir(folder / ATTEMPTS)
    except FileNotFoundError:
        return []
    return sorted(int(name[:6]) for name in names if name[:6].isdigit() and name[6:] == ".json")


def read(folder: Path, number: int) -> Attempt:
    """One attempt at the run in `folder`."""
    path, end = path_of(folder, number), path_of(folder, number, END)
    said = read_json(end) if end.is_file() else {}
    try:
        return Attempt(number, read_json(path), said, path.stat().st_mtime)
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}; the run was removed meanwhile") from None


def read_all(folder: Path) -> list[Attempt]:
    """All attempts at the run in `folder`, the first one first."""
    return [read(folder, number) for number in numbers(folder)]


def holder(folder: Path, timeout: float) -> Attempt | None:
    """The attempt that holds the run in `folder` now, by this machine's clock."""
    found = numbers(folder)
    last = read(folder, found[-1]) if found else None
    return None if last is None or last.is_over(timeout, time.time()) else last


def acquire(folder: Path, owner: str, timeout: float, **extra: Any) -> Lease | None:
    """Take the run in `folder` unless a live process holds it. Raises `OutputError`."""
    found = numbers(folder)
    if found:
        last = read(folder, found[-1])
        if not last.is_over(timeout, time.time()):
            return None
        # Only the clock says so: then let it be that of the file system, on which the heartbeats are.
        if not (last.is_over(timeout, last.beat) or last.is_over(timeout, file_time(folder))):
            return None
    with writing(folder):
        (folder / ATTEMPTS).mkdir(exist_ok=True)
    number = found[-1] + 1 if found else 1
    record = {"owner": owner, **whereabouts(), "began": time.time(), **extra}
    return Lease(folder, number) if create(path_of(folder, number), dump(record)) else None


def file_time(folder: Path) -> float:
    """Now, by the clock of the file system that holds `folder`."""
    probe = folder / ATTEMPTS / f".clock.{os.getpid()}.partial"
    with writing(folder):
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


@functools.cache
def environment() -> dict[str, Any]:
    """Versions and hardware of this process."""
    return runs.environment()


@functools.cache
def machine() -> str:
    """This boot of this machine, and its process numbers' space: where process numbers mean the same."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def whereabouts() -> dict[str, Any]:
    """Where this process is, so that others can tell whether it still is."""
    return {"host": platform.node(), "machine": machine(), "pid": os.getpid(), "started": started(os.getpid())}


def started(pid: int) -> int | None:
    """When a process began, in ticks of the system; None where it is gone (or a zombie), -1 where unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return -1 if _answers(pid) else None
    return None if fields[0] in "ZX" else int(fields[19])


def _answers(pid: int) -> bool:
    """Whether there is such a process, where there is no /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_gone(record: Mapping[str, Any]) -> bool:
    """Whether the process of an attempt was on this machine and is no more."""
    if record.get("machine") != machine():
        return False
    return started(int(record["pid"])) != record.get("started")
