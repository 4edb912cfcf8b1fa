"""λ per stage: which joins are a stage, what n counts then, and stages of the user's own."""

import pytest
import torch
from torch import nn

import pathsum as ps
from pathsum.errors import LambdaError, RuleError
from tests import architectures as arch

TOKENS = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))


def image(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


class EncoderDecoder(nn.Module):
    """Two streams of one shape; the second is fed by the first through its branches."""

    def __init__(self):
        super().__init__()
        self.enc, self.dec, self.cross = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, y):
        x = x + self.enc(torch.tanh(x))
        x = x + self.enc(torch.sin(x))
        y = y + self.dec(torch.tanh(y))
        return y + self.cross(torch.tanh(y) * x)


class Reshaped(nn.Module):
    """One stream, written as a matrix for every other branch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = torch.relu(x + self.a(x))
        x = x.reshape(-1, 4)
        return x + self.b(x)


class Interrupted(nn.Module):
    """A block without a skip between residual ones, of the same shape."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x + self.a(x)
        x = torch.tanh(self.b(x))
        return x + self.c(x)


@pytest.mark.parametrize(
    ("build", "inputs", "stages"),
    [
        (arch.resnet20, (image(32),), [3, 3, 3]),  # padded shortcuts
        (lambda: arch.ResNet(arch.TwoConvBlock, (2, 3, 1, 2)), (image(64),), [2, 3, 1, 2]),
        (lambda: arch.ResNet(arch.ThreeConvBlock, (3, 4)), (image(32),), [3, 4]),  # a projection starts each
        (arch.PreactNet, (image(8),), [2, 2]),
        (arch.ConvNeXt, (image(16),), [2, 2]),
        (lambda: arch.InvertedNet(nn.SiLU, None), (image(32),), [1, 2, 1]),
        (arch.PreLNTransformer, (TOKENS,), [4]),  # two joins a layer
        (arch.PostLNTransformer, (torch.randn(2, 4, 6),), [4]),  # the norm is on the stream
        (arch.ParallelTransformer, (TOKENS,), [2]),
        (arch.UNet, (image(8),), [1, 1]),
        (lambda: arch.UNet(residual=True), (image(8),), [3, 3, 1]),  # what the long skips carry goes on
        (EncoderDecoder, (torch.randn(2, 4), torch.randn(2, 4)), [2, 2]),
        (Reshaped, (torch.randn(2, 3, 4),), [2]),
        (Interrupted, (torch.randn(2, 4),), [1, 1]),
        (lambda: ps.ResidualMLP(depth=5, width=4, in_features=2, seed=0), (torch.randn(2, 2),), [5]),
    ],
)
@pytest.mark.parametrize("rule", ["1/n", "learned:1/sqrt(n)"])
def test_n_counts_the_joins_of_the_stage(build, inputs, stages, rule):
    net = ps.knobs(build().eval(), *inputs).rescale(rule, per="stage")
    labels = [b.stage for b in net.branches]
    counts = [labels.count(label) for label in dict.fromkeys(labels)]
    assert counts == stages
    power = 1.0 if rule == "1/n" else 0.5
    assert net.lam.tolist() == pytest.approx([labels.count(label) ** -power for label in labels])
    whole = net.rescale(rule, per="net").lam.tolist()
    assert whole == pytest.approx([len(labels) ** -power] * len(labels))


def test_lam_per_stage_is_what_runs():
    net = ps.knobs(arch.ResNet(arch.TwoConvBlock, (1, 4)).eval(), image(32))
    expected = net(image(32), lam=[1.0, 0.5, 0.5, 0.5, 0.5])
    assert torch.equal(net.rescale("1/sqrt(n)", per="stage")(image(32)), expected)
    assert torch.equal(ps.rescale(net, "1/sqrt(n) per stage")(image(32)), expected)
    assert torch.equal(ps.rescale(net, "1/sqrt(n)", per="stage")(image(32)), expected)


def test_it_is_said_in_text_and_print():
    net = ps.knobs(arch.resnet20().eval(), image(32)).rescale("1/sqrt(n)", per="stage")
    assert net.rule.text == "1/sqrt(n) per stage"
    first, header, *rows = repr(net).splitlines()
    assert "λ = 1/sqrt(n) per stage" in first
    assert header.split()[-1] == "stage"
    assert [row.split()[-1] for row in rows] == list("000111222")
    assert "stage" not in repr(net.rescale("1/n"))


@pytest.mark.parametrize(
    ("stages", "lam"),
    [
        ([4, 5], [1 / 4] * 4 + [1 / 5] * 5),
        ([1] * 9, [1.0] * 9),
        (["a", "b"] * 4 + ["a"], [1 / 5, 1 / 4] * 4 + [1 / 5]),
        (lambda branch: branch.identity, [1 / 7] * 3 + [1 / 2] + [1 / 7] * 2 + [1 / 2] + [1 / 7] * 2),
        (lambda branch: branch.name.split(".")[0], [1 / 3] * 9),
    ],
)
def test_stages_of_ones_own(stages, lam):
    net = ps.knobs(arch.resnet20().eval(), image(32)).rescale("1/n", stages=stages)
    assert net.lam.tolist() == pytest.approx(lam)
    assert net.rule.text == "1/n per stage"


def test_a_list_has_one_number_per_stage():
    net = ps.knobs(arch.resnet20().eval(), image(32))
    assert net.rescale([1, 0.5, 0.25], per="stage").lam.tolist() == [1] * 3 + [0.5] * 3 + [0.25] * 3
    assert net.rule.text == "[1, 0.5, 0.25] per stage"
    with pytest.raises(LambdaError, match=r"list of λ has 2 entries, but there are 3 stages: give one number for each"):
        net.rescale([1, 2], per="stage")
    with pytest.raises(LambdaError, match=r"3 entries, but there are 9 branches"):
        net.rescale([1, 0.5, 0.25])


@pytest.mark.parametrize("stages", [[3, 3], [], ["a", "b"], [9.0], [True] * 9, [10, -1], [0, 9]])
def test_stages_that_do_not_divide_the_branches(stages):
    net = ps.knobs(arch.resnet20().eval(), image(32))
    with pytest.raises(
        LambdaError, match=r"does not divide 9 branches: give the number .* \(found here: \[3, 3, 3\]\)"
    ):
        net.rescale("1/n", stages=stages)
    assert net.rule is None


def test_an_unknown_per_is_refused():
    net = ps.knobs(arch.resnet20().eval(), image(32))
    for use in (lambda: net.rescale("1/n", per="block"), lambda: ps.rescale(net, "1/n", per="layer")):
        with pytest.raises(RuleError, match=r"n counts the branches of the whole net \(per='net'\) or of a stage"):
            use()


def test_a_tower_is_one_stage():
    tower = ps.ResidualMLP(depth=4, width=3, in_features=2, seed=0)
    assert ps.rescale(tower, "1/n", per="stage").scales == (0.25,) * 4
    assert tower.config["scale"] == "1/n per stage"
    assert ps.ResidualMLP(depth=4, width=3, scale=tower.config["scale"]).scales == (0.25,) * 4
    assert ps.rescale(tower, [0.5], per="stage").scales == (0.5,) * 4
