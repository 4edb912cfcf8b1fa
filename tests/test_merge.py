"""What became linear composed: equal to the linearized net, borders included, in plain layers of torch."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathsum as ps
from pathsum.merging import costs
from pathsum.merging.maps import Map, NotExact, compose
from tests import architectures as arch
from tests.architectures.attention import PatchAttention
from tests.cases import cifar_test, randomize, relative
from tests.reference.linear_maps import dense_matrix

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(net, seed=0):
    return randomize(net.eval(), torch.Generator().manual_seed(seed))


def image(*shape, seed=0):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def apart(value, expected):
    return relative(value.detach(), expected.detach())


def random_alpha(knobbed, seed=0, whole=()):
    """Some units linear as a whole, some as they are, the others by channel: linear, bent, as they are."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for k, unit in enumerate(knobbed.units):
        channels = unit.shape[1] if len(unit.shape) == 4 else unit.shape[-1]
        values = torch.tensor([1.0, 1.0, 0.0, 0.4])[torch.randint(4, (channels,), generator=generator)]
        found.append(1.0 if k in whole or k % 4 == 0 else 0.0 if k % 4 == 1 else values)
    return found


def layers_of(merged):
    """Names of the layers called, in order."""
    calls = [n for n in merged.model.graph.nodes if n.op == "call_module"]
    return [type(merged.model.get_submodule(n.target)).__name__ for n in calls]


def check_plain(merged):
    modules = [type(m).__module__ for m in merged.model.modules()]
    assert not [m for m in modules if m.startswith("pathsum")]
    assert "pathsum" not in merged.model.code
    assert merged.model.graph._tracer_cls in (None, torch.fx.Tracer)


class Residual(nn.Module):
    """Parallel chains added up; the identity is an empty one."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(*part) for part in parts)

    def forward(self, x):
        out = self.parts[0](x)
        for part in self.parts[1:]:
            out = out + part(x)
        return out


class Strided(nn.Module):
    """The shortcut of option A beside a strided 1×1 chain."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(4, 7, 1)

    def forward(self, x):
        out = self.conv2(F.relu(self.conv1(x)))
        out += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
        return F.relu(out)


def conv(a, b, size, **options):
    return nn.Conv2d(a, b, size, **options)


