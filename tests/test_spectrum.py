"""`spectrum` against all 2^n paths and against a polynomial fit, and what must hold for every network.

Tolerances. With frozen gates a term is a sum of products of at most n+2 affine maps: rounding about 1e-15 of the
largest term. The twins do the same arithmetic in another order, so 1e-11 of each term's own size leaves room for
terms far smaller than the output. Conservation is asked for at 1e-12 in float64 and 1e-5 in float32.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pathsum as ps
from pathsum import errors
from pathsum.nets import ResidualMLP, ResidualTower
from tests import architectures as arch
from tests.cases import CASES, Case, case, cifar_test, relative
from tests.reference import models
from tests.reference.closed_forms import multiples_terms, multiples_tower
from tests.reference.enumeration import path_terms
from tests.reference.interpolation import gated_terms
from tests.reference.pieces import run

TOLERANCE = 1e-11


pytestmark = pytest.mark.usefixtures("one_thread")


def check_lengths(terms: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Each length at the tolerance of its own size, or of rounding in the largest one."""
    assert terms.shape == expected.shape
    rounding = 1e-15 * float(expected.flatten(1).norm(dim=1).max())
    for k, (a, b) in enumerate(zip(terms, expected, strict=True)):
        off = float((a - b).norm())
        assert off < tolerance * float(b.norm()) + rounding, f"length {k} is off by {off:.1e} of {b.norm():.1e}"


def vector(size: int, batch: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, size, generator=generator, dtype=torch.float64)


def mlp(depth: int = 5, width: int = 8, **options: object) -> ResidualMLP:
    settings = {"in_features": 6, "num_classes": 4, "seed": 0} | options
    return ResidualMLP(depth, width, **settings).double().eval()


# ------------------------------------------------------------------------------------------------ twins


@pytest.mark.parametrize("c", CASES, ids=str)
def test_lengths_are_sums_over_all_paths(c: Case) -> None:
    model, inputs = c.build()
    s = ps.spectrum(model, *inputs)
    check_lengths(s.terms, path_terms(c.pieces(model), inputs[0]))


@pytest.mark.parametrize("c", CASES, ids=str)
def test_the_twins_agree_with_each_other(c: Case) -> None:
    model, (x,) = c.build()
    pieces = c.pieces(model)
    paths = path_terms(pieces, x)
    # the fit divides by nothing, but rounds at the size of the whole
    assert float((gated_terms(pieces, x) - paths).norm()) < 1e-13 * float(paths.norm())
    with torch.no_grad():
        output = model(x)
    assert relative(run(pieces, x), output) < 1e-13
    assert relative(paths.sum(0), output) < 1e-13


def test_multiples_of_the_identity() -> None:
    c = [0.5, -1.0, 2.0, 0.25]
    net, x = multiples_tower(c), vector(6)
    check_lengths(ps.spectrum(net, x).terms, multiples_terms(net, c, x), 1e-13)


# ------------------------------------------------------------------------------------------ conservation


@pytest.mark.parametrize("c", CASES, ids=str)
def test_knobs_at_default_change_no_bit(c: Case) -> None:
    model, inputs = c.build()
    net = ps.knobs(model, *inputs)
    assert len(net.branches) == c.joins
    with torch.no_grad():
        assert torch.equal(net(*inputs), model(*inputs))
        single = model.float()
        inputs = tuple(x.float() if x.is_floating_point() else x for x in inputs)
        assert torch.equal(ps.knobs(single, *inputs)(*inputs), single(*inputs))


@pytest.mark.parametrize("c", CASES, ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["64", "32"])
def test_lengths_sum_to_the_output(c: Case, dtype: torch.dtype, bound: float) -> None:
    model, inputs = c.build()
    model = model.to(dtype)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    s = ps.spectrum(model, *inputs)
    with torch.no_grad():
        assert torch.equal(s.output, model(*inputs))
    assert s.terms.shape == (c.joins + 1, *s.output.shape)
    assert s.terms.dtype == dtype
    assert relative(s.terms.sum(0), s.output) < bound
    assert s.conservation < bound


