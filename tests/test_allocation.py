"""Freed memory kept or returned, counted in page faults."""

import platform
import resource

import pytest
import torch

from pathsum.allocation import freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told anything")
PAGES = 16 * 2**20 // resource.getpagesize()


def faults() -> int:
    """Page faults of ten tensors of 16 MiB, one freed before the next is made."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(4 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_what_is_kept_needs_no_new_pages():
    with freed_memory("kept"):
        faults()
        assert faults() < PAGES / 4


def test_what_is_returned_needs_them_each_time():
    with freed_memory("returned"):
        faults()
        assert faults() > 0.9 * 10 * PAGES or huge_pages()


def test_the_inner_rule_counts_and_the_outer_comes_back():
    with freed_memory("kept"):
        with freed_memory("returned"):
            assert faults() > 0.9 * 10 * PAGES or huge_pages()
        faults()
        assert faults() < PAGES / 4


def test_an_exception_ends_it_too():
    with pytest.raises(ZeroDivisionError), freed_memory("returned"):
        1 / 0  # noqa: B018
    with freed_memory("kept"):
        faults()
        assert faults() < PAGES / 4


def huge_pages() -> bool:
    """Whether the system hands out pages of megabytes, of which few are needed."""
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as setting:
        return "[always]" in setting.read()
