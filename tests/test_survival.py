"""λ in a net outlives what is done to modules: saving, copying, moving, compiling, exporting, sharding."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import nn
from torch.utils.checkpoint import checkpoint

import pathsum as ps
from tests import architectures as arch

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def mlp(seed=0, **options):
    return ps.ResidualMLP(depth=4, width=5, in_features=4, scale="1", seed=seed, **options)


def trained(rule="learned:0.5"):
    """λ that no rule gives."""
    net = ps.knobs(mlp(), X).rescale(rule)
    if net.rule.learned:
        with torch.no_grad():
            net.lam_values.copy_(torch.tensor([0.1, -0.2, 0.3, 0.7]))
    return net


# --------------------------------------------------------------------------------------- saving and copying


def test_learned_lam_trains():
    x, y = torch.randn(32, 4), torch.randint(0, 2, (32,))
    net = ps.knobs(mlp(num_classes=2), x).rescale("learned")
    assert net.lam.tolist() == [0.0] * 4
    assert "lam_values" in dict(net.named_parameters())
    optimizer = torch.optim.SGD(net.param_groups(lr=0.5), lr=0.5)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert net.lam.abs().min() > 0
    assert losses[-1] < losses[0]


def by_torch(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def by_safetensors(state):
    return load(save(state))


@pytest.mark.parametrize("saved", [by_torch, by_safetensors])
@pytest.mark.parametrize("rule", ["learned:0.5", "1/sqrt(n)", "1/n per stage"])
def test_a_state_dict_carries_lam(rule, saved):
    net = trained(rule)
    other = ps.knobs(mlp(seed=1), X).rescale(rule)
    assert not torch.equal(other(X), net(X))
    other.load_state_dict(saved(net.state_dict()))
    assert torch.equal(other(X), net(X))
    assert torch.equal(other.lam, net.lam)
    assert other.rule == net.rule


def test_lam_that_were_learned_can_be_loaded_as_fixed_ones():
    net, other = trained(), ps.knobs(mlp(seed=1), X).rescale("1/n")
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(X), net(X))
    assert other.rule.entries == tuple(net.lam.double().tolist())  # what is printed is what is in force
    back = ps.knobs(mlp(seed=1), X).rescale("learned")
    back.load_state_dict(other.state_dict())
    torch.testing.assert_close(back(X), net(X))


@pytest.mark.parametrize("strict", [True, False])
def test_saved_lam_without_a_place_are_not_dropped_silently(strict):
    state = trained().state_dict()
    text = (
        r"the saved λ of 4 branches \('lam_values'\) have no place here: call net.rescale\('learned'\), .* load again"
    )
    with pytest.raises(RuntimeError, match=text) as caught:
        ps.knobs(mlp(), X).load_state_dict(state, strict=strict)
    assert "Unexpected" not in str(caught.value)
    inside = nn.Sequential(ps.knobs(mlp(), X))
    with pytest.raises(RuntimeError, match=r"\('0.lam_values'\) have no place here"):
        inside.load_state_dict({f"0.{k}": v for k, v in state.items()}, strict=strict)


def test_a_state_dict_without_lam_is_missing_them():
    state = ps.knobs(mlp(), X).state_dict()
    with pytest.raises(RuntimeError, match='Missing key.*"lam_values"'):
        ps.knobs(mlp(), X).rescale("1/n").load_state_dict(state)
    net = ps.knobs(mlp(seed=1), X).rescale("1/n")
    net.load_state_dict(state, strict=False)
    assert net.lam.tolist() == [0.25] * 4


def whole(net):
    buffer = io.BytesIO()
    torch.save(net, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), whole])
@pytest.mark.parametrize("rule", ["learned:0.5", "1/sqrt(n)"])
def test_a_net_can_be_copied_and_pickled(rule, copied):
    net = trained(rule)
    other = copied(net)
    assert torch.equal(other(X), net(X))
    assert torch.equal(ps.spectrum(other, X).terms, ps.spectrum(net, X).terms)
    assert other.lam_values is not net.lam_values
    with torch.no_grad():
        other.lam_values.zero_()
        other.model.decoder.linear.bias.zero_()
    assert not torch.equal(other(X), net(X))
    assert net.lam.abs().min() > 0
    assert repr(copied(net)) == repr(net)


def test_a_resnet_is_pickled_with_its_functions():
    net = ps.knobs(arch.resnet20().eval(), IMAGES).rescale("1/n", per="stage")
    assert torch.equal(pickle.loads(pickle.dumps(net))(IMAGES), net(IMAGES))


# ------------------------------------------------------------------------------------------ moves and casts


def test_casts_reach_the_model_and_leave_fixed_lam_exact():
    net = ps.knobs(mlp(), X).rescale("n^-0.8")
    exact = 4**-0.8
    for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.float, nn.Module.double):
        cast(net)
        assert net.lam.tolist() == [exact] * 4
        assert net.lam_values.dtype == torch.float64
        dtype = net.model.decoder.linear.weight.dtype
        assert net(X.to(dtype)).dtype == dtype
    assert net.to(dtype=torch.float32, device="cpu") is net
    assert net.lam.tolist() == [exact] * 4


def test_casts_reach_learned_lam():
    net = trained().half()
    assert net.lam_values.dtype == torch.float16
    assert isinstance(net.lam_values, nn.Parameter)
    assert net(X.half()).dtype == torch.float16
    net.double()
    assert net(X.double()).dtype == torch.float64


def test_a_move_to_the_meta_device_takes_lam_along():
    net = ps.knobs(mlp(), X).rescale("1/n").to("meta")
    assert net.lam_values.device.type == "meta"
    assert net(X.to("meta")).shape == (6, 10)


def test_a_changed_buffer_is_in_force_at_once():
    net = ps.knobs(mlp(), X).rescale("1/n")
    net(X)
    net.lam_values.fill_(0.7)
    assert torch.equal(net(X), net(X, lam=0.7))
    net.lam_values = torch.full((4,), 0.3, dtype=torch.float64)
    assert torch.equal(net(X), net(X, lam=0.3))


# ---------------------------------------------------------------------------------- torch.compile, export


class Unfollowed(nn.Module):
    """torch.compile must break its graph between the joins."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x + torch.tanh(self.a(x))
        torch._dynamo.graph_break()
        return x + self.b(x)


