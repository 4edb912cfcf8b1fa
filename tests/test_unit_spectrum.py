"""`unit_spectrum` against every path through frozen units, and against a polynomial fit in t."""

import pytest
import torch
from torch import Tensor, nn

import pathsum as ps
from pathsum import errors
from tests import architectures as arch
from tests.cases import CASES, Case, randomize, relative
from tests.reference.unit_paths import Residual, fitted_terms, unit_terms

pytestmark = pytest.mark.usefixtures("one_thread")


def small(activation: type[nn.Module], seed: int = 0) -> tuple[nn.Sequential, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(3, 5),
        activation(),
        Residual(nn.BatchNorm1d(5), nn.Linear(5, 4), activation(), nn.Linear(4, 5)),
        activation(),
        Residual(nn.Linear(5, 5), Residual(activation(), nn.Linear(5, 5))),
        nn.Linear(5, 2),
    )
    net = randomize(net.double().eval(), generator)
    return net, torch.randn(4, 3, generator=generator, dtype=torch.float64)


ALPHAS = {
    "none": [0.0, 0.0, 0.0, 0.0],
    "numbers": [0.3, 1.0, 0.0, -0.5],
    "channels": [torch.linspace(0, 1, 5).double(), 0.0, torch.tensor([1.0, 0.0, 1.0, 0.5, 0.25]).double(), 1.0],
}


@pytest.mark.parametrize("alphas", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Sigmoid, nn.Hardtanh])
def test_paths_through_units(activation: type[nn.Module], alphas: list) -> None:
    net, x = small(activation)
    found = ps.unit_spectrum(net, x, alpha=alphas)
    assert found.terms.shape == (5, 4, 2)
    assert found.conservation < 1e-12
    if activation is not nn.Hardtanh:  # its gate has an offset that depends on the piece, and no ratio
        torch.testing.assert_close(found.terms, unit_terms(net, x, alphas, 4), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(found.terms, fitted_terms(net, x, alphas, 4), rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(found.output, ps.knobs(net, x)(x, alpha=alphas), rtol=0, atol=0)


@pytest.mark.parametrize("c", CASES, ids=str)
def test_lengths_sum_to_the_output(c: Case) -> None:
    model, inputs = c.build()
    net = ps.knobs(model, *inputs)
    if not net.units:
        with pytest.raises(errors.PathsumError, match="no nonlinear units"):
            ps.unit_spectrum(net, *inputs)
        return
    found = ps.unit_spectrum(net, *inputs)
    assert found.conservation < 1e-12
    with torch.no_grad():
        assert relative(found.terms.sum(0), model(*inputs)) < 1e-12
    assert ps.unit_spectrum(net, *inputs, alpha=0.5).conservation < 1e-12


def test_a_plain_net_in_place_and_bias_free_has_one_length() -> None:
    layers = [m for _ in range(3) for m in (nn.Linear(5, 5, bias=False), nn.ReLU(inplace=True))]
    net, x = nn.Sequential(*layers).double(), torch.randn(3, 5).double()
    found = ps.unit_spectrum(net, x)
    assert found.share().tolist() == [0, 0, 0, 1]
    assert found.mean_length() == 3
    assert ps.unit_spectrum(net, x, alpha=[0.0, 1.0, 0.0]).mean_length() == 2


def test_lambda_is_the_real_one() -> None:
    net, x = small(nn.ReLU)
    knobbed = ps.knobs(net, x)
    lam = [0.5, -2.0, 0.0]
    found = ps.unit_spectrum(knobbed, x, lam=lam)
    with torch.no_grad():
        assert relative(found.terms.sum(0), knobbed(x, lam=lam)) < 1e-12
    tower, (image,) = next(c for c in CASES if c.name == "resnet-v1").build()
    half = ps.unit_spectrum(ps.knobs(tower, image).rescale(0.5), image)
    assert half.conservation < 1e-12


def test_long_paths_in_one_slot_and_chunks() -> None:
    net, x = small(nn.GELU)
    whole = ps.unit_spectrum(net, x)
    cut = ps.unit_spectrum(net, x, max_length=1, chunk_size=3)
    torch.testing.assert_close(cut.terms[:2], whole.terms[:2])
    torch.testing.assert_close(cut.terms[2], whole.terms[2:].sum(0))
    assert cut.lengths == ["0", "1", ">1"]


def test_results_show_themselves() -> None:
    net, x = small(nn.ReLU)
    found = ps.unit_spectrum(net, x)
    assert repr(found).startswith("UnitSpectrum(4 units, 4 samples: mean path length ")
    assert found.table()["length"].tolist() == ["0", "1", "2", "3", "4"]
    assert found.plot().get_xlabel() == "path length (nonlinear units passed)"


def test_bad_input() -> None:
    with pytest.raises(errors.PathsumError, match="Linear has no nonlinear units"):
        ps.unit_spectrum(nn.Linear(3, 2), torch.randn(1, 3))
    net = arch.PlainNet().eval()
    with pytest.raises(errors.LambdaError, match="α has 3 values; the model has 2 nonlinear units"):
        ps.unit_spectrum(net, torch.randn(1, 3, 8, 8), alpha=[0, 0, 0])
    with pytest.raises(errors.LambdaError, match="max_length"):
        ps.unit_spectrum(net, torch.randn(1, 3, 8, 8), max_length=-1)
