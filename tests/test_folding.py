"""λ folded into weights: a plain model, the same class and keys, equal to the knobs."""

import pytest
import torch
from torch import nn

import pathsum as ps
from pathsum.folding import TOLERANCE
from tests import architectures as arch
from tests.cases import randomize, relative

TOKENS = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))


def image(size, seed=0):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def dense(block):
    return lambda: arch.DenseNet(block)


VECTOR = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
ENCODER = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
PRE_LN_ENCODER = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
FOLDABLE = {
    "cifar": (arch.resnet20, image(32)),
    "bottleneck": (arch.BottleneckNet, image(12)),
    "preact": (arch.PreactNet, image(8)),
    "resnext": (lambda: arch.ResNet(arch.ThreeConvBlock, groups=2, base=8), image(32)),
    "mobilenet": (arch.MobileNet, image(6)),
    "inverted": (lambda: arch.InvertedNet(nn.SiLU, nn.Sigmoid), image(32)),
    "convnext": (arch.ConvNeXt, image(16)),
    "unet": (arch.UNet, image(8)),
    "pre-ln": (arch.PreLNTransformer, TOKENS),
    "post-ln": (arch.PostLNTransformer, torch.randn(2, 4, 6)),
    "parallel": (arch.ParallelTransformer, TOKENS),
    "shared": (arch.SharedBlock, torch.randn(2, 4, 6)),
    "torch": (lambda: nn.TransformerEncoder(ENCODER, 2, enable_nested_tensor=False), torch.randn(2, 3, 8)),
    "torch-pre-ln": (
        lambda: nn.TransformerEncoder(PRE_LN_ENCODER, 2, enable_nested_tensor=False),
        torch.randn(2, 3, 8),
    ),
    "tower": (lambda: ps.ResidualTower(4, 6, encoder="conv3x3", scale="1/n", seed=0), image(8)),
    "tower-bn": (lambda: ps.ResidualTower(4, 6, norm="batch", seed=0), image(32)),
    "tower-learned": (lambda: ps.ResidualMLP(4, 6, in_features=6, scale="learned:0.5", seed=0), VECTOR),
    "tower-born-zero": (lambda: ps.ResidualMLP(4, 6, in_features=6, scale="learned", seed=0), VECTOR),
    "subtracted": (dense(arch.Subtracted), VECTOR),
    "alpha": (dense(arch.AlphaAdded), VECTOR),
    "in-place": (dense(arch.AddedInPlace), VECTOR),
    "rezero": (dense(arch.ReZero), VECTOR),
    "layer-scale": (dense(arch.LayerScale), VECTOR),
    "drop-path": (dense(arch.StochasticDepth), VECTOR),
    "gated": (dense(arch.GatedMLP), VECTOR),
}


@pytest.fixture(params=FOLDABLE)
def case(request):
    build, x = FOLDABLE[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build()
    return randomize(model, torch.Generator().manual_seed(1)).eval(), x


def test_the_folded_model_is_the_knobs(case):
    """Within 1e-6 in float32, 1e-12 in float64; the λ are no powers of two."""
    model, x = case
    net = ps.knobs(model, x)
    lam = torch.linspace(0.3, 0.7, len(net.branches)).tolist()
    if type(model) is arch.SharedBlock:
        lam = [0.3, 0.7] * 3  # what is one weight has one λ
    net.rescale(lam)
    folded = net.fold()
    assert type(folded) is type(model)
    assert folded.state_dict().keys() == model.state_dict().keys()
    assert not any(isinstance(m, ps.Knobs) for m in folded.modules())
    with torch.no_grad():
        assert relative(folded(x), net(x)) < 1e-6
        assert relative(folded(x), model(x)) > 1e-4  # it did change
        exact = x.double() if x.is_floating_point() else x
        fine = ps.knobs(model.double(), exact).rescale(lam)
        assert relative(fine.fold(exact)(exact), fine(exact)) < 1e-12


def test_lam_zero_folds(case):
    model, x = case
    net = ps.knobs(model, x).rescale(0.0)
    with torch.no_grad():
        torch.testing.assert_close(net.fold(x)(x), net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "x", "rule"),
    [
        (lambda: arch.CifarResNet(18, width=4), image(32), 0.9),
        (lambda: ps.ResidualMLP(1000, 8, in_features=6, scale="1/n", seed=0), VECTOR, "1/sqrt(n)"),
    ],
)
def test_deep_networks_fold_as_well(build, x, rule):
    """54 blocks of a ResNet-110, 1000 of a tower: what rounding there is stays below the tolerance of `fold(x)`."""
    net = ps.knobs(randomize(build(), torch.Generator().manual_seed(1)).eval(), x).rescale(rule)
    assert TOLERANCE[torch.float32] == 1e-6
    net.fold(x)