CHAINS = {
    "linear": ([nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 4)], (5,)),
    "linear-tokens": ([nn.Linear(5, 9), nn.GELU(), nn.Linear(9, 4, bias=False)], (3, 5)),
    "linear-bn": ([nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)], (5,)),
    "1d": ([nn.Conv1d(2, 3, 3, padding=2), nn.ReLU(), nn.Conv1d(3, 2, 2)], (2, 9)),
    "valid": ([conv(2, 3, 3, padding=1), nn.ReLU(), conv(3, 2, 3)], (2, 6, 7)),
    "strides": ([conv(2, 3, 3, stride=2, padding=1), nn.ReLU(), conv(3, 2, (2, 3), stride=(2, 1))], (2, 9, 8)),
    "1×1-then-padded": ([conv(2, 3, 1), nn.ReLU(), conv(3, 2, 3, padding=1)], (2, 5, 4)),
    "strided-1×1-then-padded": ([conv(2, 3, 1, stride=2), nn.SiLU(), conv(3, 2, 3, padding=1, stride=2)], (2, 8, 7)),
    "patches-then-padded": ([conv(2, 3, 2, stride=2), nn.ReLU(), conv(3, 2, 3, padding=1)], (2, 8, 6)),
    "padded-then-1×1": ([conv(2, 3, 3, padding=1), nn.ReLU(), conv(3, 2, 1)], (2, 5, 4)),
    "no-bias": ([conv(2, 3, 1, bias=False), nn.ReLU(), conv(3, 2, 5, padding=2, bias=False)], (2, 5, 5)),
    "dilated": ([conv(2, 3, 1), nn.ReLU(), conv(3, 2, 3, padding=2, dilation=2), nn.ReLU(), conv(2, 2, 1)], (2, 6, 6)),
    "dilated-first": ([conv(2, 3, (3, 1), dilation=2), nn.ReLU(), conv(3, 2, (2, 3))], (2, 8, 6)),
    "same": ([conv(2, 3, 3, padding="same"), nn.ReLU(), conv(3, 2, 2, padding="valid")], (2, 5, 5)),
    "groups": ([conv(4, 8, 3, groups=4), nn.ReLU(), conv(8, 4, 2, groups=2)], (4, 6, 6)),
    "depthwise": ([conv(4, 4, 3, groups=4, padding=1), nn.ReLU(), conv(4, 4, 3, groups=4)], (4, 6, 6)),
    "inverted": (
        [conv(3, 6, 1), nn.ReLU6(), conv(6, 6, 3, padding=1, groups=6), nn.ReLU6(), conv(6, 3, 1)],
        (3, 5, 6),
    ),
    "inverted-bn": (
        [
            *(conv(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6()),
            *(conv(6, 6, 3, stride=2, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6()),
            *(conv(6, 4, 1, bias=False), nn.BatchNorm2d(4)),
        ],
        (3, 6, 7),
    ),
    "pre-activation": ([nn.BatchNorm2d(2), nn.ReLU(), conv(2, 3, 3, padding=1)], (2, 5, 5)),
    "skip-linear": ([Residual([nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 4)], [])], (4,)),
    "skip-conv": (
        [Residual([conv(3, 5, 1), nn.ReLU(), conv(5, 3, 3, padding=1)], []), nn.ReLU(), conv(3, 2, 1)],
        (3, 5, 5),
    ),
    "skip-depthwise": ([Residual([], [conv(3, 3, 3, padding=1, groups=3), nn.ReLU()])], (3, 5, 5)),
    "nested": (
        [
            Residual([conv(3, 4, 1), nn.ReLU(), Residual([conv(4, 4, 1), nn.ReLU()], []), conv(4, 3, 1)], []),
            nn.ReLU(),
            conv(3, 3, 2),
        ],
        (3, 5, 5),
    ),
    "repvgg": ([Residual([conv(3, 3, 3, padding=1)], [conv(3, 3, 1)], [nn.BatchNorm2d(3)]), nn.ReLU()], (3, 5, 5)),
    "projection": ([Residual([conv(3, 4, 3, stride=2, padding=1)], [conv(3, 4, 1, stride=2)]), nn.ReLU()], (3, 6, 7)),
    "option-A": ([Strided()], (3, 6, 6)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_one_layer(name):
    """Every unit linear: one layer is left, and its matrix is that of the chain, entry by entry."""
    layers, shape = CHAINS[name]
    net = drawn(nn.Sequential(*copy.deepcopy(layers))).double()
    x = image(*shape).double()
    knobbed = ps.knobs(net, x)
    merged = ps.merge(knobbed, 1.0, x, decide="always", batches=())
    assert len(layers_of(merged)) == 1, merged.decision_table().to_string()
    check_plain(merged)
    matrix, offset = dense_matrix(lambda v: knobbed(v, alpha=1.0), shape)
    made, made_offset = dense_matrix(merged.model, shape)
    # sums of at most a few hundred products of numbers near 1
    assert float((made - matrix).abs().max()) <= 1e-12
    assert float((made_offset - offset).abs().max()) <= 1e-12
    assert apart(merged.model(x), knobbed(x, alpha=1.0)) <= 1e-12


REFUSED = {
    "3×3 ∘ 3×3 padded": [conv(2, 3, 3, padding=1), nn.ReLU(), conv(3, 2, 3, padding=1)],
    "valid-then-padded": [conv(2, 3, 3), nn.ReLU(), conv(3, 2, 3, padding=1)],
    "patches with a rest": [conv(2, 3, 2, stride=2), nn.ReLU(), conv(3, 2, 3, padding=1)],
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_borders_differ_it_is_refused(name):
    net, x = drawn(nn.Sequential(*REFUSED[name])).double(), image(2, 7, 7).double()
    knobbed = ps.knobs(net, x)
    merged = ps.merge(knobbed, 1.0, x, decide="always", batches=())
    assert layers_of(merged) == ["Conv2d", "Conv2d"]
    (decision,) = merged.decisions
    assert "at the borders" in decision.why
    assert torch.equal(merged.model(x), knobbed(x, alpha=1.0))
    first, second = (Map(m.weight.double(), None, m.stride, m.padding, 1, size) for m, size in _sized(net, x))
    bigger = Map(first.weight, None, first.stride, (0, 0), 1, first.size)
    with torch.no_grad(), pytest.raises(NotExact):
        compose(first, second)
    # composed all the same, as without borders, it is another function there
    inner = Map(second.weight, None, second.stride, (0, 0), 1, bigger.size_out)
    grown = compose(bigger, inner)
    padding = tuple(p + s * q for p, s, q in zip(first.padding, first.stride, second.padding, strict=True))
    wrong = Map(grown.weight, None, grown.stride, padding, 1, first.size)
    with torch.no_grad():
        assert apart(wrong(x), second(first(x))) > 1e-2


def _sized(net, x):
    return (net[0], tuple(x.shape[2:])), (net[2], tuple(net[0](x).shape[2:]))


def test_reflecting_and_transposed_layers_stay():
    layers = [
        conv(2, 3, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.ConvTranspose2d(3, 2, 2),
        nn.ReLU(),
        conv(2, 2, 1),
    ]
    net, x = drawn(nn.Sequential(*layers)), image(2, 6, 6)
    merged = ps.merge(ps.knobs(net, x), 1.0, x, decide="always", batches=())
    assert layers_of(merged) == ["Conv2d", "ConvTranspose2d", "Conv2d"]
    assert merged.decisions == ()
    assert "nothing to merge" in repr(merged)


def test_linear_channels_go_past_the_unit():
    """4d hidden features of which 7 of 8 are linear: 2·d·(d/2) + d² in place of 8d² multiplications."""
    net, x = drawn(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))), image(8)
    alpha = torch.ones(32)
    alpha[::8] = torch.tensor([0.0, 0.5, 0.0, -0.2])
    knobbed = ps.knobs(net, x)
    merged = ps.merge(knobbed, [alpha], x, decide="flops", batches=())
    assert layers_of(merged) == ["Linear", "PReLU", "Linear", "Linear"]
    assert apart(merged.model(x), knobbed(x, alpha=[alpha])) < 1e-6
    assert merged.sides[-1].flops == 2 * (8 * 4 + 4 * 8 + 8 * 8)
    assert merged.decisions[0].why == "28 of 32 channels linear: split off"
    assert [s.relus for s in merged.sides] == [32, 4, 4]
    few = torch.zeros(32)
    few[:8] = 1  # 2·d·3d + d² < 8d²·… is 7d², against 8d²: pays; with 3 of 32 it does not
    assert len(layers_of(ps.merge(knobbed, [few], x, decide="flops", batches=()))) == 4
    few[3:8] = 0
    stays = ps.merge(knobbed, [few], x, decide="flops", batches=())
    assert layers_of(stays) == ["Linear", "PReLU", "Linear"]
    assert stays.decisions == ()


def test_a_mixed_convolution_is_split():
    net, x = drawn(nn.Sequential(conv(3, 12, 1), nn.ReLU(), conv(12, 3, 3, padding=1))), image(3, 5, 5)
    alpha = torch.ones(12)
    alpha[4] = 0
    knobbed = ps.knobs(net, x)
    merged = ps.merge(knobbed, [alpha], x, decide="flops", batches=())
    assert layers_of(merged) == ["Conv2d", "ReLU", "Conv2d", "Conv2d"]
    assert apart(merged.model(x), knobbed(x, alpha=[alpha])) < 1e-6


SLOPES = (nn.ReLU(), nn.LeakyReLU(0.1), nn.GELU(), nn.Hardswish(), nn.PReLU(6, 0.3), nn.ReLU(inplace=True))


@pytest.mark.parametrize("unit", SLOPES, ids=lambda u: type(u).__name__)
@pytest.mark.parametrize("shape", [(6,), (4, 6), (6, 3, 3)], ids=str)
def test_units_with_a_slope(unit, shape):
    """α a number, one a channel, one an element."""
    if isinstance(unit, nn.PReLU) and len(shape) == 2:
        pytest.skip("its own slopes run along another axis")
    net, x = nn.Sequential(copy.deepcopy(unit)).eval(), image(*shape)
    knobbed = ps.knobs(net, x.clone())
    for alpha in (0.3, torch.linspace(-0.5, 1, 6), torch.rand(shape)):
        expected = knobbed(x.clone(), alpha=[alpha])
        merged = ps.merge(knobbed, [alpha], x, decide="never", batches=())
        assert apart(merged.model(x.clone()), expected) < 1e-6
        check_plain(merged)


# ------------------------------------------------------------------------------------------------ whole networks


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = PatchAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class ViT(nn.Module):
    """Patches, position embeddings, pre-LN blocks, a class token (Dosovitskiy et al. 2021)."""

    def __init__(self, size=16, patch=4, width=12, depth=4, heads=3, num_classes=10):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


NETS = {
    "cifar": (lambda: arch.CifarResNet(2, width=4), (3, 16, 16)),
    "bottleneck": (arch.BottleneckNet, (3, 12, 12)),
    "vit": (ViT, (3, 16, 16)),
    "inverted": (lambda: arch.InvertedNet(nn.ReLU6, None), (3, 16, 16)),
    "mobilenet": (arch.MobileNet, (3, 6, 6)),
    "convnext": (arch.ConvNeXt, (3, 16, 16)),
}


@pytest.mark.parametrize("name", NETS)
def test_whole_networks(name):
    build, shape = NETS[name]
    net, x = drawn(build()), image(*shape)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    knobbed = ps.knobs(net, x)
    alpha = random_alpha(knobbed, whole=(4, 5, 6))
    expected = knobbed(x, alpha=alpha)
    for way in ("flops", "always"):
        merged = ps.merge(knobbed, alpha, x, decide=way, batches=())
        assert apart(merged.model(x), expected) <= 1e-5
        assert apart(merged.model(x[:1]), expected[:1]) <= 1e-5  # another batch size
        check_plain(merged)
    if name != "cifar":
        assert merged.composed
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not net.training


def test_rounds_are_units_on_a_way():
    """Two units side by side are one round."""
    net, x = (
        drawn(nn.Sequential(Residual([nn.Linear(4, 4), nn.ReLU()], [nn.Linear(4, 4), nn.ReLU()]), nn.ReLU())),
        image(4),
    )
    table = ps.merge(ps.knobs(net, x), [0.0, 0.5, 1.0], x, decide="flops", batches=()).table()
    assert table["nonlinear units"].tolist() == [3, 2, 2]
    assert table["rounds"].tolist() == [2, 1, 1]


def test_a_linear_bottleneck_block_is_one_convolution():
    """1×1, 3×3, 1×1, a skip and the unit after it: from three convolutions and a skip to one, chosen by name."""
    block = arch.Bottleneck(6, 3, 6)
    net, x = drawn(nn.Sequential(block, nn.Flatten(), nn.Linear(6 * 25, 3))), image(6, 5, 5)
    knobbed = ps.knobs(net, x)
    merged = ps.merge(knobbed, 1.0, x, decide={"0.conv2": True}, batches=())
    assert layers_of(merged) == ["Conv2d", "Flatten", "Linear"]
    assert apart(merged.model(x), knobbed(x, alpha=1.0)) < 1e-5
    left = ps.merge(knobbed, 1.0, x, decide={f"0.conv{k}": False for k in (1, 2, 3)}, batches=())
    assert layers_of(left).count("Conv2d") == 3
    assert {d.why for d in left.decisions} == {"not wanted"}


def test_a_linear_tower_is_one_layer():
    """Encoder, three blocks with a λ of their own in the addition, decoder."""
    net, x = drawn(ps.ResidualMLP(3, 6, in_features=5, num_classes=4, seed=0, scale="1/n")), image(5)
    merged = ps.merge(ps.knobs(net, x), 1.0, x, decide="flops", batches=())
    assert layers_of(merged) == ["Flatten", "Linear"]


def test_lambda_in_force_is_folded_first():
    net, x = drawn(ps.ResidualMLP(3, 6, in_features=5, num_classes=4, seed=0)), image(5)
    knobbed = ps.knobs(net, x).rescale("1/n")
    merged = ps.merge(knobbed, 1.0, x, decide="always", batches=())
    assert apart(merged.model(x), knobbed(x, alpha=1.0)) < 1e-5


def test_the_cost_model_decides(monkeypatch):
    """A clock that says a 5×5 takes longer than two 3×3, and one that says it does not."""
    net, x = drawn(nn.Sequential(conv(4, 4, 3), nn.ReLU(), conv(4, 4, 3))), image(4, 16, 16)
    knobbed = ps.knobs(net, x)
    for five, layers, word in ((2.2, 2, "1.10 ×"), (2.0, 2, "1.00 ×"), (1.8, 1, "composed")):

        def timed(self, key, make, shape, five=five):
            return five if isinstance(key[1], torch.Size) and key[1][2] == 5 else 1.0

        monkeypatch.setattr(costs.Prices, "timed", timed)
        merged = ps.merge(knobbed, 1.0, x, batches=())
        assert len(layers_of(merged)) == layers
        assert word in merged.decisions[0].why
    flops = ps.merge(knobbed, 1.0, x, decide="flops", batches=())
    assert layers_of(flops) == ["Conv2d", "Conv2d"]
    (decision,) = flops.decisions
    assert (decision.before, decision.after) == (2 * 2 * 16 * 9 * (14**2 + 12**2), 2 * 2 * 16 * 25 * 12**2)
    assert ps.merge(knobbed, 1.0, x, decide="never", batches=()).decisions[0].why == "not wanted"


def test_the_clock_is_asked_once(monkeypatch):
    net, x = drawn(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))), image(4)
    knobbed = ps.knobs(net, x)
    monkeypatch.setattr(costs, "TIMED", {})
    asked = []
    monkeypatch.setattr(costs, "seconds", lambda run: asked.append(run()) or float(len(asked)))
    ps.merge(knobbed, 1.0, x, batches=())
    first = len(asked)
    assert first == 3  # two layers and what they make together
    ps.merge(knobbed, 1.0, x, batches=())
    assert len(asked) == first


