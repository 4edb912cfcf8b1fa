"""The optimizer's memory after growth: bitwise where nothing changed, and as the new gradients would have made it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from tests.cases import case
from tests.reference import growth as reference

MU, BETAS = 0.9, (0.9, 0.999)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=MU),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=BETAS, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=MU, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p),
}


def trained(make, rule: str, steps: int = 4):
    """A net after a few steps, its optimizer, the gradients of each step."""
    net = ps.ResidualMLP(3, 6, in_features=5, num_classes=4, scale=rule, seed=1).double()
    x = torch.randn(12, 5, dtype=torch.float64)
    optimizer = make(net.parameters())
    history = {name: [] for name, _ in net.named_parameters()}
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), torch.arange(12) % 4).backward()
        for name, p in net.named_parameters():
            history[name].append(p.grad.clone())
        optimizer.step()
    return net, x, optimizer, history


def state(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> dict:
    return optimizer.state[p]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_memory_of_weights_that_stay_is_bitwise_the_same(name):
    net, x, optimizer, _ = trained(OPTIMIZERS[name], "1/n")
    grown = ps.grow(net, x, depth=6, where="interleaved", optimizer=optimizer)
    new = dict(grown.net.named_parameters())
    places = [i for i, place in enumerate(reference.spread(3, 3)) if place is not None]
    for key, p in net.named_parameters():
        head, _, rest = key.removeprefix("blocks.").partition(".")
        target = new[f"blocks.{places[int(head)]}.{rest}" if head.isdigit() else key]
        if "linear2" not in key or not key.startswith("blocks"):
            assert torch.equal(target, p)
            for entry, value in state(optimizer, p).items():
                made = state(grown.optimizer, target)[entry]
                assert torch.equal(made, value) if isinstance(value, torch.Tensor) else made == value
    assert type(grown.optimizer) is type(optimizer)
    held = [id(p) for group in grown.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, grown.net.parameters()))
    fresh = OPTIMIZERS[name](grown.net.parameters())  # Adagrad has memory from the start
    for p in (p for b in (1, 3, 5) for p in grown.net.blocks[b].parameters()):
        made, expected = state(grown.optimizer, p), state(fresh, p)
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[key], expected[key]) for key in made)


def test_memory_of_scaled_weights_is_what_the_new_gradients_would_have_made():
    """w' = c·w and ∂L/∂w' = (∂L/∂w)/c: the running means of the gradients over c, by hand."""
    c = reference.lam_of("1/n", 3) / reference.lam_of("1/n", 5)
    net, x, optimizer, history = trained(OPTIMIZERS["sgd"], "1/n")
    grown = ps.grow(net, x, depth=5, optimizer=optimizer)
    for name, gradients in history.items():
        factor = c if "linear2" in name else 1.0
        made = state(grown.optimizer, grown.net.get_parameter(name))["momentum_buffer"]
        torch.testing.assert_close(made, reference.momentum([g / factor for g in gradients], MU), rtol=1e-12, atol=0)
    net, x, optimizer, history = trained(OPTIMIZERS["adamw"], "1/n")
    grown = ps.grow(net, x, depth=5, optimizer=optimizer)
    for name, gradients in history.items():
        factor = c if "linear2" in name else 1.0
        mean, square = reference.adam([g / factor for g in gradients], *BETAS)
        made = state(grown.optimizer, grown.net.get_parameter(name))
        torch.testing.assert_close(made["exp_avg"], mean, rtol=1e-11, atol=1e-18)
        torch.testing.assert_close(made["exp_avg_sq"], square, rtol=1e-11, atol=1e-18)
        assert float(made["step"]) == 4


def test_without_a_change_of_scale_training_goes_on_as_before():
    """Where new weights are frozen and no λ changed, the grown net and its optimizer step as the old ones do."""
    net, x, optimizer, _ = trained(OPTIMIZERS["sgd"], "0.5")
    grown = ps.grow(net, x, depth=5, optimizer=optimizer)
    for p in (*grown.net.blocks[3].parameters(), *grown.net.blocks[4].parameters()):
        p.requires_grad_(False)
    for _ in range(3):
        for model, stepper in ((net, optimizer), (grown.net, grown.optimizer)):
            stepper.zero_grad()
            F.cross_entropy(model(x), torch.arange(12) % 4).backward()
            stepper.step()
    for name, p in net.named_parameters():
        assert torch.equal(grown.net.get_parameter(name), p)


def test_groups_keep_their_options_and_take_the_new_weights():
    model, x = case("pre-ln").build()
    ends = [p for n, p in model.named_parameters() if n.endswith("bias")]
    rest = [p for n, p in model.named_parameters() if not n.endswith("bias")]
    groups = [{"params": rest, "weight_decay": 0.1}, {"params": ends, "weight_decay": 0.0, "lr": 0.5, "name": "biases"}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    grown = ps.grow(model, *x, insert=1, optimizer=optimizer)
    first, second = grown.optimizer.param_groups
    assert (first["lr"], first["weight_decay"], first["initial_lr"]) == (0.1, 0.1, 0.1)
    assert (second["lr"], second["weight_decay"], second["name"]) == (0.5, 0.0, "biases")
    names = {id(p): n for n, p in grown.net.named_parameters()}
    assert all(names[id(p)].endswith("bias") for p in second["params"])
    assert sum("h.2." in names[id(p)] for p in second["params"]) == sum(
        "h.1." in n and n.endswith("bias") for n in names.values()
    )
    assert first["decoupled_weight_decay"] is not False


def test_frozen_weights_stay_out_of_the_optimizer():
    net = ps.ResidualMLP(2, 4, in_features=3, seed=0)
    net.blocks.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    grown = ps.grow(net, torch.ones(1, 3), depth=3, optimizer=optimizer)
    assert sum(len(g["params"]) for g in grown.optimizer.param_groups) == 4
    assert not any(p.requires_grad for p in grown.net.blocks.parameters())


@pytest.mark.parametrize("wrap", [False, True])
def test_memory_of_learned_scales(wrap):
    """Old entries bitwise; new ones without momentum, and with the mean of the others' second moments."""
    net = ps.ResidualMLP(3, 6, in_features=5, num_classes=4, scale=0.5 if wrap else "learned:1/n", seed=1).double()
    x = torch.randn(12, 5, dtype=torch.float64)
    net = ps.knobs(net, x).rescale("learned:1/n") if wrap else net
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    F.cross_entropy(net(x), torch.arange(12) % 4).backward()
    optimizer.step()
    grown = ps.grow(net, x, depth=6, where="interleaved", optimizer=optimizer)
    old, new = (m.lam_values if wrap else m.lam for m in (net, grown.net))
    before, after = state(optimizer, old), state(grown.optimizer, new)
    assert torch.equal(new[::2], old)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after[key][::2], before[key])
    assert not after["exp_avg"][1::2].any()
    torch.testing.assert_close(after["exp_avg_sq"][1::2], before["exp_avg_sq"].mean().expand(3))
    less = ps.shrink(grown.net, x, optimizer=grown.optimizer)
    back = state(less.optimizer, less.net.lam_values if wrap else less.net.lam)
    assert all(torch.equal(back[key], before[key]) for key in before)


