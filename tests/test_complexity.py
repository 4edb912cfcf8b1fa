"""Geometric complexity: exact, estimated, and as a regularizer."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from pathsum.complexity import probes as signs
from pathsum.data import Dataset, Split, normalize
from pathsum.errors import DataError, LambdaError, ModeError, PathsumError
from pathsum.training.memory import PeakMemory
from tests.architectures import PreLNTransformer
from tests.cases import case, relative
from tests.reference import complexity as twin
from tests.test_leave_no_trace import facts

GC = ps.geometric_complexity
MODELS = ("conv-relu-bn", "conv-gelu", "mlp-tanh", "resnet-v1", "preact-v2", "post-ln", "squeeze-excite", "rms-norm")

pytestmark = pytest.mark.usefixtures("one_thread")


def mlp(**options):
    options = {"depth": 3, "width": 6, "in_features": 5, "num_classes": 10, "seed": 0} | options
    return ps.ResidualMLP(**options).double()


def numbers(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Exact, against one Jacobian a sample


@pytest.mark.parametrize("name", MODELS)
def test_exact_is_the_norm_of_the_jacobian(name):
    net, (x,) = case(name).build()
    found = GC(net, x, chunk_size=2)
    assert relative(found.per_sample, twin.per_sample(net, x).detach()) < 1e-12
    assert found.value == pytest.approx(float(found.per_sample.mean()), rel=1e-15)
    assert (found.num_samples, found.method, found.probes, found.probe_stderr) == (len(x), "exact", None, 0.0)


def test_a_vision_transformer_of_transformers():
    from tests.language import build

    net = build("vit").double()
    x = numbers(2, 3, 16, 16)
    assert relative(GC(net, x).per_sample, twin.per_sample(lambda x: net(x).logits, x).detach()) < 1e-12


def test_gpt2_is_differentiated_by_its_token_embeddings():
    from tests.language import build

    net = build("few").double()
    ids = torch.randint(50, (2, 4))
    last = {"output": lambda out: out.logits[:, -1]}
    expected = twin.per_sample(lambda e: net(inputs_embeds=e).logits[:, -1], net.transformer.wte(ids).detach()).detach()
    found = GC(net, ids, **last)
    assert relative(found.per_sample, expected) < 1e-12
    assert found.inputs == "embeddings"
    named = GC(net, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, **last)
    assert relative(named.per_sample, expected) < 1e-12


def test_positions_that_equal_the_tokens_are_no_input():
    net, _ = case("pre-ln").build()
    ids = torch.arange(5).repeat(2, 1)  # as the positions are
    one = {"output": lambda out: out[:, 2]}

    def from_vectors(e):
        x = e + net.wpe(torch.arange(5))
        for block in net.h:
            x = block(x)
        return net.head(net.ln_f(x))[:, 2]

    assert (
        relative(GC(net, ids, **one).per_sample, twin.per_sample(from_vectors, net.wte(ids).detach()).detach()) < 1e-12
    )


@pytest.mark.parametrize(
    "lookup",
    [
        lambda w, ids: w[ids],
        lambda w, ids: F.embedding(ids.view(-1), w).view(*ids.shape, -1),
        lambda w, ids: F.embedding(ids.to(torch.int32).long().clone(), w),
    ],
    ids=["indexing", "flattened", "copied"],
)
def test_embeddings_are_found_however_they_are_written(lookup):
    w, ids = numbers(7, 3), torch.tensor([[1, 2], [3, 3], [6, 0]])
    found = GC(lambda ids: lookup(w, ids).square().sum((1, 2)), ids)
    assert relative(found.per_sample, 4 * w[ids].square().sum((1, 2))) < 1e-14


def test_two_embeddings_of_the_same_tokens_count_both():
    w, ids = numbers(2, 7, 3), torch.tensor([[1, 2], [3, 3]])
    found = GC(lambda ids: (F.embedding(ids, w[0]) + 2 * F.embedding(ids, w[1])).flatten(1), ids)
    torch.testing.assert_close(found.per_sample, torch.full((2,), 6.0 + 24.0, dtype=torch.float64))


def test_the_knobs_run_with_their_lambda():
    net, x = mlp(activation="tanh"), numbers(4, 5)
    knobbed = ps.knobs(net, x).rescale(0.05)
    expected = twin.per_sample(lambda x: knobbed(x, lam=0.05), x).detach()
    assert relative(GC(knobbed, x).per_sample, expected) < 1e-12
    assert relative(GC(lambda x: knobbed(x, lam=0.05), x).per_sample, expected) < 1e-12
    assert relative(GC(net, x).per_sample, expected) > 0.1


def test_a_scalar_output_and_a_first_layer_that_writes_into_its_input():
    x = numbers(4, 3)
    assert relative(GC(lambda x: x.square().sum(1), x).per_sample, 4 * x.square().sum(1)) < 1e-15
    before = x.clone()
    assert relative(GC(lambda x: x.mul_(3), x).per_sample, torch.full((4,), 27.0).double()) < 1e-15
    assert torch.equal(x, before)


def test_an_output_that_ignores_some_inputs_has_a_zero_there():
    found = GC(lambda x: torch.stack([x[:, 0], torch.ones_like(x[:, 0])], 1), numbers(3, 2))
    assert found.per_sample.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_where_they_are_switched_off(context):
    net, x = mlp(), numbers(3, 5)
    expected = GC(net, x).value
    with context():
        assert GC(net, x).value == expected
        assert GC(net, x.clone()).value == expected


# Data sets and units


def digits_like(count=12):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 6, 6), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 4)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    return Dataset("made", split, split, tuple("abcd"), mean, std, False)


def test_tensors_splits_and_loaders_agree():
    net = ps.ResidualTower(2, 4, num_classes=4, encoder="affine", seed=0).double().eval()
    data = digits_like()
    x = normalize(data.train.images, data.mean, data.std, dtype=torch.float64)
    expected = GC(net, x)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, data.train.labels), batch_size=5)
    options = {"chunk_size": 4}
    for found, unit in (
        (GC(net, data, **options), "normalized"),
        (GC(net, data.train, mean=data.mean, std=data.std, **options), "normalized"),
        (GC(net, loader, **options), "as given"),
        (GC(net, (b for b in x.split(7)), **options), "as given"),
        (GC(net, [{"x": b} for b in x.split(7)], **options), "as given"),
    ):
        torch.testing.assert_close(found.per_sample, expected.per_sample, rtol=1e-12, atol=0)
        assert found.inputs == unit
        assert found.stderr == pytest.approx(float(expected.per_sample.std()) / math.sqrt(12))


@pytest.mark.parametrize("std", [(0.2, 0.3, 0.25), 0.5])
def test_raw_pixels_are_those_before_normalization(std):
    net = ps.ResidualTower(2, 4, num_classes=4, encoder="affine", seed=0).double().eval()
    raw = numbers(3, 3, 6, 6).sigmoid()
    spread = torch.tensor(std, dtype=torch.float64).reshape(-1, 1, 1)
    found = GC(net, (raw - 0.4) / spread, std=std, inputs="raw")
    assert relative(found.per_sample, twin.per_sample(lambda raw: net((raw - 0.4) / spread), raw).detach()) < 1e-12
    assert found.inputs == "raw"
    assert "inputs raw" in repr(found)


def test_memory_is_that_of_a_chunk():
    net, x = ps.ResidualMLP(8, 64, in_features=5, seed=0), torch.randn(512, 5)
    peaks = []
    for samples in (64, 512):
        with PeakMemory() as memory:
            GC(net, x[:samples], chunk_size=16)
        peaks.append(memory.peak)
    assert peaks[1] < 1.2 * peaks[0]


# Hutchinson


def test_hadamard_matrices_are_orthogonal():
    for outputs in (1, 2, 3, 5, 10, 13, 37, 100, 129):
        h = signs.hadamard(signs.order_for(outputs))
        assert len(h) >= outputs
        assert torch.equal(h.T @ h, len(h) * torch.eye(len(h), dtype=torch.int64))


def test_probes_are_signs_and_a_whole_set_is_exact():
    like = torch.zeros((), dtype=torch.float64)
    v = signs.draw(50, 10, 12, generator=torch.Generator().manual_seed(0), like=like)
    assert v.shape == (12, 50, 10)
    assert torch.equal(v.abs(), torch.ones_like(v))
    torch.testing.assert_close(torch.einsum("mbi,mbj->bij", v, v), 12 * torch.eye(10).double().expand(50, 10, 10))
    net, x = mlp(), numbers(6, 5)
    found = GC(net, x, method="hutchinson", probes=12)
    assert relative(found.per_sample, GC(net, x).per_sample) < 1e-12
    assert found.probe_stderr == 0


@pytest.mark.parametrize("outputs", [10, 2000])
def test_each_probe_has_unit_covariance(outputs):
    """E[v vᵀ] = 1 for the first six outputs: 4 standard errors of a mean of signs, over 21 entries."""
    n = 20000 if outputs == 10 else 2000
    v = signs.draw(n, outputs, 1, generator=torch.Generator().manual_seed(1), like=torch.zeros(()))[0, :, :6]
    assert float((v.T @ v / n - torch.eye(6)).abs().max()) < 4 / math.sqrt(n)


def test_orthogonal_probes_have_less_variance_than_independent_ones():
    """By (N − m)/(N − 1) = 8/11 for 4 of 12 rows; with 20 000 draws the ratio is known to about 3 %."""
    a = numbers(10, 10)
    a = a @ a.T
    generator = torch.Generator().manual_seed(0)
    count, m = 20000, 4
    v = signs.draw(count, 10, m, generator=generator, like=a)
    w = 2 * torch.randint(2, v.shape, generator=generator).to(a) - 1
    drawn, independent = (torch.einsum("mbi,ij,mbj->mb", u, a, u).mean(0) for u in (v, w))
    assert float(drawn.var() / independent.var()) == pytest.approx(8 / 11, rel=0.1)
    assert float(drawn.mean()) == pytest.approx(float(a.trace()), abs=4 * float(drawn.std()) / math.sqrt(count))


@pytest.mark.parametrize("probes", [2, 4, 15])
def test_the_error_of_the_probes_is_calibrated(probes):
    """z = (estimate − exact)/probe_stderr over 100 seeds: |z| ≤ 3 in 99, and a standard deviation of 1.

    The deviation of 100 normal numbers has standard error 1/√200 = 0.07; four of those are allowed.
    """
    net, x = mlp(activation="tanh"), numbers(256, 5)  # so many that errors are normal
    exact = GC(net, x).value
    options = {"method": "hutchinson", "probes": probes, "chunk_size": 256}
    found = [GC(net, x, seed=seed, **options) for seed in range(100)]
    z = torch.tensor([(g.value - exact) / g.probe_stderr for g in found])
    assert int((z.abs() <= 3).sum()) >= 99
    assert float(z.std()) == pytest.approx(1, abs=4 / math.sqrt(200))
    assert abs(float(z.mean())) < 4 / math.sqrt(100)


@pytest.mark.parametrize("probes", [1, 4])
def test_the_whole_error_is_calibrated(probes):
    """z = (estimate from 256 samples − GC of the population they were drawn from)/stderr, as above."""
    net = mlp(activation="tanh")
    population = numbers(8192, 5)
    exact = GC(net, population, chunk_size=8192).value
    z = []
    for seed in range(100):
        rows = torch.randint(8192, (256,), generator=torch.Generator().manual_seed(seed))
        g = GC(net, population[rows], method="hutchinson", probes=probes, seed=seed, chunk_size=256)
        z.append((g.value - exact) / g.stderr)
    z = torch.tensor(z)
    assert int((z.abs() <= 3).sum()) >= 99
    assert float(z.std()) == pytest.approx(1, abs=4 / math.sqrt(200))


def test_seeds_decide_the_probes():
    net, x = mlp(), numbers(8, 5)
    a, b, c = (GC(net, x, method="hutchinson", seed=s).value for s in (0, 0, 1))
    assert a == b != c
    assert math.isnan(GC(net, x, method="hutchinson", probes=1).probe_stderr)
    assert math.isnan(GC(net, x[:1]).stderr)


# As a regularizer


@pytest.mark.parametrize("name", ["mlp-tanh", "conv-silu-bn", "post-ln", "layer-scale"])
def test_the_penalty_has_the_gradient_of_the_definition(name):
    net, (x,) = case(name).build()
    weights = dict(net.named_parameters())
    expected = twin_gradient(net, weights, x)
    found = torch.autograd.grad(
        GC.penalty(net, x, probes=None), list(weights.values()), allow_unused=True, materialize_grads=True
    )
    for g, e in zip(found, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-12)


def twin_gradient(net, weights, x):
    def value(weights):
        return twin.per_sample(lambda one: torch.func.functional_call(net, weights, (one,)), x).mean()

    return list(torch.func.grad(value)({k: w.detach() for k, w in weights.items()}).values())


def test_the_penalty_of_token_ids_reaches_the_embedding():
    net = PreLNTransformer().double()
    ids = torch.tensor([[1, 2, 3], [3, 3, 0]])
    penalty = GC.penalty(net, ids, output=lambda out: out[:, -1], probes=None)

    def value(table):
        def f(e):
            x = e + net.wpe(torch.arange(3))
            for block in net.h:
                x = block(x)
            return net.head(net.ln_f(x))[:, -1]

        return twin.per_sample(f, F.embedding(ids, table)).mean()

    expected = torch.func.grad(value)(net.wte.weight.detach())
    torch.testing.assert_close(torch.autograd.grad(penalty, net.wte.weight)[0], expected, rtol=1e-9, atol=1e-12)


def test_one_probe_is_right_on_average():
    """The gradient by one weight matrix over 400 draws of one probe, each entry within 5 of its standard errors."""
    net, x = mlp(activation="tanh", num_classes=3, depth=1), numbers(8, 5)
    weight = net.encoder.linear.weight
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([torch.autograd.grad(GC.penalty(net, x, generator=generator), weight)[0] for _ in range(400)])
    exact = torch.autograd.grad(GC.penalty(net, x, probes=None), weight)[0]
    assert float(((draws.mean(0) - exact) / (draws.std(0) / 20)).abs().max()) < 5


def test_the_penalty_of_each_sample_and_training_with_it():
    net, x = mlp(activation="tanh"), numbers(16, 5)
    each = GC.penalty(net, x, probes=None, per_sample=True)
    torch.testing.assert_close(each.detach(), GC(net, x).per_sample, rtol=1e-12, atol=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    before = GC(net, x).value
    for _ in range(20):
        GC.penalty(net.train(), x).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert GC(net.eval(), x).value < 0.5 * before


# Refusals, and no trace


def test_layers_that_mix_samples_are_refused_by_name():
    net, x = ps.ResidualTower(1, 4, norm="batch", seed=0), torch.randn(2, 3, 8, 8)
    with pytest.raises(ModeError, match=r"BatchNorm 'encoder.norm' is in train mode.*eval"):
        GC(net, x)
    with pytest.raises(ModeError, match=r"BatchNorm 'encoder.norm' is in train mode.*eval"):
        GC.penalty(net, x)
    with pytest.raises(ModeError, match="BatchNorm in train mode"):
        GC(lambda x: net(x), x)
    drop = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    with pytest.raises(ModeError, match="dropout '1'"):
        GC(drop, torch.ones(2, 3))
    with pytest.raises(ModeError, match="dropout in train mode"):
        GC(lambda x: drop(x), torch.ones(2, 3))
    assert GC(lambda x: drop.eval()(x), torch.ones(2, 3)).value > 0
    assert GC.penalty(drop.train(), torch.ones(2, 3)).requires_grad


BAD = {
    "no batch axis": (lambda: GC(lambda x: x.sum(), torch.ones(2, 3)), DataError, "one output a sample"),
    "other batch axis": (lambda: GC(lambda x: x.T, torch.ones(2, 3)), DataError, r"\(3, 2\) for 2 samples"),
    "constant": (lambda: GC(lambda x: torch.ones(2, 3), torch.ones(2, 3)), DataError, "carries no gradient"),
    "integers out": (lambda: GC(lambda x: x.argmax(1), torch.ones(2, 3)), DataError, "real numbers"),
    "no embedding": (lambda: GC(lambda x: x.float(), torch.ones(2, 3).long()), DataError, "no embedding takes them"),
    "masks": (lambda: GC(lambda x: x, torch.ones(2, 3) > 0), DataError, "torch.bool"),
    "method": (lambda: GC(lambda x: x, torch.ones(2, 3), method="magic"), PathsumError, "'exact', 'hutchinson'"),
    "probes": (lambda: GC(lambda x: x, torch.ones(2, 3), probes=0), LambdaError, "probes=0"),
    "chunk": (lambda: GC(lambda x: x, torch.ones(2, 3), chunk_size=0), LambdaError, "chunk_size=0"),
    "raw without std": (lambda: GC(lambda x: x, torch.ones(2, 3), inputs="raw"), DataError, "needs std="),
    "unit": (lambda: GC(lambda x: x, torch.ones(2, 3), inputs="grey"), DataError, "'normalized'"),
    "std": (lambda: GC(lambda x: x, torch.ones(2, 3), std=0.0), DataError, "positive"),
    "std of words": (lambda: GC(lambda x: x, torch.ones(2, 3), std="wide"), DataError, "one a channel"),
    "std of others": (lambda: GC(lambda x: x, torch.ones(2, 3, 4, 4), inputs="raw", std=(1, 2)), DataError, "2 values"),
    "bare split": (lambda: GC(lambda x: x, digits_like().train), DataError, "mean= and std="),
    "nothing": (lambda: GC(lambda x: x, []), DataError, "no samples"),
    "a name": (lambda: GC(lambda x: x, "cifar10"), DataError, "x is a str"),
    "strange batch": (lambda: GC(lambda x: x, [3]), DataError, "a batch is a int"),
    "penalty of a loader": (lambda: GC.penalty(lambda x: x, digits_like().train), DataError, "a batch is a Split"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_done_is_said_in_one_line(what):
    call, error, text = BAD[what]
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_no_trace_is_left_also_after_an_error():
    net, x = ps.ResidualTower(2, 4, norm="batch", seed=0).eval(), torch.randn(4, 3, 8, 8)
    before, random = facts(net), torch.get_rng_state()
    GC(net, x, method="hutchinson")
    GC(net, x)
    GC.by_order(net, x, 1)
    GC.by_length(net, x)
    with pytest.raises(ZeroDivisionError):
        GC(net, x, output=lambda out: 1 / 0)
    GC.penalty(net, x, generator=torch.Generator())
    assert facts(net) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert not x.requires_grad
    assert x.grad is None


def test_what_is_shown():
    found = GC(mlp(), numbers(4, 5), method="hutchinson", probes=3)
    assert repr(found).startswith("GeometricComplexity(")
    assert "\n" not in repr(found)
    assert "4 samples, Hutchinson, 3 probes, inputs as given" in repr(found)
    row = found.table().iloc[0]
    assert (row.value, row.num_samples, row.num_outputs, row.probes) == (found.value, 4, 10, 3)
    assert "<table" in found._repr_html_()
    assert found.plot().get_ylabel() == "samples"
    assert GC.__doc__.startswith("The mean over a data set")
    assert "by_order" in repr(GC)