class Prefix(nn.Module):
    """A tower cut open after `depth` blocks: the stream itself is the output."""

    def __init__(self, net: nn.Module, depth: int) -> None:
        super().__init__()
        self.net, self.depth = net, depth

    def forward(self, x: Tensor) -> Tensor:
        z = self.net.encoder(x)
        for lam, branch in list(zip(self.net.scales, self.net.blocks, strict=True))[: self.depth]:
            z = torch.add(z, branch(z), alpha=lam)
        return z


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["conv-relu-per-branch", "conv-tanh", "conv-silu-bn"])
def test_conservation_holds_at_every_join(name: str, depth: int) -> None:
    tower, inputs = case(name).build()
    model = Prefix(tower, depth).eval()
    s = ps.spectrum(model, *inputs)
    with torch.no_grad():
        assert relative(s.terms.sum(0), model(*inputs)) < 1e-14


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_conservation_after_every_stage_of_a_real_resnet(stage: int) -> None:
    # inside a v1 network each stream is a ReLU's output, with its gates
    model, inputs = case("resnet-v1").build()
    stem = nn.Sequential(model.conv1, model.bn1, model.relu)
    cut = nn.Sequential(stem, *[model.layer1, model.layer2, model.layer3][:stage]).eval()
    s = ps.spectrum(cut, *inputs)
    assert s.terms.shape[0] == 2 * stage + 1
    with torch.no_grad():
        assert relative(s.terms.sum(0), cut(*inputs)) < 1e-14


