"""What becomes of memory that one pass has freed: kept for the next, or given back at once.

glibc's malloc returns freed maps of some megabytes to the system at first, and the next pass gets them back page by
page, each fetched by a page fault and filled with zeros: up to a third of a training step's time. Later it raises its
threshold, keeps them on a heap, and cannot return what lies below a map still in use: four times the memory that
tensors take where checkpointing allocates and frees as it goes.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
LARGEST = 2**31 - 1  # mallopt takes an int
RULES = {
    "kept": {M_TRIM_THRESHOLD: LARGEST, M_MMAP_THRESHOLD: LARGEST},
    "returned": {M_TRIM_THRESHOLD: 2**17, M_MMAP_THRESHOLD: 2**20},
    "usual": {M_TRIM_THRESHOLD: 64 * 2**20, M_MMAP_THRESHOLD: 32 * 2**20},  # where glibc's own adjustment ends
}
Freed = Literal["kept", "returned"]

_lock = threading.Lock()
_asked: list[list[str]] = []  # who asked, and for what: the last one counts


@contextmanager
def freed_memory(rule: Freed) -> Iterator[None]:
    """Have freed memory kept (fast) or returned (small) for a while; afterwards all is given back. glibc only."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc, mine = ctypes.CDLL(None), [str(rule)]
    with _lock:
        _asked.append(mine)
        _apply(libc, rule)
    try:
        yield
    finally:
        with _lock:
            _asked[:] = [one for one in _asked if one is not mine]
            _apply(libc, _asked[-1][0] if _asked else "usual")


def _apply(libc: ctypes.CDLL, rule: str) -> None:
    for name, size in RULES[rule].items():
        libc.mallopt(name, size)
    if rule != "kept":
        libc.malloc_trim(0)