def test_the_report(tmp_path):
    net, x = drawn(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU())), image(4)
    labels = [0, 3]
    merged = ps.merge(ps.knobs(net, x), [1.0, 0.0], x, decide="flops", batches=(1, 3), labels=labels)
    table = merged.report
    assert list(table.index) == ["original", "linearized", "merged"]
    assert table["ReLUs"].tolist() == [20, 4, 4]
    assert table["nonlinear units"].tolist() == table["rounds"].tolist() == [2, 1, 1]
    assert table["path length"].tolist() == [2, 1, 1]
    assert table["parameters"].tolist() == [4 * 16 + 16 + 16 * 4 + 4] * 2 + [4 * 4 + 4]
    assert table["MFLOPs"].tolist() == [2 * 128 / 1e6] * 2 + [2 * 16 / 1e6]
    assert (table[["ms, batch 1", "ms, batch 3"]] > 0).all(axis=None)
    expected = float((net(x).argmax(1) == torch.tensor(labels)).double().mean())
    assert table["accuracy"]["original"] == expected
    assert table["accuracy"]["linearized"] == table["accuracy"]["merged"]
    assert merged.units["nonlinear"].tolist() == [0, 4]
    assert repr(merged).startswith("Merged(1 layers composed into others; 20 → 4 ReLUs")
    assert "<table" in merged._repr_html_()
    with pytest.raises(ps.PathsumError, match="no known suffix: .onnx, or .pt2"):
        merged.saved(tmp_path / "net.pth")
    with pytest.raises(ps.PathsumError, match="there is no folder"):
        merged.saved(tmp_path / "missing" / "net.onnx")


