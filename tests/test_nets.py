"""The towers against a literal re-implementation of the paper's Appendix A, and their options one by one."""

import copy
import doctest
import json
import math
import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pathsum.nets.mlp
import pathsum.nets.tower
import pathsum.paths
import pathsum.scaling
from pathsum.errors import LambdaError, PathsumError, RuleError
from pathsum.nets import OptionError, ResidualMLP, ResidualTower, affine_base
from pathsum.nets.tower import ACTIVATIONS, SamePool

TOWER = {
    "depth": st.integers(0, 3),
    "width": st.integers(1, 5),
    "num_classes": st.integers(1, 4),
    "in_channels": st.integers(1, 3),
    "encoder": st.sampled_from(["imagenet", "conv3x3", "affine"]),
    "norm": st.sampled_from([None, "batch"]),
    "stem_norm": st.booleans(),
    "init": st.sampled_from(["lecun", "he", "torch"]),
    "scale": st.sampled_from(["1", "1/n", "n^-0.8", 0.3, "learned", "learned:1/sqrt(n)"]),
    "activation": st.sampled_from(list(ACTIVATIONS)),
    "seed": st.integers(0, 2**32),
}
MLP = {name: TOWER[name] for name in TOWER if name not in ("in_channels", "encoder", "stem_norm")}
MLP |= {"in_features": st.integers(1, 9), "bias": st.booleans()}


def paper_forward(weights: dict, x: torch.Tensor, *, depth: int, lam: float, norm: bool) -> torch.Tensor:
    """Appendix A in plain functions: flax's encoder and decoder around blocks x + λF(x), in eval mode."""

    def bn(x, name):
        mean, var, scale, shift = (
            weights[f"{name}.{key}"][None, :, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift

    x = F.conv2d(F.pad(x, (3, 3, 3, 3)), weights["encoder.conv.weight"], stride=2)
    x = bn(x, "encoder.norm").clamp(min=0)
    padded = F.pad(x, (0, 1, 0, 1), value=-torch.inf)
    x = padded.unfold(2, 3, 2).unfold(3, 3, 2).amax(dim=(-2, -1))
    for i in range(depth):
        z = F.conv2d(x, weights[f"blocks.{i}.conv1.weight"], padding=1)
        z = bn(z, f"blocks.{i}.norm1") if norm else z
        z = F.conv2d(z.clamp(min=0), weights[f"blocks.{i}.conv2.weight"], padding=1)
        z = bn(z, f"blocks.{i}.norm2") if norm else z
        x = x + lam * z
    return x.flatten(2).mean(2) @ weights["decoder.linear.weight"].T + weights["decoder.linear.bias"]


def settle_norms(net: nn.Module) -> None:
    """Random statistics, scales and shifts, so that no BN is the identity."""
    for name, value in net.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.uniform_(0.5, 1.5)


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("size", [32, 64])
def test_tower_is_the_papers_network(norm, size):
    net = ResidualTower(5, 12, norm=norm, seed=1).double().eval()
    settle_norms(net)
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    expected = paper_forward(net.state_dict(), x, depth=5, lam=5**-0.5, norm=norm is not None)
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


def test_tower_has_the_papers_parameters_and_no_others():
    """Names, shapes and count: a 7×7 stem, 2n bias-free 3×3 convolutions, one dense layer."""
    net = ResidualTower(2, 8, seed=0)
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == {
        "encoder.conv.weight": (8, 3, 7, 7),
        "encoder.norm.weight": (8,),
        "encoder.norm.bias": (8,),
        "blocks.0.conv1.weight": (8, 8, 3, 3),
        "blocks.0.conv2.weight": (8, 8, 3, 3),
        "blocks.1.conv1.weight": (8, 8, 3, 3),
        "blocks.1.conv2.weight": (8, 8, 3, 3),
        "decoder.linear.weight": (10, 8),
        "decoder.linear.bias": (10,),
    }


@pytest.mark.parametrize(
    ("encoder", "stem_norm", "layers", "maps"),
    [
        ("imagenet", True, ["Conv2d", "BatchNorm2d", "ReLU", "SamePool"], 8),
        ("imagenet", False, ["Conv2d", "ReLU", "SamePool"], 8),
        ("conv3x3", True, ["Conv2d", "BatchNorm2d", "Tanh"], 32),
        ("conv3x3", False, ["Conv2d", "Tanh"], 32),
        ("affine", True, ["Conv2d"], 32),
        ("affine", False, ["Conv2d"], 32),
    ],
)
def test_encoders(encoder, stem_norm, layers, maps):
    net = ResidualTower(1, 6, encoder=encoder, stem_norm=stem_norm, activation="tanh", seed=0)
    leaves = [type(m).__name__ for m in net.encoder.modules() if not list(m.children())]
    assert leaves == layers
    (convolution,) = (m for m in net.encoder.modules() if isinstance(m, nn.Conv2d))
    assert (convolution.bias is not None) == (encoder == "affine")
    x = torch.randn(2, 3, 32, 32)
    assert net.encoder(x).shape == (2, 6, maps, maps)
    assert net(x).shape == (2, 10)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 16), (7, 5), (1, 2), (17, 17)])
