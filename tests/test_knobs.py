"""The model under λ and α: bitwise itself at default knobs, deleted branches at 0, linear units at 1."""

import copy
import dataclasses
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from pathsum.errors import NoJoinsError
from tests import architectures as arch


@pytest.fixture
def net():
    return ps.knobs(arch.resnet20().eval(), torch.randn(2, 3, 32, 32))


def test_default_is_bitwise_the_model(net):
    x = torch.randn(5, 3, 32, 32)
    assert torch.equal(net(x), net.model(x))
    assert torch.equal(net(x, lam=1.0), net.model(x))
    assert torch.equal(net(x, alpha=0.0), net.model(x))
    assert torch.equal(net(x, lam=torch.ones(9)), net.model(x))


def test_lam_zero_deletes_the_branch(net):
    """Against a copy whose last BatchNorm of that block gives zero: an independent deletion."""
    x = torch.randn(4, 3, 32, 32)
    for i, name in enumerate(b.module for b in net.branches):
        lam = torch.ones(9)
        lam[i] = 0
        without = copy.deepcopy(net.model)
        bn = without.get_submodule(name).bn2
        nn.init.zeros_(bn.weight)
        nn.init.zeros_(bn.bias)
        torch.testing.assert_close(net(x, lam=lam), without(x), rtol=1e-5, atol=1e-6)


def test_alpha_one_makes_units_linear():
    tower = ps.ResidualMLP(depth=3, width=5, in_features=4, scale="1", seed=0).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    net = ps.knobs(tower, x)
    z = tower.encoder(x)
    for block in tower.blocks:
        z = z + block.linear2(block.linear1(z))
    torch.testing.assert_close(net(x, alpha=1.0), tower.decoder(z))
    torch.testing.assert_close(net(x, alpha=[0.0, 0.0, 0.0]), tower(x))
    half = net(x, alpha=torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64))
    z = tower.encoder(x)
    for i, block in enumerate(tower.blocks):
        a = block.linear1(z)
        z = z + block.linear2(0.5 * a + 0.5 * F.relu(a) if i == 0 else F.relu(a))
    torch.testing.assert_close(half, tower.decoder(z))


def test_alpha_per_channel_and_in_place_units():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return x + self.conv(self.relu(self.conv(x)))

    model = Net()
    x = torch.randn(2, 3, 5, 5)
    net = ps.knobs(model, x)
    a = model.conv(x)
    alpha = torch.tensor([0.0, 1.0, 0.25])
    expected = x + model.conv(alpha.view(3, 1, 1) * a + (1 - alpha.view(3, 1, 1)) * a.relu())
    torch.testing.assert_close(net(x, alpha=[alpha]), expected)


@pytest.mark.parametrize("rule", ["1", "1/n", "1/sqrt(n)", "n^-0.8", 0.3, [0.1] * 9])
def test_rescale_replaces_lam(net, rule):
    x = torch.randn(2, 3, 32, 32)
    values = ps.parse_rule(rule).values(9)
    expected = net(x, lam=list(values))
    assert torch.equal(net.rescale(rule)(x), expected)
    assert net.lam.tolist() == pytest.approx(values)
    assert "lam_values" in net.state_dict()


@pytest.mark.parametrize(
    "lam",
    [torch.ones(8), [1.0] * 10, torch.ones(9, 1), ps.Series.variable(2, weights=torch.ones(3))],
)
def test_a_wrong_shaped_lam_names_both(net, lam):
    with pytest.raises(ps.PathsumError, match="9"):
        net(torch.randn(2, 3, 32, 32), lam=lam)


def test_a_wrong_number_of_alphas(net):
    with pytest.raises(ps.PathsumError, match="α has 3 values; the model has 19"):
        net(torch.randn(2, 3, 32, 32), alpha=[0.0] * 3)


