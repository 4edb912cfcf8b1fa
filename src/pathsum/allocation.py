"""Memory that one pass has freed is kept for the next.

The C library's malloc returns freed maps of megabytes to the system, and the next pass gets them back page by page,
each fetched by a page fault and filled with zeros: up to a third of a training step's time.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
LARGEST = 2**31 - 1  # mallopt takes an int
USUAL = {M_TRIM_THRESHOLD: 64 * 2**20, M_MMAP_THRESHOLD: 32 * 2**20}  # where glibc's own adjustment ends

_lock = threading.Lock()
_users = 0


@contextmanager
def memory_kept() -> Iterator[None]:
    """Let glibc keep what is freed, for a while; afterwards it is given back. Does nothing elsewhere."""
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is None:
        yield
        return
    _change(libc, 1)
    try:
        yield
    finally:
        _change(libc, -1)


def _change(libc: ctypes.CDLL, by: int) -> None:
    """One user more or less; the first sets the limits, the last resets them."""
    global _users
    with _lock:
        _users += by
        if _users == by == 1:
            for name in USUAL:
                libc.mallopt(name, LARGEST)
        elif not _users:
            for name, size in USUAL.items():
                libc.mallopt(name, size)
            libc.malloc_trim(0)