COMPILED = {
    "mlp": (mlp, X),
    "in-place": (arch.BottleneckNet, torch.randn(2, 3, 12, 12)),
    "graph-break": (Unfollowed, torch.randn(3, 4)),
    "hard-gates": (arch.MobileNet, torch.randn(2, 3, 6, 6)),  # their calls are others to the compiler
}
SLOWLY_COMPILED = {
    "resnet": (arch.resnet20, IMAGES),
    "preact": (arch.PreactNet, torch.randn(2, 3, 8, 8)),
    "pre-ln": (arch.PreLNTransformer, torch.randint(11, (2, 5))),
    "post-ln": (arch.PostLNTransformer, torch.randn(2, 4, 6)),
    "parallel": (arch.ParallelTransformer, torch.randint(11, (2, 5))),
    "rezero": (lambda: arch.DenseNet(arch.ReZero), torch.randn(3, 6)),
    "alpha-added": (lambda: arch.DenseNet(arch.AlphaAdded), torch.randn(3, 6)),
    "subtracted": (lambda: arch.DenseNet(arch.Subtracted), torch.randn(3, 6)),
}


def gradients(call, net, x, **knobs):
    for p in net.parameters():
        p.grad = None
    out = call(x, **knobs)
    out.square().sum().backward()
    return out.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def check_compiled(model, x, backend):
    """Values and gradients, of λ too; after λ has moved, another rule, and under α."""
    torch._dynamo.reset()
    net = ps.knobs(model.eval(), x).rescale("learned:0.5")
    compiled = torch.compile(net, backend=backend)
    torch.testing.assert_close(gradients(compiled, net, x), gradients(net, net, x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        net.lam_values.mul_(0.5)
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
        net.rescale("1/n")
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled(x, alpha=0.25), net(x, alpha=0.25), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", COMPILED)
def test_a_knobbed_net_compiles(name):
    build, x = COMPILED[name]
    check_compiled(build(), x, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", SLOWLY_COMPILED)
def test_more_nets_compile(name, backend):
    build, x = SLOWLY_COMPILED[name]
    check_compiled(build(), x, backend)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_with_inductor(name):
    """Needs a C compiler."""
    build, x = COMPILED[name]
    check_compiled(build(), x, "inductor")


def test_it_compiles_into_one_graph_and_trains():
    torch._dynamo.reset()
    net = trained()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    before = net.lam.detach().clone()
    compiled(X).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net.lam, before)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), net(X))


