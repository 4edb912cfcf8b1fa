"""The quicker forms of a stack's convolutions against autograd through the plain ones."""

import itertools

import pytest
import torch
from torch import nn

from pathsum.training import convolutions
from pathsum.training.convolutions import Blocks, Stem, each, grouped, turned


def leaves(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_stem_has_the_gradient_of_its_weight(kernel, channels, layout):
    num = 3
    layer = nn.Conv2d(channels, 5, kernel, stride=kernel // 3, padding=kernel // 2, bias=False)
    x, weight = leaves((4, num * channels, 9, 9), (num * 5, channels, kernel, kernel), dtype=torch.float64)
    x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout).requires_grad_()
    out, plain = Stem.apply(x, weight, layer, num), each(x, weight, layer, num)
    torch.testing.assert_close(out, plain, rtol=1e-12, atol=1e-12)
    towards = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (found,), (expected,) = (torch.autograd.grad(y, [weight], towards) for y in (out, plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
@pytest.mark.parametrize("needs", [n for n in itertools.product([False, True], repeat=6) if any(n)])
def test_blocks_have_the_gradients_of_their_layers(needs):
    num, width = 3, 8
    layer = nn.Conv2d(width, width, 3, padding=1, bias=False)
    values = leaves((4, num * width, 6, 6), (num, 2), *[(num * width, width, 3, 3)] * 4)
    values[2:] = [weight / 10 for weight in values[2:]]  # branches about as large as what they are added to
    z, lam, *weights = (v.requires_grad_(need) for v, need in zip(values, needs, strict=True))
    out = Blocks.apply(z, layer, num, True, lam, *weights)
    assert out.is_contiguous()  # the mean over its maps has a gradient that costs no copy
    assert torch.equal(out, Blocks.apply(z, layer, num, False, lam, *weights))
    plain = z
    for own, first, second in zip(lam.unbind(1), weights[::2], weights[1::2], strict=True):
        branch = grouped(grouped(plain, first, layer, num).relu(), second, layer, num)
        plain = plain + own.repeat_interleave(width).view(-1, 1, 1) * branch
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-5)
    asked = [v for v in (z, lam, *weights) if v.requires_grad]
    towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found, expected = (torch.autograd.grad(y, asked, towards) for y in (out, plain))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_without_torchscript_every_bit_is_the_same(monkeypatch):
    num, width = 2, 8
    layer, stem = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.Conv2d(3, width, 3, padding=1, bias=False)

    def found():
        x, first, lam, *weights = leaves((4, num * 3, 6, 6), (num * width, 3, 3, 3), (num, 1), *[(16, 8, 3, 3)] * 2)
        asked = [v.requires_grad_() for v in (first, lam, *weights)]
        out = Blocks.apply(Stem.apply(x, first, stem, num), layer, num, True, lam, *weights)
        return out, *torch.autograd.grad(out.square().sum(), asked)

    for _ in range(4):  # TorchScript changes its plan after the first runs
        compiled = found()
    assert isinstance(convolutions.unlocked(convolutions.up), torch.jit.ScriptFunction)
    convolutions.unlocked.cache_clear()

    def fails(work):
        raise OSError("could not get source code")

    monkeypatch.setattr(torch.jit, "script", fails)
    assert convolutions.unlocked(convolutions.up) is convolutions.up
    for a, b in zip(compiled, found(), strict=True):
        assert torch.equal(a, b)
    convolutions.unlocked.cache_clear()


def test_kernels_are_turned_alike_however_many_are_turned_at_once():
    few, many = leaves((3, 2 * 4, 4, 3, 3), (3, 2 * 128, 128, 3, 3))  # all at once, and each layer by itself
    for weights in (few, many):
        groups = weights.unflatten(1, (2, -1))
        for kernel, layer in zip(turned(weights, 2), groups, strict=True):
            torch.testing.assert_close(kernel, layer.transpose(1, 2).flip(3, 4).flatten(0, 1), rtol=0, atol=0)
