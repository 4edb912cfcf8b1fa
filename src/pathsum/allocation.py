"""What becomes of memory that one pass has freed: kept for the next, or given back from time to time.

glibc's malloc returns freed maps of some megabytes to the system at first, and the next pass gets them back page by
page, each fetched by a page fault and filled with zeros: up to a third of a training step's time. Later it raises its
threshold, keeps them on a heap, and does not return what lies below a map still in use: four times the memory that
tensors take where checkpointing allocates and frees as it goes. So all maps are kept on the heap, and where memory is
short, every free page of it is given back once a segment of blocks.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

M_MXFAST, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = 1, -1, -3  # of <malloc.h>
LARGEST = 2**31 - 1  # mallopt takes an int
# Nothing is given back unasked. No bins of small free pieces: at each map freed malloc would go through them all.
HEAP = {M_TRIM_THRESHOLD: LARGEST, M_MMAP_THRESHOLD: LARGEST, M_MXFAST: 0}
# The first two where glibc's own adjustment ends, the last its default.
USUAL = {M_TRIM_THRESHOLD: 64 * 2**20, M_MMAP_THRESHOLD: 32 * 2**20, M_MXFAST: 16 * ctypes.sizeof(ctypes.c_size_t)}
Freed = Literal["kept", "returned"]

_libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
_lock = threading.Lock()
_asked: list[list[Freed]] = []  # who asked, and for what: the last one counts


@contextmanager
def freed_memory(rule: Freed) -> Iterator[None]:
    """Have freed memory kept (fast), or returned at each `give_back` (small); afterwards all is returned. glibc only.

    Within "returned", `checkpointed` and `reversible` call `give_back` after each segment.
    """
    mine: list[Freed] = [rule]
    with _lock:
        _asked.append(mine)
        _apply(HEAP)
    give_back()
    try:
        yield
    finally:
        with _lock:
            _asked[:] = [one for one in _asked if one is not mine]
            _apply(HEAP if _asked else USUAL)
        give_back()


def give_back() -> None:
    """Return every free page to the system, unless it was asked last that they be kept."""
    if _libc is not None and _asked[-1:] != [["kept"]]:  # one look: another thread may empty the list
        _libc.malloc_trim(0)


def _apply(sizes: dict[int, int]) -> None:
    if _libc is not None:
        for name, size in sizes.items():
            _libc.mallopt(name, size)
