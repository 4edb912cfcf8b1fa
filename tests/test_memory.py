"""Saving memory: the same gradients, the same statistics, fewer bytes; and what is promised about the bytes."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from pathsum.errors import ModeError, PathsumError
from pathsum.nets import Memory, ResidualMLP, ResidualTower, checkpointed, reversible, saving
from pathsum.nets.reversible import Reversal
from pathsum.training.estimate import GIB, estimate
from pathsum.training.memory import PeakMemory, Updates, saved_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = (torch.float32, torch.float64)


def tower(depth=7, width=4, dtype=torch.float64, **options):
    return ResidualTower(depth, width, in_channels=1, encoder="conv3x3", seed=0, **options).to(dtype)


def images(num=3, dtype=torch.float64):
    return torch.randn(num, 1, 6, 6, dtype=dtype)


def gradients(net, x, memory="plain"):
    """Gradients of a loss, from the state the net is in; its buffers move."""
    net.memory = memory
    net.zero_grad()
    F.cross_entropy(net(x), torch.arange(len(x)) % 10).backward()
    return [p.grad.clone() for p in net.parameters()]


def same(a, b):
    return all(torch.equal(u, v) for u, v in zip(a, b, strict=True))


def distance(a, b):
    """Relative 2-norm of the difference, all tensors as one vector."""
    a, b = (torch.cat([t.flatten() for t in some]) for some in (a, b))
    return float((a - b).norm() / a.norm())


NETS = {
    "plain": lambda dtype: tower(dtype=dtype),
    "batch norm": lambda dtype: tower(norm="batch", scale=0.1, dtype=dtype),
    "learned": lambda dtype: tower(scale="learned:1/sqrt(n)", dtype=dtype),
    "learned, batch norm": lambda dtype: tower(scale="learned:1/n", norm="batch", dtype=dtype),
    "one list": lambda dtype: tower(3, scale=[0.1, 0.0, -0.2], dtype=dtype),
    "depth 0": lambda dtype: tower(0, dtype=dtype),
    "depth 1": lambda dtype: tower(1, scale=0.2, dtype=dtype),
    "dense": lambda dtype: ResidualMLP(10, 6, in_features=36, scale=0.2, seed=0).to(dtype),
    "dense, batch norm": lambda dtype: ResidualMLP(5, 6, in_features=36, norm="batch", scale=0.05, seed=0).to(dtype),
}


# --- checkpointing ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_checkpointing_changes_no_bit(name, dtype):
    net, x = NETS[name](dtype), images(dtype=dtype)
    twin = copy.deepcopy(net)
    for _ in range(2):  # the second time from statistics that have moved
        assert same(gradients(net, x), gradients(twin, x, "checkpoint"))
        assert same(net.state_dict().values(), twin.state_dict().values())
    assert net.state_dict().keys() == twin.state_dict().keys()
    assert net.config == twin.config


def test_statistics_of_batch_norm_move_once():
    net = tower(norm="batch")
    gradients(net, images(), "checkpoint")
    assert [int(b[1].num_batches_tracked) for b in net.blocks] == [1] * 7
    gradients(net, images(), "reverse")
    assert [int(b[1].num_batches_tracked) for b in net.blocks] == [2] * 7


@pytest.mark.parametrize("segments", [1, 2, 3, 7, 100])
def test_any_number_of_segments(segments):
    net, x = tower(), images()
    assert same(gradients(net, x), gradients(net, x, Memory("checkpoint", segments=segments)))


class Drawing(nn.Module):
    """A block of a user: random, and with a state that decides what it computes."""

    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z):
        self.calls += 1
        return z + self.drop(self.linear(z)) / self.calls


@pytest.mark.parametrize("way", [checkpointed, reversible])
def test_blocks_of_a_user_may_be_random_and_have_a_state(way):
    blocks = nn.ModuleList(Drawing() for _ in range(9))
    twins, x = copy.deepcopy(blocks), torch.randn(5, 4, requires_grad=True)
    found = []
    for some, run in ((blocks, lambda b, x: nn.Sequential(*b)(x)), (twins, way)):
        torch.manual_seed(3)
        for _ in range(2):
            x.grad = None
            out = run(some, x)
            out.square().sum().backward()
        found.append([out.detach(), x.grad, *(p.grad for p in some.parameters()), torch.get_rng_state()])
        assert [float(b.calls) for b in some] == [2] * 9
    assert same(*found)


def test_a_graph_may_be_used_twice_and_differentiated_twice():
    net, x = tower(activation="tanh"), images().requires_grad_()
    found = []
    for mode in ("plain", "checkpoint"):
        net.memory = mode
        loss = net(x).square().sum()
        for _ in range(2):
            torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), list(net.blocks.parameters())))
    assert same(*found)
    net.memory = "reverse"
    (first,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("mode", ["checkpoint", "reverse"])
def test_parameters_that_only_visit_are_the_ones_differentiated(mode):
    net, x = tower(), images()
    visiting = {k: (v.detach() * 1.5).requires_grad_() for k, v in net.named_parameters()}
    found = []
    for memory in ("plain", mode):
        net.memory = memory
        loss = torch.func.functional_call(net, visiting, (x,)).square().sum()
        found.append(torch.autograd.grad(loss, list(visiting.values())))
    assert distance(*found) < 1e-12


@pytest.mark.parametrize("mode", ["checkpoint", "reverse"])
def test_a_weight_changed_before_backward_is_noticed(mode):
    net = tower()
    net.memory = mode
    loss = net(images()).sum()
    with torch.no_grad():
        net.blocks[0][0].weight.mul_(2)
    # Autograd itself notices what was saved; checkpointing saved nothing it could look at.
    with pytest.raises(ModeError if mode == "checkpoint" else (ModeError, RuntimeError), match="in-?\\s?place"):
        loss.backward()


@pytest.mark.parametrize("mode", ["checkpoint", "reverse"])
def test_frozen_weights_stay_without_a_gradient(mode):
    net, x = tower(), images()
    for p in [*net.encoder.parameters(), *net.blocks[:3].parameters()]:
        p.requires_grad_(False)
    found = []
    for memory in ("plain", mode):
        net.memory = memory
        net.zero_grad()
        net(x).square().sum().backward()
        found.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert distance(*found) < 1e-12
    assert all(p.grad is None for p in net.blocks[:3].parameters())


@pytest.mark.parametrize("mode", ["checkpoint", "reverse"])
def test_what_watches_the_calls_sees_the_plain_ones(mode):
    net, x = tower(activation="tanh", scale=0.3).eval(), images()
    lam = torch.full((7,), 0.2, dtype=torch.float64, requires_grad=True)
    weights = {k: v.detach() for k, v in net.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(net, weights, (x,)).square().sum()

    found = []
    for memory in ("plain", mode):
        net.memory = memory
        knobbed = ps.knobs(net, x)
        by_lam = torch.autograd.grad(knobbed(x, lam=lam).square().sum(), [lam, *net.parameters()])
        by_func = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x[:, None])
        found.append([*by_lam, *by_func.values(), *ps.expand(net, x, order=2).terms])
    assert same(*found)


def test_a_default_device_is_no_watcher():
    net, x = tower(40), images()
    with torch.device("cpu"):
        net.memory = "checkpoint"
        kept = saved_bytes(lambda: net(x), without=net.parameters())
        net.memory = "plain"
        assert kept < 0.5 * saved_bytes(lambda: net(x), without=net.parameters())


def test_autocast_is_repeated():
    net, x = tower(16, dtype=torch.float32), images(dtype=torch.float32)
    found = []
    for mode in ("plain", "checkpoint"):
        net.memory = mode
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(x).float().square().sum()
        loss.backward()  # outside, where autocast is off
        found.append([p.grad.clone() for p in net.parameters()])
    assert same(*found)


# --- reversal ---


@pytest.mark.parametrize("name", NETS)
def test_reversed_gradients_in_float64(name):
    """To 1e-9: z is known to 1e-11 at the anchors, and gradients change at most a hundred times as fast here."""
    net, x = NETS[name](torch.float64), images()
    twin = copy.deepcopy(net)
    assert distance(gradients(net, x), gradients(twin, x, "reverse")) < 1e-9
    assert same(net.state_dict().values(), twin.state_dict().values())
    record = twin.memory.record
    assert record.fallbacks == 0
    assert record.blocks == len(net.blocks)
    assert record.worst_error <= 1e-11
    assert record.worst_residual <= 1e-11
    assert record.iterations >= 2 * record.blocks


def test_reversed_gradients_in_float32():
    """Rounding is 6e-8; λ = 1/√n magnifies it by e^Lip over a segment, which is about ten here."""
    net, x = tower(64, scale="1/sqrt(n)", dtype=torch.float32), images(dtype=torch.float32)
    assert distance(gradients(net, x), gradients(net, x, "reverse")) < 1e-5
    assert net.memory.record.fallbacks == 0


def test_fewer_anchors_lose_digits_as_the_docstring_says():
    """Without anchors the errors of 100 blocks add up and grow, with them those of 10."""
    net, x = tower(100, width=8, init="he", scale="1/sqrt(n)"), images()
    errors = []
    for segments in (None, 1):
        gradients(net, x, Memory("reverse", segments=segments, tolerance=1e-3))
        assert net.memory.record.fallbacks == 0
        errors.append(net.memory.record.worst_error)
    assert errors[1] > 3 * errors[0]


def test_a_segment_that_does_not_contract_is_computed_again():
    net, x = tower(9, init="he", scale=[0.05] * 4 + [4.0] + [0.05] * 4), images()
    plain = gradients(net, x)
    assert distance(plain, gradients(net, x, "reverse")) < 1e-9
    record = net.memory.record
    assert (record.segments, record.fallbacks, record.kept) == (2, 1, {1})
    memory = net.memory
    assert distance(plain, gradients(net, x, memory)) < 1e-9
    assert (record.segments, record.fallbacks) == (4, 1)  # the second time without trying


class Shrinking(nn.Module):
    """A contraction by ten, whose reverse therefore magnifies each error by ten."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8).double()

    def forward(self, z):
        return z - 0.9 * z + 0.02 * self.linear(z).tanh()


