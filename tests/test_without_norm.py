"""BatchNorm made part of the layers before it, exactly; norms inside branches dropped for retraining."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from pathsum.errors import ModeError, NoJoinsError
from pathsum.norms import ChannelAffine
from tests import architectures as arch
from tests.cases import randomize, relative

TOKENS = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))


def image(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def made(build, seed=1):
    """A model whose statistics, weights and biases are not the neutral ones, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    return randomize(model, torch.Generator().manual_seed(seed)).eval()


def kinds(model):
    return [type(m).__name__ for m in model.modules()]


# Model, input, and the BatchNorms that follow no layer of their own.
EXACT = {
    "cifar": (arch.resnet20, image(32), 0),
    "bottleneck": (arch.BottleneckNet, image(12), 0),
    "resnext": (lambda: arch.ResNet(arch.ThreeConvBlock, groups=2, base=8), image(32), 0),
    "squeezed": (lambda: arch.ResNet(arch.SqueezedBlock), image(32), 0),
    "preact": (arch.PreactNet, image(8), 5),
    "mobilenet": (arch.MobileNet, image(6), 0),
    "inverted": (lambda: arch.InvertedNet(nn.SiLU, nn.Sigmoid), image(32), 0),
    "tower": (lambda: ps.ResidualTower(3, 5, norm="batch", seed=0), image(32), 0),
    "mlp": (lambda: ps.ResidualMLP(3, 5, in_features=3, norm="batch", seed=0), torch.randn(4, 3), 0),
    "vgg": (arch.VGG, image(8), 0),
    "densely": (arch.DenselyConnected, image(8), 4),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_function_is_kept(name):
    build, x, affine = EXACT[name]
    model = made(build)
    plain = ps.knobs(model, x).without_norm("batch", x)
    assert type(plain) is type(model)
    assert not [kind for kind in kinds(plain) if "Norm" in kind]
    assert kinds(plain).count("ChannelAffine") == affine
    with torch.no_grad():
        assert relative(plain(x), model(x)) < 2e-6
        double = ps.knobs(model.double(), x.double()).without_norm("batch")
        assert relative(double(x.double()), model(x.double())) < 1e-13


def test_by_hand():
    """One convolution and its norm, from the definition."""
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    conv, bn = model
    plain = ps.knobs(model, image(6)).without_norm("batch")
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    torch.testing.assert_close(plain[0].weight, conv.weight * scale.view(4, 1, 1, 1))
    torch.testing.assert_close(plain[0].bias, bn.bias - bn.running_mean * scale)
    assert plain.state_dict().keys() == {"0.weight", "0.bias"}
    assert conv.bias is None
    assert isinstance(plain[1], nn.Identity)


def block(*layers):
    return lambda: nn.Sequential(*layers)


SINGLE = {
    "conv1d": (block(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 6)),
    "conv2d-groups": (block(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    "conv2d-reflect": (block(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    "conv3d": (block(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), (2, 2, 3, 3, 3)),
    "transposed": (block(nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    "transposed-groups": (block(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    "transposed-1d": (block(nn.ConvTranspose1d(4, 8, 3, groups=4), nn.BatchNorm1d(8)), (2, 4, 5)),
    "linear": (block(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)), (3, 4)),
    "no-affine": (block(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (2, 3, 5, 5)),
    "sync": (block(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)), (2, 3, 5, 5)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_every_kind_of_layer(name):
    build, shape = SINGLE[name]
    model, x = made(build).double(), torch.randn(shape, dtype=torch.float64)
    model[1].running_mean.normal_(), model[1].running_var.uniform_(0.5, 2)
    plain = ps.knobs(model, x).without_norm("batch", x, strict=True)
    assert kinds(plain)[1:] == [type(model[0]).__name__, "Identity"]
    torch.testing.assert_close(plain(x), model(x), rtol=1e-12, atol=1e-12)


class Odd(nn.Module):
    """BatchNorms that no layer can take."""

    def __init__(self, f):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.bn, self.linear, self.channels = nn.BatchNorm2d(3), nn.Linear(4, 4), nn.BatchNorm1d(3)
        self.f = f

    def forward(self, x):
        return self.f(self, x)


def doubled(m, x):
    return F.conv2d(x, 2 * m.conv.weight, padding=1)


def read_twice(m, x):
    h = m.conv(x)
    return m.bn(h) + h


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda m, x: m.conv(m.bn(x)), "it reads the model's input"),
        (lambda m, x: m.other(F.relu(m.bn(F.relu(m.conv(x))))), "it follows relu"),
        (lambda m, x: m.bn(m.conv(x) + x), "it follows add"),
        (read_twice, "the result of 'conv' is read elsewhere too"),
        (lambda m, x: m.bn(m.conv(m.bn(m.conv(x)))), "'bn' is called more than once"),
        (lambda m, x: m.other(m.conv(x)) + m.bn(m.conv(x)), "'conv' is called more than once"),
        (lambda m, x: m.bn(doubled(m, x)), "the weight of '' is computed or shared"),
        (
            lambda m, x: m.channels(m.linear(x[:, :, 0, :4])),
            "the channels it normalizes are not the features of 'linear'",
        ),
    ],
)
def test_what_follows_no_layer_stays_an_affine_map(f, why):
    model, x = made(lambda: Odd(f)).double(), image(6).double()
    net = ps.knobs(model, x)
    plain = net.without_norm("batch", x)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-11, atol=1e-11)
    assert kinds(plain).count("ChannelAffine") == 2  # the one that is not called as well
    assert "BatchNorm2d" not in kinds(plain)
    assert why in net.norm_table().to_string()
    assert {"bn.weight", "bn.bias"} <= plain.state_dict().keys()
    assert "bn.running_mean" not in plain.state_dict()
    with pytest.raises(ps.PathsumError, match="2 BatchNorms follow no layer .* with strict=False they stay") as caught:
        net.without_norm("batch", strict=True)
    assert why in str(caught.value)
    assert "it was not called" in str(caught.value)


def test_an_affine_map_trains():
    affine = ChannelAffine(torch.ones(3), torch.zeros(3))
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 4)):
        assert torch.equal(affine(torch.ones(shape)), torch.ones(shape))
    model = made(arch.PreactNet)
    for p in model.blocks[0].bn1.parameters():
        p.requires_grad_(False)
    plain = ps.knobs(model, image(8)).without_norm("batch")
    assert not plain.blocks[0].bn1.weight.requires_grad
    assert plain.blocks[1].bn1.weight.requires_grad
    plain(image(8)).sum().backward()
    assert plain.blocks[0].conv1.bias.grad is not None


def test_a_module_with_two_names_is_replaced_under_both():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.also = self.bn

        def forward(self, x):
            return self.also(self.conv(x))

    model = made(Aliased)
    plain = ps.knobs(model, image(4)).without_norm("batch", image(4))
    assert isinstance(plain.bn, nn.Identity)
    assert plain.bn is plain.also


def test_keys_and_the_original():
    model = made(arch.resnet20)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = ps.knobs(model, image(32)).without_norm("batch")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    kept = {k for k in before if "bn" not in k}
    biases = {k.replace("weight", "bias") for k in kept if "conv" in k}
    assert plain.state_dict().keys() == kept | biases


def test_lam_is_not_in_it_but_folds_in():
    model, x = made(arch.resnet20), image(32)
    net = ps.knobs(model, x).rescale(0.3)
    torch.testing.assert_close(net.without_norm("batch", x)(x), model(x), rtol=1e-4, atol=1e-5)
    folded = net.fold(x)
    plain = ps.knobs(folded, x).without_norm("batch", x)
    torch.testing.assert_close(plain(x), net(x), rtol=1e-4, atol=1e-5)
    again = ps.knobs(ps.knobs(model, x).without_norm("batch"), x).rescale(0.3)
    torch.testing.assert_close(again(x), net(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.fold(x)(x), net(x), rtol=1e-4, atol=1e-5)  # conv2 has weight and bias now


# --------------------------------------------------------------------------------------------------- drop

DROPPED = {
    "cifar": (arch.resnet20, image(32), "batch", 18, ["bn1"]),
    "bottleneck": (
        arch.BottleneckNet,
        image(12),
        "batch",
        12,
        ["bn1", "layer1.0.downsample.1", "layer2.0.downsample.1"],
    ),
    "preact": (arch.PreactNet, image(8), "batch", 7, ["blocks.2.bn1", "bn"]),  # read by the projection as well
    "tower": (lambda: ps.ResidualTower(3, 5, norm="batch", seed=0), image(32), "batch", 6, ["encoder.norm"]),
    "mobilenet": (arch.MobileNet, image(6), "all", 12, []),
    "convnext": (arch.ConvNeXt, image(16), "layer", 4, ["norm", "head.0"]),
    "pre-ln": (arch.PreLNTransformer, TOKENS, "layer", 4, ["ln_f"]),
    "parallel": (arch.ParallelTransformer, TOKENS, "all", 2, []),
    "rms": (lambda: arch.DenseNet(arch.RMSNormed), torch.randn(3, 6), "layer", 5, []),
}


@pytest.mark.parametrize("name", DROPPED)
def test_norms_inside_branches_are_dropped(name, caplog):
    build, x, kind, count, kept = DROPPED[name]
    model = made(build)
    net = ps.knobs(model, x)
    with caplog.at_level(logging.INFO, "pathsum"):
        plain = net.without_norm(kind, x, keep="drop")
    assert type(plain) is type(model)
    gone = {
        n
        for n, m in plain.named_modules()
        if type(m) is nn.Identity and "Norm" in type(model.get_submodule(n)).__name__
    }
    assert len(gone) == count
    assert [n for n, m in plain.named_modules() if "Norm" in type(m).__name__ and not [*m.children()]] == kept
    assert all(repr(n) in caplog.text for n in (*gone, *kept))
    table = net.norm_table().set_index("norm")
    assert set(table.index[table["drop"] == "dropped"]) == gone
    assert list(table.index[table["drop"] == "kept"]) == kept
    left = {k: v for k, v in model.state_dict().items() if k.rpartition(".")[0] not in gone}
    assert plain.state_dict().keys() == left.keys()
    assert all(torch.equal(v, left[k]) for k, v in plain.state_dict().items())
    retrained = ps.knobs(plain, x).rescale("1/sqrt(n)")
    assert len(retrained.branches) == len(net.branches)
    retrained.train()(x).sum().backward()


def test_groups_are_a_kind_of_their_own():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gn, self.inorm, self.bn = (
                nn.Conv2d(4, 4, 1),
                nn.GroupNorm(2, 4),
                nn.InstanceNorm2d(4),
                nn.BatchNorm2d(4),
            )

        def forward(self, x):
            return x + self.bn(self.inorm(self.gn(self.conv(x))))

    x = torch.randn(2, 4, 5, 5)
    net = ps.knobs(made(Grouped), x)
    names = {"group": {"GroupNorm", "InstanceNorm2d"}, "batch": {"BatchNorm2d"}}
    every = {"GroupNorm", "InstanceNorm2d", "BatchNorm2d"}
    for kind, gone in (*names.items(), ("all", every)):
        assert set(kinds(net.without_norm(kind, x, keep="drop"))) & every == every - gone
    with pytest.raises(ps.PathsumError, match="no layer normalization inside a branch of Grouped"):
        net.without_norm("layer", keep="drop")
    plain = net.without_norm("batch", x)  # BN follows another norm: an affine map
    assert kinds(plain).count("ChannelAffine") == 1


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_transformer_runs_without_its_fused_kernel(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(2, 3, 8)
    net = ps.knobs(model, x)
    if not norm_first:
        with pytest.raises(
            ps.PathsumError, match=r"on the stream, where they stay: layers\.0\.norm1, layers\.0\.norm2"
        ):
            net.without_norm("layer", keep="drop")
        return
    plain = net.without_norm("layer", x, keep="drop")
    z = x
    for block in plain.layers:
        z = z + block.self_attn(z, z, z, need_weights=False)[0]
        z = z + block.linear2(torch.relu(block.linear1(z)))
    torch.testing.assert_close(plain(x), z)


def test_norms_of_a_models_own_go_by_their_names():
    T = pytest.importorskip("transformers", reason="pip install 'pathsum[hf]'")
    config = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 50}
    llama = T.LlamaForCausalLM(T.LlamaConfig(**config, intermediate_size=32)).eval()
    ids = torch.arange(10).view(2, 5)
    net = ps.knobs(llama, input_ids=ids)
    plain = net.without_norm("layer", input_ids=ids, keep="drop")
    assert [type(m).__name__ for _, m in plain.named_modules()].count("LlamaRMSNorm") == 1  # the final one
    assert len(ps.knobs(plain, input_ids=ids).branches) == 4


# ------------------------------------------------------------------------------------------------ refusals


def test_what_cannot_be_done_is_said():
    net = ps.knobs(arch.resnet20().eval(), image(32))
    with pytest.raises(ps.PathsumError, match="kinds are batch, layer, group, all; keep='function' or keep='drop'"):
        net.without_norm("bach")
    with pytest.raises(ps.PathsumError, match="keep='function' or keep='drop'"):
        net.without_norm("batch", keep="weights")
    with pytest.raises(ps.PathsumError, match="only eval-mode BatchNorm is a fixed map, .* keep='drop' to retrain"):
        net.without_norm("all")
    with pytest.raises(ModeError, match=r"BatchNorm 'bn1' is in train mode: .* call model.eval\(\) first"):
        ps.knobs(arch.resnet20().train(), image(32)).without_norm("batch")
    with pytest.raises(ps.PathsumError, match="PlainNet has no BatchNorm modules: there is nothing to fold"):
        ps.knobs(arch.PlainNet(), image(8)).without_norm("batch")
    with pytest.raises(NoJoinsError, match="VGG has no residual joins"):
        ps.knobs(arch.VGG().eval(), image(8)).without_norm("batch", keep="drop")


def test_batch_statistics_in_eval_mode_are_no_fixed_map():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    with pytest.raises(ModeError, match=r"BatchNorm '1' keeps no running statistics: .* use keep='drop'"):
        ps.knobs(model, image(4)).without_norm("batch")


def test_a_batch_norm_with_an_activation_inside_is_refused():
    class NormAct(nn.BatchNorm2d):
        def forward(self, x):
            return F.relu(super().forward(x))

    model = nn.Sequential(nn.Conv2d(3, 3, 1), NormAct(3)).eval()
    with pytest.raises(ps.PathsumError, match=r"'1' is a NormAct, a BatchNorm with a forward of its own"):
        ps.knobs(model, image(4)).without_norm("batch")


def test_a_copy_that_is_not_equal_is_not_given():
    """A convolution that does something else once it has a bias."""

    class Moody(nn.Conv2d):
        def forward(self, x):
            return super().forward(x if self.bias is None else 2 * x)

    model = made(lambda: nn.Sequential(Moody(3, 3, 1, bias=False), nn.BatchNorm2d(3)))
    with pytest.raises(ps.PathsumError, match="the model without BatchNorm differs by .* on these inputs"):
        ps.knobs(model, image(4)).without_norm("batch", image(4))
