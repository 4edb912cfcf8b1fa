"""Decoded splits kept on disk: beside the data where that can be written, else in the user's cache folder.

A cached split carries a key of its sources (names, sizes, times and contents) and a checksum of itself;
whatever does not match, for whatever reason, counts as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pathsum.data.checks import need

VERSION = "1"  # of what is stored; raise it when decoding changes


def source_key(files: Sequence[Path]) -> str:
    """A hash of the sources' names, sizes, modification times and contents (0.1 s for 100 MB)."""
    digest = hashlib.sha256(VERSION.encode())
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
            stat = os.fstat(stream.fileno())
        digest.update(repr((file.name, stat.st_size, stat.st_mtime_ns, content)).encode())
    return digest.hexdigest()


def read(files: Sequence[Path], split: str, key: str, *, beside: bool = True) -> tuple[np.ndarray, np.ndarray] | None:
    """Images and labels cached for exactly these sources, or None."""
    safetensors = need("safetensors")
    for folder in _folders(files, beside):
        # Torn, foreign, unreadable or from other sources: all the same here, it is decoded again.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
            with safetensors.safe_open(folder / _name(files, split), framework="numpy") as stored:
                facts = stored.metadata() or {}
                if facts.get("key") != key:
                    continue
                images, labels = stored.get_tensor("images"), stored.get_tensor("labels")
            if facts.get("content") == _checksum(images, labels):
                return images, labels
    return None


def write(
    files: Sequence[Path],
    split: str,
    key: str,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    beside: bool = True,
) -> Path | None:
    """Store a whole split, atomically, in the first folder that takes it; returns where, or None."""
    save_file = need("safetensors.numpy").save_file
    facts = {"key": key, "content": _checksum(images, labels)}
    for folder in _folders(files, beside):
        target = folder / _name(files, split)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            if not _may_write(folder):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            save_file({"images": images, "labels": labels}, part, metadata=facts)
            part.chmod(0o644)  # safetensors leaves 0600; the data beside it may be shared
            os.replace(part, target)
            return target
        except Exception:  # a full disk, a quota, a lost mount: the data is loaded all the same
            continue
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
    return None


def _folders(files: Sequence[Path], beside: bool) -> list[Path]:
    """Where a cache may lie, best first; not `beside` files that another program looks after."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "pathsum"
    return [files[0].parent / ".pathsum", home] if beside else [home]


def _may_write(folder: Path) -> bool:
    """Whether the nearest existing parent is writable, also by its mode bits, which root would pass over."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _name(files: Sequence[Path], split: str) -> str:
    """One file for each set of sources, so that a changed source replaces its own cache."""
    names = "\n".join(str(file.resolve()) for file in files)
    return f"{split}-{hashlib.sha256(names.encode()).hexdigest()[:12]}.safetensors"


def _checksum(images: np.ndarray, labels: np.ndarray) -> str:
    """A hash of the decoded split."""
    digest = hashlib.sha256(repr((images.shape, labels.shape)).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
