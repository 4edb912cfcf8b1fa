"""Freed memory kept or returned, counted in page faults.

In a process of its own: one that has run other tests may have room for any tensor between what they left.
"""

import json
import platform
import resource
import subprocess
import sys

import pytest

from pathsum.allocation import freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told anything")
PAGES = 16 * 2**20 // resource.getpagesize()
PROGRAM = """
import json, resource, torch
from torch import nn
from pathsum.allocation import freed_memory, give_back
from pathsum.nets import checkpointed, reversible

def faults():  # of ten tensors of 16 MiB, one freed before the next is made, the system given what is due to it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(4 * 2**20)
        give_back()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def passes(chain):  # of a chain of 9 blocks, whose 3 segments each free some maps of 4 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks, x = [nn.Threshold(-9.0, 0.0) for _ in range(9)], torch.zeros(2**20, requires_grad=True)
    chain(blocks, x).backward(torch.zeros(2**20))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = {}
with freed_memory("returned"):
    faults()
    found["returned"] = faults()
with freed_memory("kept"):
    with freed_memory("returned"):
        found["returned within kept"] = faults()
    faults()
    found["kept"] = faults()
    with freed_memory("returned"):
        found["returned again"] = faults()
    faults()
    found["kept again"] = faults()
try:
    with freed_memory("returned"):
        1 / 0
except ZeroDivisionError:
    pass
found["nothing asked"] = faults()
with freed_memory("kept"):
    faults()
    found["kept after an error"] = faults()
    for chain in (checkpointed, reversible):
        passes(chain)
        found[f"{chain.__name__}, kept"] = passes(chain)
        with freed_memory("returned"):
            found[f"{chain.__name__}, returned"] = passes(chain)
        passes(chain)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def faults() -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("when", ["kept", "kept again", "kept after an error"])
def test_what_is_kept_needs_no_new_pages(faults, when):
    assert faults[when] < PAGES / 4


@pytest.mark.parametrize("when", ["returned", "returned within kept", "returned again", "nothing asked"])
def test_what_is_given_back_needs_them_each_time(faults, when):
    assert faults[when] > 0.9 * 10 * PAGES or huge_pages()


@pytest.mark.parametrize("chain", ["checkpointed", "reversible"])
def test_each_segment_gives_back(faults, chain):
    assert faults[f"{chain}, returned"] - faults[f"{chain}, kept"] > 3 * PAGES / 4 or huge_pages()


def test_an_error_passes():
    with pytest.raises(ZeroDivisionError), freed_memory("returned"):
        1 / 0  # noqa: B018


def huge_pages() -> bool:
    """Whether the system hands out pages of megabytes, of which few are needed."""
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as setting:
        return "[always]" in setting.read()
