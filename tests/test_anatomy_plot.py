"""The drawn anatomy: an arc for each branch, as high as it has calls, named and told apart."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn

import pathsum as ps
from pathsum.anatomy_plot import MAPPED, UNIT
from tests import architectures as arch

mpl.use("Agg")


@pytest.fixture
def axes():
    from matplotlib import pyplot as plt

    yield plt.subplots()[1]
    plt.close("all")


def labels(ax):
    return [label.get_text() for label in ax.get_xticklabels()]


def test_branches_are_arcs_from_fork_to_join(axes):
    found = ps.anatomy(arch.resnet20().eval(), torch.randn(1, 3, 16, 16))
    assert found.plot(axes) is axes
    (arcs,) = axes.collections
    ends = np.array([[path[0, 0], path[-1, 0]] for path in arcs.get_segments()])
    assert ends[:, 1] == pytest.approx(np.arange(1, 10))  # join k stands at k
    assert (ends[:, 0] > np.arange(9)).all()  # a ReLU lies between a join and the next fork
    heights = [path[:, 1].max() for path in arcs.get_segments()]
    assert heights == pytest.approx([b.step - b.fork for b in found.branches])
    assert labels(axes) == [b.name for b in found.branches]
    mapped = [line.get_xdata()[1] for line in axes.get_lines() if line.get_color() == MAPPED]
    assert mapped == [4, 7]  # the first blocks of stages two and three
    (ticks,) = [line for line in axes.get_lines() if line.get_color() == UNIT]
    assert len(ticks.get_xdata()) == len(found.units) == 19
    assert axes.get_title(loc="left") == "9 residual joins, 19 units"
    assert all(float(tick).is_integer() for tick in axes.get_yticks())
    assert axes.get_xlabel()
    assert axes.get_ylabel()


def test_without_joins_the_units_stand_on_a_line(axes):
    plain = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh())
    ps.anatomy(plain, torch.randn(2, 3)).plot(axes)
    assert not axes.collections
    assert labels(axes) == ["1", "3"]
    assert axes.get_title(loc="left") == "no residual joins, 2 units"


def test_a_scale_of_the_models_own_is_written_at_its_branch(axes):
    ps.knobs(ps.ResidualMLP(3, 4, in_features=2, scale="0.25", seed=0), torch.zeros(1, 2)).anatomy.plot(axes)
    assert [text.get_text() for text in axes.texts] == ["λ=0.25"] * 3
    assert axes.get_title(loc="left").endswith("λ = 0.25")


def test_a_figure_of_its_own_is_as_wide_as_the_joins_need():
    from matplotlib import pyplot as plt

    widths = [
        ps.anatomy(ps.ResidualMLP(depth, 4, in_features=2, seed=0), torch.zeros(1, 2)).plot().figure.get_figwidth()
        for depth in (2, 12, 200)
    ]
    plt.close("all")
    assert widths[0] < widths[1] < widths[2] == 16
