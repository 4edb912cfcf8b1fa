"""Autocast, 16-bit and complex types."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from pathsum.coefficients import Space
from pathsum.series import Series
from tests import architectures as zoo


class TanhNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)


MODELS = {
    "tanh": (TanhNet, lambda: torch.randn(3, 6)),
    "gpt": (zoo.PreLNTransformer, lambda: torch.tensor([[3, 1, 4, 1, 5]])),
    "resnet": (zoo.PreactNet, lambda: torch.randn(2, 3, 8, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_autocast_is_off_inside(name):
    build, inputs = MODELS[name]
    model, x = build().eval(), inputs()
    plain, lengths = ps.expand(model, x, order=2), ps.spectrum(model, x)
    net, t = ps.knobs(model, x), ps.Series.variable(2)
    series = net.pick(net(x, lam=t)).c
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net.pick(net(x, lam=t)).c, series)
        assert model(x).dtype == torch.bfloat16
        e, s = ps.expand(model, x, order=2), ps.spectrum(model, x)
        assert torch.is_autocast_enabled("cpu")
        assert model(x).dtype == torch.bfloat16
    assert e.terms.dtype == torch.float32
    assert torch.equal(e.terms, plain.terms)
    assert torch.equal(e.output, plain.output)
    assert torch.equal(s.terms, lengths.terms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_sixteen_bit_networks_run(name, dtype):
    """To 30 roundings of the type."""
    build, inputs = MODELS[name]
    model, x = build().eval(), inputs()
    wide = ps.expand(model, x, order=2)
    lengths = ps.spectrum(model, x)
    model, x = model.to(dtype), x.to(dtype) if x.is_floating_point() else x
    e, s = ps.expand(model, x, order=2), ps.spectrum(model, x)
    assert e.terms.dtype == s.terms.dtype == dtype
    tolerance = 30 * torch.finfo(dtype).eps
    for ours, exact in ((e.terms, wide.terms), (s.terms, lengths.terms)):
        assert float((ours.float() - exact).norm() / exact.norm()) < tolerance
    assert s.conservation < tolerance


COMPLEX = {
    "relu": lambda x: F.leaky_relu(x),
    "clamp": lambda x: x.clamp_min(0),
    "max": lambda x: x.amax(-1),
    "sort": lambda x: x.sort(),
    "greater": lambda x: x > 0,
    "gelu": F.gelu,
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "softmax": lambda x: x.softmax(-1),
    "floor": torch.floor,
}


@pytest.mark.parametrize("call", COMPLEX.values(), ids=COMPLEX)
@pytest.mark.parametrize("gated", [False, True])
def test_functions_of_real_numbers_refuse_complex_series(call, gated):
    x = Series(torch.randn(2, 3, 4, dtype=torch.complex64), Space(2, gated=gated))
    with pytest.raises(ps.PathsumError, match=r"of complex numbers on a series.*write it with x\.real and x\.imag"):
        call(x)


@pytest.mark.parametrize("gated", [False, True])
def test_complex_products_sums_and_analytic_functions_are_covered(gated):
    c = torch.randn(3, 5, 4, dtype=torch.complex128)
    x = Series(c, Space(2, gated=gated))
    t = 1.0 if gated else 1e-3

    def f(z):
        return torch.tanh(z * z.conj() + 1j * z) @ torch.ones(4, 2, dtype=z.dtype) / (z * z + 4).sum()

    ours, real = f(x).at(t), f(sum(ck * t**k for k, ck in enumerate(c)))
    torch.testing.assert_close(ours, real, rtol=1e-7, atol=1e-7)
