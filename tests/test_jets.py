"""Jets of functions along a line, against interpolation and closed forms."""

import math

import pytest
import torch
from torch import nn

import pathsum as ps
from pathsum.errors import MissingRuleError, PathsumError
from tests.architectures import PostLNTransformer, PreLNTransformer
from tests.cases import relative
from tests.reference.interpolation import line_terms


def line(*shape: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, dtype=torch.float64, generator=generator)


def test_a_cubic_has_its_own_coefficients():
    x, v = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 3.0])
    found = ps.jet(lambda h: h * h * h, x, v, order=5)
    expected = torch.stack([x**3, 3 * x**2 * v, 3 * x * v**2, v**3, 0 * x, 0 * x])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("order", [0, 1, 4])
def test_the_exponential(order):
    found = ps.jet(torch.exp, torch.zeros(3, dtype=torch.float64), torch.full((3,), 2.0).double(), order=order)
    expected = torch.tensor([2.0**k / math.factorial(k) for k in range(order + 1)], dtype=torch.float64)
    torch.testing.assert_close(found, expected[:, None].expand(-1, 3))


@pytest.mark.parametrize("block", ["preln", "postln", "mlp", "attention"])
def test_blocks_agree_with_interpolation(block):
    torch.manual_seed(0)
    module = {
        "preln": lambda: PreLNTransformer().h[0],
        "postln": lambda: PostLNTransformer().layers[0],
        "mlp": lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 8), nn.SiLU()),
        "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True),
    }[block]()
    module = module.double().eval().requires_grad_(False)
    x, v = line(2, 5, 8)
    found = ps.jet(module, x, v, order=4)
    expected = line_terms(lambda t: module(x + t * v), 4)
    for k in range(5):  # interpolation rounds by 1e-16/0.05^k
        assert relative(found[k], expected[k]) < 1e-6
    assert found.shape == (5, 2, 5, 8)


def test_a_kink_is_taken_from_the_right():
    x, v = torch.zeros(4), torch.tensor([1.0, -1.0, 2.0, 0.0])
    assert ps.jet(torch.relu, x, v, order=1).tolist() == [[0, 0, 0, 0], [1, 0, 2, 0]]


def test_a_constant_function_has_order_zero_only():
    found = ps.jet(lambda h: torch.ones(2), torch.zeros(3), torch.ones(3), order=2)
    assert found.tolist() == [[1, 1], [0, 0], [0, 0]]


def test_a_buffer_filled_in_place_carries_the_series():
    def f(h):
        out = torch.zeros(4)
        out[:2] = h
        return out

    found = ps.jet(f, torch.ones(2), torch.full((2,), 3.0), order=1)
    assert found.tolist() == [[1, 1, 0, 0], [3, 3, 0, 0]]


def test_autocast_is_off_inside():
    layer = nn.Linear(4, 4).requires_grad_(False)
    x, v = torch.randn(2, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ps.jet(layer, x, v, order=1)
    assert torch.equal(inside, ps.jet(layer, x, v, order=1))


def test_what_cannot_be_expanded_says_so():
    x = torch.ones(3)
    with pytest.raises(PathsumError, match=r"x has shape \(3,\).*the direction \(2,\).*give a direction like x"):
        ps.jet(torch.exp, x, torch.ones(2), order=1)
    with pytest.raises(PathsumError, match="f returned tuple, expected a tensor: pick one"):
        ps.jet(lambda h: (h, h), x, x, order=1)
    with pytest.raises(PathsumError, match=r"x is torch\.int64: give a point of real numbers"):
        ps.jet(lambda h: h, torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64), order=1)
    with pytest.raises(PathsumError, match="order"):
        ps.jet(torch.exp, x, x, order=-1)
    with pytest.raises(MissingRuleError, match="digamma"):
        ps.jet(torch.digamma, x, x, order=1)
