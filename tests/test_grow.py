"""Growing keeps the function; a deeper net's loss contains the shallower one's; the gradient there is as stated."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from tests import architectures as arch
from tests.cases import built, case, cifar_test, relative
from tests.reference import growth as reference

HOW = (("end", "zero_last"), ("interleaved", "fresh"), ("stage", "zero"))


def tower(kind: str, rule: str, norm: str | None, dtype: torch.dtype, depth: int = 3):
    """A tower and an input; every parameter and statistic away from its neutral value."""

    def make() -> nn.Module:
        if kind == "ResidualMLP":
            return ps.ResidualMLP(depth, 8, in_features=6, num_classes=4, scale=rule, norm=norm, seed=3)
        return ps.ResidualTower(depth, 4, num_classes=4, encoder="conv3x3", scale=rule, norm=norm, seed=3)

    net, (x,) = built(make, 3, 6)() if kind == "ResidualMLP" else built(make, 3, 3, 6, 6)()
    if net.lam is not None:
        with torch.no_grad():
            net.lam.copy_(torch.linspace(0.2, 0.7, depth))
    return net.to(dtype), x.to(dtype)


def loss_of(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = net(x)
    return F.cross_entropy(out.flatten(0, -2), torch.arange(out.flatten(0, -2).shape[0]) % out.shape[-1])


def bitwise(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return list(one) == list(other) and all(torch.equal(v, other[k]) for k, v in one.items())


# ------------------------------------------------------------------------------------------- outputs stay


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("rule", ["1/n", "1/sqrt(n)", "0.3", "learned", "learned:1/n"])
@pytest.mark.parametrize("kind", ["ResidualMLP", "ResidualTower"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_grown_tower_computes_what_it_did(kind, rule, norm, dtype, tolerance):
    net, x = tower(kind, rule, norm, dtype)
    for where, new in HOW:
        grown = ps.grow(net, x, depth=7, where=where, new=new, seed=0)
        with torch.no_grad():
            assert relative(grown.net(x), net(x)) < tolerance
        assert grown.depth == len(grown.net.blocks) == grown.net.config["depth"] == 7
        expected = ps.parse_rule(rule).values(7)
        if not rule.startswith("learned"):
            assert grown.net.scales == expected


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("rule", ["1/n", "1/sqrt(n)", "0.3"])
@pytest.mark.parametrize("kind", ["ResidualMLP", "ResidualTower"])
def test_the_grown_parameters_are_the_embedded_ones(kind, rule, norm):
    net, x = tower(kind, rule, norm, torch.float64)
    last = reference.LAST[kind, norm]
    for where, places in (("end", [0, 1, 2, None, None]), ("interleaved", reference.spread(3, 2))):
        made = ps.grow(net, x, insert=2, where=where).net.state_dict()
        expected = reference.embed(net.state_dict(), places, rule, last)
        for name, value in expected.items():
            torch.testing.assert_close(made[name], value, rtol=1e-15, atol=0)  # one product, rounded once
        for i, place in enumerate(places):
            if place is None:
                assert all(not made[f"blocks.{i}.{name}"].any() for name in last)


def test_without_the_factor_a_rule_in_n_changes_the_function():
    """The paper's embedding as written: it holds only where λ does not depend on n."""
    net, x = tower("ResidualMLP", "1/n", None, torch.float64)
    grown = ps.grow(net, x, depth=4).net
    grown.blocks[:3].load_state_dict(net.blocks.state_dict())
    with torch.no_grad():
        assert relative(grown(x), net(x)) > 1e-3


