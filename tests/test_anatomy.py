"""Joins and units found by running a model once; the model is left as it was."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from tests import architectures as arch


def test_cifar_resnet_has_a_join_a_block_and_names_its_sites():
    net = ps.knobs(arch.resnet20().eval(), torch.randn(2, 3, 32, 32))
    assert [b.name for b in net.branches] == [f"layer{s}.{b}.add" for s in (1, 2, 3) for b in range(3)]
    assert [b.identity for b in net.branches] == [True, True, True, False, True, True, False, True, True]
    assert all(b.after == ("relu",) for b in net.branches)
    assert len(net.units) == 19  # one in the stem, two a block
    assert "layer1.0.add" in repr(net)
    assert "mapped" in net.anatomy.table().to_string()


def test_one_relu_module_called_three_times_is_three_units():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()

        def forward(self, x):
            return self.relu(x + self.b(self.relu(self.a(self.relu(x)))))

    found = ps.anatomy(Block(), torch.randn(2, 4))
    assert [u.name for u in found.units] == ["relu#1", "relu#2", "relu#3"]
    assert len(found.branches) == 1
    assert found.unit_table()["kind"].tolist() == ["relu"] * 3


class Chain(nn.Module):
    """x -> f(x), for additions that are, and are not, residual joins."""

    def __init__(self, f):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.f = f

    def forward(self, x):
        return self.f(self, x)


@pytest.mark.parametrize(
    ("joins", "f"),
    [
        (1, lambda m, x: x + m.a(x)),
        (1, lambda m, x: m.a(x) + x),
        (1, lambda m, x: torch.add(x, torch.tanh(m.a(x)))),
        (1, lambda m, x: x - m.a(x)),
        (1, lambda m, x: m.c(x) + m.b(torch.relu(m.a(x)))),  # a projection shortcut
        (1, lambda m, x: F.layer_norm(x + m.a(x), (4,))),
        (2, lambda m, x: x + m.a(x) + m.b(x)),
        (0, lambda m, x: m.a(x) + m.b(x)),  # neither is the deeper one
        (0, lambda m, x: torch.tanh(m.c(x)) + m.b(torch.relu(m.a(x)))),  # no way past a nonlinearity
        (0, lambda m, x: x + 0.044715 * x**3),  # inside GELU
        (0, lambda m, x: m.a(x) + m.scale),  # a bias
        (0, lambda m, x: torch.cat([x, m.a(x)], -1)),
        (0, lambda m, x: x * torch.cos(x) + x.flip(-1) * torch.sin(x)),  # rotary
        (0, lambda m, x: m.b(torch.relu(m.a(x)))),
    ],
)
def test_which_additions_are_joins(joins, f):
    assert len(ps.anatomy(Chain(f), torch.randn(3, 4)).branches) == joins


@pytest.mark.parametrize(
    ("lam", "f"),
    [
        (0.25, lambda m, x: x + 0.25 * m.a(x)),
        (0.25, lambda m, x: m.a(x) * 0.25 + x),
        (0.5, lambda m, x: x + m.scale * m.a(x)),
        (0.25, lambda m, x: torch.add(x, m.a(x), alpha=0.25)),
        (1.0, lambda m, x: x + m.a(x)),
    ],
)
def test_the_models_own_scale_is_the_branchs_lam(lam, f):
    net = ps.knobs(Chain(f), torch.randn(3, 4))
    x = torch.randn(5, 4)
    assert net.branches[0].lam == lam
    torch.testing.assert_close(net(x, lam=lam), net(x))
    torch.testing.assert_close(net(x, lam=1.0), x + net.model.a(x))  # λ replaces the model's number


def test_nothing_is_left_on_the_model():
    model = arch.resnet20().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    net = ps.knobs(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())  # BatchNorm's running statistics too
    assert all(m.training for m in model.modules())
    for m in model.modules():
        assert not m._forward_hooks
        assert not m._forward_pre_hooks
        assert not m._backward_hooks
    ref = weakref.ref(model)
    del model, net, m
    gc.collect()
    assert ref() is None


def test_a_failed_run_leaves_nothing_either():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x):
            self.bn(x)
            raise RuntimeError("inside")

    model = Fails()
    with pytest.raises(RuntimeError, match="inside"):
        ps.knobs(model, torch.randn(3, 4))
    assert int(model.bn.num_batches_tracked) == 0
    assert torch.overrides._len_torch_function_stack() == 0


def test_a_compiled_model_is_refused_with_what_to_do():
    model = ps.ResidualMLP(depth=2, width=4, in_features=4)
    with pytest.raises(ps.PathsumError, match=r"make the knobs first.*then compile"):
        ps.knobs(torch.compile(model, backend="eager"), torch.randn(2, 4))


def test_a_model_without_joins_says_so():
    net = ps.knobs(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    assert "Sequential has no residual joins" in repr(net)
    assert (len(net.branches), len(net.units)) == (0, 1)


def test_a_function_is_refused():
    with pytest.raises(ps.PathsumError, match=r"torch\.nn\.Module, got function"):
        ps.knobs(lambda x: x, torch.randn(2, 4))


def test_depth_one_thousand_is_found_quickly():
    tower = ps.ResidualMLP(depth=1000, width=2, in_features=2, seed=0)
    found = ps.anatomy(tower, torch.randn(1, 2))
    assert len(found.branches) == 1000
    assert len({b.name for b in found.branches}) == 1000
