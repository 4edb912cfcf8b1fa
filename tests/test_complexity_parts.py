"""Geometric complexity by order in λ and by path length."""

import numpy as np
import pytest
import torch

import pathsum as ps
from pathsum.errors import LambdaError, ModeError, NoJoinsError
from pathsum.series import Series
from tests.cases import case, relative
from tests.reference import complexity as twin
from tests.reference.interpolation import line_terms

GC = ps.geometric_complexity

pytestmark = pytest.mark.usefixtures("one_thread")


def close(found, expected, rtol):
    """Each number to a share of the largest."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("name", ["mlp-tanh", "conv-gelu", "conv-silu-bn", "post-ln", "gated-mlp"])
def test_coefficients_are_those_of_a_polynomial_through_gc(name):
    net, (x,) = case(name).build()
    knobbed = ps.knobs(net, x)
    found = GC.by_order(knobbed, x, order=3)
    expected = line_terms(
        lambda t: GC(lambda x: knobbed(x, lam=float(t)), x).per_sample, 3, reach=case(name).radius / 10
    )
    for k in range(4):
        assert relative(found.per_sample()[k], expected[k]) < 1e-6
    assert found.exact.tolist() == [True] * 4 + [False] * 3


def test_all_powers_are_those_of_the_cut_network():
    net, (x,) = case("mlp-silu").build()
    knobbed = ps.knobs(net, x)
    found = GC.by_order(knobbed, x, order=2)
    for lam in (-0.7, 0.3, 1.0):
        cut = GC(lambda x, lam=lam: knobbed(x, lam=Series.variable(2)).at(lam), x)
        assert found.at(lam) == pytest.approx(cut.value, rel=1e-12)


@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-relu", "conv-gelu", "conv-silu-bn"])
def test_corollary(name):
    net, (x,) = case(name).build()
    found = GC.by_order(net, x, order=1)
    zeroth, first = twin.corollary(net.encoder, list(net.blocks), net.decoder, x)
    close(found.coefficients[:2], [float(zeroth), float(first)], 1e-10)


def test_a_piecewise_linear_network_at_small_lambda():
    """No gate flips between 0 and 1e-4: the polynomial with all its orders is the network."""
    net, (x,) = case("mlp-relu").build()
    found = GC.by_order(net, x, order=6, lam=1e-4)
    assert found.errors[-1] < 1e-12
    assert GC.by_order(net, x, order=1, lam=1e-4).errors[1] < 1e-6


def test_negative_and_per_branch_lambda():
    net, (x,) = case("mlp-tanh").build()
    for lam in (-0.05, [0.05, -0.02, 0.01, 0.03, 0.05, 0.04]):
        found = GC.by_order(net, x, order=4, lam=lam)
        assert found.errors[4] < 1e-4 < found.errors[0]
        assert found.value == pytest.approx(GC(lambda x, lam=lam: ps.knobs(net, x)(x, lam=lam), x).value, rel=1e-12)
    plus, minus = (GC.by_order(net, x, order=3, lam=lam) for lam in (0.05, -0.05))
    close(plus.coefficients, minus.coefficients, 1e-12)
    assert found.weights.tolist() == [0.05, -0.02, 0.01, 0.03, 0.05, 0.04]
    assert found.lam == 1


@pytest.mark.parametrize(
    "name", ["mlp-relu", "conv-relu", "mlp-gelu", "conv-tanh-per-branch", "layer-norm", "gated-mlp", "post-ln"]
)
def test_lengths_are_those_of_the_frozen_network(name):
    a_case = case(name)
    net, (x,) = a_case.build()
    found = GC.by_length(net, x)
    close(found.matrix, twin.frozen_gram(a_case.pieces(net), x), 1e-10)


@pytest.mark.parametrize("name", ["mlp-relu", "conv-relu-bn", "preact-v2", "pooled-v1", "resnet-v1"])
def test_lengths_add_up_to_a_piecewise_linear_network(name):
    net, (x,) = case(name).build()
    found = GC.by_length(net, x)
    assert found.total == pytest.approx(GC(net, x).value, rel=1e-12)
    assert found.value == pytest.approx(found.total, rel=1e-12)
    assert found.share().sum() == pytest.approx(1)


def test_where_gates_are_smooth_the_network_differs():
    net, (x,) = case("mlp-gelu").build()
    found = GC.by_length(net, x)
    assert abs(found.total / found.value - 1) > 1e-3


def test_longer_paths_in_one_slot():
    net, (x,) = case("mlp-relu").build()
    every, short = GC.by_length(net, x), GC.by_length(net, x, max_length=2)
    assert short.lengths == ["0", "1", "2", ">2"]
    close(short.matrix[:3, :3], every.matrix[:3, :3], 1e-12)
    close(short.matrix[3, 3], every.matrix[3:, 3:].sum(), 1e-12)


def test_gradients_through_the_gates_of_a_spectrum_are_as_before():
    """Only by_length holds gates still: the lengths themselves add up to the network, and so do their gradients."""
    net, (x,) = case("mlp-gelu").build()
    x.requires_grad_()
    knobbed = ps.knobs(net, x.detach())
    weights = torch.full((6,), 0.3, dtype=torch.float64)
    total = knobbed(x, lam=Series.variable(6, weights=weights, gated=True)).c.sum(0)
    (found,) = torch.autograd.grad(total.sum(), x)
    (expected,) = torch.autograd.grad(knobbed(x, lam=weights).sum(), x)
    assert relative(found, expected) < 1e-12


def test_chunks_raw_pixels_and_token_ids():
    net, (x,) = case("conv-gelu").build()
    whole, parts = GC.by_order(net, x, order=2), GC.by_order(net, x, order=2, chunk_size=2)
    torch.testing.assert_close(whole.products, parts.products, rtol=1e-12, atol=1e-15)
    raw = GC.by_length(net, x, std=0.5, inputs="raw")
    close(raw.matrix, 4 * GC.by_length(net, x).matrix, 1e-12)
    assert raw.inputs == "raw"
    net, (ids,) = case("pre-ln").build()
    found = GC.by_order(net, ids, order=1)
    assert found.inputs == "embeddings"
    assert found.value == pytest.approx(GC(net, ids).value, rel=1e-12)


def test_what_is_refused():
    net, x = ps.ResidualTower(2, 4, norm="batch", seed=0), torch.randn(2, 3, 8, 8)
    with pytest.raises(ModeError, match=r"BatchNorm 'encoder.norm'"):
        GC.by_order(net, x, 1)
    with pytest.raises(LambdaError, match="order=-1"):
        GC.by_order(net.eval(), x, -1)
    with pytest.raises(LambdaError, match="max_length"):
        GC.by_length(net, x, max_length=-1)
    with pytest.raises(NoJoinsError):
        GC.by_order(torch.nn.Linear(3, 3), torch.ones(2, 3), 1)
    with pytest.raises(LambdaError, match="order 9 was not computed"):
        GC.by_order(net, x, 1).at(0.1, order=9)


def test_what_is_shown():
    net, (x,) = case("mlp-relu").build()
    for found in (GC.by_order(net, x, order=2), GC.by_length(net, x)):
        assert "\n" not in repr(found)
        assert "3 samples" in repr(found)
        assert "<table" in found._repr_html_()
        assert found.plot().get_xlabel() in ("power of λ", "path length")
    table = GC.by_order(net, x, order=2).table()
    assert table["exact"].tolist() == [True, True, True, False, False]
    table = GC.by_length(net, x).table()
    assert (table["own"] + table["with_others"]).sum() == pytest.approx(GC(net, x).value)
