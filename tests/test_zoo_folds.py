"""Every architecture of the zoo under λ: folded, and held against forward hooks that scale its branches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

import pathsum as ps
from tests.cases import relative
from tests.zoo import Net, multiplied
from tests.zoo.hf import TRANSFORMERS
from tests.zoo.own import OWN

pytestmark = pytest.mark.usefixtures("one_thread")
STUCK = {  # where a branch ends in something that no single weight scales
    "se-resnet": "branch layer1.0.add .* the result of batch_norm in 'layer1.0.bn3' is read 2 times; ",
    "unet-of-residual-blocks": "branch enc1.add .* it ends in tanh in 'enc1.act', which is not linear; keep the knobs",
    "residual-in-residual": "branch add#1 .* the result of add in 'body.0.0' is read 4 times; keep the knobs",
}


def single(t: Tensor) -> Tensor:
    return t.float() if t.is_floating_point() else t


def check(zoo: Net, stuck: str | None = None) -> None:
    """A fold is the knobs, and the model whose branches hooks scale, within 1e-6 in float32."""
    model, inputs, named = zoo.made()
    model, inputs = model.float(), tuple(map(single, inputs))
    named = {k: single(v) for k, v in named.items()}
    net = ps.knobs(model, *inputs, **named)
    lam = 0.3 if has_shared_ends(net) else torch.linspace(0.2, 0.8, zoo.joins).tolist()
    net.rescale(lam)
    check_groups(net)
    if stuck:
        with pytest.raises(ps.PathsumError, match=stuck):
            net.fold()
        return
    folded = net.fold(*inputs, **named)
    assert type(folded) is type(model)
    assert folded.state_dict().keys() == model.state_dict().keys()
    assert all(a.shape == b.shape for a, b in zip(folded.parameters(), model.parameters(), strict=True))
    factors = [float(v) / b.lam for v, b in zip(net.lam, net.branches, strict=True)]
    with torch.no_grad():
        got = net.pick(folded(*inputs, **named))
        assert relative(got, net.pick(net(*inputs, **named))) < 1e-6
        with multiplied(model, zoo.branch_ends(model), factors):
            assert relative(got, net.pick(model(*inputs, **named))) < 1e-6


def has_shared_ends(net: ps.Knobs) -> bool:
    """Whether one block is applied several times, so that its weights hold one λ."""
    return any(end.uses > 1 for b in net.branches for end in b.ends)


def check_groups(net: ps.Knobs) -> None:
    """Every parameter is in one group once, and those that end a branch have its rate."""
    groups = net.param_groups(lr=0.1)
    assert Counter(id(p) for g in groups for p in g["params"]) == Counter(id(p) for p in net.parameters())
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    for branch, lam in zip(net.branches, net.lam.tolist(), strict=True):
        for end in branch.ends:
            if "." in end.parameter:  # not the model's own
                rate = rates[id(net.model.get_parameter(end.parameter))]
                assert rate <= 0.1 / (len(net.branches) * lam**2) + 1e-9


@pytest.mark.parametrize("name", [name for name, zoo in OWN.items() if zoo.joins])
def test_own_architectures(name: str) -> None:
    check(OWN[name], STUCK.get(name))


@pytest.mark.parametrize("name", [name for name, zoo in TRANSFORMERS.items() if zoo.joins])
def test_transformers(name: str) -> None:
    pytest.importorskip("transformers", reason="pip install 'pathsum[hf]'")
    check(TRANSFORMERS[name])


@pytest.mark.parametrize(
    ("name", "stages"),
    [("t5", [4, 6]), ("swin", [4, 4]), ("opt", [4]), ("bert", [4]), ("gpt-j", [2]), ("resnet", [2, 2])],
)
def test_stages_of_transformers(name: str, stages: list[int]) -> None:
    """Encoder and decoder are a stage each; reshapes and norms on the stream end none, patch merging does."""
    pytest.importorskip("transformers", reason="pip install 'pathsum[hf]'")
    model, inputs, named = TRANSFORMERS[name].made()
    net = ps.knobs(model, *inputs, **named).rescale("1/n", per="stage")
    assert net.lam.tolist() == pytest.approx([1 / n for n in stages for _ in range(n)])
