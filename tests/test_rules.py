"""Every rule against interpolation: coefficients of f(a₀ + a₁t + …) from values on a circle, and gated sums."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from pathsum.coefficients import Space, cauchy, pad
from pathsum.series import CannotCarry, Series
from tests.linear_cases import LINEAR, PIECEWISE, STEPS
from tests.smooth_cases import POSITIVE, SMOOTH

ORDER = 5
TAYLOR, GATED = Space(ORDER), Space(3, gated=True)


def polynomial(shape=(2, 3, 4, 4), terms=3, *, positive=False, seed=0):
    c = torch.randn(terms, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if positive:
        c[0] = c[0].abs() + 0.5
        c[1:] *= 0.1
    return c


def real(out):
    """What gated coefficients, or a plain tensor, add up to."""
    return out.c.sum(0) if isinstance(out, Series) else out


def interpolated(f, c, order=ORDER, radius=0.02):
    """Taylor coefficients of t ↦ f(Σ c_k t^k) by a least-squares polynomial of higher degree on [−r, r]."""
    degree = order + 5
    nodes = radius * torch.cos(math.pi * (torch.arange(degree + 1, dtype=torch.float64) + 0.5) / (degree + 1))
    values = torch.stack([f(sum(ck * t**k for k, ck in enumerate(c))) for t in nodes])
    vander = torch.stack([(nodes / radius) ** k for k in range(degree + 1)], 1)
    solved = torch.linalg.solve(vander, values.reshape(len(nodes), -1)).view_as(values)
    return torch.stack([solved[k] / radius**k for k in range(order + 1)])


@pytest.mark.parametrize("name", [*SMOOTH, *(f"positive {n}" for n in POSITIVE)])
def test_taylor_coefficients(name):
    positive = name.startswith("positive ")
    f, c = POSITIVE[name[9:]] if positive else SMOOTH[name], polynomial(positive=positive)
    slow = interpolated(f, c)
    ours = pad(f(Series(c, TAYLOR)).c, ORDER + 1)
    # Interpolation on a radius of 0.02 loses about r^-k·1e-16 at order k: 1e-8 at order 5 in the largest terms.
    for k in range(ORDER + 1):
        torch.testing.assert_close(ours[k], slow[k], rtol=1e-6, atol=10.0 ** (-12 + 1.9 * k))


@pytest.mark.parametrize("f", PIECEWISE.values(), ids=PIECEWISE)
def test_taylor_coefficients_of_one_piece(f):
    """So close to 0 that no value crosses a kink: 1e-16/r^k is what interpolation can resolve."""
    c = polynomial()
    slow = interpolated(f, c, order=2, radius=1e-4)
    for k, ours in enumerate(pad(f(Series(c, Space(2))).c, 3)):
        torch.testing.assert_close(ours, slow[k], rtol=1e-6, atol=10.0 ** (-12 + 4.2 * k))


@pytest.mark.parametrize("f", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("space", [TAYLOR, GATED], ids=["taylor", "gated"])
def test_linear_maps_act_on_each_coefficient_and_constants_on_order_0(f, space):
    c = polynomial(terms=4)
    ours = pad(f(Series(c, space)).c, 4)
    constant = f(torch.zeros_like(c[0]))
    for k in range(4):
        torch.testing.assert_close(ours[k], f(c[k]) - (constant if k else 0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("f", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("space", [TAYLOR, GATED], ids=["taylor", "gated"])
def test_functions_constant_in_pieces_give_plain_tensors(f, space):
    c = polynomial()
    out = f(Series(c, space))
    assert not isinstance(out, Series)
    expected = f(c.sum(0) if space.gated else c[0])
    assert out.dtype == expected.dtype
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", [*(SMOOTH | PIECEWISE), *(f"positive {n}" for n in POSITIVE)])
def test_gated_coefficients_sum_to_the_value(name):
    positive = name.startswith("positive ")
    f = POSITIVE[name[9:]] if positive else (SMOOTH | PIECEWISE)[name]
    c = polynomial(terms=4, positive=positive)
    torch.testing.assert_close(real(f(Series(c, GATED))), f(c.sum(0)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SMOOTH | PIECEWISE | STEPS | LINEAR)
def test_the_real_value_is_carried_along_or_refused(name):
    """A run that carries the output at the real λ beside the orders: it is right, or the run is known to be in vain."""
    f = (SMOOTH | PIECEWISE | STEPS | LINEAR)[name]
    c = polynomial()
    at_lam = c[0] + 2 * c[1]
    x = Series.joined(torch.cat([at_lam[None], c]), Space(ORDER, carry=True))
    try:
        out = f(x)
    except CannotCarry:
        return
    if name in STEPS:
        assert name.startswith("plain")  # about the series' shape alone
    elif out.actual is not None:
        torch.testing.assert_close(out.actual, f(at_lam), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(out.c, f(Series(c, TAYLOR)).c, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SMOOTH | PIECEWISE | LINEAR)
@pytest.mark.parametrize("space", [TAYLOR, GATED], ids=["taylor", "gated"])
def test_gradients_run_through_the_coefficients(name, space):
    """Of one direction, against a difference quotient."""
    f, c = (SMOOTH | PIECEWISE | LINEAR)[name], polynomial()
    direction = polynomial(seed=1) * 1e-6

    def total(c):
        out = f(Series(c, space))
        out = out.c if isinstance(out, Series) else out
        return (out * torch.linspace(0.5, 1.5, len(out.flatten()), dtype=out.dtype).view_as(out)).sum()

    wanted = c.clone().requires_grad_()
    value = total(wanted)
    slope = torch.autograd.grad(value, wanted)[0] if value.requires_grad else torch.zeros_like(c)
    quotient = (total(c + direction) - total(c - direction)) / 2
    torch.testing.assert_close((slope * direction).sum(), quotient, rtol=1e-4, atol=1e-9)


def test_at_a_kink_the_first_nonzero_coefficient_decides():
    c = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0], [2.0, -2.0, 0.0, 0.0, -5.0], [1.0, 1.0, -3.0, 3.0, 0.0]])
    x = Series(c, Space(2))
    assert F.relu(x).c.tolist() == [[0, 0, 0, 0, 1], [2, 0, 0, 0, -5], [1, 0, 0, 3, 0]]
    assert x.abs().c.tolist() == [[0, 0, 0, 0, 1], [2, 2, 0, 0, -5], [1, -1, 3, 3, 0]]
    assert (x > 0).tolist() == [True, False, False, True, True]
    assert torch.maximum(x, torch.zeros(5)).c.tolist() == F.relu(x).c.tolist()


SINGULAR = {"abs of complex", "number floor_divide"}  # a norm of exactly 0, and 1/0, have no expansion


@pytest.mark.parametrize("name", [n for n in PIECEWISE | STEPS if n not in SINGULAR])
def test_exact_ties_are_decided_as_just_above_zero(name):
    """Halves and whole numbers in every coefficient: half of all choices are ties at order 0, some at every order."""
    f = (PIECEWISE | STEPS)[name]
    c = torch.randint(-2, 3, (3, 2, 3, 4, 4), generator=torch.Generator().manual_seed(2)).double()
    c[0] /= 2
    step = 1e-3
    x, real = Series(c, Space(2)), f(sum(ck * step**k for k, ck in enumerate(c)))
    out = f(x)
    if name in STEPS:
        assert torch.equal(out, real)
    else:  # of smooth pieces the orders left out are of size step³
        torch.testing.assert_close(out.at(step), real, rtol=1e-6, atol=1e-6)


def test_max_pool_ties_go_to_the_larger_next_order():
    c = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 3.0, 2.0], [0.0, 1.0, 5.0, 0.0]]).view(3, 1, 1, 2, 2)
    assert F.max_pool2d(Series(c, Space(2)), 2).c.flatten().tolist() == [0, 3, 5]
    assert Series(c, Space(2)).flatten(2).amax(-1).c.flatten().tolist() == [0, 3, 5]


def test_multiplying_by_the_variable_moves_up_and_overflows_into_the_last_slot():
    c = torch.tensor([[1.0], [2.0], [4.0]])
    assert (ps.Series.variable(2) * Series(c, Space(2))).c.flatten().tolist() == [0, 1, 2]
    keeps = Space(2, gated=True, overflow=True)
    t = Series(torch.tensor([0.0, 1.0]), keeps)
    assert (t * Series(c, keeps)).c.flatten().tolist() == [0, 1, 6]


def test_cauchy_product_by_hand():
    a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0]])
    assert cauchy(a, b, Space(9)).flatten().tolist() == [3, 10, 13, 10]
    assert cauchy(a, b, Space(1)).flatten().tolist() == [3, 10]


def test_multihead_shapes_masks_and_grouped_queries():
    c = polynomial((2, 4, 5, 8), 2)
    kv = torch.randn(2, 2, 5, 8, dtype=torch.float64)
    mask = torch.rand(5, 5) > 0.3
    mask[:, 0] = True

    def f(x):
        return F.scaled_dot_product_attention(x, kv, kv * 0.5 + x[:, :2], attn_mask=mask, enable_gqa=True)

    slow = interpolated(f, c, order=3)
    for k in range(4):
        torch.testing.assert_close(f(Series(c, Space(3))).c[k], slow[k], rtol=1e-6, atol=10.0 ** (-12 + 1.9 * k))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", ["none", "attention", "padding", "per head", "both"])
@pytest.mark.parametrize("more", [{}, {"add_bias_kv": True}, {"add_zero_attn": True, "bias": False}], ids=str)
def test_multihead_attention_module(need_weights, batch_first, masks, more):
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, **more).double().eval()
    c = polynomial((3, 3, 8), 2)  # batch and length alike, so that either layout fits
    barred = torch.zeros(3, 3, dtype=torch.bool)
    barred[0, 2] = barred[1, 0] = True
    options = {
        "none": {},
        "attention": {"attn_mask": barred},
        "padding": {"key_padding_mask": barred},
        "per head": {"attn_mask": barred.expand(6, 3, 3).double() * -2.0},
        "both": {"attn_mask": torch.ones(3, 3).triu(1).bool(), "key_padding_mask": barred.roll(1, 0).flip(1)},
    }[masks]
    if masks == "both":
        options["key_padding_mask"] = torch.tensor([[False, False, True]] * 3)

    def f(x):
        return module(x, x * 0.5, x + 1, need_weights=need_weights, **options)[0]

    slow = interpolated(lambda x: f(x).detach(), c, order=3)
    with torch.no_grad():
        for k, ours in enumerate(f(Series(c, Space(3))).c):
            torch.testing.assert_close(ours, slow[k], rtol=1e-6, atol=10.0 ** (-12 + 1.9 * k))
        torch.testing.assert_close(f(Series(c, GATED)).c.sum(0), f(c.sum(0)))


def test_a_stale_view_is_an_error_not_a_wrong_number():
    x = Series(polynomial(), TAYLOR)
    part = x[:, :1]
    part.mul_(2)
    with pytest.raises(ps.PathsumError, match="changed in place"):
        x + 1


def test_grouped_products_of_experts():
    """torch has them in 32 and 16 bits only."""
    c, weight, ends = torch.randn(3, 24, 4), torch.randn(2, 4, 8), torch.tensor([7, 24], dtype=torch.int32)
    ours = F.grouped_mm(Series(c, Space(2)), weight, offs=ends).c
    torch.testing.assert_close(ours, torch.cat([c[:, :7] @ weight[0], c[:, 7:] @ weight[1]], 1))


def test_a_scalar_of_the_network_is_frozen_in_a_gated_product():
    """Only the formal variable itself counts as a path; x·mean(x) keeps its sum also in a short space."""
    c = polynomial(terms=4)
    x = Series(c, GATED)
    v = c.sum(0)
    torch.testing.assert_close((x * x.mean()).c.sum(0), v * v.mean())
    torch.testing.assert_close((x.mean() * x).c.sum(0), v * v.mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_single_zero_among_many_is_found_in_any_precision(dtype):
    c = torch.ones(2, 100_003, dtype=dtype)
    c[0, 77] = 0
    c[1, 77] = -1
    assert F.relu(Series(c, Space(1))).c[1, 77] == 0
