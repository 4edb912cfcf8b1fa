"""Every rule against interpolation: coefficients of f(a₀ + a₁t + …) from values on a circle, and gated sums."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from pathsum.coefficients import Space, cauchy
from pathsum.rules import register_rule
from pathsum.series import RULES, Series

ORDER = 5
TAYLOR, GATED = Space(ORDER), Space(3, gated=True)


def polynomial(shape=(2, 3, 4, 4), terms=3, *, positive=False, seed=0):
    c = torch.randn(terms, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if positive:
        c[0] = c[0].abs() + 0.5
        c[1:] *= 0.1
    return c


def interpolated(f, c, order=ORDER, radius=0.02):
    """Taylor coefficients of t ↦ f(Σ c_k t^k) by a least-squares polynomial of higher degree on [−r, r]."""
    degree = order + 5
    nodes = radius * torch.cos(math.pi * (torch.arange(degree + 1, dtype=torch.float64) + 0.5) / (degree + 1))
    values = torch.stack([f(sum(ck * t**k for k, ck in enumerate(c))) for t in nodes])
    vander = torch.stack([(nodes / radius) ** k for k in range(degree + 1)], 1)
    solved = torch.linalg.solve(vander, values.flatten(1)).unflatten(1, values.shape[1:])
    return torch.stack([solved[k] / radius**k for k in range(order + 1)])


SMOOTH = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "erf": torch.erf,
    "softplus": F.softplus,
    "softplus beta": lambda x: F.softplus(x, beta=2.0),
    "silu": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sin": torch.sin,
    "cos": lambda x: x.cos(),
    "square": torch.square,
    "x**3": lambda x: x**3,
    "x*x": lambda x: x * x,
    "layer_norm": lambda x: F.layer_norm(x, (4,), torch.arange(1.0, 5).double(), torch.ones(4).double()),
    "rms_norm": lambda x: F.rms_norm(x, (4,), eps=1e-6),
    "group_norm": lambda x: F.group_norm(x, 3, torch.arange(1.0, 4).double(), torch.ones(3).double()),
    "instance_norm": lambda x: F.instance_norm(x),
    "softmax": lambda x: F.softmax(x, dim=1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 0.5, x.flip(-1)),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "matmul": lambda x: x @ x.transpose(-1, -2),
    "atan": torch.atan,
    "expm1": torch.expm1,
    "tanhshrink": F.tanhshrink,
    "logsigmoid": F.logsigmoid,
    "glu": lambda x: F.glu(x, -1),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "baddbmm": lambda x: torch.baddbmm(x[0], x[0], x[1], beta=0.5, alpha=2.0),
    "var": lambda x: x.var(-1),
    "std": lambda x: torch.std(x, dim=(2, 3), unbiased=False, keepdim=True),
    "norm": lambda x: x.norm(dim=-1),
    "normalize": lambda x: F.normalize(x + 2, dim=1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "einsum": lambda x: torch.einsum("bchw,bchv->bcwv", x, x),
}
POSITIVE = {
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "x**-1.5": lambda x: x**-1.5,
    "reciprocal": torch.reciprocal,
    "1/x": lambda x: 1 / x,
    "x/y": lambda x: x / (x + 1).sqrt(),
}
PIECEWISE = {
    "relu": F.relu,
    "relu6": lambda x: F.relu6(x * 4),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3]).double()),
    "abs": lambda x: x.abs(),
    "clamp": lambda x: x.clamp(-0.3, 0.7),
    "clamp_min": lambda x: torch.clamp_min(x, 0.1),
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "maximum": lambda x: torch.maximum(x, x.flip(-1) * 0.5),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "max_pool2d padded": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "amax": lambda x: x.amax(-1),
    "max_pool1d": lambda x: F.max_pool1d(x[:, :, 0], 2),
    "softsign": F.softsign,
    "selu": F.selu,
    "elu": F.elu,
    "celu": lambda x: F.celu(x, 0.5),
    "hardswish": lambda x: F.hardswish(x * 3),
}
WEIGHT = torch.randn(3, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
LINEAR = {
    "conv2d": lambda x: F.conv2d(x, WEIGHT, torch.ones(3).double(), padding=1),
    "conv2d grouped": lambda x: F.conv2d(x, WEIGHT[:, :1], None, stride=2, groups=3),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x, WEIGHT, torch.ones(3).double(), stride=2),
    "conv1d": lambda x: F.conv1d(x.flatten(2), WEIGHT[..., 0], torch.ones(3).double()),
    "linear": lambda x: F.linear(x, WEIGHT[0, :, 0].repeat(1, 2)[:, :4], torch.ones(3).double()),
    "matmul plain": lambda x: x @ WEIGHT[0, 0].new_ones(4, 2),
    "plain matmul": lambda x: torch.ones(2, 4).double() @ x,
    "addmm": lambda x: torch.addmm(torch.ones(2).double(), x.reshape(-1, 4), torch.ones(4, 2).double()),
    "batch_norm": lambda x: F.batch_norm(
        x, torch.ones(3).double(), torch.full((3,), 2.0).double(), bias=torch.ones(3).double()
    ),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "adaptive 1": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive 2": lambda x: F.adaptive_avg_pool2d(x, (2, 1)),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "sum": lambda x: x.sum(-1),
    "view": lambda x: x.view(2, -1),
    "flatten": lambda x: torch.flatten(x, 1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "index": lambda x: x[:, :, ::2, 1:],
    "pick": lambda x: x[:, [2, 0]],
    "pad": lambda x: F.pad(x, (1, 0, 0, 2), value=2.0),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "cat": lambda x: torch.cat([x, torch.ones_like(x), x * 2], 1),
    "stack": lambda x: torch.stack([x, x], 1),
    "chunk": lambda x: torch.cat([p * i for i, p in enumerate(x.chunk(2, -1))], -1),
    "split": lambda x: x.split([1, 2], 1)[1],
    "roll": lambda x: torch.roll(x, 1, -1),
    "masked_fill": lambda x: x.masked_fill(torch.eye(4, dtype=torch.bool), 3.0),
    "rsub": lambda x: 1 - x,
    "div": lambda x: x / 3,
    "neg": lambda x: -x,
    "broadcast": lambda x: x.mean(1, keepdim=True) + x + torch.ones(5, 2, 3, 4, 4).double(),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "T": lambda x: x[0, 0].T,
    "dropout in eval": lambda x: F.dropout(x, 0.5, training=False),
    "cumsum": lambda x: x.cumsum(-1),
    "gather": lambda x: x.gather(-1, torch.zeros(2, 3, 4, 1, dtype=torch.long)),
    "in place": lambda x: (x * 1).add_(x).mul_(2),
    "setitem": lambda x: set_middle(x * 1, x),
    "setitem number": lambda x: set_middle(x * 1, 7.0),
    "double": lambda x: x.double(),
}


def set_middle(y, value):
    y[:, 1:2] = value if isinstance(value, float) else value[:, :1]
    return y


@pytest.mark.parametrize(
    "f",
    [*SMOOTH.values(), *LINEAR.values()],
    ids=[*SMOOTH, *LINEAR],
)
def test_taylor_coefficients(f):
    c = polynomial()
    ours = f(Series(c, TAYLOR))
    slow = interpolated(f, c)
    coeffs = torch.cat([ours.c, ours.c.new_zeros(ORDER + 1 - len(ours.c), *ours.c.shape[1:])])
    # Interpolation on a radius of 0.02 loses about r^-k·1e-16 at order k: 1e-8 at order 5 in the largest terms.
    for k in range(ORDER + 1):
        torch.testing.assert_close(coeffs[k], slow[k], rtol=1e-6, atol=10.0 ** (-12 + 1.9 * k))


@pytest.mark.parametrize("f", PIECEWISE.values(), ids=PIECEWISE)
def test_taylor_coefficients_of_one_piece(f):
    """So close to 0 that no value crosses a kink: 1e-16/r^k is what interpolation can resolve."""
    c = polynomial()
    slow = interpolated(f, c, order=2, radius=1e-4)
    for k, ours in enumerate(f(Series(c, Space(2))).c):
        torch.testing.assert_close(ours, slow[k], rtol=1e-6, atol=10.0 ** (-12 + 4.2 * k))


@pytest.mark.parametrize("f", POSITIVE.values(), ids=POSITIVE)
def test_taylor_coefficients_of_positive_series(f):
    c = polynomial(positive=True)
    slow = interpolated(f, c)
    for k, ours in enumerate(f(Series(c, TAYLOR)).c):
        torch.testing.assert_close(ours, slow[k], rtol=1e-6, atol=10.0 ** (-12 + 1.9 * k))


@pytest.mark.parametrize(
    "f",
    [*SMOOTH.values(), *PIECEWISE.values(), *LINEAR.values()],
    ids=[*SMOOTH, *PIECEWISE, *LINEAR],
)
def test_gated_coefficients_sum_to_the_value(f):
    c = polynomial(terms=4)
    out = f(Series(c, GATED))
    value = out.c.sum(0) if isinstance(out, Series) else out
    torch.testing.assert_close(value, f(c.sum(0)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("f", POSITIVE.values(), ids=POSITIVE)
def test_gated_coefficients_of_positive_series_sum_to_the_value(f):
    c = polynomial(terms=4, positive=True)
    out = f(Series(c, GATED))
    torch.testing.assert_close(out.c.sum(0) if isinstance(out, Series) else out, f(c.sum(0)))


def test_at_a_kink_the_first_nonzero_coefficient_decides():
    c = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0], [2.0, -2.0, 0.0, 0.0, -5.0], [1.0, 1.0, -3.0, 3.0, 0.0]])
    x = Series(c, Space(2))
    assert F.relu(x).c.tolist() == [[0, 0, 0, 0, 1], [2, 0, 0, 0, -5], [1, 0, 0, 3, 0]]
    assert x.abs().c.tolist() == [[0, 0, 0, 0, 1], [2, 2, 0, 0, -5], [1, -1, 3, 3, 0]]
    assert (x > 0).tolist() == [True, False, False, True, True]
    assert torch.maximum(x, torch.zeros(5)).c.tolist() == F.relu(x).c.tolist()


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
def test_multihead_attention_module(need_weights, batch_first, masks):
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first).double().eval()
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


def test_a_missing_rule_names_the_function_the_module_and_the_line_to_write():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

        def forward(self, x):
            return x + torch.special.bessel_j0(self.inner(x + self.inner(x)))

    x = torch.randn(2, 3)
    with pytest.raises(ps.PathsumError, match=r"bessel_j0: add one with pathsum\.register_rule\(") as error:
        ps.expand(Odd(), x)
    assert "branch" in str(error.value)
    assert "\n" not in str(error.value)


def test_register_rule():
    with pytest.raises(ps.PathsumError, match="no series rule for torch.fft.fft"):
        torch.fft.fft(Series(polynomial(), TAYLOR))
    register_rule(torch.fft.fft, linear=True)
    try:
        c = polynomial()
        torch.testing.assert_close(torch.fft.fft(Series(c, TAYLOR)).c, torch.fft.fft(c))
        with pytest.raises(TypeError, match="either a handler or linear=True"):
            register_rule(torch.fft.fft)
    finally:
        del RULES[torch.fft.fft]


def test_train_mode_layers_are_refused():
    x = Series(polynomial(), TAYLOR)
    with pytest.raises(ps.PathsumError, match=r"model\.eval\(\)"):
        F.batch_norm(x, None, None, training=True)
    with pytest.raises(ps.PathsumError, match=r"model\.eval\(\)"):
        F.dropout(x, 0.5)


def test_a_series_tells_its_shape_and_is_not_pickled():
    x = Series(polynomial(), TAYLOR)
    assert (x.shape, x.dtype, x.ndim, len(x), x.size(1)) == ((2, 3, 4, 4), torch.float64, 4, 2, 3)
    assert x.new_zeros(2).tolist() == [0, 0]
    assert "Taylor" in repr(x)
    with pytest.raises(TypeError, match="not pickled"):
        __import__("pickle").dumps(x)
    with pytest.raises(ps.PathsumError, match="no series rule"):
        x.item()


def test_the_page_of_rules_is_the_rules():
    """After a change: python -m pathsum.rules > docs/rules.md"""
    from pathlib import Path

    from pathsum.rules.__main__ import page

    written = (Path(__file__).parents[1] / "docs" / "rules.md").read_text(encoding="utf-8")
    assert page() == written
    assert "`conv2d`" in written
    assert "`scaled_dot_product_attention`" in written


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
