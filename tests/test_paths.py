"""Counting paths against enumeration, closed forms and random towers."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathsum.errors import LambdaError
from pathsum.nets import ResidualMLP
from pathsum.paths import path_counts, path_energy


@pytest.mark.parametrize("n", range(9))
def test_counts_are_those_of_enumeration(n):
    lengths = [sum(path) for path in itertools.product((0, 1), repeat=n)]
    assert path_counts(n) == [lengths.count(k) for k in range(n + 1)]


@given(st.integers(0, 300))
def test_counts_sum_to_all_paths(n):
    counts = path_counts(n)
    assert sum(counts) == 2**n
    assert counts == counts[::-1]
    assert counts == [math.comb(n, k) for k in range(n + 1)]


def test_counts_are_exact_integers_at_any_depth():
    counts = path_counts(1000)
    assert all(type(count) is int for count in counts)
    assert sum(counts) == 2**1000


@given(st.integers(0, 60), st.fractions(-2, 2, max_denominator=16), st.fractions(0, 4, max_denominator=16))
def test_energy_is_the_formula_in_rational_arithmetic(n, lam, gain):
    expected = [float(math.comb(n, k) * (Fraction(gain) * lam**2) ** k) for k in range(n + 1)]
    # A few long-double logarithms per order; atol for what underflows.
    np.testing.assert_allclose(path_energy(n, float(lam), float(gain)), expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("n", [1, 10, 1000, 100_000])
@pytest.mark.parametrize("exponent", [-1.0, -0.5])
@pytest.mark.parametrize("gain", [1 / 18, 0.5, 2.0])
def test_energy_sums_to_the_closed_form(n, exponent, gain):
    lam = n**exponent
    energy = path_energy(n, lam, gain)
    assert energy.shape == (n + 1,)
    assert energy.dtype == np.float64
    assert energy.sum() == pytest.approx(math.exp(n * math.log1p(gain * lam**2)), rel=1e-10)


def test_energy_at_the_critical_scale_is_poisson_whatever_the_depth():
    gain = 0.5
    poisson = [math.exp(-gain) * gain**k / math.factorial(k) for k in range(8)]
    for n in (1000, 100_000):
        energy = path_energy(n, n**-0.5, gain)
        # The total variation between Binomial(n, p) and Poisson(np) is below p.
        np.testing.assert_allclose(energy[:8] / energy.sum(), poisson, atol=2 * gain / n)


def test_energy_beyond_float64_reads_inf_and_stays_finite_in_logarithms():
    n, lam, gain = 1000, 1.0, 2.0
    assert np.isinf(path_energy(n, lam, gain)).any()
    logs = path_energy(n, lam, gain, log=True)
    assert np.isfinite(logs).all()
    assert np.logaddexp.reduce(logs) == pytest.approx(n * math.log(3), rel=1e-12)
    most = int(logs.argmax())
    assert most == pytest.approx(n * gain / (1 + gain), abs=1)  # the mode of the binomial


@pytest.mark.parametrize(("lam", "gain"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_without_branches_all_energy_is_in_the_base(lam, gain):
    assert path_energy(3, lam, gain).tolist() == [1, 0, 0, 0]
    assert path_energy(0, 1.0, 1.0).tolist() == [1]


def test_energy_does_not_see_the_sign_of_lam():
    np.testing.assert_array_equal(path_energy(5, -0.3, 2.0), path_energy(5, 0.3, 2.0))


def test_predicts_the_energies_of_random_linear_towers():
    """Mean over towers of ‖λ^k M_k‖²/‖z‖² by the recursion, against the formula."""
    depth, width, towers = 8, 32, 40
    lam, gain = depth**-0.5, 1.0  # F = W_2 W_1 z with variances 1/width keeps ‖z‖² on average
    total = np.zeros(depth + 1)
    z = torch.ones(1, width, dtype=torch.float64) / math.sqrt(width)
    for seed in range(towers):
        net = ResidualMLP(depth, width, activation="identity", bias=False, seed=seed).double()
        orders = torch.cat([z, z.new_zeros(depth, width)])
        with torch.no_grad():
            for branch in net.blocks:
                orders[1:] += lam * branch(orders[:-1])
        total += orders.square().sum(1).numpy()
    expected = path_energy(depth, lam, gain)
    # Orders 0..3 hold 99 % of the energy. 40 towers leave 4 % of standard error at order 1, more above.
    np.testing.assert_allclose(total[:4] / towers, expected[:4], rtol=0.25)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: path_counts(-1), "integer ≥ 0, got -1"),
        (lambda: path_counts(2.0), "integer ≥ 0, got 2.0"),
        (lambda: path_energy(True, 1.0, 1.0), "integer ≥ 0, got True"),
        (lambda: path_energy(3, math.nan, 1.0), "λ must be finite, got nan"),
        (lambda: path_energy(3, 1.0, -0.5), "finite and ≥ 0, got -0.5"),
        (lambda: path_energy(3, 1.0, math.inf), "finite and ≥ 0, got inf"),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(LambdaError, match=text):
        call()
