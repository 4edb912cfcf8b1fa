"""Attacks against the closed form on linear classifiers, and what holds for every network."""

import pytest
import torch
from torch import nn

from pathsum.attacks import fgsm, gradient, margins, pgd, robust_accuracy
from pathsum.errors import PathsumError

EPS = 0.05


def linear(classes: int, *, low: float = 0.2, high: float = 0.8):
    """A linear classifier in float64, images within [low, high], and labels that it gives."""
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, 12, generator=generator, dtype=torch.float64)
    x = low + (high - low) * torch.rand(40, 3, 2, 2, generator=generator, dtype=torch.float64)

    def predict(x):
        return x.flatten(1) @ weight.T

    return predict, weight, x, predict(x).argmax(1)


def worst_margins(weight, x, y, epsilon):
    """min over j of the least w_y·x' − w_j·x' in ball and box, pixel by pixel: −ε‖w_y − w_j‖₁ where the box is far."""
    flat = x.flatten(1)
    low, high = (flat - epsilon).clamp(0, 1), (flat + epsilon).clamp(0, 1)
    found = torch.full((len(x),), torch.inf, dtype=x.dtype)
    for row in range(len(x)):
        for other in range(len(weight)):
            if other != y[row]:
                d = weight[y[row]] - weight[other]
                least = torch.where(d > 0, low[row] * d, high[row] * d).sum()
                found[row] = torch.minimum(found[row], least)
    return found


def test_two_classes_reach_the_closed_form():
    predict, weight, x, y = linear(2)
    expected = margins(predict, x, y) - EPS * (weight[0] - weight[1]).abs().sum()
    torch.testing.assert_close(worst_margins(weight, x, y, EPS), expected, rtol=0, atol=1e-12)
    for made in (fgsm(predict, x, y, EPS), pgd(predict, x, y, EPS, steps=5, restarts=1)):
        torch.testing.assert_close(margins(predict, made, y), expected, rtol=0, atol=1e-12)


def test_the_box_binds():
    predict, weight, x, y = linear(2, low=0.0, high=1.0)
    expected = worst_margins(weight, x, y, 0.3)
    free = margins(predict, x, y) - 0.3 * (weight[0] - weight[1]).abs().sum()
    assert (expected > free + 0.1).double().mean() > 0.8
    for made in (fgsm(predict, x, y, 0.3), pgd(predict, x, y, 0.3, steps=5)):
        torch.testing.assert_close(margins(predict, made, y), expected, rtol=0, atol=1e-12)
        assert made.min() >= 0
        assert made.max() <= 1


def test_many_classes_never_pass_the_closed_form_and_nearly_reach_it():
    predict, weight, x, y = linear(5)
    expected = worst_margins(weight, x, y, EPS)
    found = margins(predict, pgd(predict, x, y, EPS, restarts=3), y)
    assert (found >= expected - 1e-12).all()
    clean = margins(predict, x, y)  # the signs of a softmax's gradient are not those of one difference of weights
    assert (found - expected).sum() <= 0.1 * (clean - expected).sum()
    epsilons = (0.0, 0.02, 0.05, 0.1)
    shares = robust_accuracy(predict, x, y, epsilons, lambda x, y, e: pgd(predict, x, y, e, restarts=3), batch_size=7)
    for epsilon, share in zip(epsilons, shares, strict=True):
        assert share >= (worst_margins(weight, x, y, epsilon) > 0).double().mean()
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 1


def net():
    """A small network whose attacks have no closed form."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).double()


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("step_size", [None, 5.0])
def test_pgd_stays_inside_and_is_never_worse_than_its_starts(epsilon, step_size):
    predict = net()
    x, y = torch.rand(30, 3, 2, 2, dtype=torch.float64), torch.arange(30) % 4
    made = pgd(predict, x, y, epsilon, step_size=step_size, generator=torch.Generator().manual_seed(3))
    assert ((made - x).abs() <= epsilon + 1e-15).all()
    assert made.min() >= 0
    assert made.max() <= 1
    draw = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    start = torch.lerp((x - epsilon).clamp_min(0), (x + epsilon).clamp_max(1), draw)
    for other in (x, start):
        assert (margins(predict, made, y) <= margins(predict, other, y)).all()
    again = pgd(predict, x, y, epsilon, step_size=step_size, generator=torch.Generator().manual_seed(3))
    assert torch.equal(made, again)
    assert all(p.grad is None for p in predict.parameters())


def test_the_gradient_is_that_of_pixels():
    predict = net()
    x, y = torch.rand(3, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2])
    found, step = gradient(predict, x, y), 1e-6
    for index in ((0, 0, 0, 0), (1, 2, 1, 0), (2, 1, 0, 1)):
        up, down = x.clone(), x.clone()
        up[index] += step
        down[index] -= step
        with torch.no_grad():
            losses = [nn.functional.cross_entropy(predict(z), y, reduction="sum") for z in (up, down)]
        assert float(found[index]) == pytest.approx(float(losses[0] - losses[1]) / 2 / step, abs=1e-8)


def test_a_broken_network_is_not_robust():
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    nothing = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    nn.init.constant_(nothing[1].bias, torch.nan)
    assert robust_accuracy(nothing, x, y, (0.0, 0.1), lambda x, y, e: fgsm(nothing, x, y, e)) == [0.0, 0.0]


def test_bad_input():
    predict, _, x, y = linear(2)
    with pytest.raises(PathsumError, match="epsilon is -0.1, expected a number of pixel units"):
        fgsm(predict, x, y, -0.1)
    with pytest.raises(PathsumError, match="steps=0 and restarts=2"):
        pgd(predict, x, y, 0.1, steps=0)
    with pytest.raises(PathsumError, match="expected them in increasing order"):
        robust_accuracy(predict, x, y, (0.2, 0.1), lambda x, y, e: x)
