"""A run's folder as bytes, to and from a machine that does not see the store: whole files, the decisive one last."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pathsum import runs
from pathsum.errors import CheckpointError
from pathsum.storage import create, dump, locked, read_json, read_state, write_atomic, writing
from pathsum.sweeping import lease

Parcel = dict[str, bytes]  # by file name

SUMMARY = Path(runs.MODEL).with_suffix(".json").name
# In the order in which they are written: before the one file that makes the others count.
FILES = (runs.CONFIG, runs.ROWS, runs.MODEL, SUMMARY, runs.CHECKPOINT, runs.DONE)
SCRATCH, OWNER = "pathsum-ray-", "owner.json"


def pack(folder: Path) -> Parcel:
    """The files of a run, also while it is being trained: the checkpoint is read first, so that the rows reach it."""
    parcel: Parcel = {}
    for name in reversed(FILES):
        with suppress(FileNotFoundError):
            parcel[name] = (folder / name).read_bytes()
    return parcel


def unpack(folder: Path, parcel: Mapping[str, bytes]) -> None:
    """Write a run into a folder that nobody else knows."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if name in parcel:
            write_atomic(folder / name, parcel[name])


def deliver(folder: Path, parcel: Mapping[str, bytes]) -> bool:
    """Write what a machine sent into the run's folder in the store; False where it is finished, or further, already.

    After a kill at any moment the run is finished and whole, or resumes from the newest checkpoint that is whole:
    `done.json` comes last, and is never replaced. Raises `OutputError`.
    """
    with locked(folder):
        if (folder / runs.DONE).is_file():
            return False
        finished = runs.DONE in parcel
        if not finished and not _is_further(folder, parcel):
            return False
        for name in FILES[:-1]:
            if name in parcel:
                write_atomic(folder / name, parcel[name])
        if finished:
            create(folder / runs.DONE, parcel[runs.DONE].decode())
            with writing(folder):
                (folder / runs.CHECKPOINT).unlink(missing_ok=True)
    return True


def _is_further(folder: Path, parcel: Mapping[str, bytes]) -> bool:
    """Whether the checkpoint that came is beyond the one in the folder."""
    if runs.CHECKPOINT not in parcel:
        return False
    trial = folder / f".{runs.CHECKPOINT}.arrived"
    write_atomic(trial, parcel[runs.CHECKPOINT])
    try:
        return int(read_state(trial).get("step", -1)) > int(read_state(folder / runs.CHECKPOINT).get("step", -1))
    finally:
        trial.unlink(missing_ok=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on this machine for a store that ends with the block; those that a kill left here go first."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with suppress(OSError, CheckpointError, KeyError, ValueError):
            if lease.is_gone(read_json(left / OWNER)):
                shutil.rmtree(left)
    with writing(Path(tempfile.gettempdir())):
        root = Path(tempfile.mkdtemp(prefix=SCRATCH))
    try:
        write_atomic(root / OWNER, dump(lease.whereabouts()))
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def working_folder(path: str) -> Iterator[None]:
    """Be in `path`, where this machine has it, so that relative paths mean what they do there."""
    before = os.getcwd()
    if os.path.isdir(path):
        os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)