def test_folding_leaves_the_original_alone():
    model = arch.resnet20().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    net = ps.knobs(model, image(32)).rescale("1/sqrt(n)")
    folded = net.fold(image(32))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    changed = {k for k, v in folded.state_dict().items() if not torch.equal(before[k], v)}
    assert changed == {f"layer{s}.{b}.bn2.weight" for s in (1, 2, 3) for b in range(3)}  # their biases are zeros
    assert not folded.training


def test_where_lam_is_written():
    """In the model's own scale where that is a parameter, in all summands of a branch, in the layer that ends it."""
    for build, x, written in [
        (dense(arch.ReZero), VECTOR, {"scale"}),
        (dense(arch.LayerScale), VECTOR, {"gamma"}),
        (arch.ConvNeXt, image(16), {"gamma"}),
        (arch.ParallelTransformer, TOKENS, {"attn.proj.weight", "attn.proj.bias", "down.weight", "down.bias"}),
        (dense(arch.GatedMLP), VECTOR, {"down.weight", "down.bias"}),
        (arch.BottleneckNet, image(12), {"bn3.weight", "bn3.bias"}),
    ]:
        model = randomize(build(), torch.Generator().manual_seed(1)).eval()
        net = ps.knobs(model, x).rescale(0.37)
        names = {end.parameter for b in net.branches for end in (b.ends if b.scale is None else (b.scale,))}
        assert all(any(name.endswith(f".{w}") for w in written) for name in names), names
        folded = net.fold(x).state_dict()
        assert {k for k, v in model.state_dict().items() if not torch.equal(v, folded[k])} == names


def test_a_scale_of_the_models_own_that_moved_since_is_read_again():
    tower = ps.ResidualMLP(depth=3, width=5, in_features=6, scale="learned:0.5", seed=0)
    net = ps.knobs(tower, VECTOR)
    with torch.no_grad():
        tower.lam.copy_(torch.tensor([0.2, -0.4, 0.0]))
    assert net.lam.tolist() == pytest.approx([0.2, -0.4, 0.0])
    assert torch.equal(net.fold(VECTOR)(VECTOR), tower(VECTOR))
    net.rescale([0.1, 0.2, 0.3])
    assert net.fold(VECTOR).lam.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert net.fold().lam.tolist() == pytest.approx([0.1, 0.2, 0.3])
    fixed = ps.ResidualMLP(depth=3, width=5, in_features=6, scale=0.5, seed=0)
    net = ps.knobs(fixed, VECTOR)
    fixed.rescale(0.25)
    net.rescale(0.1).fold(VECTOR)


def test_learned_lam_fold_after_training():
    tower = ps.ResidualMLP(depth=4, width=8, in_features=6, scale="1", seed=0)
    net = ps.knobs(tower, VECTOR).rescale("learned")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        net(VECTOR).square().sum().backward()
        optimizer.step()
    assert net.lam.abs().min() > 0
    with torch.no_grad():
        assert relative(net.fold(VECTOR)(VECTOR), net(VECTOR)) < 1e-6


def test_training_goes_on_with_the_folded_model():
    net = ps.knobs(arch.resnet20().train(), image(32)).rescale("1/sqrt(n)")
    folded = net.fold(image(32))  # in train mode: the statistics of the batch, and dropout's random numbers, alike
    assert folded.training
    folded(image(32)).sum().backward()
    assert all(p.grad is not None for p in folded.parameters())


def test_a_dropout_in_train_mode_is_drawn_alike():
    model = nn.TransformerEncoder(ENCODER, 2, enable_nested_tensor=False).train()
    x = torch.randn(2, 3, 8)
    ps.knobs(model, x).rescale(0.3).fold(x)


def test_without_a_rule_and_without_joins_it_is_a_copy():
    bent = Bent(lambda m, x: x + torch.tanh(m.a(x)))
    x = torch.randn(2, 4)
    copy = ps.knobs(bent, x).fold(x)  # nothing is asked of the branch that could not be scaled
    assert copy is not bent
    assert torch.equal(copy(x), bent(x))
    assert torch.equal(ps.knobs(bent, x).rescale(1.0).fold(x)(x), bent(x))


def test_alpha_is_not_folded():
    tower = ps.ResidualMLP(depth=3, width=5, in_features=6, seed=0)
    net = ps.knobs(tower, VECTOR).rescale(0.3)
    assert not torch.allclose(net.fold(VECTOR)(VECTOR), net(VECTOR, alpha=1.0))
    assert "α is not folded" in net.fold.__doc__


class Bent(nn.Module):
    """Branches that end in something else than a linear map of their own."""

    def __init__(self, f):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.plain_norm = nn.LayerNorm(4), nn.LayerNorm(4, elementwise_affine=False)
        self.shift, self.matrix = nn.Parameter(torch.ones(4)), nn.Parameter(torch.randn(4, 4))
        self.f = f

    def forward(self, x):
        return self.f(self, x)


def twice(m, x):
    h = m.a(x)
    return x + h * torch.sigmoid(m.b(h))


