"""Every architecture of the zoo: its joins, its branches deleted, its spectrum and its orders, by independent means.

`tests/zoo` says what is checked and how: numbers of joins from the definitions, deletions and scalings by forward hooks
on the modules that end a branch, orders by interpolation of the model's own values.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.zoo import Net, check
from tests.zoo.hf import TRANSFORMERS, InDouble
from tests.zoo.own import OWN

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", OWN)
def test_own_architectures(name: str) -> None:
    check(OWN[name])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    pytest.importorskip("transformers", reason="pip install 'pathsum[hf]'")
    with InDouble():
        check(TRANSFORMERS[name])


@pytest.mark.parametrize("changed", ["ends", "joins", "order"])
def test_the_checks_can_fail(changed: str) -> None:
    """A wrong number of joins, branches in another order, or half a parallel branch do not pass."""
    net: Net = OWN["parallel-transformer"]
    wrong = {
        "ends": replace(net, ends=["h.0.attn.proj", "h.1.attn.proj"]),
        "joins": replace(net, joins=4, ends=["h.0.attn.proj", "h.0.down", "h.1.attn.proj", "h.1.down"]),
        "order": replace(net, ends=list(reversed(list(net.ends)))),
    }[changed]
    with pytest.raises(AssertionError):
        check(wrong)
