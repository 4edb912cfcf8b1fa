"""λ folded into weights: a plain model, the same class and keys, equal to the knobs."""

import pytest
import torch
from torch import nn

import pathsum as ps
from tests.architectures import resnet20


@pytest.mark.parametrize("rule", ["1/sqrt(n)", "1/n", 0.3, 0.0])
@pytest.mark.parametrize("norm", [None, "batch"])
def test_folding_a_tower(rule, norm):
    tower = ps.ResidualTower(depth=4, width=6, encoder="conv3x3", norm=norm, scale="1/n", seed=0).double().eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    net = ps.knobs(tower, x).rescale(rule)
    folded = net.fold(x)
    # The folded copy carries its own scale 1/n, so it is the tower's function at λ = rule.
    assert type(folded) is ps.ResidualTower
    assert folded.state_dict().keys() == tower.state_dict().keys()
    torch.testing.assert_close(folded(x), net(x), rtol=1e-12, atol=1e-13)
    assert not any(m is net for m in folded.modules())


def test_folding_leaves_the_original_alone():
    model = resnet20().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(2, 3, 32, 32)
    net = ps.knobs(model, x).rescale("1/sqrt(n)")
    folded = net.fold(x)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-5, atol=1e-5)  # float32: one rounding a branch
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not torch.equal(folded.layer1[0].bn2.weight, model.layer1[0].bn2.weight)


def test_a_branch_without_a_last_linear_layer_is_named():
    class Bent(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return x + torch.tanh(self.inner(x))

    x = torch.randn(2, 4)
    with pytest.raises(ps.PathsumError, match=r"branch .*inner.add|branch add"):
        ps.knobs(Bent(), x).rescale(0.5).fold(x)


def test_a_layer_shared_by_branches_with_different_lam_is_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(4, 4)

        def forward(self, x):
            x = x + self.f(x)
            return x + self.f(x)

    x = torch.randn(2, 4)
    with pytest.raises(ps.PathsumError, match="serve this branch alone"):
        ps.knobs(Shared(), x).rescale([0.5, 0.25]).fold(x)