def test_a_wrong_lam_is_named_from_a_compiled_net():
    torch._dynamo.reset()
    compiled = torch.compile(trained(), backend="eager")
    with pytest.raises(ps.PathsumError, match="4 residual branches"):
        compiled(X, lam=torch.ones(3))


def test_a_knobbed_net_exports():
    net = trained()
    exported = torch.export.export(net, (X,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(X), net(X))
        net.lam_values.zero_()
    assert "lam_values" in dict(exported.named_parameters())


# ----------------------------------------------------------------------------------- data parallel, sharded


@pytest.fixture
def one_process(tmp_path):
    """A process group of one, on gloo, that meets in a file."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def step(net, call):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        call(X).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("rule", ["learned:0.5", "1/n"])
def test_data_parallel(one_process, rule):
    from torch.nn.parallel import DistributedDataParallel

    plain, net = trained(rule), trained(rule)
    step(plain, plain)
    step(net, DistributedDataParallel(net))
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(net.lam, plain.lam)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("rule", ["learned:0.5", "1/n"])
def test_fully_sharded(one_process, rule, blocks):
    """fully_shard on the net, and on each block: its hooks call torch functions in the middle of a run."""
    from torch.distributed.fsdp import fully_shard

    plain, net = trained(rule), trained(rule)
    step(plain, plain)
    if blocks:
        for block in net.model.blocks:
            fully_shard(block)
    fully_shard(net)
    step(net, net)
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.full_tensor(), b)
    torch.testing.assert_close(net.lam, plain.lam)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(X), plain.eval()(X))  # a mode that is new, recorded as it is sharded
    assert f"{net.lam[1].item():.4g}" in repr(net)
    assert "lam_values" in net.state_dict()


# ------------------------------------------------------------------------------- activation checkpointing


class Checkpointed(nn.Module):
    """Its second block is computed again in the backward pass, in train mode."""

    def __init__(self, reentrant):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.reentrant = reentrant

    def forward(self, x):
        for i, block in enumerate(self.blocks):
            if i == 1 and self.training and torch.is_grad_enabled():
                x = checkpoint(lambda x, f=block: x + torch.tanh(f(x)), x, use_reentrant=self.reentrant)
            else:
                x = x + torch.tanh(block(x))
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_refused_where_gradients_would_be_wrong(reentrant):
    model, x = Checkpointed(reentrant), torch.randn(3, 4, requires_grad=True)
    net = ps.knobs(model, x.detach()).rescale("learned:0.5")
    with pytest.raises(
        ps.PathsumError, match=r"join add#2 runs under activation checkpointing: .* switch checkpointing"
    ):
        net(x)
    with torch.no_grad():
        net(x)
    net.eval()(x).sum().backward()
    assert net.lam_values.grad.abs().min() > 0


def test_a_part_without_gradient_is_no_checkpoint():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            with torch.no_grad():
                x = x + torch.tanh(self.a(x))
            return x + torch.tanh(self.b(x))

    net = ps.knobs(Frozen(), torch.randn(3, 4)).rescale("learned:0.5")
    net(torch.randn(3, 4)).sum().backward()
    assert net.lam_values.grad[0] == 0
    assert net.lam_values.grad[1] != 0