def test_an_error_beyond_the_tolerance_is_noticed_at_the_anchor():
    """Each block is reversed to rounding, and four of them still miss the anchor by 10⁴ roundings."""
    blocks, x = nn.Sequential(*[Shrinking() for _ in range(16)]), torch.randn(3, 8, dtype=torch.float64)
    plain = torch.autograd.grad(blocks(x).square().sum().sqrt(), list(blocks.parameters()))
    for tolerance, fallbacks in ((1e-9, 0), (1e-14, 4)):
        record = Reversal()
        out = reversible(blocks, x, tolerance=tolerance, max_iterations=500, record=record)
        found = torch.autograd.grad(out.square().sum().sqrt(), list(blocks.parameters()))
        assert record.fallbacks == fallbacks
        assert distance(plain, found) < (1e-9 if fallbacks == 0 else 1e-15)
        assert record.worst_residual < 1e-14
        if not fallbacks:
            assert 1e-13 < record.worst_error < 1e-9


def test_long_segments_fall_back_to_checkpointing():
    net, x = tower(30, init="he", scale=2.0), images()
    plain = gradients(net, x)
    memory = Memory("reverse", segments=2)
    assert same(plain, gradients(net, x, memory))
    assert same(plain, gradients(net, x, memory))
    assert memory.record.kept == {0, 1}