# ------------------------------------------------------------------------------------------------ refusals


class Wandering(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return F.relu(self.fc(x)) if x.sum() > -1e9 else x


def test_bad_input():
    x = image(4)
    knobbed = ps.knobs(drawn(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))), x)
    cases = {
        "α has 2 values; the model has 1 nonlinear units": ([1.0, 1.0], {}),
        "α of unit 1 has 5 values; the unit has 6 channels .* of another model": ([torch.ones(5)], {}),
        "α of unit 1 has shape .3, 5.; the unit has shape": ([torch.ones(3, 5)], {}),
        "α of unit 1 is not finite": ([float("nan")], {}),
        "decide='fast': give one of 'flops', 'latency'": (1.0, {"decide": "fast"}),
        "decide names '7', no layer that could be composed; there are: 0, 2": (1.0, {"decide": {"7": True}}),
        "batches=0: give a whole number": (1.0, {"batches": (0,)}),
    }
    for text, (alpha, options) in cases.items():
        with pytest.raises(ps.PathsumError, match=text):
            ps.merge(knobbed, alpha, x, **options)
    with pytest.raises(ps.PathsumError, match="merge needs knobs, got Sequential"):
        ps.merge(knobbed.model, 1.0, x)
    wandering = ps.knobs(Wandering().eval(), x[:, :3])
    with pytest.raises(ps.PathsumError, match="Wandering cannot be written as a fixed graph .* keep the knobs"):
        ps.merge(wandering, 1.0, x[:, :3])
    trained = ps.knobs(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()).train(), x)
    with pytest.raises(ps.PathsumError, match="BatchNorm '1' is in train mode"):
        ps.merge(trained, 1.0, x)


