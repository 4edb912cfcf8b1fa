"""Runs on models that write into memory of their own: followed exactly, or refused, never silently wrong."""

import pytest
import torch
from torch import Tensor, nn

import pathsum as ps
from pathsum.errors import MissingRuleError


class Net(nn.Module):
    """z + f(z), handed to `finish`."""

    def __init__(self, finish) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f = nn.Linear(3, 3)
        self.finish = finish

    def forward(self, x: Tensor):
        return self.finish(x + self.f(x))


def filled(z: Tensor) -> Tensor:
    out = z.new_zeros(len(z), 6)
    out[:, :3] = z
    out[:, 3:] = 2 * z
    return out


def filled_list(z: Tensor) -> dict:
    return {"logits": filled(z), "more": [filled(z)]}


def through_a_view(z: Tensor) -> Tensor:
    out = z.new_zeros(len(z), 6)
    out[:, :3].copy_(z)
    return out


def through_a_view_read_inside(z: Tensor) -> Tensor:
    return 2 * through_a_view(z)


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("finish", "output"), [(filled, None), (filled_list, "logits"), (filled_list, "more")])
def test_a_buffer_that_is_filled_and_returned(finish, output):
    if output == "more":
        output = lambda out: out["more"][0]  # noqa: E731
    model = Net(finish).double()
    net = ps.knobs(model, X, output=output)
    s = ps.spectrum(net, X)
    assert s.conservation < 1e-14
    expected = torch.stack([torch.cat([v, 2 * v], 1) for v in (X, model.f(X))])
    torch.testing.assert_close(s.terms, expected)
    torch.testing.assert_close(ps.expand(net, X, order=1).terms, expected)


@pytest.mark.parametrize("finish", [through_a_view, through_a_view_read_inside])
def test_a_buffer_written_through_a_view_is_refused(finish):
    net = ps.knobs(Net(finish).double(), X)
    with pytest.raises(MissingRuleError, match="read through another view: build the result out of place"):
        ps.spectrum(net, X)