def test_activations_that_are_not_finite_end_as_in_the_plain_net():
    net, x = tower(4, scale=1e200, init="he"), images()
    plain, found = gradients(net, x), gradients(net, x, "reverse")
    assert not all(p.isfinite().all() for p in plain)
    assert all(torch.equal(p.isfinite(), q.isfinite()) for p, q in zip(plain, found, strict=True))


def test_reversal_refuses_half_precision():
    net = tower(dtype=torch.bfloat16)
    with pytest.raises(ModeError, match="reversal of activations in torch.bfloat16 .* use memory 'checkpoint'"):
        gradients(net, images(dtype=torch.bfloat16), "reverse")


# --- choosing ---


def test_saving_is_for_a_while_and_reaches_towers_inside():
    inside = nn.Sequential(nn.Identity(), tower())
    inside[1].memory = "reverse"
    with saving(inside, "checkpoint"):
        assert inside[1].memory.mode == "checkpoint"
        assert copy.deepcopy(inside)[1].memory.mode == "checkpoint"
    assert inside[1].memory.mode == "reverse"
    with saving(inside[1], "reverse") as record:
        inside(images()).sum().backward()
    assert record.blocks == 7
    assert tower().memory.mode == "plain"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: setattr(tower(), "memory", "some"), "memory='some' is unknown: choose one of 'plain', 'checkpoint'"),
        (lambda: Memory("checkpoint", segments=0), "segments=0 is not possible: give a whole number ≥ 1"),
        (lambda: Memory("reverse", tolerance=2.0), "tolerance=2.0 is not possible"),
        (lambda: Memory("reverse", max_iterations=0), "max_iterations=0 is not possible"),
        (lambda: checkpointed([nn.Identity()], images(), segments=True), "segments=True is not possible"),
        (lambda: saving(nn.Linear(2, 2), "checkpoint").__enter__(), "Linear holds no tower of pathsum; .*checkpointed"),
    ],
)
def test_errors_say_what_to_do(make, words):
    with pytest.raises(PathsumError, match=words):
        make()


