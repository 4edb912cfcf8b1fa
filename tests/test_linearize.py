"""Learned slopes: the prior's exact step, budgets, granularity, resuming, and what is refused."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from pathsum import runs
from pathsum.cli import main
from pathsum.data import Dataset, Split, batches, load, normalize
from pathsum.errors import CheckpointError, DataError, LambdaError, NoUnitsError, PathsumError
from pathsum.joining import bend
from pathsum.linearize import linearize, load_alpha, prepare
from pathsum.linearizing.books import SlopeTraining
from pathsum.linearizing.budget import Budget
from pathsum.linearizing.norms import renewed
from pathsum.linearizing.options import LinearizeOptions
from pathsum.linearizing.proximal import proximal, threshold
from pathsum.linearizing.result import ALPHA, At, Linearized
from pathsum.linearizing.saliency import directions, felt, samples_first
from pathsum.train import TrainConfig
from tests.reference import prior as twin
from tests.reference.saliency import felt as twin_felt
from tests.sweeps import wait_for

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = TrainConfig(lr=0.05, steps=24, batch_size=8, eval_every=12, augment=False)


def toy_data(*, classes: int = 3) -> Dataset:
    """Classes that differ in the brightness of a corner."""
    generator = torch.Generator().manual_seed(0)

    def split(num: int) -> Split:
        labels = torch.arange(num) % classes
        images = torch.randint(0, 100, (num, 1, 6, 6), generator=generator)
        images[:, :, :3, :3] += (labels * 50).view(-1, 1, 1, 1)
        return Split(images.to(torch.uint8), labels)

    return Dataset("toy", split(48), split(24), tuple(map(str, range(classes))), (0.3,), (0.2,), flip=False)


class Toy(nn.Module):
    """Two convolutions, BatchNorm, and one activation module called twice."""

    def __init__(self, act=nn.ReLU, classes=3):
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.act, self.head = act(), nn.Linear(4, classes)

    def forward(self, x):
        x = self.act(self.bn(self.conv1(x)))
        return self.head(self.act(self.conv2(x)).mean((2, 3)))


class Plain(nn.Module):
    """Linear layers and ReLUs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(36, 6), nn.Linear(6, 5), nn.Linear(5, 3)])

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


@pytest.fixture(scope="module")
def data():
    return toy_data()


@pytest.fixture
def toy():
    return Toy().eval()


def same_state(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def same_alpha(a, b):
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(a, b, strict=True))


# --- the prior's step ---


@pytest.mark.parametrize("power", [0.5, 1.0, 0.3, 0.8])
def test_the_proximal_step_is_the_minimum(power):
    for t in (1e-4, 3e-3, 0.05):
        bar = threshold(t, power)
        points = [0.0, 0.3 * bar, bar * (1 - 1e-6), bar * (1 + 1e-6), 1.3 * bar, 0.2, 0.9, 1.7]
        v = torch.tensor(points, dtype=torch.float64)
        found = proximal(v, torch.full_like(v, t), power)
        expected = [twin.proximal(value, t, power) for value in points]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)
    same = torch.tensor([0.0, 1e-9, 0.5])
    torch.testing.assert_close(proximal(same, torch.zeros(3), power), same, rtol=0, atol=0)


def test_the_proximal_step_never_passes_one_nor_jumps_past_its_threshold():
    v = torch.linspace(0, 2, 4001, dtype=torch.float64)
    t = 1e-3
    u = proximal(v, torch.full_like(v, t), 0.5)
    assert ((u >= 0) & (u <= v)).all()
    assert (u.diff() >= 0).all()
    assert u[v <= threshold(t, 0.5)].eq(0).all()
    assert u[v > threshold(t, 0.5)].min() >= t ** (2 / 3) * (1 - 1e-3)  # (2/3)·v at the threshold


# --- one unit ---


