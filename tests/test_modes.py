"""Knobs made in one mode and used in the other: a model may make other calls when it trains."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from tests import architectures as arch
from tests.zoo import multiplied

pytestmark = pytest.mark.usefixtures("one_thread")


class DropPath(nn.Module):
    """Stochastic depth as it is commonly written: leaves at once in eval mode."""

    def __init__(self, rate, *, per_sample=True, drawn="bernoulli"):
        super().__init__()
        self.rate, self.per_sample, self.drawn = rate, per_sample, drawn

    def forward(self, x):
        if not self.training:
            return x
        shape = (x.shape[0] if self.per_sample else 1,) + (1,) * (x.ndim - 1)
        if self.drawn == "bernoulli":
            return x * torch.empty(shape, dtype=x.dtype).bernoulli_(1 - self.rate).div_(1 - self.rate)
        noise = 1 - self.rate + torch.rand(shape, dtype=x.dtype)
        return x.div(1 - self.rate) * noise.floor_()


class Dropping(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3)) for _ in range(4)
        )
        self.drop = DropPath(0.4, **options)

    def forward(self, x):
        for block in self.blocks:
            x = x + self.drop(block(x))
        return x


def batch(model):
    return torch.randn(8, *((4,) if isinstance(model, Dropping) else (3, 12, 12)))


TRAINED = {
    "batch-norm": arch.BottleneckNet,
    "hard-gates": arch.MobileNet,
    "samples-dropped": Dropping,
    "batches-dropped": lambda: Dropping(per_sample=False),
    "drawn-by-floor": lambda: Dropping(drawn="floor"),
    "drawn-by-floor-a-batch": lambda: Dropping(drawn="floor", per_sample=False),
}


def trained(call, model, x):
    """Loss, gradients and buffers of one training step; the same random numbers each time."""
    torch.manual_seed(3)
    model.zero_grad()
    loss = call(x).square().mean()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())


@pytest.mark.parametrize("name", TRAINED)
def test_made_in_eval_mode_and_trained(name):
    """The joins are λ = ½ as if hooks had halved the branches; random numbers and statistics move once."""
    torch.manual_seed(0)
    model = TRAINED[name]().eval()
    x = batch(model)
    net = ps.knobs(model, x)
    other = copy.deepcopy(model).train()
    before = x.clone()
    net.rescale(1.0)
    one = trained(net.train(), model, x)
    torch.testing.assert_close(one, trained(other, other, x), rtol=0, atol=0)
    assert torch.equal(x, before)
    if isinstance(model, Dropping):
        half = trained(net.rescale(0.5), model, x)
        with multiplied(other, [(f"blocks.{i}",) for i in range(4)], [0.5] * 4):
            torch.testing.assert_close(half, trained(other, other, x), rtol=1e-5, atol=1e-7)
    net.eval()
    torch.testing.assert_close(net(x, lam=1.0), other.eval()(x))
    net.train()
    assert len(net._modes.known) == 2


@pytest.mark.parametrize("drawn", ["bernoulli", "floor"])
def test_what_is_drawn_is_no_scale_of_the_models_own(drawn):
    """Made in train mode, where the noise of a batch is one number."""
    model = Dropping(drawn=drawn, per_sample=False).train()
    x = batch(model)
    net = ps.knobs(model, x)
    assert net.lam.tolist() == [1.0] * 4
    results = []
    for call in (lambda: net(x, lam=1.0), lambda: model(x)):
        torch.manual_seed(1)
        results.append(call())
    assert torch.equal(*results)
    torch.manual_seed(2)
    assert torch.equal(net(x, lam=0.0), x)


class Skipping(nn.Module):
    """LayerDrop: a block left out in train mode."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for i, block in enumerate(self.blocks):
            if not (self.training and i == 1):
                x = x + torch.tanh(block(x))
        return x


def test_other_joins_in_the_other_mode_are_an_error():
    net = ps.knobs(Skipping().eval(), torch.randn(2, 4))
    with pytest.raises(ps.PathsumError, match=r"Skipping makes other calls in its present mode .*2 branches, not 3"):
        net.train()(torch.randn(2, 4), lam=0.5)
    net.eval()(torch.randn(2, 4), lam=0.5)


def test_a_compiled_net_changes_its_mode():
    torch._dynamo.reset()
    model = arch.BottleneckNet().eval()
    x = batch(model)
    net = ps.knobs(model, x).rescale("learned:0.5")
    compiled = torch.compile(net, backend="eager")
    plain = copy.deepcopy(net)
    for mode in (False, True, False):
        plain.train(mode)
        compiled.train(mode)
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)
    counted = [int(m.num_batches_tracked) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert set(counted) == {1}
    torch._dynamo.reset()


def test_trained_under_a_rule():
    torch.manual_seed(0)
    model = arch.resnet20().eval()
    x, y = torch.randn(16, 3, 8, 8), torch.randint(10, (16,))
    net = ps.knobs(model, x).rescale("learned:1/sqrt(n)").train()
    optimizer = torch.optim.SGD(net.param_groups(optimizer="sgd", lr=0.02), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
