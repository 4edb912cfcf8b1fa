"""`expand` against independent twins: interpolation in λ, chains of Jacobians, closed forms.

Tolerances. Everything is float64 unless said. The towers are shallow, so 1e-12 of a term's own size would do for
the engine. The less exact side is a twin: Cauchy's integral on |λ| = r loses 1e-16·max|f|/(r^k ‖M_k‖), up to
3e-11 over the case matrix (compared at two radii when the cases were chosen), so orders are compared at 1e-9.
"""

from itertools import pairwise

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
from tests.cases import CASES, TOWERS, Case, case, cifar_test, relative
from tests.reference import models
from tests.reference.chains import chain_terms
from tests.reference.closed_forms import elementary_symmetric, multiples_terms, multiples_tower
from tests.reference.interpolation import one_sided_terms, taylor_terms
from tests.reference.pieces import run

TOLERANCE = 1e-9


pytestmark = pytest.mark.usefixtures("one_thread")


def per_unit(e: ps.Expansion) -> Tensor:
    """Terms as they enter the sum: coefficients in t, where t multiplies every λ_i in force."""
    powers = torch.tensor([e.lam**k for k in range(len(e.terms))], dtype=e.terms.dtype)
    return e.terms * powers.view(-1, *(1,) * (e.terms.ndim - 1))