def read_by_two(m, x):
    h = m.a(x)
    return x + h, h.detach()


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda m, x: x + torch.tanh(m.a(x)), "it ends in tanh in '', which is not linear"),
        (lambda m, x: x + m.plain_norm(m.a(x)), "it ends in layer_norm in 'plain_norm', which has no weights"),
        (twice, "the result of linear in 'a' is read 2 times; it ends in sigmoid"),
        (lambda m, x: x + (m.a(x) + 1.0), "a constant is added to it"),
        (lambda m, x: x + (m.a(x) + torch.ones(4)), "a constant is added to it"),
        (lambda m, x: x + (m.a(x) + torch.relu(m.b(x))), "it ends in relu"),
        (lambda m, x: x + m.a(m.b(torch.tanh(m.a(x)))), "'a.weight' is read 2 times in the model, and 1 of them end"),
        (lambda m, x: x + torch.nn.functional.linear(x, 2 * m.matrix), "the weight of linear in '' is computed"),
        (lambda m, x: x + m.a(x) ** 2, "it ends in pow"),
        (read_by_two, "the result of linear in 'a' is read 2 times"),
        (lambda m, x: x + m.a(x) * (1 + m.shift) * torch.tanh(m.norm.weight), None),
        (lambda m, x: x + (m.a(x) + m.shift), None),
        (lambda m, x: x + (m.a(x) @ m.matrix), None),
        (lambda m, x: x + m.a(x).view(-1, 2, 2).transpose(1, 2).reshape(-1, 4).roll(1, 1) / 3, None),
        (lambda m, x: x + torch.cat([m.a(x)[:, :2], m.b(x)[:, 2:]], 1), None),
        (lambda m, x: x + m.norm(m.a(x)), None),
        (lambda m, x: x + torch.addmm(m.shift, x, m.matrix), None),
        (lambda m, x: x + m.b(x) * torch.sigmoid(m.a(x)), None),
        (lambda m, x: x - 0.5 * m.a(x), None),
    ],
)
def test_what_can_end_a_branch(f, reason):
    model, x = Bent(f), torch.randn(3, 4)
    net = ps.knobs(model, x).rescale(0.3)
    if reason is None:
        folded = net.fold(x)
        torch.testing.assert_close(folded(x), net(x))
        assert folded.state_dict().keys() == model.state_dict().keys()
        return
    with pytest.raises(ps.PathsumError, match=r"λ of branch .*add cannot be folded: .*; keep the knobs") as caught:
        net.fold()
    assert reason in str(caught.value)


def test_squeeze_and_excitation_at_the_end_is_named():
    """The gate is computed from what it multiplies: no single weight scales the branch."""
    net = ps.knobs(arch.ResNet(arch.SqueezedBlock).eval(), image(32)).rescale(0.5)
    with pytest.raises(
        ps.PathsumError, match=r"branch layer1\.0\.add cannot .* batch_norm in 'layer1\.0\.bn3' is read 2"
    ):
        net.fold()


def test_a_parametrized_layer_is_refused():
    model = Bent(lambda m, x: x + m.a(x))
    nn.utils.parametrizations.weight_norm(model.a)
    x = torch.randn(2, 4)
    with pytest.raises(ps.PathsumError, match="the weight of linear in 'a' is computed, no parameter of the model"):
        ps.knobs(model, x).rescale(0.5).fold()


def test_a_layer_of_several_branches_takes_one_lam():
    x = torch.randn(2, 4, 6)
    net = ps.knobs(arch.SharedBlock(), x)
    net.rescale([0.3, 0.7] * 3).fold(x)
    several = (
        r"'block\.attn\.proj\.weight' ends several branches, block\.add#1 and block\.add#5 among them, .* differently"
    )
    with pytest.raises(ps.PathsumError, match=f"{several}: one weight cannot hold both"):
        net.rescale([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).fold(x)


def test_an_own_scale_of_zero_has_nothing_to_multiply():
    model = Bent(lambda m, x: x + 0.0 * m.a(x))
    x = torch.randn(2, 4)
    with pytest.raises(ps.PathsumError, match=r"multiplied by 0 in the model itself, so λ=0.5 cannot be folded"):
        ps.knobs(model, x).rescale(0.5).fold(x)


def test_a_fold_that_is_not_equal_is_not_given():
    """A model that does something else under the knobs than without."""
    model = Bent(lambda m, x: x + (0.5 if torch.overrides._len_torch_function_stack() else 0.7) * m.a(x))
    x = torch.randn(2, 4)
    net = ps.Knobs(model, ps.anatomy(model, x)).rescale(0.3)
    with pytest.raises(ps.PathsumError, match="the folded model differs by .* on these inputs: it was not made"):
        net.fold(x)


def test_the_folded_model_exports():
    net = ps.knobs(arch.PreLNTransformer().eval(), TOKENS).rescale("1/sqrt(n)")
    exported = torch.export.export(net.fold(TOKENS), (TOKENS,))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(TOKENS), net(TOKENS))