@given(
    depth=st.integers(1, 6),
    activation=st.sampled_from(["relu", "tanh", "gelu", "silu", "identity"]),
    norm=st.sampled_from([None, "batch"]),
    lam=st.one_of(st.none(), st.floats(-2, 2), st.just(0.0)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_conservation_of_random_towers(depth: int, activation: str, norm, lam, seed: int) -> None:
    model = mlp(depth, activation=activation, norm=norm, seed=seed)
    x = vector(6, seed=seed)
    s = ps.spectrum(model, x, lam=lam)
    # terms may cancel: the bound is relative to what was added up
    size = float(s.terms.flatten(1).norm(dim=1).sum())
    assert float((s.terms.sum(0) - s.output).norm()) < 1e-13 * size
    pieces = models.tower(model) if lam is None else models.tower(model).scaled(lam)
    assert relative(s.output, run(pieces, x)) < 1e-12


# ---------------------------------------------------------------------------------- lengths cut, batches


@pytest.mark.parametrize("name", ["conv-relu-bn", "mlp-relu-n8", "bottleneck-v1", "post-ln", "gated-mlp"])
@pytest.mark.parametrize("max_length", [0, 1, 3])
def test_the_overflow_slot_holds_exactly_the_rest(name: str, max_length: int) -> None:
    model, inputs = case(name).build()
    whole, cut = ps.spectrum(model, *inputs), ps.spectrum(model, *inputs, max_length=max_length)
    assert cut.terms.shape == (max_length + 2, *cut.output.shape)
    check_lengths(cut.terms[:-1], whole.terms[: max_length + 1], 1e-13)
    torch.testing.assert_close(cut.terms[-1], whole.terms[max_length + 1 :].sum(0), rtol=1e-12, atol=1e-14)
    assert relative(cut.terms.sum(0), cut.output) < 1e-12


@pytest.mark.parametrize("max_length", [5, 9])
def test_a_cut_above_the_depth_leaves_the_overflow_empty(max_length: int) -> None:
    model, inputs = case("conv-relu").build()
    whole, cut = ps.spectrum(model, *inputs), ps.spectrum(model, *inputs, max_length=max_length)
    check_lengths(cut.terms[:6], whole.terms, 1e-13)
    assert float(cut.terms[6:].abs().max() if len(cut.terms) > 6 else 0) < 1e-15


@pytest.mark.parametrize("name", ["conv-relu-bn", "bottleneck-v1", "pre-ln", "layer-scale"])
@pytest.mark.parametrize("chunk_size", [1, 2, 100])
def test_chunks_change_nothing(name: str, chunk_size: int) -> None:
    model, inputs = case(name).build()
    whole, parts = ps.spectrum(model, *inputs), ps.spectrum(model, *inputs, chunk_size=chunk_size)
    check_lengths(parts.terms, whole.terms, 1e-12)
    torch.testing.assert_close(parts.output, whole.output, rtol=1e-12, atol=1e-13)


@given(st.permutations(range(4)))
@settings(max_examples=6, deadline=None)
def test_samples_do_not_see_each_other(order: list[int]) -> None:
    x = vector(6, 4)
    net = ps.knobs(mlp(), x)
    check_lengths(ps.spectrum(net, x[order]).terms, ps.spectrum(net, x).terms[:, order], 1e-12)


@given(st.lists(st.floats(-3, 3), min_size=8, max_size=8))
@settings(max_examples=8, deadline=None)
def test_terms_are_additive_over_decoder_rows(entries: list[float]) -> None:
    # gates sit before the decoder: mixing its rows mixes every length alike
    model, x = mlp(), vector(6)
    mix = torch.tensor(entries, dtype=torch.float64).view(2, 4)
    terms = ps.spectrum(model, x).terms
    with torch.no_grad():
        linear = nn.Linear(8, 2).double()
        linear.weight.copy_(mix @ model.decoder.linear.weight)
        linear.bias.copy_(mix @ model.decoder.linear.bias)
    model.decoder.linear = linear
    torch.testing.assert_close(ps.spectrum(model, x).terms, terms @ mix.T, rtol=1e-11, atol=1e-12)


# ---------------------------------------------------------------------------------------------------- λ


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_per_branch_lambda(activation: str) -> None:
    model, x = mlp(activation=activation), vector(6)
    lam = torch.tensor([0.4, 0.0, -0.6, 1.5, 0.1], dtype=torch.float64)
    s = ps.spectrum(model, x, lam=lam)
    pieces = models.tower(model).scaled(lam.tolist())
    check_lengths(s.terms, path_terms(pieces, x))
    assert float(s.terms[5].abs().max()) == 0  # no path takes all five: λ_2 is zero


def test_one_lambda_for_all() -> None:
    model, x = mlp(), vector(6)
    s = ps.spectrum(model, x, lam=0.9)
    check_lengths(s.terms, path_terms(models.tower(model).scaled(0.9), x))


def test_lambda_zero_leaves_the_path_through_no_branch() -> None:
    model, x = mlp(), vector(6)
    s = ps.spectrum(model, x, lam=0.0)
    assert float(s.terms[1:].abs().max()) == 0
    torch.testing.assert_close(s.terms[0], model.decoder(model.encoder(x)), rtol=1e-13, atol=1e-13)
    assert s.mean_length() == pytest.approx(0.0)


def test_linear_towers_have_one_expansion() -> None:
    # without gates to freeze, lengths are orders: λ^k M_k
    model, inputs = case("conv-linear").build()
    s, e = ps.spectrum(model, *inputs), ps.expand(model, *inputs, order=5)
    check_lengths(s.terms, torch.stack([e.lam**k * term for k, term in enumerate(e.terms)]))


@given(seed=st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_below_the_first_gate_flip_lengths_are_orders(seed: int) -> None:
    model, x = mlp(seed=seed), vector(6, seed=seed)
    s, e = ps.spectrum(model, x, lam=1e-10), ps.expand(model, x, order=2, lam=1e-10)
    for k in range(3):
        expected = 1e-10**k * e.terms[k]
        torch.testing.assert_close(s.terms[k], expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_orders_are_not_lengths_once_gates_have_flipped() -> None:
    model, inputs = case("mlp-relu-n8").build()
    s, e = ps.spectrum(model, *inputs), ps.expand(model, *inputs, order=8)
    assert relative(e.partial(8), e.output) > 1e-3
    assert relative(s.terms.sum(0), s.output) < 1e-12


# ------------------------------------------------------------------------------------------------ results


def test_accuracy_by_longest_path_ends_at_the_accuracy_of_the_model() -> None:
    model, x = mlp(scale=1), vector(6, 40)
    s = ps.spectrum(model, x)
    labels = torch.randint(4, (40,), generator=torch.Generator().manual_seed(0))
    accuracy = s.accuracy(labels)
    expected = [float((t.argmax(-1) == labels).double().mean()) for t in s.terms.cumsum(0)]
    assert isinstance(accuracy, np.ndarray)
    assert accuracy.tolist() == pytest.approx(expected)
    assert accuracy[-1] == pytest.approx(float((s.output.argmax(-1) == labels).double().mean()))


def test_mean_length_lies_between_the_ends_and_grows_with_lambda() -> None:
    net = ps.knobs(mlp(), vector(6))
    means = [ps.spectrum(net, vector(6), lam=lam).mean_length() for lam in (0.01, 0.1, 1.0, 10.0)]
    assert 0 < means[0] < means[1] < means[2] < means[3] <= 5


def test_tables() -> None:
    model, x = mlp(), vector(6, 7)
    s = ps.spectrum(model, x)
    assert len(s.table()) == 6
    assert len(s.per_sample()) == 7
    labels = s.output.argmax(-1)
    table = s.table(labels)
    assert table["accuracy"].tolist() == pytest.approx(s.accuracy(labels).tolist())


# ------------------------------------------------------------------------------------------- trained nets


@pytest.mark.data
@pytest.mark.parametrize("name", ["resnet20", "resnet32"])
def test_trained_resnets(name: str, shared: Path) -> None:
    model = arch.trained(name, shared)
    x, labels = cifar_test(shared, 500)
    net = ps.knobs(model, x[:2])
    depth = {"resnet20": 9, "resnet32": 15}[name]
    assert len(net.branches) == depth
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(net(x), logits)
    assert float((logits.argmax(-1) == labels).double().mean()) > 0.9
    s = ps.spectrum(net, x[:32], chunk_size=16)
    assert s.terms.shape == (depth + 1, 32, 10)
    assert relative(s.terms.sum(0), s.output) < 1e-5
    assert relative(s.output, logits[:32]) < 1e-5
    assert s.accuracy(labels[:32])[-1] == pytest.approx(float((logits[:32].argmax(-1) == labels[:32]).double().mean()))


@pytest.mark.data
@pytest.mark.parametrize("name", ["resnet20", "resnet32"])
def test_trained_resnets_in_float64(name: str, shared: Path) -> None:
    model = arch.trained(name, shared).double()
    x = cifar_test(shared, 2)[0].double()
    s = ps.spectrum(model, x)
    assert s.conservation < 1e-12
    assert relative(s.terms.sum(0), s.output) < 1e-12
    # 2^15 paths by a polynomial fit instead; the fit rounds at the size of the whole
    expected = gated_terms(models.cifar_resnet(model), x)
    assert float((s.terms - expected).norm()) < 1e-12 * float(expected.norm())


@pytest.mark.slow
@pytest.mark.data
def test_trained_resnet20_by_all_512_paths(shared: Path) -> None:
    model = arch.trained("resnet20", shared).double()
    x = cifar_test(shared, 2)[0].double()
    check_lengths(ps.spectrum(model, x).terms, path_terms(models.cifar_resnet(model), x))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("name", "accuracy"), [("resnet20", 0.9173), ("resnet32", 0.9263)])
def test_published_accuracy_through_knobs(name: str, accuracy: float, shared: Path) -> None:
    model = arch.trained(name, shared)
    x, labels = cifar_test(shared, 10_000)
    net = ps.knobs(model, x[:2])
    right = 0
    with torch.no_grad():
        for images, answers in zip(x.split(500), labels.split(500), strict=True):
            logits = net(images)
            assert torch.equal(logits, model(images))
            right += int((logits.argmax(-1) == answers).sum())
    assert right / 10_000 == accuracy


# ------------------------------------------------------------------------------------------------ memory

MEMORY = """
import sys, torch, pathsum as ps
from pathlib import Path

def peak():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

torch.set_num_threads(1)
net = ps.ResidualTower(6, 16, encoder="affine", seed=0).eval()
chunk = int(sys.argv[1]) or None
x = torch.randn(384, 3, 16, 16)
ps.spectrum(net, x[:16], chunk_size=chunk)
first = peak()
ps.spectrum(net, x, chunk_size=chunk)
print(peak() - first)
"""


def growth(chunk_size: int) -> float:
    """MiB by which the peak grows from 16 to 384 samples, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEMORY, str(chunk_size)], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_does_not_grow_with_the_number_of_samples() -> None:
    # results grow by 7 lengths × 368 samples × 10 floats = 0.1 MiB; the rest is the allocator's slack.
    # Without chunks one activation of all samples in 7 coefficients is 42 MiB.
    assert growth(16) < 12
    assert growth(0) > 60


# --------------------------------------------------------------------------------------------- bad input


def test_no_joins() -> None:
    with pytest.raises(errors.NoJoinsError, match="PlainNet"):
        ps.spectrum(arch.PlainNet().eval(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("max_length", [-1, 2.5])
def test_impossible_max_length(max_length: object) -> None:
    with pytest.raises(errors.PathsumError, match="max_length"):
        ps.spectrum(mlp(), vector(6), max_length=max_length)


def test_train_mode_is_refused_by_name() -> None:
    model = ResidualTower(2, 4, encoder="conv3x3", norm="batch", num_classes=3, seed=0)
    with pytest.raises(errors.ModeError, match="norm"):
        ps.spectrum(model, torch.randn(2, 3, 6, 6))