@pytest.mark.parametrize("phi", [torch.relu, F.relu, F.gelu, F.silu, torch.tanh])
@pytest.mark.parametrize(
    ("shape", "alpha"),
    [
        ((3, 4, 2, 5), (4,)),
        ((3, 4, 2, 5), (4, 2, 5)),
        ((3, 4, 2, 5), (1, 1, 5)),
        ((3, 7, 4), (4,)),
        ((3, 7, 4), (7, 1)),
        ((3, 7, 4), (7, 4)),
        ((3, 4), (4,)),
        ((3, 4, 2, 5), ()),
    ],
)
def test_a_bent_unit_and_its_gradients(phi, shape, alpha):
    a = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    slopes = torch.rand(alpha, dtype=torch.float64, requires_grad=True)
    spread = slopes.view(-1, 1, 1) if alpha == (4,) and len(shape) == 4 else slopes
    pairs = []
    for out in (bend(phi, slopes, (a,), {}), twin.bend(a, spread, phi)):
        pairs.append((out, *torch.autograd.grad((out * out.detach().cos()).sum(), [a, slopes])))
    for found, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("func", [torch.relu_, F.relu, F.silu])
def test_a_unit_in_place_keeps_the_result_in_its_argument(func):
    kwargs = {} if func is torch.relu_ else {"inplace": True}
    phi = F.silu if func is F.silu else torch.relu
    for alpha in (torch.tensor([0.0, 0.3, 1.0]), 0.25, 1.0):
        a = torch.randn(2, 3, 2, 2)
        spread = alpha.view(3, 1, 1) if isinstance(alpha, torch.Tensor) else alpha
        expected = twin.bend(a.clone(), spread, phi)
        assert bend(func, alpha, (a,), kwargs) is a
        torch.testing.assert_close(a, expected)


def test_a_linear_unit_gives_new_memory():
    a = torch.randn(2, 3)
    for func in (torch.relu, F.gelu):
        out = bend(func, 1.0, (a,), {})
        assert torch.equal(out, a)
        assert out.data_ptr() != a.data_ptr()


@pytest.mark.parametrize(("shape", "alpha"), [((2, 3, 4, 4), (4,)), ((2, 3), (2, 2, 3)), ((2, 5, 3), (5,))])
def test_slopes_that_do_not_fit_are_refused(shape, alpha):
    with pytest.raises(LambdaError, match=r"α of shape .* does not fit a unit of shape"):
        bend(torch.relu, torch.rand(alpha), (torch.randn(shape),), {})


# --- the network at the two ends ---


@pytest.mark.parametrize("by", ["channel", "layer", "element"])
@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU])
def test_slopes_of_zero_are_the_network_and_of_one_the_linear_one(data, by, act):
    model = Toy(act).eval()
    slopes = prepare(model, data, LinearizeOptions(by=by, omega=(0.1,)), SHORT).eval()
    x = torch.randn(5, 1, 6, 6)
    assert torch.equal(slopes(x), model(x))
    straight = Toy(nn.Identity).eval()
    straight.load_state_dict(model.state_dict())
    slopes.start([1.0, 1.0])
    torch.testing.assert_close(slopes(x), straight(x))
    slopes.start([0.0, 1.0])  # the module's second call alone

    def by_hand():
        z = model.act(model.bn(model.conv1(x)))
        return model.head(model.conv2(z).mean((2, 3)))

    torch.testing.assert_close(slopes(x), by_hand())


def test_granularity(data, toy):
    shapes = {"channel": [(4,), (4,)], "layer": [(), ()], "element": [(4, 4, 4), (4, 2, 2)]}
    for by, expected in shapes.items():
        slopes = prepare(toy, data, LinearizeOptions(by=by, omega=(0.1,)), SHORT)
        assert [site.slopes for site in slopes.sites] == expected  # one module, called twice: two sets
        assert [site.name for site in slopes.sites] == [unit.name for unit in slopes.net.units]
        assert [site.scalars for site in slopes.sites] == [64, 16]
        assert slopes.slopes.numel() == sum(site.num for site in slopes.sites)


def test_the_axis_of_the_channels_follows_the_layer_before(data):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.up = nn.Conv2d(1, 4, 3), nn.Linear(4, 5)
            self.line, self.head = nn.Conv1d(4, 4, 1), nn.Linear(5, 3)

        def forward(self, x):
            x = self.up(self.conv(x).permute(0, 2, 3, 1)).relu()  # channels last, as in ConvNeXt
            tokens = F.gelu(self.head(x.flatten(1, 2)))  # (B, tokens, features)
            return F.relu(self.line(x.mean(3))).mean() + tokens.mean(1)

    slopes = prepare(Mixed().eval(), data, LinearizeOptions(omega=(0.1,)), SHORT)
    assert [site.slopes for site in slopes.sites] == [(1, 1, 5), (3,), (4, 1)]
    slopes(torch.randn(2, 1, 6, 6)).sum().backward()
    assert slopes.slopes.grad.abs().sum() > 0