# --- bytes ---


def test_the_peak_is_counted_as_by_hand():
    w = torch.randn(5, 5, requires_grad=True)
    with PeakMemory([w]) as memory:
        a = w * 2  # 2 tensors
        b = a.exp()  # 3, and exp keeps its result
        del a
        c = b.view(25) + 1  # a view is no memory; 3
        assert memory.now == 3 * 100
        c.sum().backward()
        del b, c
        assert memory.now == 2 * 100  # the weight and its gradient
    assert memory.peak >= 4 * 100


def test_what_is_saved_is_counted_as_by_hand():
    net, x = tower(12, dtype=torch.float32), images(dtype=torch.float32)
    each = 3 * 4 * 6 * 6 * 4  # bytes of an activation
    z = net.encoder(x).detach().requires_grad_()
    assert saved_bytes(lambda: net.memory.chain(net.steps(), z), without=net.parameters()) == 12 * 2 * each
    kept = saved_bytes(lambda: Memory("checkpoint").chain(net.steps(), z), without=net.parameters())
    assert kept == (3 + 3 * 2) * each
    kept = saved_bytes(lambda: Memory("reverse").chain(net.steps(), z), without=net.parameters())
    assert kept == (4 + 1) * each


def peak_of_a_step(net, x, mode, *, fused=False):
    """Bytes at the peak of the second training step, all there is counted."""
    net.memory = mode
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    with Updates(optimizer).fused() if fused else nullcontext():
        for again in (False, True):
            state = [entry["momentum_buffer"] for entry in optimizer.state.values()]
            with PeakMemory([*net.parameters(), *net.buffers(), *state, x]) if again else nullcontext() as memory:
                net(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return memory.peak


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "imagenet", "scale": "1/sqrt(n)", "depth": 50, "width": 16},
        {"encoder": "conv3x3", "norm": "batch", "scale": "learned", "depth": 30, "width": 8},
        {"encoder": "affine", "scale": "1/n", "activation": "gelu", "depth": 40, "width": 8},
    ],
    ids=lambda options: options["encoder"],
)
def test_estimates_hold(options, fused):
    """Within an eighth: tensors that live for part of a block are counted as if they met the worst moment."""
    net, x = ResidualTower(**options, seed=0), torch.randn(16, 3, 16, 16)
    for guess in estimate(net, tuple(x.shape), fused=fused):
        assert guess.peak == pytest.approx(peak_of_a_step(net, x, guess.memory, fused=fused), rel=0.125)