@pytest.mark.parametrize(
    ("name", "added"),
    [("resnet-v1", 3), ("bottleneck-v1", 2), ("preact-v2", 2), ("pre-ln", 2), ("mobilenet", 2), ("layer-scale", 2)],
)
def test_any_model_whose_blocks_lie_in_containers(name, added):
    model, x = case(name).build()
    before = copy.deepcopy(model.state_dict())
    joins = len(ps.anatomy(model, *x).branches)
    for where, new in HOW:
        grown = ps.grow(model, *x, insert=added, where=where, new=new, seed=1)
        assert torch.equal(grown.net(*x), model(*x))
        assert len(grown.table()) == joins + added * (2 if name == "pre-ln" else 1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("rule", ["1/n", "1/sqrt(n)", "1/n per stage", "0.3", [0.1, 0.5, 0.2, 0.4], "learned:1/n"])
@pytest.mark.parametrize("name", ["pre-ln", "bottleneck-v1"])
def test_knobs_keep_their_rule_at_the_new_depth(name, rule):
    model, x = case(name).build()
    net = ps.knobs(model, *x).rescale(rule)
    grown = ps.grow(net, *x, insert=2, where="stage" if name == "bottleneck-v1" else "interleaved")
    assert isinstance(grown.net, ps.Knobs)
    assert relative(grown.net(*x), net(*x)) < 1e-12
    lam = grown.net.lam.tolist()
    table = grown.table()
    if isinstance(rule, str) and not rule.startswith("learned"):
        fresh = ps.knobs(grown.net.model, *x).rescale(rule)
        assert lam == fresh.lam.tolist()
    else:
        assert [v for v, new in zip(lam, table["new"], strict=True) if not new] == net.lam.tolist()
        assert set(table["factor"]) == {1.0}


def test_new_learned_scales_start_where_asked_and_old_ones_stay():
    model, x = case("pre-ln").build()
    net = ps.knobs(model, *x).rescale("learned")
    assert ps.grow(net, *x, insert=1).net.lam.tolist()[4:] == [1 / 6, 1 / 6]  # all others are 0: 1/n
    with torch.no_grad():
        net.lam_values.copy_(torch.tensor([0.1, -0.2, 0.3, 0.4]))
    assert ps.grow(net, *x, insert=1).net.lam.tolist() == pytest.approx([0.1, -0.2, 0.3, 0.4, 0.25, 0.25])
    grown = ps.grow(net, *x, insert=1, lam=0.7).net
    assert grown.lam.tolist() == pytest.approx([0.1, -0.2, 0.3, 0.4, 0.7, 0.7])
    assert isinstance(grown.lam_values, nn.Parameter)


def test_blocks_go_after_the_ones_named():
    net, x = tower("ResidualMLP", "0.3", None, torch.float64)
    grown = ps.grow(net, x, where=["blocks.0", "blocks.0", "blocks.2"])
    assert grown.new_blocks == ("blocks.1", "blocks.2", "blocks.5")
    assert torch.equal(grown.net.blocks[3].linear1.weight, net.blocks[1].linear1.weight)


def test_the_container_can_be_named():
    """Attention and MLP each a child of its own: by default the layer of both is a block, one by one on request."""
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self, f: nn.Module) -> None:
            super().__init__()
            self.f = f

        def forward(self, x):
            return x + self.f(x)

    def layer() -> nn.Sequential:
        return nn.Sequential(Residual(arch.Attention(8, 2)), Residual(arch.Dense(8)))

    model, x = nn.Sequential(layer(), layer()), torch.randn(2, 4, 8)
    assert ps.grow(model, x, insert=1).new_blocks == ("2",)
    assert ps.grow(model, x, insert=1, container="1").new_blocks == ("1.2",)
    with pytest.raises(ps.PathsumError, match="container '7' holds no residual branches: those that do are"):
        ps.grow(model, x, insert=1, container="7")


def test_children_with_names_keep_them():
    from collections import OrderedDict

    blocks = OrderedDict((f"layer_{i}", arch.ReZero(4)) for i in (1, 2))
    model, x = nn.Sequential(blocks), torch.randn(2, 4)
    assert ps.grow(model, x, where=["layer_1"]).new_blocks == ("layer_2",)
    odd = nn.Sequential(OrderedDict(first=arch.ReZero(4), second=arch.ReZero(4)))
    grown = ps.grow(odd, x, where=["first", "first"])
    assert list(grown.net._modules) == ["first", "first_2", "first_3", "second"]
    assert bitwise(ps.shrink(grown.net, x).net, odd)


@pytest.mark.data
@pytest.mark.parametrize("name", ["resnet20", pytest.param("resnet32", marks=pytest.mark.slow)])
def test_trained_cifar_resnets(name, shared):
    if not (shared / "models").is_dir():
        pytest.skip(f"no trained models at {shared}")
    model = arch.trained(name, shared)
    x, _ = cifar_test(shared, 4)
    with torch.no_grad():
        grown = ps.grow(model, x, insert=5, where="interleaved")
        assert torch.equal(grown.net(x), model(x))
        net = ps.knobs(model, x).rescale("1/sqrt(n) per stage")
        assert relative(ps.grow(net, x, insert=3, where="stage").net(x), net(x)) < 1e-6
        assert bitwise(ps.shrink(grown.net, x).net, model)