# --- learning ---


def test_a_run_is_the_plain_loop(data):
    """Weights by SGD, slopes by gradient and proximal step, against a loop that spells it out, in float64."""
    model = Plain().double()
    config = replace(SHORT, momentum=0.0, steps=10, eval_every=10)
    made = linearize(model, data, omega=1.5, alpha_lr=0.1, train=config)
    stream = batches(data.train, 8, mean=data.mean, std=data.std, seed=0, dtype=torch.float64)
    taken = [next(stream)[1:] for _ in range(10)]
    alphas = twin.linearize(list(model.layers), taken, lr=0.05, alpha_lr=0.1, omega=1.5, freeze=0.01)
    assert any(bool((a == 1).any()) for a in alphas)
    for found, expected in zip(made.alpha, alphas, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    for found, expected in zip(made.net.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_everything_becomes_linear_under_a_strong_prior_and_stays(data, toy):
    made = linearize(toy, data, omega=(0.5, 5.0), alpha_lr=0.02, train=replace(SHORT, steps=60))
    assert made.units_left == made.relus == made.rounds == 0
    assert all(bool((alpha == 1).all()) for alpha in made.alpha)
    omegas = made.history_table()["omega"].tolist()
    assert omegas[0] == 0.5
    assert omegas == sorted(omegas)
    assert omegas[-1] == pytest.approx(5.0, rel=1e-6)
    straight = Toy(nn.Identity).eval()
    straight.load_state_dict(made.net.model.state_dict())
    x = torch.randn(4, 1, 6, 6)
    torch.testing.assert_close(made(x), straight(x))


@pytest.mark.parametrize(
    ("by", "target", "left"),
    [
        ("channel", {"target_units": 0.75}, 0.75),
        ("layer", {"target_units": 1.5}, 1.0),
        ("element", {"target_relus": 30}, None),
        ("channel", {"target_relus": 40}, None),
    ],
)
def test_a_budget_is_met_and_not_passed(data, toy, by, target, left):
    made = linearize(toy, data, by, alpha_lr=0.05, train=SHORT, **target)
    assert made.reached
    if left is not None:
        assert made.units_left == pytest.approx(left)
    if by == "element":
        assert made.relus == 30
    if "target_relus" in target and by == "channel":  # a channel of the first map is 16 scalars, of the second 4
        assert 40 - 16 < made.relus <= 40
    table = made.table()
    assert table["nonlinear"].sum() == pytest.approx(made.units_left)
    assert table["relus"].sum() == made.relus
    assert made.parameters == table["slopes"].sum()
    assert made.history[-1]["omega"] == 0
    assert made.history[-1]["relus"] == made.relus


@pytest.mark.parametrize("by", ["channel", "layer"])
def test_a_path_length_is_met(data, by):
    net = ps.ResidualMLP(3, 4, in_features=36, num_classes=3, seed=0)
    assert ps.average_path_length(ps.knobs(net, torch.zeros(1, 36))) == pytest.approx(1.5)
    made = linearize(net, data, by, target_length=1.0, alpha_lr=0.05, train=SHORT)
    length = ps.average_path_length(made.net, alpha=made.alpha)
    assert made.reached
    assert (length == pytest.approx(1.0)) if by == "layer" else (0.8 < length <= 1.0 + 1e-9)  # ½ a unit, ⅛ a channel
    assert made.history[-1]["omega"] == 0


def test_the_first_slopes_that_meet_a_budget_are_enough():
    cost = torch.tensor([3.0, 1.0, 1.0, 1.0])
    budget = Budget("relus", 3.0, lambda linear: float(cost[~linear].sum()))
    none = torch.zeros(4, dtype=torch.bool)
    assert budget.enough(none, torch.tensor([1, 0, 2, 3])) == 2
    assert budget.enough(none, torch.tensor([1, 2])) == 2  # not met: all
    assert budget.enough(torch.tensor([True, False, False, False]), torch.tensor([1])) == 0


def test_fixed_weights_stay_and_so_does_the_network_given(data):
    model = Toy().train()
    model.conv1.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    made = linearize(model, data, target_units=1, cotrain=False, alpha_lr=0.05, train=SHORT)
    assert same_state(made.net.model, model)
    assert made.units_left == pytest.approx(1)
    trained = linearize(model, data, omega=0.01, train=SHORT)
    assert not torch.equal(trained.net.model.bn.running_mean, model.bn.running_mean)  # by the batch, co-trained
    assert not torch.equal(trained.net.model.conv2.weight, model.conv2.weight)
    assert torch.equal(trained.net.model.conv1.weight, model.conv1.weight)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert [p.requires_grad for p in made.net.model.parameters()] == [p.requires_grad for p in model.parameters()]


def test_normalized_priors_weigh_units_alike(data, toy):
    slopes = prepare(toy, data, LinearizeOptions(by="element", omega=(0.1,), normalize=True), SHORT)
    assert [float(part.sum()) for part in slopes.prior.split(slopes.sizes)] == pytest.approx([1.0, 1.0])


def test_from_earlier_slopes_to_finer_ones(data, toy):
    first = linearize(toy, data, target_units=1.5, alpha_lr=0.05, train=SHORT)
    second = linearize(toy, data, target_units=1.0, alpha_lr=0.05, train=SHORT, alpha=first)
    for a, b in zip(first.alpha, second.alpha, strict=True):
        assert bool(b[a == 1].eq(1).all())
    assert second.units_left == pytest.approx(1)
    fine = prepare(toy, data, LinearizeOptions(by="element", omega=(0.1,)), SHORT, alpha=first)
    assert torch.equal(fine.alpha()[0], first.alpha[0].view(4, 1, 1).expand(4, 4, 4))
    with pytest.raises(LambdaError, match="does not spread over slopes"):
        prepare(toy, data, LinearizeOptions(by="layer", omega=(0.1,)), SHORT, alpha=first)


def test_only_the_units_chosen(data, toy):
    name = ps.knobs(toy, torch.zeros(1, 1, 6, 6)).units[1].name
    made = linearize(toy, data, target_units=1.0, units=[name], alpha_lr=0.05, train=SHORT)
    assert made.alpha[0] == 0.0
    assert bool((made.alpha[1] == 1).all())
    assert made.rounds == 1


def test_rounds_take_the_way_with_most_units(data):
    net = ps.ResidualMLP(3, 5, in_features=36, num_classes=3, seed=0)
    slopes = prepare(net, data, LinearizeOptions(omega=(0.1,)), SHORT)
    assert Linearized.of(slopes, _fit()).rounds == 3
    slopes.start([torch.tensor([1.0, 1, 1, 1, 0]), 1.0, 0.5])
    result = Linearized.of(slopes, _fit())
    assert (result.rounds, result.units_left) == (2, pytest.approx(1.2))


def _fit():
    return ps.FitResult([], "done", "", 0, None, None, None, 0.0, 0.0, 0.0)


# --- files ---


def test_what_is_saved_is_read_again(data, toy, tmp_path):
    made = linearize(toy, data, target_units=1.0, alpha_lr=0.05, train=SHORT)
    again = Linearized.load(made.save(tmp_path / "made"), Toy().eval(), torch.zeros(1, 1, 6, 6))
    assert same_alpha(made.alpha, again.alpha)
    x = torch.randn(3, 1, 6, 6)
    assert torch.equal(made(x), again(x))
    assert repr(made) == repr(again)
    assert "\n" not in repr(made)
    assert "<table" in made._repr_html_()
    assert made.table().equals(again.table())
    axes = made.plot()
    assert axes.get_xlabel() == "nonlinear units left"
    plt.close(axes.figure)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("options", [{"target_units": 1.0}, {"omega": 0.3, "by": "element", "cotrain": False}])
def test_a_killed_run_resumes_bitwise(data, toy, tmp_path, monkeypatch, options):
    config = replace(SHORT, checkpoint_every=5, steps=23, optimizer="adamw", lr=0.003)
    options = {"alpha_lr": 0.05, **options}
    whole = linearize(toy, data, train=config, **options)
    update = SlopeTraining._update

    def until(self, x, y):
        if self.step == 13:
            raise Killed
        update(self, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(SlopeTraining, "_update", until)
        with pytest.raises(Killed):
            linearize(toy, data, train=config, out=tmp_path / "run", **options)
    resumed = linearize(toy, data, train=config, out=tmp_path / "run", **options)
    assert same_alpha(whole.alpha, resumed.alpha)
    assert same_state(whole.net, resumed.net)
    assert [{**row, "seconds": 0} for row in whole.history] == [{**row, "seconds": 0} for row in resumed.history]
    monkeypatch.setattr(SlopeTraining, "_update", None)  # a finished run is read
    assert same_alpha(linearize(toy, data, train=config, out=tmp_path / "run", **options).alpha, whole.alpha)
    with pytest.raises(CheckpointError, match="another configuration"):
        linearize(toy, data, train=config, out=tmp_path / "run", **{**options, "alpha_lr": 0.06})


@pytest.mark.slow
def test_a_command_killed_at_any_moment_resumes_bitwise(tmp_path):
    runs.save_model(tmp_path / "net", ps.ResidualTower(2, 4, in_channels=1, encoder="conv3x3", norm="batch", seed=0))
    asked = [
        "linearize", str(tmp_path / "net"), "--data", "digits", "--target-units", "1", "--steps", "200",
        "--test-limit", "50", "--checkpoint-every", "7", "--alpha-lr", "0.02", "--threads", "1", "--device", "cpu",
    ]  # fmt: skip
    assert main([*asked, "--out", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-m", "pathsum.cli", *asked, "--out", str(tmp_path / "killed")]
    path = tmp_path / "killed" / runs.CHECKPOINT
    for _ in range(3):
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        before = path.stat().st_mtime if path.is_file() else 0.0
        wait_for(lambda before=before: path.is_file() and path.stat().st_mtime > before, 120)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main([*asked, "--out", str(tmp_path / "killed")]) == 0
    for name in (ALPHA, "weights.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_the_command(tmp_path, capsys):
    runs.save_model(tmp_path / "net", ps.ResidualTower(2, 4, in_channels=1, encoder="conv3x3", seed=0))
    out = str(tmp_path / "out")
    asked = ["linearize", str(tmp_path / "net"), "--data", "digits", "--target-units", "1.5", "--steps", "20"]
    asked += ["--train-limit", "100", "--test-limit", "50", "--device", "cpu", "--out", out]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert "1.5 of 3 units left" in printed
    for name in (ALPHA, "weights.safetensors", "units.csv", "history.csv", "linearized.json"):
        assert (tmp_path / "out" / name).is_file()
    assert main(asked) == 0  # what it came to
    assert "1.5 of 3 units left" in capsys.readouterr().out
    assert main([*asked[:4], "--omega", "1", "--target-units", "1"]) == 2
    assert "give one of omega" in capsys.readouterr().err


# --- what is refused ---


def test_a_model_without_units_is_refused(data):
    for model, text in ((nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), "nothing to linearize"),
                        (nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Tanh()), "its units are tanh")):  # fmt: skip
        with pytest.raises(NoUnitsError, match=text):
            linearize(model, data, omega=0.1)


def test_what_is_not_elementwise_is_refused(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.GLU(), nn.Softmax(1))
    for pattern, kind in (("softmax", "softmax"), ("4", "softmax"), ("glu", "glu")):
        with pytest.raises(PathsumError, match=f"is {kind} .* which is not elementwise"):
            linearize(model, data, omega=0.1, units=[pattern])
    with pytest.raises(PathsumError, match="matches no nonlinear unit"):
        linearize(model, data, omega=0.1, units=["3x"])
    with pytest.raises(NoUnitsError, match="chooses nothing"):
        linearize(model, data, omega=0.1, units=[])


def test_a_budget_below_the_reachable_is_refused(data, toy):
    name = ps.knobs(toy, torch.zeros(1, 1, 6, 6)).units[0].name
    with pytest.raises(PathsumError, match="target_units is 0.5, below the reachable: .* 1 are left"):
        linearize(toy, data, target_units=0.5, units=[name])
    with pytest.raises(PathsumError, match="target_relus is -1.0|target_relus is -1"):
        linearize(toy, data, target_relus=-1)


def test_slopes_of_another_model_are_refused(data, toy, tmp_path):
    linearize(toy, data, target_units=1.5, train=SHORT, alpha_lr=0.05).save(tmp_path)
    other = ps.knobs(Plain(), torch.zeros(1, 1, 6, 6))
    with pytest.raises(CheckpointError, match="holds α of another model: 2 units for the 2 of Plain"):
        load_alpha(tmp_path, other)
    wide = Toy()
    wide.conv2, wide.head = nn.Conv2d(4, 5, 3), nn.Linear(5, 3)
    with pytest.raises(CheckpointError, match=r"has shape \(4,\), which does not fit"):
        linearize(wide, data, target_units=1, alpha=tmp_path)
    with pytest.raises(CheckpointError, match="no file"):
        load_alpha(tmp_path / "nothing", other)


def test_data_that_do_not_fit_are_refused(data, toy):
    with pytest.raises(DataError, match="toy has 2 classes, but Toy gives outputs of shape"):
        linearize(toy, toy_data(classes=2), omega=0.1)
    with pytest.raises(DataError, match="cannot take the images of toy"):
        linearize(ps.ResidualTower(1, 4, seed=0), data, omega=0.1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give one of omega"),
        ({"omega": 0.1, "target_units": 1}, "omega and target_units"),
        ({"omega": -1}, "omega is"),
        ({"omega": 100, "alpha_lr": 0.1}, "linear in one step"),
        ({"omega": 0.1, "power": 1.5}, "power is 1.5"),
        ({"omega": 0.1, "alpha_lr": 0}, "alpha_lr is 0"),
        ({"omega": 0.1, "by": "pixel"}, "by is 'pixel'"),
    ],
)
def test_options_are_checked(data, toy, options, text):
    with pytest.raises(PathsumError, match=text) as error:
        linearize(toy, data, **options)
    assert "\n" not in str(error.value)


def test_a_target_that_is_met_moves_no_slope_by_the_prior():
    data, net = load("digits"), ps.ResidualMLP(depth=3, width=8, seed=0)
    config = TrainConfig(lr=0.02, steps=40, seed=0)
    made = ps.linearize(net, data, target_units=1, train=config)
    again = ps.linearize(made.net, data, target_units=1, alpha=made, alpha_lr=1e-9, saliency=True, train=config)
    for before, after in zip(made.alpha, again.alpha, strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_saliency_spares_what_the_logits_feel():
    """Units whose argument is never negative are linear already: they go first, and cost nothing."""
    torch.manual_seed(0)

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)

        def forward(self, x):
            shift = x.new_tensor([100.0] * 4 + [0.0] * 4)
            return self.last(torch.relu(self.first(x.flatten(1)) + shift) - shift)

    net = Half()
    config = TrainConfig(lr=1e-6, steps=30, seed=0)
    made = ps.linearize(net, load("digits"), target_units=0.5, saliency=True, cotrain=False, train=config)
    assert (made.alpha[0] == 1).tolist() == [True] * 4 + [False] * 4
    assert float(made.alpha[0][4:].abs().max()) < 0.1


class Tokens(nn.Module):
    """Rows of an image as tokens, with a GELU between two linear layers and more classes than directions."""

    def __init__(self, classes: int = 14) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, classes)
        self.act = nn.GELU()

    def forward(self, x):
        x = x.flatten(1, 2)
        return self.head(torch.tanh(x + self.down(self.act(self.up(x)))).mean(1))


class Rows(Tokens):
    """The same with all tokens of all images in one axis, so that α cannot be given by image."""

    def forward(self, x):
        tokens = x.reshape(-1, 6)
        tokens = tokens + self.down(self.act(self.up(tokens)))
        return self.head(torch.tanh(tokens).view(len(x), -1, 6).mean(1))


@pytest.mark.parametrize("by", ["channel", "layer", "element"])
@pytest.mark.parametrize("make", [Toy, Tokens, Rows])
def test_what_the_logits_feel_equals_its_twin(make, by):
    torch.manual_seed(0)
    if by == "element" and make is Rows:
        pytest.skip("elements of a unit whose size depends on the number of images")
    net = make().double().eval()
    classes = net.head.out_features
    data = toy_data(classes=classes)
    model = prepare(net, data, LinearizeOptions(by=by, omega=(0.1,)), SHORT)
    x = normalize(data.train.images[:7], data.mean, data.std, dtype=torch.float64)
    slopes = 0.3 * torch.rand(len(model.slopes), dtype=torch.float64)
    model.slopes.data.copy_(slopes)
    parts = [part.view(site.slopes or ()) for part, site in zip(slopes.split(model.sizes), model.chosen, strict=True)]
    by_sample = samples_first(model.chosen, model.recorder)
    assert by_sample == (make is not Rows)
    found = felt(model._logits, parts, x, by_sample=by_sample)
    expected = twin_felt(
        lambda image, flat: model.net(image, alpha=model.alpha(flat)), slopes, x, directions(classes).double()
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)
    one_by_one = felt(model._logits, parts, x, by_sample=False)
    torch.testing.assert_close(one_by_one, found, rtol=1e-10, atol=1e-14)


def test_saliency_where_an_axis_comes_before_the_samples():
    class Under(Tokens):
        def forward(self, x):
            first = torch.relu(x.flatten(1)[None, :, :6])[0]
            return super().forward(x) + 0.1 * self.head(first)

    torch.manual_seed(0)
    model = prepare(Under(3), toy_data(), LinearizeOptions(target_units=2, saliency=True), SHORT)
    assert not model.prior.equal(torch.ones_like(model.prior))


def test_renewed_norms_are_the_mean_over_batches(data, toy):
    net = ps.knobs(toy, torch.zeros(1, 1, 6, 6))
    batches_of = torch.rand(3, 8, 1, 6, 6)
    momentum = toy.bn.momentum
    renewed(At(net, [0.3, 0.7]), batches_of)
    before = [net.model.conv1(x) for x in batches_of]
    mean = torch.stack([h.mean((0, 2, 3)) for h in before]).mean(0)
    variance = torch.stack([h.var((0, 2, 3)) for h in before]).mean(0)
    torch.testing.assert_close(net.model.bn.running_mean, mean)
    torch.testing.assert_close(net.model.bn.running_var, variance)
    assert net.model.bn.momentum == momentum
    assert not net.model.bn.training


def test_prices_are_what_a_slope_counts(data, toy):
    model = prepare(toy, data, LinearizeOptions(target_relus=10), SHORT)
    scalars = torch.cat([torch.full((site.num,), site.scalars / site.num) for site in model.chosen]).double()
    torch.testing.assert_close(model.budget.prices(model.sizes, scalars.device), scalars)


def test_a_dear_slope_goes_before_a_cheap_one_that_is_felt_as_much():
    """Two units of the same effect, one on a map of four times the size: the target counts scalars."""
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 10)

        def forward(self, x):
            large = torch.relu(x.repeat(1, 4, 1, 1) - 0.5)
            small = torch.relu(x.repeat(1, 4, 1, 1)[:, :, ::2, ::2] - 0.5)
            return self.head(large.mean((2, 3))) + self.head(small.mean((2, 3)))

    data = load("digits")
    model = prepare(Two(), data, LinearizeOptions(target_relus=100, saliency=True), SHORT)
    large, small = model.prior.split(model.sizes)
    assert (large > 2 * small).all()


def test_distillation_follows_its_teacher():
    data = load("digits", train_limit=200, test_limit=100)
    teacher = ps.ResidualMLP(depth=2, width=8, seed=1)
    net = ps.ResidualMLP(depth=2, width=8, seed=0)
    x = normalize(data.test.images, data.mean, data.std)

    def distance(share, **options) -> float:
        made = ps.linearize(
            net, data, omega=0.0, distill=share, train=TrainConfig(lr=0.05, steps=60, batch_size=50), **options
        )
        with torch.no_grad():
            gap = F.log_softmax(teacher(x), 1) - F.log_softmax(made(x), 1)
            return float((F.softmax(teacher(x), 1) * gap).sum(1).mean())

    assert distance(1.0, teacher=teacher) < 0.5 * distance(0.0)
    with pytest.raises(PathsumError, match="a teacher goes with distill"):
        ps.linearize(net, data, omega=0.0, teacher=teacher)
    with pytest.raises(PathsumError, match="distill is 2"):
        ps.linearize(net, data, omega=0.0, distill=2.0)