# ------------------------------------------------------------------------------------------------ real data, exports


def run_onnx(path, x):
    ort = pytest.importorskip("onnxruntime", reason="pip install 'pathsum[onnx]'")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def inverted_net():
    net = arch.InvertedNet(nn.ReLU6, None)
    net.classifier[1] = nn.Linear(10, 10)
    return drawn(net)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["resnet20", "vit", "inverted"])
def test_real_data_and_exports(name, shared, tmp_path):
    """CIFAR-10 images: the net under α, the merged module, and onnxruntime give the same."""
    pytest.importorskip("onnxscript", reason="pip install 'pathsum[onnx]'")
    x, y = cifar_test(shared, 32)
    net = {
        "resnet20": lambda: arch.trained("resnet20", shared),
        "vit": lambda: drawn(ViT(size=32, width=48)),
        "inverted": inverted_net,
    }[name]()
    knobbed = ps.knobs(net, x)
    alpha = random_alpha(knobbed, whole=(7, 8, 9, 10))  # whole blocks among them
    expected = knobbed(x, alpha=alpha)
    for way in ("flops", "always"):
        merged = ps.merge(knobbed, alpha, x, decide=way, batches=(), labels=y)
        assert apart(merged.model(x), expected) <= 1e-5
        accuracy = merged.table()["accuracy"]
        assert accuracy["linearized"] == accuracy["merged"]
    path = merged.saved(tmp_path / "net.onnx")
    for part in (x, x[:1], x[:5]):
        assert apart(run_onnx(path, part), merged.model(part)) <= 1e-5
    saved = merged.saved(tmp_path / "net.pt2")
    torch.save((x[:3], merged.model(x[:3]).detach()), tmp_path / "pair.pt")
    code = (
        "import sys, torch; net = torch.export.load(sys.argv[1]).module(); x, y = torch.load(sys.argv[2]); "
        "assert torch.allclose(net(x), y, rtol=1e-4, atol=1e-5); assert 'pathsum' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(saved), str(tmp_path / "pair.pt")], check=True)