def test_the_meta_device_needs_what_the_cpu_needs():
    net, x = tower(20, dtype=torch.float32), images(16, dtype=torch.float32)
    for mode in ("plain", "checkpoint"):
        assert peak_of_a_step(copy.deepcopy(net).to("meta"), x.to("meta"), mode) == peak_of_a_step(net, x, mode)


@pytest.mark.slow
def test_checkpointing_takes_an_eighth_at_depth_1000():
    """Weights, gradients and momentum counted; one step on the meta device, which needs what the CPU needs (above)."""
    with torch.device("meta"):
        net = ResidualTower(1000, 32)
    plain, checkpoint, _ = estimate(net, (256, 3, 32, 32))
    assert checkpoint.peak < plain.peak / 8
    measured = peak_of_a_step(net, torch.empty(256, 3, 32, 32, device="meta"), "checkpoint")
    assert checkpoint.peak == pytest.approx(measured, rel=0.02)


def test_the_papers_deepest_net_fits():
    """n = 1000 at width 256, batch 64 of CIFAR images: 16 GiB in float32, 8 GiB in bfloat16, plainly in neither."""
    with torch.device("meta"):
        net = ResidualTower(1000, 256)
    for dtype, room in ((torch.float32, 16 * GIB), (torch.bfloat16, 8 * GIB)):
        plain, checkpoint, _ = estimate(net, (64, 3, 32, 32), dtype=dtype)
        assert plain.peak > room > 1.1 * checkpoint.peak


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_papers_deepest_net_step_by_step(dtype):
    with torch.device("meta"):
        net, x = ResidualTower(1000, 256).to(dtype), torch.empty(64, 3, 32, 32, dtype=dtype)
    for guess in estimate(net, tuple(x.shape))[:2]:
        assert guess.peak == pytest.approx(peak_of_a_step(net, x, guess.memory), rel=0.02)


# --- updates as the gradients come ---


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, foreach=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
}


@pytest.mark.parametrize("memory", ["plain", "checkpoint", "reverse"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_updates_change_no_bit(name, memory):
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = tower(scale="learned:0.2")
        net.memory = memory
        first, rest = list(net.blocks[0].parameters()), [*net.encoder.parameters(), *net.blocks[1:].parameters()]
        optimizer = OPTIMIZERS[name]([{"params": first, "lr": 0.05}, {"params": [*rest, net.lam]}])
        rates = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        with Updates(optimizer).fused() if fused else nullcontext():
            for i in range(3):
                loss = net(images()).square().sum() * (i + 1)
                loss.backward()
                assert all((p.grad is None) is fused for p in [*first, *rest])
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                rates.step()
        assert not any(p._post_accumulate_grad_hooks for p in [*first, *rest])
        state = [entry for _, entry in sorted(optimizer.state_dict()["state"].items())]
        found.append([*net.state_dict().values(), *(torch.as_tensor(v) for entry in state for v in entry.values())])
    assert same(*found)


@pytest.mark.parametrize("fused", [False, True])
def test_a_probe_sees_norms_and_moves(fused):
    net, x = tower(3), images()
    parameters = [*net.parameters(), unused := nn.Parameter(torch.ones(2, dtype=torch.float64))]
    updates = Updates(torch.optim.SGD([{"params": parameters[:2], "lr": 0.0}, {"params": parameters[2:], "lr": 0.1}]))
    expected = [*(p.norm() for p in gradients(net, x)), torch.zeros(())]
    net.zero_grad()
    updates.probing = True
    with updates.fused() if fused else nullcontext():
        F.cross_entropy(net(x), torch.arange(3)).backward()
    seen = updates.probe(parameters)
    assert [float(norm) for norm, _ in seen] == pytest.approx([float(norm) for norm in expected])
    assert [bool(moved) for _, moved in seen] == [False, False] + [True] * (len(parameters) - 3) + [False]
    assert unused.grad is None
    assert not updates.seen