def check_orders(terms: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Each order at the tolerance of its own size."""
    assert terms.shape == expected.shape
    for k, (a, b) in enumerate(zip(terms, expected, strict=True)):
        assert relative(a, b) < tolerance, f"order {k} is off by {relative(a, b):.1e}"


def vector(size: int, batch: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, size, generator=generator, dtype=torch.float64)


def tanh_mlp(depth: int = 4, **options: object) -> ResidualMLP:
    defaults = {"in_features": 6, "num_classes": 4, "activation": "tanh", "seed": 0} | options
    return ResidualMLP(depth, 8, **defaults).double().eval()


# ------------------------------------------------------------------------------------------------ twins


@pytest.mark.parametrize("c", CASES, ids=str)
def test_orders_are_those_of_interpolation(c: Case) -> None:
    model, inputs = c.build()
    top = min(c.joins, 5) if c.polynomial else 5
    e = ps.expand(model, *inputs, order=top)
    check_orders(per_unit(e), taylor_terms(c.pieces(model), inputs[0], top, radius=c.radius))


@pytest.mark.parametrize("c", [c for c in CASES if c.polynomial], ids=str)
def test_a_piecewise_linear_network_has_no_order_above_its_depth(c: Case) -> None:
    model, inputs = c.build()
    e = ps.expand(model, *inputs, order=c.joins + 2)
    assert per_unit(e)[c.joins + 1 :].abs().max() < 1e-13 * e.output.norm()


@pytest.mark.parametrize("name", ["conv-relu", "mlp-relu", "mlp-relu-bn", "mlp-linear", "mlp-relu-n8"])
def test_orders_are_sums_over_chains(name: str) -> None:
    # D' Σ F_ik' … F_i2' F_i1, every chain apart; 1e-12 since nothing is interpolated
    model, (x,) = case(name).build()
    e = ps.expand(model, x, order=case(name).joins)
    check_orders(e.terms, chain_terms(model.encoder, list(model.blocks), model.decoder, x), 1e-12)


@pytest.mark.parametrize("name", ["conv-tanh", "conv-silu-bn", "mlp-gelu"])
def test_first_orders_of_smooth_towers_are_theorem_3_1(name: str) -> None:
    # M_1 = Σ F_i and M_2 = Σ F_j'F_i hold for any branches; order 3 also has second derivatives
    model, (x,) = case(name).build()
    chains = chain_terms(model.encoder, list(model.blocks), model.decoder, x)
    terms = ps.expand(model, x, order=3).terms
    check_orders(terms[:3], chains[:3], 1e-12)
    assert relative(terms[3], chains[3]) > 1e-3


@given(st.lists(st.floats(-2, 2).filter(lambda c: abs(c) > 0.1), min_size=1, max_size=7))
@settings(max_examples=15, deadline=None)
def test_multiples_of_the_identity_give_elementary_symmetric_polynomials(c: list[float]) -> None:
    net, x = multiples_tower(c), vector(6)
    e = ps.expand(net, x, order=len(c), lam=0.7)
    expected = multiples_terms(net, c, x)
    # e_k may cancel to nearly nothing: compare with the size of its summands
    for k in range(len(c) + 1):
        size = elementary_symmetric([abs(v) for v in c], k) * float(x.norm() + 1)
        assert float((e.terms[k] - expected[k]).norm()) < 1e-12 * size
    assert e.errors[-1] < 1e-12 * max(1, float(1 / e.output.norm())) * 3 ** len(c)


def test_equal_multiples_give_binomials() -> None:
    net, x = multiples_tower([1.0] * 6), vector(6)
    e = ps.expand(net, x, order=6)
    linear_part = net.encoder(x) @ net.decoder.weight.T
    for k, count in enumerate(ps.path_counts(6)[1:], start=1):
        torch.testing.assert_close(e.terms[k], count * linear_part, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("c", [c for c in TOWERS if "per-branch" not in c.name], ids=str)
def test_the_twins_agree_with_each_other(c: Case) -> None:
    # chains where they hold against interpolation: two ways without code in common
    model, (x,) = c.build()
    top = c.joins if c.polynomial else 2
    chains = chain_terms(model.encoder, list(model.blocks), model.decoder, x)[: top + 1]
    radius = c.radius * model.scales[0]
    check_orders(taylor_terms(c.pieces(model).scaled(1.0), x, top, radius=radius), chains, 1e-9)


# -------------------------------------------------------------------------------- truncation, remainder


def test_truncation_error_falls_with_slope_order_plus_one() -> None:
    # the error of order K is ‖M_{K+1}‖ λ^{K+1} (1 + O(λ)): small λ keep the bracket from moving the slope, but
    # the smallest error, about λ^{K+1}, must stay 100 times above rounding
    net = ps.knobs(tanh_mlp(5), vector(6))
    for order in range(6):
        smallest = max(0.003, 10 ** (-12.5 / (order + 1)))
        lams = smallest * np.geomspace(1, 2, 4)
        sizes = [float(ps.expand(net, vector(6), order=6, lam=lam).remainder(order).norm()) for lam in lams]
        slope = np.polyfit(np.log(lams), np.log(sizes), 1)[0]
        assert abs(slope - (order + 1)) < 0.1, f"order {order}: slope {slope:.3f}"


@pytest.mark.parametrize("name", ["conv-tanh-per-branch", "mlp-relu", "bottleneck-v1", "pre-ln"])
def test_partial_sums_and_remainders_make_the_output(name: str) -> None:
    model, inputs = case(name).build()
    e = ps.expand(model, *inputs, order=3)
    with torch.no_grad():
        # the output comes out of the same run as the orders, with its convolutions batched with theirs
        torch.testing.assert_close(e.output, model(*inputs), rtol=1e-13, atol=1e-13)
    terms = per_unit(e)
    for k in range(4):
        torch.testing.assert_close(e.partial(k), terms[: k + 1].sum(0), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(e.partial(k) + e.remainder(k), e.output, rtol=1e-13, atol=1e-13)
        assert float(e.errors[k]) == pytest.approx(relative(e.partial(k), e.output), rel=1e-9)


def test_terms_do_not_depend_on_the_lambda_in_force() -> None:
    model, x = tanh_mlp(), vector(6)
    net = ps.knobs(model, x)
    pieces = models.tower(model)
    expected = ps.expand(net, x, order=4, lam=1.0).terms
    for lam in (0.0, -0.2, 0.05, 3.0):
        e = ps.expand(net, x, order=4, lam=lam)
        assert e.lam == lam
        assert e.weights is None
        check_orders(e.terms, expected, 1e-12)
        torch.testing.assert_close(e.output, run(pieces.scaled(lam), x), rtol=1e-13, atol=1e-13)
    own = ps.expand(net, x, order=4)
    assert own.lam == pytest.approx(0.5)
    check_orders(own.terms, expected, 1e-12)


def test_at_lambda_zero_the_base_model_is_everything() -> None:
    model, x = tanh_mlp(), vector(6)
    e = ps.expand(model, x, order=2, lam=0.0)
    torch.testing.assert_close(e.output, model.decoder(model.encoder(x)), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(e.partial(0), e.output, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_per_branch_lambda_weights_the_paths(activation: str) -> None:
    model, x = tanh_mlp(activation=activation), vector(6)
    lam = torch.tensor([0.3, 0.05, 0.7, 0.2], dtype=torch.float64)
    e = ps.expand(model, x, order=4, lam=lam)
    torch.testing.assert_close(e.weights, lam)
    assert e.lam == 1
    pieces = models.tower(model).scaled(lam.tolist())
    check_orders(e.terms, taylor_terms(pieces, x, 4, radius=1.0))
    torch.testing.assert_close(e.output, run(pieces, x), rtol=1e-13, atol=1e-13)


def test_a_branch_with_lambda_zero_is_on_no_path() -> None:
    model, x = tanh_mlp(), vector(6)
    e = ps.expand(model, x, order=3, lam=torch.tensor([0.3, 0.0, 0.3, 0.3], dtype=torch.float64))
    shorter = tanh_mlp(3)
    shorter.encoder, shorter.decoder = model.encoder, model.decoder
    shorter.blocks = nn.ModuleList(model.blocks[i] for i in (0, 2, 3))
    check_orders(per_unit(e), per_unit(ps.expand(shorter, x, order=3, lam=0.3)), 1e-12)


@pytest.mark.parametrize("order", [0, 1])
def test_low_orders_alone(order: int) -> None:
    model, x = tanh_mlp(), vector(6)
    e = ps.expand(model, x, order=order)
    assert e.terms.shape == (order + 1, 3, 4)
    assert e.errors.shape == (order + 1,)
    check_orders(e.terms, ps.expand(model, x, order=4).terms[: order + 1], 1e-12)


# ------------------------------------------------------------------------------------------------ kinks


class Staircase(nn.Module):
    """Stream (x, 0, 0). Branch 1 writes x to the third entry, branch 2 copies it to the second with `sign`.

    Branch 3 is the kink: its argument is sign·λ²·x, zero in the two lowest orders.
    """

    def __init__(self, sign: float, kink: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(4))
        self.kink = kink
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.zero_()
            self.layers[0].weight[2, 0] = 1
            self.layers[1].weight[1, 2] = sign
            self.layers[2].weight[0, 1] = 1
            self.layers[3].weight.copy_(torch.eye(3))
        self.double()

    def forward(self, z: Tensor) -> Tensor:
        z = z + self.layers[0](z)
        z = z + self.layers[1](z)
        return z + self.layers[3](self.kink(self.layers[2](z)))


class Clamp(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return torch.clamp(a, min=0)


class Abs(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return a.abs()


class HighestOfTwo(nn.Module):
    """Max-pool over (a_0, a_1), of which a_1 is zero."""

    def forward(self, a: Tensor) -> Tensor:
        return nn.functional.pad(nn.functional.max_pool2d(a[:, None, None, :2], (1, 2))[:, 0, 0], (0, 2))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("kink", "value"),
    [
        (nn.ReLU(), lambda a: max(a, 0)),
        (nn.ReLU(inplace=True), lambda a: max(a, 0)),
        (nn.LeakyReLU(0.1), lambda a: a if a > 0 else 0.1 * a),
        (Clamp(), lambda a: max(a, 0)),
        (Abs(), abs),
        (HighestOfTwo(), lambda a: max(a, 0)),
    ],
    ids=["relu", "relu-inplace", "leaky-relu", "clamp", "abs", "max-pool"],
)
def test_a_kink_takes_the_side_of_its_first_nonzero_coefficient(kink: nn.Module, value, sign: float) -> None:
    # f(λ) = (x + λ·φ(sign·λ²x), sign·λ²x, λx): the kink sits at zero and only order 2 says which side
    x = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    e = ps.expand(Staircase(sign, kink), x, order=4, lam=0.1)
    expected = torch.zeros(5, 1, 3, dtype=torch.float64)
    expected[0, 0, 0], expected[1, 0, 2], expected[2, 0, 1] = 2.0, 2.0, 2 * sign
    expected[3, 0, 0] = value(2 * sign)
    torch.testing.assert_close(e.terms, expected, rtol=0, atol=1e-15)
    assert float(e.errors[-1]) < 1e-15


@pytest.mark.parametrize("name", ["resnet-v1", "bottleneck-v1", "pooled-v1"])
def test_post_activation_orders_predict_small_lambda(name: str) -> None:
    # the streams hold exact zeros at λ = 0; with a wrong side the error of order 1 would fall like λ only
    model, inputs = case(name).build()
    net = ps.knobs(model, *inputs)
    for lam in (1e-6, 1e-7):
        e = ps.expand(net, *inputs, order=1, lam=lam)
        assert float(e.remainder(1).norm()) < 1e3 * lam**2 * float(e.output.norm())


def test_negative_lambda_is_approached_from_its_own_side() -> None:
    # at λ < 0 a partial sum built for λ → 0+ would not meet the network at kinks
    model, inputs = case("resnet-v1").build()
    e = ps.expand(model, *inputs, order=1, lam=-1e-6)
    assert float(e.remainder(1).norm()) < 1e-9 * float(e.output.norm())


# ---------------------------------------------------------------------------------------------- verdict


def test_verdict_converged() -> None:
    e = ps.expand(tanh_mlp(10), vector(6), order=8, lam=0.01)
    assert e.verdict == "converged"
    assert float(e.errors[-1]) < 1e-12


def test_verdict_plateaued() -> None:
    # gates flip between λ = 0 and 1/√n: the series settles on another function, 0.14 away from order 4 on
    model = ResidualMLP(30, 32, in_features=6, num_classes=4, seed=0).double().eval()
    e = ps.expand(model, vector(6, 4), order=10)
    assert e.verdict == "plateaued"
    assert float(e.errors[-1]) > 0.05
    assert all(abs(float(b - a)) < 1e-2 * float(a) for a, b in pairwise(e.errors[-4:]))


def test_verdict_diverging() -> None:
    # best at order 4, about 0.08; at order 12 above 1
    model = ResidualMLP(100, 32, in_features=6, num_classes=4, activation="tanh", seed=2).double().eval()
    e = ps.expand(model, vector(6, 4), order=12)
    assert e.verdict == "diverging"
    assert float(e.errors[-1]) > 5 * float(e.errors.min())


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("order", [11, 12, 13])
def test_one_step_down_does_not_make_a_diverging_series_converge(order: int, seed: int) -> None:
    # the errors of these nets rise in zigzag from about 0.1 to above 0.4, 0.8, 2
    model = ResidualMLP(100, 32, in_features=6, num_classes=4, activation="tanh", seed=seed)
    e = ps.expand(model.double().eval(), vector(6, 4), order=order)
    assert float(e.errors[-1]) > 3 * float(e.errors.min())
    assert e.verdict == "diverging"


def test_verdict_carries_its_numbers() -> None:
    e = ps.expand(tanh_mlp(), vector(6), order=3)
    assert isinstance(e.verdict, str)
    assert len(e.verdict.reason) > 10
    assert list(map(float, e.verdict.errors)) == pytest.approx(list(map(float, e.errors)))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_exact_at_low_order_is_converged(order: int) -> None:
    # a linear tower of depth 2 is exact from order 2 on; with λ = 0 already at order 0
    net, x = multiples_tower([0.5, 0.5]), vector(6)
    assert ps.expand(net, x, order=order, lam=0.0).verdict == "converged"
    assert ps.expand(net, x, order=2).verdict == "converged"


# ---------------------------------------------------------------------------------- batches and precision


@pytest.mark.parametrize("name", ["conv-relu-bn", "bottleneck-v1", "pre-ln", "layer-scale"])
@pytest.mark.parametrize("chunk_size", [1, 2, 100])
def test_chunks_change_nothing(name: str, chunk_size: int) -> None:
    model, inputs = case(name).build()
    whole = ps.expand(model, *inputs, order=3)
    parts = ps.expand(model, *inputs, order=3, chunk_size=chunk_size)
    check_orders(parts.terms, whole.terms, 1e-12)
    torch.testing.assert_close(parts.output, whole.output, rtol=1e-12, atol=1e-13)
    assert parts.verdict == whole.verdict


@given(st.permutations(range(4)))
@settings(max_examples=6, deadline=None)
def test_samples_do_not_see_each_other(order: list[int]) -> None:
    model, x = tanh_mlp(activation="relu"), vector(6, 4)
    net = ps.knobs(model, x)
    check_orders(ps.expand(net, x[order], order=3).terms, ps.expand(net, x, order=3).terms[:, order], 1e-12)


@pytest.mark.parametrize("name", ["conv-relu-bn", "mlp-tanh", "resnet-v1", "post-ln"])
def test_float32_agrees_with_float64(name: str) -> None:
    # 1e-7 per operation over some ten layers, relative to the largest term: orders above it cancel
    model, inputs = case(name).build()
    exact = ps.expand(model, *inputs, order=3)
    single = ps.expand(model.float(), *(x.float() for x in inputs), order=3)
    assert single.terms.dtype == torch.float32
    difference = (single.terms.double() - exact.terms).flatten(1).norm(dim=1)
    assert float(difference.max()) < 1e-4 * float(exact.terms.flatten(1).norm(dim=1).max())


def test_table_and_accuracy() -> None:
    model, x = tanh_mlp(), vector(6, 20)
    e = ps.expand(model, x, order=3)
    labels = e.output.argmax(-1)
    table = e.table()
    assert {"order", "norm", "share", "error"} <= set(table.columns)
    assert table["order"].tolist() == [0, 1, 2, 3]
    assert table["error"].tolist() == pytest.approx(list(map(float, e.errors)))
    accuracy = e.accuracy(labels)
    expected = [float((e.partial(k).argmax(-1) == labels).double().mean()) for k in range(4)]
    assert list(map(float, accuracy)) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------- trained nets


@pytest.mark.data
def test_trained_resnet_orders_against_interpolation(shared) -> None:
    model = arch.trained("resnet20", shared).double()
    x = cifar_test(shared, 2)[0].double()
    e = ps.expand(model, x, order=2)
    pieces = models.cifar_resnet(model)
    assert float((run(pieces, x) - e.output).norm()) < 1e-12 * float(e.output.norm())
    # frozen kinks, complex circle: the polynomial of degree 9 exactly
    check_orders(per_unit(e), taylor_terms(pieces, x, 2, radius=1.0, nodes=10), 1e-9)
    # nothing frozen, λ = 0, h, 2h: rounding costs 1e-16/h^k, gates that flip below 2h the rest
    plain = one_sided_terms(pieces, x, 2, step=1e-7)
    check_orders(per_unit(e)[:2], plain[:2], 1e-6)
    assert relative(per_unit(e)[2], plain[2]) < 0.1


# --------------------------------------------------------------------------------------------- bad input


def test_no_joins() -> None:
    with pytest.raises(errors.NoJoinsError, match="PlainNet"):
        ps.expand(arch.PlainNet().double().eval(), torch.zeros(1, 3, 8, 8, dtype=torch.float64), order=1)


@pytest.mark.parametrize("call", [ps.expand, ps.spectrum])
def test_train_mode_batch_norm_is_refused(call) -> None:
    model, inputs = case("conv-relu-bn").build()
    net = ps.knobs(model, *inputs)
    model.blocks[2].norm1.train()
    with pytest.raises(errors.ModeError, match=r"blocks\.2\.norm1"):
        call(net, *inputs)
    assert model.blocks[2].norm1.training
    assert not model.blocks[1].norm1.training


@pytest.mark.parametrize("call", [ps.expand, ps.spectrum])
@pytest.mark.parametrize("lam", [torch.ones(3), torch.ones(4, 1), [0.1, 0.2], torch.ones(5)], ids=str)
def test_wrong_shape_of_lambda(call, lam: object) -> None:
    with pytest.raises(errors.LambdaError, match="4") as caught:
        call(tanh_mlp(), vector(6), lam=lam)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [ps.expand, ps.spectrum])
@pytest.mark.parametrize("lam", [float("nan"), float("inf"), "lots"])
def test_impossible_lambda(call, lam: object) -> None:
    with pytest.raises(errors.PathsumError):
        call(tanh_mlp(), vector(6), lam=lam)


@pytest.mark.parametrize("call", [ps.expand, ps.spectrum])
def test_a_function_without_a_rule_is_named_with_its_place(call) -> None:
    model = arch.DenseNet(arch.Bessel, depth=2).double().eval()
    with pytest.raises(errors.MissingRuleError, match="bessel_j0") as caught:
        call(model, vector(6))
    # the first branch sees a plain tensor; the second is the first to see a series
    assert "blocks.1" in str(caught.value)
    assert "\n" not in str(caught.value)
    with torch.no_grad():
        model(vector(6))  # nothing is left on the model


@pytest.mark.parametrize("order", [-1, 1.5])
def test_impossible_order(order: object) -> None:
    with pytest.raises(errors.PathsumError, match="order"):
        ps.expand(tanh_mlp(), vector(6), order=order)


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_impossible_chunk_size(chunk_size: int) -> None:
    with pytest.raises(errors.PathsumError, match="chunk_size"):
        ps.expand(tanh_mlp(), vector(6), chunk_size=chunk_size)


def test_a_failed_expansion_leaves_no_trace() -> None:
    model = arch.DenseNet(arch.Bessel, depth=2).double().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(errors.MissingRuleError):
        ps.expand(model, vector(6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks and "forward" not in vars(m) for m in model.modules())
    assert type(torch.ones(1) + torch.ones(1)) is Tensor


def test_modules_stay_in_their_modes() -> None:
    # a wrapper in train mode around an evaluated model: BatchNorm is frozen, so the function is well defined
    model, (x,) = case("mlp-relu-bn").build()
    wrapper = nn.Sequential(model)
    assert wrapper.training
    net = ps.knobs(wrapper, x)
    assert not model.blocks[0].norm1.training
    check_orders(ps.expand(net, x, order=2).terms, ps.expand(model, x, order=2).terms, 1e-13)


def test_rescaled_nets_expand_at_their_new_lambda() -> None:
    model, x = tanh_mlp(), vector(6)
    net = ps.knobs(model, x)
    expected = ps.expand(net, x, order=3, lam=0.25)
    e = ps.expand(net.rescale("1/n"), x, order=3)
    assert e.lam == 0.25
    check_orders(e.terms, expected.terms, 1e-13)
    assert torch.equal(e.output, expected.output)
    learned = ps.expand(net.rescale("learned:1/n"), x, order=3)
    check_orders(learned.terms, expected.terms, 1e-13)


def test_tower_of_one_and_of_no_blocks() -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    one = ResidualTower(1, 4, encoder="affine", num_classes=3, seed=0).double().eval()
    e = ps.expand(one, x, order=1)
    z = one.encoder(x)
    expected = one.decoder(one.blocks[0](z)) - one.decoder.linear.bias
    torch.testing.assert_close(e.terms[1], expected, rtol=1e-12, atol=1e-13)
    none = ResidualTower(0, 4, encoder="affine", num_classes=3, seed=0).double().eval()
    with pytest.raises(errors.NoJoinsError):
        ps.expand(none, x, order=1)