def test_same_pool_pads_like_tensorflow(height, width):
    """Window j starts at 2j − total // 2, where total = max(2(⌈size/2⌉ − 1) + 3 − size, 0)."""
    x = torch.randn(2, 3, height, width)

    def spans(size):
        out = math.ceil(size / 2)
        low = max(2 * (out - 1) + 3 - size, 0) // 2
        return [slice(max(2 * j - low, 0), 2 * j - low + 3) for j in range(out)]

    rows, columns = spans(height), spans(width)
    expected = torch.stack([torch.stack([x[:, :, r, c].amax(dim=(2, 3)) for c in columns], dim=2) for r in rows], dim=2)
    assert torch.equal(SamePool()(x), expected)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_is_its_formula(activation, bias):
    phi = {"relu": torch.relu, "tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu, "identity": lambda a: a}
    net = ResidualMLP(3, 5, in_features=4, num_classes=2, activation=activation, init="torch", scale=0.7, bias=bias)
    x = torch.randn(6, 4)
    z = net.encoder.linear(x)
    for branch in net.blocks:
        z = z + 0.7 * branch.linear2(phi[activation](branch.linear1(z)))
    torch.testing.assert_close(net(x), net.decoder.linear(z))
    assert ("encoder.linear.bias" in net.state_dict()) == bias
    assert ("decoder.linear.bias" in net.state_dict()) == bias


def test_mlp_norm_follows_each_layer():
    net = ResidualMLP(1, 5, in_features=4, norm="batch", scale=1, seed=0).eval()
    settle_norms(net)
    x = torch.randn(6, 4)
    z, b = net.encoder(x), net.blocks[0]
    expected = z + b.norm2(b.linear2(torch.relu(b.norm1(b.linear1(z)))))
    torch.testing.assert_close(net(x), net.decoder(expected))


def test_mlp_takes_images():
    net = ResidualMLP(2, 8, seed=0)
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(net(x), net(x.flatten(1)))


def test_batch_norm_has_flaxs_constants():
    norms = [m for m in ResidualTower(2, 4, norm="batch", seed=0).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 5
    assert all((m.momentum, m.eps, m.affine, m.track_running_stats) == (0.1, 1e-5, True, True) for m in norms)
    assert all(torch.equal(m.running_var, torch.ones(4)) and not m.running_mean.any() for m in norms)
    assert all(m.num_batches_tracked == 0 for m in norms)


# -- λ


@pytest.mark.parametrize("build", [ResidualTower, ResidualMLP])
@pytest.mark.parametrize("start", ["1/n", "1/sqrt(n)", "0.3"])
def test_a_learned_scale_starts_as_the_fixed_one_and_is_trained(build, start):
    fixed, learned = build(4, 8, scale=start, seed=3), build(4, 8, scale=f"learned:{start}", seed=3)
    x = torch.randn(2, 64) if build is ResidualMLP else torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(learned(x), fixed(x))
    assert "lam" not in dict(fixed.named_parameters())
    assert learned.lam.shape == (4,)
    learned(x).square().sum().backward()
    assert (learned.lam.grad != 0).all()
    assert learned.scales == pytest.approx(fixed.scales)


@pytest.mark.parametrize("build", [ResidualTower, ResidualMLP])
def test_learned_from_zero_starts_as_the_base_model(build):
    net = build(4, 8, scale="learned", seed=0)
    x = torch.randn(2, 64) if build is ResidualMLP else torch.randn(2, 3, 32, 32)
    assert net.scales == (0.0,) * 4
    torch.testing.assert_close(net(x), net.decoder(net.encoder(x)))


def test_one_lam_per_branch():
    lam = [0.5, 0.0, -0.25]
    net = ResidualMLP(3, 8, scale=lam, seed=0)
    x = torch.randn(2, 64)
    z = net.encoder(x)
    for value, branch in zip(lam, net.blocks, strict=True):
        z = z + value * branch(z)
    torch.testing.assert_close(net(x), net.decoder(z))
    assert net.scales == tuple(lam)


def test_rescale_goes_between_fixed_and_learned():
    net = ResidualTower(4, 8, scale="1/n", seed=0)
    assert net.rescale("learned:1/n") is net
    assert isinstance(net.lam, nn.Parameter)
    assert net.config["scale"] == "learned:1/n"
    assert net.rescale(0.5).lam is None
    assert net.scales == (0.5,) * 4
    assert ResidualTower(**net.config).scales == net.scales
    assert net.double().rescale("learned").lam.dtype == torch.float64


def test_zero_lam_is_the_base_model_at_any_depth():
    x = torch.randn(2, 3, 32, 32)
    deep = ResidualTower(6, 8, scale=0, seed=0)
    assert torch.equal(deep(x), deep.decoder(deep.encoder(x)))
    assert ResidualTower(0, 8, scale="1/sqrt(n)", seed=0)(x).shape == (2, 10)


# -- initialization


@pytest.mark.parametrize(("init", "gain"), [("lecun", 1.0), ("he", 2.0), ("torch", 1 / 3)])
@pytest.mark.parametrize("build", [ResidualTower, ResidualMLP])
def test_weights_have_variance_gain_over_fan_in(build, init, gain):
    for layer in build(3, 64, init=init, seed=0).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            w = layer.weight
            if len(w) == 10:  # the classifier: too few weights to measure
                continue
            fan_in = w.shape[1] * w[0, 0].numel()
            # 4096 weights or more: the standard error of a variance is below 2.3 %, so 10 % is four of them.
            assert w.var().item() * fan_in == pytest.approx(gain, rel=0.1)
            assert abs(w.mean().item()) < 4 * math.sqrt(gain / fan_in / w.numel())


def test_lecun_is_a_normal_cut_at_two_of_its_own_standard_deviations():
    weight = ResidualTower(1, 128, init="lecun", seed=0).blocks[0].conv1.weight.flatten().double()
    std = math.sqrt(1 / (128 * 9)) / 0.87962566103423978
    assert weight.abs().max() <= 2 * std * (1 + 1e-6)
    assert weight.abs().max() > 1.99 * std
    assert weight.var().item() * 128 * 9 == pytest.approx(1, rel=0.01)  # standard error 0.3 %
    normal = torch.distributions.Normal(0.0, 1.0)
    low = normal.cdf(torch.tensor(-2.0))
    uniform = ((normal.cdf(weight / std) - low) / (1 - 2 * low)).sort().values
    ideal = (torch.arange(len(uniform)) + 0.5) / len(uniform)
    assert (uniform - ideal).abs().max() < 2 / math.sqrt(len(uniform))  # Kolmogorov–Smirnov, p < 0.001


@pytest.mark.parametrize(("init", "gain"), [("lecun", 1 / 2), ("he", 2.0), ("torch", 1 / 18)])
def test_branch_gains(init, gain):
    """E‖F(z)‖²/‖z‖²: the number `path_energy` takes; dense branches, since convolutions pad with zeros."""
    net = ResidualMLP(40, 128, init=init, bias=False, seed=0)
    z = torch.randn(64, 128)
    with torch.no_grad():
        gains = torch.stack([branch(z).square().sum() / z.square().sum() for branch in net.blocks])
    assert gains.mean().item() == pytest.approx(gain, rel=0.05)  # standard error about 1 %


@pytest.mark.parametrize("init", ["lecun", "he"])
def test_biases_start_at_zero(init):
    for net in (
        ResidualMLP(2, 8, init=init, seed=0),
        ResidualTower(2, 8, encoder="affine", init=init, seed=0),
    ):
        assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_torch_init_is_bitwise_pytorchs():
    def conv(c_in, c_out, size, **kwargs):
        return nn.Conv2d(c_in, c_out, size, bias=False, **kwargs)

    torch.manual_seed(5)
    layers = [conv(3, 8, 7), *(conv(8, 8, 3) for _ in range(4)), nn.Linear(8, 10)]
    expected = [p for layer in layers for p in layer.parameters()]
    torch.manual_seed(5)
    net = ResidualTower(2, 8, init="torch", stem_norm=False)
    for ours, theirs in zip(net.parameters(), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_zero_init_last_starts_at_the_base_model():
    net = ResidualTower(3, 8, norm="batch", scale=1, zero_init_last=True, seed=0)
    x = torch.randn(4, 3, 32, 32)
    for mode in (True, False):
        net.train(mode)
        assert torch.equal(net(x), net.decoder(net.encoder(x)))
    assert ResidualTower(**net.config).blocks[0].norm2.weight.count_nonzero() == 0
    mlp = ResidualMLP(3, 8, norm="batch", scale=1, zero_init_last=True, seed=0)
    assert all(not branch.norm2.weight.any() for branch in mlp.blocks)


# -- seeds, devices, rebuilding


@pytest.mark.parametrize("build", [ResidualTower, ResidualMLP])
@pytest.mark.parametrize("init", ["lecun", "he", "torch"])
def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone(build, init):
    state = torch.get_rng_state()
    first = build(2, 4, init=init, norm="batch", seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = build(2, 4, init=init, norm="batch", seed=7), build(2, 4, init=init, norm="batch", seed=8)
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.decoder.linear.weight, other.decoder.linear.weight)


@pytest.mark.parametrize("build", [ResidualTower, ResidualMLP])
@pytest.mark.parametrize("init", ["lecun", "he", "torch"])
def test_without_a_seed_the_global_generator_decides(build, init):
    torch.manual_seed(1)
    first, second = build(1, 4, init=init), build(1, 4, init=init)
    torch.manual_seed(1)
    again = build(1, 4, init=init)
    assert torch.equal(first.decoder.linear.weight, again.decoder.linear.weight)
    assert not torch.equal(first.decoder.linear.weight, second.decoder.linear.weight)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([(ResidualTower, TOWER), (ResidualMLP, MLP)]))
def test_config_rebuilds_the_network(data, kind):
    build, options = kind
    net = build(**data.draw(st.fixed_dictionaries(options)))
    again = build(**json.loads(json.dumps(net.config)))
    assert again.config == net.config
    assert again.scales == net.scales
    assert again.state_dict().keys() == net.state_dict().keys()
    for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_tower_maps_images_to_finite_logits(data):
    net = ResidualTower(**data.draw(st.fixed_dictionaries(TOWER))).eval()
    size = data.draw(st.tuples(st.integers(4, 17), st.integers(4, 17)))
    logits = net(torch.randn(2, net.config["in_channels"], *size))
    assert logits.shape == (2, net.config["num_classes"])
    assert logits.isfinite().all()


@pytest.mark.parametrize("scale", ["1/n", "learned:1/n"])
@pytest.mark.parametrize("build", [ResidualTower, ResidualMLP])
def test_state_dict_round_trip(build, scale):
    net = build(3, 6, norm="batch", scale=scale, seed=0).eval()
    settle_norms(net)
    other = build(**{**net.config, "seed": 1}).eval()
    x = torch.randn(2, 64) if build is ResidualMLP else torch.randn(2, 3, 16, 16)
    assert not torch.equal(other(x), net(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_default_dtype_and_meta_device_are_respected():
    torch.set_default_dtype(torch.float64)
    try:
        net = ResidualTower(1, 4, norm="batch", scale="learned", seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    with torch.device("meta"):
        shapes = ResidualTower(**net.config)
    assert {p.device.type for p in shapes.parameters()} == {"meta"}
    assert {p.device.type for p in net.parameters()} | {b.device.type for b in net.buffers()} == {"cpu"}


@pytest.mark.gpu
def test_a_seed_means_the_same_weights_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here = ResidualTower(2, 8, norm="batch", scale="learned", seed=0)
    with torch.device("cuda"):
        there = ResidualTower(2, 8, norm="batch", scale="learned", seed=0)
    for a, b in zip(here.state_dict().values(), there.state_dict().values(), strict=True):
        assert b.device.type == "cuda"
        assert torch.equal(a, b.cpu())


@pytest.mark.parametrize(("build", "shape"), [(ResidualTower, (2, 3, 32, 32)), (ResidualMLP, (2, 64))])
def test_nothing_is_changed_in_place(build, shape):
    net, x, seen = build(2, 8, norm="batch", seed=0).eval(), torch.randn(shape), []

    def keep(module, args, out):
        seen.append((out, out.clone()))

    for module in net.modules():
        module.register_forward_hook(keep)
    before = x.clone()
    net(x)
    assert torch.equal(x, before)
    assert len(seen) == len(list(net.modules())) - 1  # every module but the list of blocks ran
    assert all(torch.equal(out, copied) for out, copied in seen)
    assert not any(getattr(module, "inplace", False) for module in net.modules())


def test_every_weight_gets_a_gradient():
    net = ResidualTower(4, 8, norm="batch", seed=0)
    net(torch.randn(4, 3, 32, 32)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_a_thousand_blocks_build_and_run_in_seconds():
    start = time.perf_counter()
    net = ResidualTower(1000, 16, seed=0)
    assert time.perf_counter() - start < 20
    with torch.no_grad():
        assert net(torch.randn(1, 3, 32, 32)).isfinite().all()
    assert len(repr(net)) < 2000


@pytest.mark.slow
@pytest.mark.parametrize("init", ["lecun", "he", "torch"])
def test_the_papers_deepest_network_builds_in_twenty_seconds(init):
    """Depth 1000 at the paper's width 128: 295 million weights, 1.2 GB."""
    start = time.perf_counter()
    net = ResidualTower(1000, 128, init=init, norm="batch", seed=0)
    assert time.perf_counter() - start < 20
    assert sum(p.numel() for p in net.blocks.parameters()) == 1000 * (2 * 9 * 128**2 + 4 * 128)


# -- the affine base model


def close(a, b):
    """Float64 sums of a few thousand products: 1e-12 relative to the largest entry."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * b.abs().max().item())


@pytest.mark.parametrize("bias", [True, False])
def test_affine_base_of_the_mlp(bias):
    net = ResidualMLP(4, 12, in_features=9, num_classes=3, init="torch", bias=bias, seed=0).double()
    weight, offset = affine_base(net)
    assert weight.shape == (3, 9)
    assert offset.shape == (3,)
    assert not weight.requires_grad
    assert not offset.requires_grad
    x = torch.randn(7, 9, dtype=torch.float64)
    close(x @ weight.T + offset, net.rescale(0)(x).detach())


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
def test_affine_base_of_the_tower(size):
    """Against probes of the base model at the origin and the basis vectors, and the tower at λ = 0."""
    net = ResidualTower(3, 6, in_channels=2, encoder="affine", init="torch", seed=0).double()
    weight, offset = affine_base(net, size=size)
    inputs = 2 * size[0] * size[1]
    with torch.no_grad():
        close(offset, net.decoder(net.encoder(torch.zeros(1, 2, *size, dtype=torch.float64)))[0])
        basis = torch.eye(inputs, dtype=torch.float64).view(inputs, 2, *size)
        close(weight, (net.decoder(net.encoder(basis)) - offset).T)
        x = torch.randn(7, 2, *size, dtype=torch.float64)
        close(x.flatten(1) @ weight.T + offset, net.rescale(0)(x))
    assert not weight.requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_affine_base_takes_cifar_images_by_default_and_works_without_grad():
    with torch.no_grad():
        weight, offset = affine_base(ResidualTower(2, 4, encoder="affine", num_classes=3, seed=0))
    assert weight.shape == (3, 3 * 32 * 32)
    assert offset.shape == (3,)


@pytest.mark.parametrize(
    ("net", "found"),
    [
        (lambda: ResidualTower(1, 4, seed=0), "encoder='imagenet'"),
        (lambda: ResidualTower(1, 4, encoder="conv3x3", seed=0), "encoder='conv3x3'"),
        (lambda: nn.Linear(2, 2), "Linear"),
    ],
)
def test_affine_base_refuses_other_encoders(net, found):
    with pytest.raises(OptionError, match=f"{found} is not known to be affine: .*encoder='affine'"):
        affine_base(net())


# -- bad input


@pytest.mark.parametrize(
    ("build", "options", "text"),
    [
        (ResidualTower, {"encoder": "vit"}, "is unknown: choose one of 'imagenet', 'conv3x3', 'affine'"),
        (ResidualTower, {"norm": "layer"}, "norm='layer' is unknown: choose one of None, 'batch'"),
        (ResidualTower, {"init": "xavier"}, "is unknown: choose one of 'lecun', 'he', 'torch'"),
        (ResidualTower, {"activation": "elu"}, "choose one of 'relu', 'tanh', 'gelu', 'silu', 'identity'"),
        (ResidualTower, {"activation": ["relu"]}, "activation=['relu'] is unknown"),
        (ResidualTower, {"depth": -1}, "depth=-1 is not possible: give an integer ≥ 0"),
        (ResidualTower, {"depth": 2.5}, "depth=2.5 is not possible"),
        (ResidualTower, {"depth": True}, "depth=True is not possible"),
        (ResidualTower, {"width": 0}, "width=0 is not possible: give an integer ≥ 1"),
        (ResidualTower, {"num_classes": "10"}, "num_classes='10' is not possible"),
        (ResidualTower, {"in_channels": 0}, "in_channels=0 is not possible"),
        (ResidualTower, {"zero_init_last": True}, "zero_init_last=True needs a BN"),
        (ResidualTower, {"seed": "lucky"}, "seed='lucky' is not possible: give None or an integer ≥ 0"),
        (ResidualTower, {"seed": -1}, "seed=-1 is not possible"),
        (ResidualTower, {"seed": 2**64}, "seed=18446744073709551616 is not possible"),
        (ResidualMLP, {"in_features": 0}, "in_features=0 is not possible"),
        (ResidualMLP, {"norm": "layer"}, "norm='layer' is unknown"),
        (ResidualMLP, {"init": "xavier"}, "init='xavier' is unknown"),
        (ResidualMLP, {"activation": "elu"}, "activation='elu' is unknown"),
        (ResidualMLP, {"zero_init_last": True}, "zero_init_last=True needs a BN"),
        (ResidualMLP, {"seed": 0.5}, "seed=0.5 is not possible"),
    ],
)
def test_bad_options(build, options, text):
    with pytest.raises(OptionError) as caught:
        build(**{"depth": 2, "width": 4, **options})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, PathsumError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("build", [ResidualTower, ResidualMLP])
def test_bad_scales(build):
    with pytest.raises(RuleError, match="'half' is not a scaling rule: allowed are"):
        build(2, 4, scale="half")
    with pytest.raises(LambdaError, match="list of λ has 3 entries, but there are 2 branches"):
        build(2, 4, scale=[1, 2, 3])


@pytest.mark.parametrize("module", [pathsum.nets.tower, pathsum.nets.mlp, pathsum.paths, pathsum.scaling])
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
