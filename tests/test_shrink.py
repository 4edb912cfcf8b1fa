"""Shrinking takes out blocks that do nothing, and is the way back from growing."""

import pytest
import torch
import torch.nn.functional as F

import pathsum as ps
from tests.cases import case, relative
from tests.test_grow import bitwise, tower

NORMS = [None, "batch"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("rule", "depth", "more"),
    [("0.3", 3, 7), ("learned:1/n", 3, 7), ("1/n", 3, 6), ("1/n", 2, 8), ("1/sqrt(n)", 2, 8)],
)
@pytest.mark.parametrize("kind", ["ResidualMLP", "ResidualTower"])
def test_shrinking_a_grown_net_gives_it_back_bitwise(kind, rule, depth, more, norm):
    """Where no λ changes, or by a power of 2: products with it are exact."""
    net, x = tower(kind, rule, norm, torch.float32, depth)
    grown = ps.grow(net, x, depth=more, where="interleaved")
    back = ps.shrink(grown.net, x)
    assert back.removed == grown.new_blocks
    assert bitwise(back.net, net)
    assert back.net.config == net.config
    assert torch.equal(back.net(x), net(x))


@pytest.mark.parametrize("rule", ["1/n", "1/sqrt(n)"])
def test_other_factors_come_back_to_their_rounding(rule):
    net, x = tower("ResidualMLP", rule, None, torch.float64)
    back = ps.shrink(ps.grow(net, x, depth=7).net, x).net
    for name, p in net.named_parameters():
        torch.testing.assert_close(back.get_parameter(name), p, rtol=2**-52, atol=0)  # two roundings of half a unit
    fixed, _ = tower("ResidualMLP", rule, None, torch.float64)
    fixed.rescale(list(fixed.scales))  # a list does not depend on n: nothing to round
    assert bitwise(ps.shrink(ps.grow(fixed, x, depth=7).net, x).net, fixed)


@pytest.mark.parametrize("name", ["resnet-v1", "preact-v2", "pre-ln", "rezero"])
def test_any_model_comes_back(name):
    model, x = case(name).build()
    grown = ps.grow(model, *x, insert=2, where="stage" if name != "pre-ln" else "end")
    assert bitwise(ps.shrink(grown.net, *x).net, model)
    net = ps.knobs(model, *x)
    if name != "rezero":
        net.rescale("learned:0.5")
    back = ps.shrink(ps.grow(net, *x, insert=2, where="interleaved").net, *x)
    assert isinstance(back.net, ps.Knobs)
    assert bitwise(back.net, net)


def test_a_trained_new_block_stays():
    net, x = tower("ResidualMLP", "0.3", None, torch.float64)
    grown = ps.grow(net, x, depth=5)
    F.cross_entropy(grown.net(x), torch.arange(3)).backward()
    with torch.no_grad():
        last = grown.net.blocks[3].linear2
        last.weight -= 0.1 * last.weight.grad
    assert ps.shrink(grown.net, x).removed == ("blocks.4",)


def test_contributions_are_measured_and_small_ones_go_within_the_tolerance():
    net, x = tower("ResidualMLP", "0.3", None, torch.float64)
    with torch.no_grad():
        net.blocks[1].linear2.weight.mul_(1e-6)
        net.blocks[1].linear2.bias.mul_(1e-6)
        z = net.encoder(x)
        sizes = []
        for block in net.blocks:
            f = 0.3 * block(z)
            sizes.append(float((f.norm(dim=1) / z.norm(dim=1)).max()))
            z = z + f
    less = ps.shrink(net, x, tol=1e-4)
    assert list(less.table()["contribution"]) == pytest.approx(sizes, rel=1e-12)
    assert less.removed == ("blocks.1",)
    assert list(less.table()["fate"]) == ["kept", "removed", "kept"]
    with torch.no_grad():
        assert less.error == pytest.approx(relative(less.net(x), net(x)), rel=1e-6)
    assert 0 < less.error < 1e-5
    assert ps.shrink(net, x).removed == ()
    assert bitwise(ps.shrink(net, x).net, net)


def test_the_factor_of_a_rule_in_n_is_taken_back_too():
    net, x = tower("ResidualTower", "1/n", "batch", torch.float64, 4)
    with torch.no_grad():
        for p in (net.blocks[2].norm2.weight, net.blocks[2].norm2.bias):
            p.zero_()
        less = ps.shrink(net, x)
        assert less.removed == ("blocks.2",)
        assert less.net.scales == (1 / 3,) * 3
        assert relative(less.net(x), net(x)) < 1e-12


def test_a_block_with_one_live_branch_stays_and_stages_keep_their_first():
    model, x = case("pre-ln").build()
    with torch.no_grad():
        for p in model.h[0].down.parameters():
            p.zero_()
    less = ps.shrink(model, *x)
    assert less.removed == ()
    assert list(less.table()["dead"]) == [False, True, False, False]
    assert less.table()["fate"][1] == "kept: another branch of its block is not dead or changes the shape"
    model, x = case("resnet-v1").build()
    with torch.no_grad():
        for p in (*model.layer2[0].bn2.parameters(), *model.layer1[1].bn2.parameters()):
            p.zero_()
    less = ps.shrink(model, *x)
    assert less.removed == ("layer1.1",)
    assert less.table()["fate"][2] == "kept: its shortcut is not the identity"


def test_everything_dead_leaves_the_base_model():
    net, x = tower("ResidualMLP", "1/n", None, torch.float64)
    net.rescale(0)
    less = ps.shrink(net, x)
    assert (less.depth, len(less.net.blocks)) == (0, 0)
    assert torch.equal(less.net(x), net(x))


def test_the_tolerance_is_checked():
    net, x = tower("ResidualMLP", "1/n", None, torch.float64)
    for tol in (-1.0, float("nan"), "small"):
        with pytest.raises(ps.PathsumError, match="tol=.*: give the size of λF"):
            ps.shrink(net, x, tol=tol)