# ------------------------------------------------------------------------------------------- transformers

TRANSFORMERS = ("gpt2", "llama", "vit", "t5", "swin", "gpt-neo", "convnext", "mobilenet-v2")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_models(name):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.zoo import hf

    model, x, named = hf.TRANSFORMERS[name].made()
    with hf.InDouble(), torch.no_grad():
        grown = ps.grow(model, *x, insert=2, where="interleaved", **named)
        knobs = ps.knobs(model, *x, **named).rescale("1/sqrt(n)")
        scaled = ps.grow(knobs, *x, insert=2, **named)
    assert grown.error == 0
    assert scaled.error < 1e-12
    if name in ("gpt2", "llama"):
        assert grown.net.config.num_hidden_layers == grown.depth == 4
        assert model.config.num_hidden_layers == 2
        numbers = [m.layer_idx for m in grown.net.modules() if hasattr(m, "layer_idx")]
        assert numbers == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_grown_gpt2_generates_as_before():
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.zoo import hf

    model, _, named = hf.TRANSFORMERS["gpt2"].made()
    grown = ps.grow(model, insert=1, where=["transformer.h.0"], **named).net
    ids = named["input_ids"][:1]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(grown.generate(ids, **options), model.generate(ids, **options))


# ---------------------------------------------------------------------- Z_{n−1} ↪ Z_n, and the gradient there


@pytest.mark.parametrize("rule", ["1/n", "0.3"])
def test_the_shallow_loss_lies_in_the_deep_one_along_a_whole_path(rule):
    net, x = tower("ResidualMLP", rule, None, torch.float64)
    start = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    way = torch.randn(2, len(start), dtype=start.dtype)
    last = reference.LAST["ResidualMLP", None]
    deep = ps.grow(net, x, depth=5, where="interleaved").net
    places = reference.spread(3, 2)
    for t in torch.linspace(0, 3, 7):
        torch.nn.utils.vector_to_parameters(start + t.sin() * way[0] + (1 - t.cos()) * way[1], net.parameters())
        deep.load_state_dict(deep.state_dict() | reference.embed(net.state_dict(), places, rule, last))
        torch.testing.assert_close(loss_of(deep, x), loss_of(net, x), rtol=1e-13, atol=0)
        made = ps.grow(net, x, depth=5, where="interleaved").net
        torch.testing.assert_close(loss_of(made, x), loss_of(net, x), rtol=1e-13, atol=0)


@pytest.mark.parametrize("rule", ["1/n", "1/sqrt(n)"])
def test_the_gradient_at_the_embedded_point_is_the_old_one_over_the_factor(rule):
    net, x = tower("ResidualMLP", rule, None, torch.float64)
    grown = ps.grow(net, x, depth=5).net
    for model in (net, grown):
        loss_of(model, x).backward()
    factor = reference.lam_of(rule, 3) / reference.lam_of(rule, 5)
    old, new = dict(net.named_parameters()), dict(grown.named_parameters())
    for name, p in old.items():
        c = factor if "linear2" in name else 1.0
        torch.testing.assert_close(new[name].grad, p.grad / c, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "norm", "alive"),
    [
        ("ResidualTower", None, ()),  # no biases: a stationary point in all new directions
        ("ResidualTower", "batch", ("norm2.bias",)),
        ("ResidualMLP", None, ("linear2.bias",)),
    ],
)
def test_with_everything_zero_only_a_last_bias_has_a_gradient(kind, norm, alive):
    net, x = tower(kind, "0.3", norm, torch.float64)
    grown = ps.grow(net, x, depth=4, new="zero").net
    loss_of(grown, x).backward()
    live = {name for name, p in grown.blocks[3].named_parameters() if p.grad.any()}
    assert live == set(alive)
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.1)
    for _ in range(3):  # and it stays so: weights of zero branches never move
        optimizer.step()
        optimizer.zero_grad()
        loss_of(grown, x).backward()
    assert {name for name, p in grown.blocks[3].named_parameters() if p.any()} == set(alive)


