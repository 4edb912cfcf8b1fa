"""The model under λ and α: bitwise itself at default knobs, deleted branches at 0, linear units at 1."""

import copy
import dataclasses
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
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


def test_learned_lam_trains_and_is_saved():
    tower = ps.ResidualMLP(depth=4, width=8, in_features=4, num_classes=2, scale="1", seed=0)
    x, y = torch.randn(32, 4), torch.randint(0, 2, (32,))
    net = ps.knobs(tower, x).rescale("learned")
    assert net.lam.tolist() == [0.0] * 4
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert net.lam.abs().min() > 0
    other = ps.knobs(ps.ResidualMLP(depth=4, width=8, in_features=4, num_classes=2, scale="1", seed=1), x)
    other.rescale("learned").load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))


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


def test_changed_control_flow_is_detected():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.deep = nn.Linear(4, 4), False

        def forward(self, x):
            x = x + self.f(x)
            return x + self.f(torch.tanh(x)) if self.deep else x

    model = Moody()
    net = ps.knobs(model, torch.randn(2, 4))
    model.deep = True
    with pytest.raises(ps.PathsumError, match="make the knobs again"):
        net(torch.randn(2, 4), lam=0.5)
    model.deep = False
    net(torch.randn(2, 4), lam=0.5)


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


def test_nested_and_threaded_runs_do_not_mix(net):
    x = torch.randn(2, 3, 32, 32)
    expected = net(x, lam=0.5)
    results = {}

    def work(lam):
        results[lam] = net(x, lam=lam)

    threads = [threading.Thread(target=work, args=(lam,)) for lam in (0.5, 0.25, 0.75)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert torch.equal(results[0.5], expected)

    class Counting(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Counting.calls += 1
            return func(*args, **(kwargs or {}))

    with Counting():
        assert torch.equal(net(x, lam=0.5), expected)
    assert Counting.calls > 0


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


@pytest.mark.parametrize(
    ("rule", "optimizer", "factor"),
    [("1/sqrt(n)", "sgd", 1), ("1/n", "sgd", 4), ("1/sqrt(n)", "adamw", 0.5), ("1/n", "adamw", 1), ("1", "sgd", 0.25)],
)
def test_param_groups_follow_the_law_of_depth(rule, optimizer, factor):
    tower = ps.ResidualMLP(depth=4, width=5, in_features=3, seed=0)
    net = ps.knobs(tower, torch.randn(2, 3)).rescale(rule)
    groups = net.param_groups(optimizer=optimizer, lr=0.2)
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert len(rates) == sum(len(g["params"]) for g in groups) == len(list(tower.parameters()))
    for p in tower.blocks.parameters():
        assert rates[id(p)] == pytest.approx(0.2 * factor)
    for p in (*tower.encoder.parameters(), *tower.decoder.parameters()):
        assert rates[id(p)] == 0.2
    torch.optim.SGD(groups, lr=0.2)
    with pytest.raises(ps.PathsumError, match="give one of sgd, adamw"):
        net.param_groups(optimizer="lion")


def test_learned_lam_has_a_group_of_its_own():
    net = ps.knobs(ps.ResidualMLP(depth=4, width=5, in_features=3, seed=0), torch.randn(2, 3)).rescale("learned")
    *_, last = net.param_groups(lr=0.2)
    assert (last["name"], last["lr"], last["params"][0] is net.lam_values) == ("lam", pytest.approx(0.02), True)


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