def test_an_optimizer_that_does_not_fit_says_so():
    net, x, _, _ = trained(OPTIMIZERS["sgd"], "1/n", steps=1)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ps.PathsumError, match="holds none of the net's parameters"):
        ps.grow(net, x, depth=4, optimizer=other)
    rprop = torch.optim.Rprop(net.parameters())
    F.cross_entropy(net(x), torch.arange(12) % 4).backward()
    rprop.step()
    with pytest.raises(ps.PathsumError, match="how Rprop's memory '.*' follows a weight that is multiplied"):
        ps.grow(net, x, depth=4, optimizer=rprop)


def test_weights_outside_the_net_stay_in_the_optimizer():
    net, extra = ps.ResidualMLP(2, 4, in_features=3, seed=0), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([*net.parameters(), extra], lr=0.1)
    grown = ps.grow(net, torch.ones(1, 3), depth=3, optimizer=optimizer)
    assert any(p is extra for p in grown.optimizer.param_groups[0]["params"])


# ---------------------------------------------------------------------------------- training on real data goes on


@pytest.mark.parametrize("rule", ["1/sqrt(n)", "1/n"])
def test_training_on_the_digits_goes_on_without_a_spike(rule, one_thread):
    """The loss on all training images, after each of the next steps, stays within 5 % of what it was when grown."""
    from pathsum.data import load, normalize

    data = load("digits")
    x = normalize(data.train.images, data.mean, data.std).flatten(1)
    y = data.train.labels
    net = ps.ResidualMLP(4, 24, in_features=64, scale=rule, init="he", seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)

    def losses(model, stepper, steps, seed):
        order = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(steps):
            rows = torch.randint(len(x), (128,), generator=order)
            stepper.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            stepper.step()
            with torch.no_grad():
                found.append(float(F.cross_entropy(model(x), y)))
        return found

    before = losses(net, optimizer, 60, 0)
    grown = ps.grow(net, x[:8], depth=12, where="interleaved", new="fresh", seed=1, optimizer=optimizer)
    with torch.no_grad():
        assert float(F.cross_entropy(grown.net(x), y)) == pytest.approx(before[-1], rel=1e-5)
    after = losses(grown.net, grown.optimizer, 60, 1)
    assert max(after) < 1.05 * before[-1]
    assert after[-1] < 0.8 * before[-1]
    careless = ps.grow(net, x[:8], depth=12, where="interleaved", new="fresh", seed=1).net
    for block in careless.blocks:  # new blocks as they are drawn, in place of zero: what the test would see
        if not block.linear2.weight.any():
            nn.init.kaiming_normal_(block.linear2.weight)
    with torch.no_grad():
        assert float(F.cross_entropy(careless(x), y)) > 1.05 * before[-1]