@pytest.mark.parametrize("new", ["zero_last", "fresh"])
@pytest.mark.parametrize(("kind", "last"), [("ResidualTower", "conv2"), ("ResidualMLP", "linear2")])
def test_with_the_last_map_zero_it_alone_gets_a_gradient_and_then_all_do(kind, last, new):
    net, x = tower(kind, "0.3", None, torch.float64)
    grown = ps.grow(net, x, depth=4, new=new).net
    loss_of(grown, x).backward()
    for name, p in grown.blocks[3].named_parameters():
        assert bool(p.grad.any()) == name.startswith(last)
    torch.optim.SGD(grown.parameters(), lr=0.1).step()
    grown.zero_grad()
    loss_of(grown, x).backward()
    assert all(p.grad.any() for p in grown.blocks[3].parameters())


def test_a_new_learned_scale_does_not_start_at_zero_before_a_zero_map():
    net, x = tower("ResidualMLP", "learned", None, torch.float64)
    grown = ps.grow(net, x, depth=4).net
    loss_of(grown, x).backward()
    assert grown.blocks[3].linear2.weight.grad.any()
    stuck = ps.grow(net, x, depth=4, lam=0.0).net
    loss_of(stuck, x).backward()
    assert not stuck.blocks[3].linear2.weight.grad.any()
    assert not stuck.lam.grad[3]


# ------------------------------------------------------------------------------------------------ errors


def test_what_cannot_be_grown_says_why():
    x = torch.zeros(2, 3, 8, 8)
    single = arch.CifarResNet(1, width=4).eval()
    with pytest.raises(ps.PathsumError, match="no block can be added after 'layer3.0': the shortcut of its branch"):
        ps.grow(single, x, insert=1)
    assert ps.grow(single, x, where=["layer1.0"]).new_blocks == ("layer1.1",)
    post = case("post-ln")
    model, inputs = post.build()
    with pytest.raises(ps.errors.ProbeError, match=r"layer_norm follows an addition of 'layers.1'"):
        ps.grow(model, *inputs, insert=1)
    model, inputs = case("pooled-v1").build()
    with pytest.raises(ps.errors.ProbeError, match="differs by|does not run"):
        ps.grow(model, *inputs, insert=1, where=["convs.0"])
    model, inputs = case("squeeze-excite").build()
    with pytest.raises(ps.PathsumError, match="does not end in a linear map of its own.*new='zero'"):
        ps.grow(model, *inputs, insert=1)
    with pytest.raises(ps.PathsumError, match="has no blocks: none of its 6 residual branches"):
        ps.grow(arch.SharedBlock(), torch.randn(2, 4, 6), insert=1)


def test_bad_options_say_what_to_give():
    net, x = tower("ResidualMLP", "1/n", None, torch.float32)
    for options, text in (
        ({}, "how deep"),
        ({"depth": 3}, "depth=3 adds no block to the 3"),
        ({"insert": 0}, "insert=0 adds no block"),
        ({"depth": 5, "insert": 1}, "disagree: they ask for 2, 1 new blocks"),
        ({"insert": 1.5}, "insert=1.5: give a whole number"),
        ({"insert": 1, "where": "start"}, "where='start': give 'end'"),
        ({"where": ["blocks.9"]}, "'blocks.9', which is no block: the blocks are blocks.0, blocks.1"),
        ({"insert": 1, "new": "random"}, "new='random': give one of"),
        ({"insert": 1, "lam": 0.5}, "λ follows the rule 1/n"),
    ):
        with pytest.raises(ps.PathsumError, match=text):
            ps.grow(net, x, **options)
    with pytest.raises(ps.errors.DataError, match="give example inputs"):
        ps.grow(net, depth=5)


def test_growing_leaves_no_trace():
    model, x = case("resnet-v1").build()
    model.train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    grown = ps.grow(model, *x, insert=2, new="fresh", seed=4)
    assert model.training
    assert grown.net.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_results_can_be_read():
    import matplotlib

    matplotlib.use("Agg")
    net, x = tower("ResidualMLP", "1/n", None, torch.float64)
    grown = ps.grow(net, x, depth=4)
    assert repr(grown).startswith("Growth(1 new blocks, 4 in all; outputs differ by ")
    assert list(grown.table()["factor"]) == pytest.approx([4 / 3, 4 / 3, 4 / 3, 1.0])
    assert grown.plot().get_ylabel() == "λ"
    less = ps.shrink(grown.net, x)
    assert less.plot().get_xlabel() == "residual branch"
    assert "<table" in grown._repr_html_() + less._repr_html_()
    matplotlib.pyplot.close("all")