def test_outputs_are_picked_from_what_models_return():
    class Wrapped(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.f, self.wrap = nn.Linear(4, 4), wrap

        def forward(self, x):
            return self.wrap(x + self.f(x))

    x = torch.randn(2, 4)
    for wrap, output in [
        (lambda z: {"logits": z}, None),
        (lambda z: (z, None), None),
        (lambda z: {"a": z * 2, "b": z}, "b"),
        (lambda z: [z * 2, z], 1),
        (lambda z: {"deep": {"er": z}}, lambda out: out["deep"]["er"]),
    ]:
        net = ps.knobs(Wrapped(wrap), x, output=output)
        torch.testing.assert_close(ps.spectrum(net, x).terms.sum(0), x + net.model.f(x))
    with pytest.raises(ps.PathsumError, match="output="):
        ps.expand(ps.knobs(Wrapped(lambda z: {"a": z}), x, output="missing"), x)


def test_gradients_of_lam_and_weights_agree_with_a_plain_implementation():
    tower = ps.ResidualMLP(depth=3, width=5, in_features=4, activation="tanh", scale="1", seed=0).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    net = ps.knobs(tower, x)
    lam = torch.tensor([0.3, 0.2, 0.7], dtype=torch.float64, requires_grad=True)
    net(x, lam=lam).square().sum().backward()
    ours = (lam.grad.clone(), tower.blocks[1].linear1.weight.grad.clone())
    lam.grad = tower.blocks[1].linear1.weight.grad = None
    z = tower.encoder(x)
    for l, block in zip(lam, tower.blocks, strict=True):  # noqa: E741
        z = z + l * block(z)
    tower.decoder(z).square().sum().backward()
    torch.testing.assert_close(ours, (lam.grad, tower.blocks[1].linear1.weight.grad))


def plainly_scaled(model, lam, x):
    """A CIFAR ResNet's output with λᵢ written into the affine weights of the last BatchNorm of block i."""
    blocks = [f"layer{s}.{b}" for s in (1, 2, 3) for b in range(3)]
    scaled = {
        f"{name}.bn2.{kind}": lam[i] * model.get_parameter(f"{name}.bn2.{kind}")
        for i, name in enumerate(blocks)
        for kind in ("weight", "bias")
    }
    return torch.func.functional_call(model, scaled, (x,))


@pytest.mark.parametrize("learned", [True, False])
def test_gradients_where_the_addition_is_in_place(learned):
    """`out += identity` overwrites the branch that the gradient in λ needs."""
    model = arch.resnet20().eval().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net = ps.knobs(model, x).rescale("learned:0.5" if learned else 0.5)
    wanted = dict(net.named_parameters())
    ours = torch.autograd.grad(net(x).square().sum(), list(wanted.values()))
    lam = torch.full((9,), 0.5, dtype=torch.float64, requires_grad=True)
    twin = [lam if name == "lam_values" else p for name, p in wanted.items()]
    expected = torch.autograd.grad(plainly_scaled(model, lam, x).square().sum(), twin)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradients_of_alpha_where_the_unit_is_in_place():
    class Net(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=inplace)

        def forward(self, x):
            return x + self.b(self.relu(self.a(x)))

    changing, plain = Net(True).double(), Net(False).double()
    plain.load_state_dict(changing.state_dict())
    x = torch.randn(5, 4, dtype=torch.float64)
    alpha = torch.tensor([0.1, 0.2, 0.9, 1.0], dtype=torch.float64, requires_grad=True)
    results = []
    for model in (changing, plain):
        out = ps.knobs(model, x)(x, alpha=[alpha])
        results.append((out, *torch.autograd.grad(out.square().sum(), [alpha, *model.parameters()])))
    a = plain.a(x)
    out = x + plain.b(alpha * a + (1 - alpha) * a.relu())
    results.append((out, *torch.autograd.grad(out.square().sum(), [alpha, *plain.parameters()])))
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(results[1], results[2])


def test_autograd_runs_through_the_coefficients():
    """d/dW of ‖M_1‖² by the series against the same by hand (M_1 = Σ W_η F_i(E(x)), Eq. 4)."""
    tower = ps.ResidualMLP(depth=3, width=5, in_features=4, activation="tanh", scale="1", seed=0).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    series = ps.knobs(tower, x)(x, lam=ps.Series.variable(2, weights=1.0))
    w = tower.blocks[0].linear1.weight
    (ours,) = torch.autograd.grad(series.c[1].square().sum(), w)
    z = tower.encoder(x)
    first = sum(block(z) for block in tower.blocks) @ tower.decoder.linear.weight.T
    (by_hand,) = torch.autograd.grad(first.square().sum(), w)
    torch.testing.assert_close(ours, by_hand)


def test_lam_around_another_point_than_zero():
    """λ = ½ + t as a series gives derivatives at ½."""
    tower = ps.ResidualMLP(depth=3, width=5, in_features=4, activation="tanh", scale="1", seed=0).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    net = ps.knobs(tower, x)
    lam = ps.Series(torch.tensor([0.5, 1.0], dtype=torch.float64), ps.Space(6))
    series = net(x, lam=lam)
    torch.testing.assert_close(series.c[0], net(x, lam=0.5))
    torch.testing.assert_close(series.at(0.01), net(x, lam=0.51), rtol=1e-10, atol=1e-12)


def test_the_output_carried_along_an_expansion_follows_the_models_own_scale():
    """A learned scale that moved since the knobs were made is the one in force."""
    tower = ps.ResidualMLP(depth=3, width=5, in_features=4, activation="tanh", scale="learned:0.5", seed=0).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    net = ps.knobs(tower, x)
    with torch.no_grad():
        tower.lam.fill_(0.25)
    e = ps.expand(net, x, order=8)
    assert e.lam == 0.25
    torch.testing.assert_close(e.output, tower(x).detach(), rtol=1e-13, atol=1e-13)
    assert e.errors[8] < 1e-6


def test_a_branch_that_compares_takes_the_output_from_a_run_of_its_own():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            for f in (self.a, self.b, self.a):
                h = f(x)
                x = x + torch.where(h > 0, h, 0.1 * h)
            return x

    model = Picky().double()
    x = torch.randn(6, 4, dtype=torch.float64)
    e, plain = ps.expand(model, x, order=3), model(x).detach()
    torch.testing.assert_close(e.output, plain, rtol=1e-13, atol=1e-13)
    leaky = ps.expand(ps.knobs(model, x), x, order=3, chunk_size=2)
    torch.testing.assert_close(leaky.terms, e.terms)
    torch.testing.assert_close(ps.spectrum(model, x).terms.sum(0), plain)


def test_a_thousand_branches_print_short():
    net = ps.knobs(ps.ResidualMLP(depth=300, width=2, in_features=2, seed=0), torch.zeros(1, 2))
    shown = repr(net).splitlines()
    assert len(shown) < 70
    assert "300 residual branches" in shown[0]
    assert "blocks.0.add" in shown[2]
    assert "blocks.299.add" in repr(net)


@pytest.mark.parametrize("kind", ["namespace", "dataclass", "list", "object"])
def test_a_tensor_from_the_middle_of_the_network_can_be_the_output(kind):
    """Memory of a series is reused only where nobody reads it again: outputs are read by the caller."""

    @dataclasses.dataclass
    class Out:
        middle: torch.Tensor
        end: torch.Tensor

    class Opaque:
        def __init__(self, middle, end):
            self.middle, self.end = middle, end

    wrap = {
        "namespace": lambda m, e: types.SimpleNamespace(middle=m, end=e),
        "dataclass": Out,
        "list": lambda m, e: {"states": [m, e]},
        "object": Opaque,
    }[kind]
    tower = ps.ResidualMLP(depth=6, width=5, in_features=4, activation="tanh", scale="0.5", seed=0).double()

    class States(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = tower

        def forward(self, x):
            z = self.tower.encoder(x)
            for i, block in enumerate(self.tower.blocks):
                z = z + 0.5 * block(z)
                if i == 3:
                    middle = z
            return wrap(middle, z)

    def pick(out):
        return out["states"][0] if kind == "list" else out.middle

    x = torch.randn(3, 4, dtype=torch.float64)
    net = ps.knobs(States(), x, output=pick)
    if kind == "object":  # tensors hidden in an object of one's own are not seen: refused rather than wrong
        with pytest.raises(ps.PathsumError):
            ps.expand(net, x, order=2)
        return
    e, s = ps.expand(net, x, order=2), ps.spectrum(net, x)
    z = tower.encoder(x)
    for block in list(tower.blocks)[:4]:
        z = z + 0.5 * block(z)
    torch.testing.assert_close(e.output, z.detach())
    torch.testing.assert_close(s.terms.sum(0), z.detach())
    first = sum(block(tower.encoder(x)) for block in list(tower.blocks)[:4])
    torch.testing.assert_close(e.terms[1], first.detach())


# ------------------------------------------------------------------------------------------ without joins


@pytest.mark.parametrize(("build", "units"), [(arch.PlainNet, 2), (arch.VGG, 4), (arch.DenselyConnected, 5)])
def test_a_model_without_joins_says_so_and_has_alpha(build, units):
    model = build().eval()
    x = torch.randn(2, 3, 8, 8)
    net = ps.knobs(model, x)
    name = build.__name__
    first, *rows = repr(net).splitlines()
    assert first == (
        f"Knobs({name} has no residual joins (additions of a skip and a branch with weights): "
        f"{units} nonlinear units found; λ needs a residual network)"
    )
    assert [row.split()[1] for row in rows[1:]] == [u.name for u in net.units]
    assert net.branches == ()
    assert len(net.units) == units
    assert net.lam.tolist() == []
    assert torch.equal(net(x), model(x))
    assert torch.equal(net(x, alpha=0.0), model(x))
    assert not torch.equal(net(x, alpha=1.0), model(x))
    plain = net.fold(x)
    assert plain is not model
    assert torch.equal(plain(x), model(x))
    (group,) = net.param_groups(lr=0.5)
    assert (group["lr"], len(group["params"])) == (0.5, len(list(model.parameters())))


@pytest.mark.parametrize(
    "use",
    [
        lambda net, x: ps.expand(net, x),
        lambda net, x: ps.expand(net.model, x),
        lambda net, x: ps.spectrum(net, x),
        lambda net, x: net.rescale("1/sqrt(n)"),
        lambda net, x: ps.rescale(net, "learned", per="stage"),
        lambda net, x: net(x, lam=0.5),
        lambda net, x: net(x, lam=ps.Series.variable(2)),
        lambda net, x: net.without_norm("all", keep="drop"),
    ],
)
def test_what_needs_lam_refuses_a_model_without_joins(use):
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(
        NoJoinsError, match=r"PlainNet has no residual joins .*: 2 nonlinear units found; λ needs a res"
    ):
        use(ps.knobs(arch.PlainNet(), x), x)


# ----------------------------------------------------------------------------------------------- torch.func


def test_many_lam_at_once_by_vmap():
    for model, x in [
        (arch.resnet20().eval(), torch.randn(2, 3, 32, 32)),  # in-place additions: each λ has a result of its own
        (arch.DenseNet(arch.ReZero), torch.randn(3, 6)),
    ]:
        net = ps.knobs(model, x)
        lams = torch.rand(4, len(net.branches))
        with torch.no_grad():
            together = torch.func.vmap(lambda lam: net(x, lam=lam))(lams)  # noqa: B023
            one_by_one = torch.stack([net(x, lam=lam) for lam in lams])
        torch.testing.assert_close(together, one_by_one)


def test_a_batched_lam_that_a_view_would_miss_is_refused():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(4, 4)

        def forward(self, x):
            y = self.f(x)
            first = y[:, :2]
            y += x
            return torch.cat([y, first], 1)

    x = torch.randn(2, 4)
    net = ps.knobs(Viewing(), x)
    with torch.no_grad(), pytest.raises(ps.PathsumError, match="read through another view"):
        torch.func.vmap(lambda lam: net(x, lam=lam))(torch.rand(3, 1))


def test_lam_by_functional_call_and_its_derivatives():
    tower = ps.ResidualMLP(depth=3, width=5, in_features=4, activation="tanh", scale="1", seed=0).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    net = ps.knobs(tower, x).rescale("learned:0.5")
    lam = torch.tensor([0.3, 0.2, 0.7], dtype=torch.float64)

    def loss(lam):
        return torch.func.functional_call(net, {"lam_values": lam}, (x,)).square().sum()

    assert torch.equal(loss(lam), net(x, lam=lam).square().sum())
    required = lam.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(x, lam=required).square().sum(), required)
    torch.testing.assert_close(torch.func.grad(loss)(lam), expected)
    direction = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.jvp(loss, (lam,), (direction,))[1], expected.sum())
    net.rescale(0.5)  # a buffer goes the same way
    assert torch.equal(loss(lam), net(x, lam=lam).square().sum())
    assert torch.equal(net(x), net(x, lam=0.5))
