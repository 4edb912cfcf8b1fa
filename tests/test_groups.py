"""Learning rates that suit λ and depth: each parameter once, in the group of its branch."""

from collections import Counter

import pytest
import torch
from torch import nn

import pathsum as ps
from tests import architectures as arch

TOKENS = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))


def rates_of(net, **options):
    """Parameter name -> learning rate; every parameter is in one group, once."""
    groups = net.param_groups(**options)
    seen = Counter(id(p) for g in groups for p in g["params"])
    assert seen == Counter(id(p) for p in net.parameters())
    by_id = {id(p): g["lr"] for g in groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in net.named_parameters()}


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


INPUTS = {
    arch.resnet20: torch.randn(2, 3, 32, 32),
    arch.BottleneckNet: torch.randn(2, 3, 12, 12),
    arch.PreactNet: torch.randn(2, 3, 8, 8),
    arch.MobileNet: torch.randn(2, 3, 6, 6),
    arch.PreLNTransformer: TOKENS,
    arch.PostLNTransformer: torch.randn(2, 4, 6),
    arch.ParallelTransformer: TOKENS,
    arch.SharedBlock: torch.randn(2, 4, 6),
    arch.UNet: torch.randn(2, 3, 8, 8),
}


@pytest.mark.parametrize("build", INPUTS, ids=lambda build: build.__name__)
def test_every_parameter_is_in_one_group_and_momentum_takes_a_step(build):
    net = ps.knobs(build(), INPUTS[build]).rescale("learned:1/n")
    n = len(net.branches)
    rates = rates_of(net, optimizer="sgd", lr=0.01)
    assert rates["lam_values"] == pytest.approx(0.001)
    assert {round(r / 0.01, 6) for name, r in rates.items() if name != "lam_values"} == {1, n}
    optimizer = torch.optim.SGD(net.param_groups(lr=1e-4), lr=1e-4, momentum=0.9)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        net(INPUTS[build]).square().sum().backward()
        optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in net.named_parameters() if p.grad.any())


def test_parameters_of_a_transformer_layer_are_in_its_branches():
    net = ps.knobs(arch.PreLNTransformer(), TOKENS).rescale("1/n")
    assert set(rates_of(net, optimizer="adamw", lr=0.1).values()) == {0.1}  # 1/(nλ) is 1
    for name, rate in rates_of(net, optimizer="sgd", lr=0.1).items():
        assert rate == pytest.approx(0.4 if ".h." in name else 0.1), name


def test_both_parts_of_a_parallel_block():
    net = ps.knobs(arch.ParallelTransformer(), TOKENS).rescale("1/n")
    for name, rate in rates_of(net, lr=0.1).items():
        assert rate == pytest.approx(0.2 if ".h." in name else 0.1), name


@pytest.mark.parametrize("norm_first", [True, False])
def test_multi_head_attention_belongs_to_its_branch_whole(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    net = ps.knobs(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(2, 3, 8))
    rates = rates_of(net.rescale("1/n"), lr=0.1)
    inside = [name for name in rates if "self_attn" in name or "linear" in name]
    assert len(inside) == 2 * 8
    assert all(rates[name] == pytest.approx(0.4) for name in inside)
    assert all(rates[name] == pytest.approx(0.4 if norm_first else 0.1) for name in rates if "norm" in name)


def test_a_weight_tied_to_one_outside_gets_the_least():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.inner.weight = self.stem.weight

        def forward(self, x):
            x = self.stem(x)
            return x + self.outer(torch.tanh(self.inner(x)))

    net = ps.knobs(Tied(), torch.randn(2, 4))
    rates = rates_of(net.rescale(0.1), lr=0.5)
    assert rates["model.stem.weight"] == 0.5
    assert rates["model.inner.bias"] == rates["model.outer.weight"] == pytest.approx(50)
    rates = rates_of(net.rescale(10), lr=0.5)
    assert rates["model.stem.weight"] == rates["model.outer.weight"] == pytest.approx(0.005)
    assert rates["model.stem.bias"] == 0.5


def test_weights_behind_a_parametrization_belong_to_their_layer():
    tower = ps.ResidualMLP(depth=2, width=4, in_features=2, seed=0)
    nn.utils.parametrizations.weight_norm(tower.blocks[0].linear2)
    rates = rates_of(ps.knobs(tower, torch.randn(2, 2)).rescale("1/n"), lr=0.1)
    inside = [name for name in rates if "blocks.0.linear2.parametrizations" in name]
    assert len(inside) == 2
    assert all(rates[name] == pytest.approx(0.2) for name in inside)


def test_per_stage_n_is_the_stages():
    net = ps.knobs(arch.ResNet(arch.TwoConvBlock, (1, 3)), torch.randn(2, 3, 32, 32)).rescale("1/n", per="stage")
    for name, rate in rates_of(net, lr=0.1).items():
        shortcut = "downsample" in name
        assert rate == pytest.approx(0.3 if "layer2" in name and not shortcut else 0.1), name
    whole = rates_of(net.rescale("1/n"), lr=0.1)
    assert whole["model.layer1.0.conv1.weight"] == pytest.approx(0.4)


def test_learned_lam_do_not_decay():
    net = ps.knobs(ps.ResidualMLP(depth=2, width=4, in_features=2, seed=0), torch.randn(2, 2)).rescale("learned")
    optimizer = torch.optim.AdamW(net.param_groups(optimizer="adamw", lr=0.1), lr=0.1, weight_decay=0.3)
    assert [g["weight_decay"] for g in optimizer.param_groups if g["name"] == "lam"] == [0.0]
    assert [g["weight_decay"] for g in optimizer.param_groups if g["name"] != "lam"] == [0.3, 0.3]
