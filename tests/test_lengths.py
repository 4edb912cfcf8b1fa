"""`path_lengths` against every walk one by one, and against closed forms; what the conventions say of real blocks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pathsum as ps
from pathsum import errors
from tests import architectures as arch
from tests.reference.walks import Net, Node, histogram

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = np.polynomial.polynomial


def alphas(nodes: list[Node]) -> list[Tensor]:
    return [torch.tensor([float(v) for v in n.linear]) for n in nodes if n.kind == "unit"]


def check(width: int, nodes: list[Node]) -> None:
    """The library against the twin, within 1e-12, and counts to the last path."""
    net = ps.knobs(Net(width, nodes).eval(), torch.randn(2, width, 3, 3))
    found = ps.path_lengths(net, alpha=alphas(nodes))
    shares, counts = histogram(width, nodes)
    np.testing.assert_allclose(found.histogram, shares, rtol=0, atol=1e-12)
    assert list(found.counts) == counts
    assert found.mean == pytest.approx(sum(k * p for k, p in enumerate(shares)), abs=1e-12)
    assert ps.average_path_length(net, alpha=alphas(nodes)) == found.mean


@st.composite
def graphs(draw) -> tuple[int, list[Node]]:
    """Up to eight nodes: chains, residual blocks, projections, concatenations, zero-padded shortcuts."""
    width = draw(st.integers(1, 3))
    widths, nodes = [width], []

    def push(kind: str, sources: tuple[int, ...], size: int, **options) -> int:
        nodes.append(Node(kind, sources, size, **options))
        widths.append(size)
        return len(nodes)

    def unit(source: int) -> int:
        size = widths[source]
        return push("unit", (source,), size, linear=tuple(draw(st.lists(st.booleans(), min_size=size, max_size=size))))

    def conv(source: int, size: int) -> int:
        groups = draw(st.sampled_from([g for g in (1, 2, 3) if size % g == 0 and widths[source] % g == 0]))
        return push("conv", (source,), size, groups=groups)

    last = unit(conv(0, draw(st.integers(1, 4))))
    for kind in draw(st.lists(st.sampled_from(["plain", "residual", "project", "pad", "cat", "norm"]), max_size=2)):
        size = widths[last]
        if kind == "plain":
            last = unit(conv(last, draw(st.integers(1, 4))))
        elif kind == "norm":
            last = push("norm", (last,), size)
        elif kind == "cat":
            last = push("cat", (last, unit(conv(last, draw(st.integers(1, 2))))), widths[-1] + size)
        else:
            wide = size if kind == "residual" else size + 1
            branch = conv(unit(conv(last, size)), wide)
            skip = last
            if kind == "project":
                skip = conv(last, wide)
            elif kind == "pad":
                skip = push("pad", (last,), wide)
            last = unit(push("add", (branch, skip), wide))
    if draw(st.booleans()):
        conv(last, 2)
    return width, nodes


@given(graphs())
@settings(max_examples=25, deadline=None)
def test_random_graphs(graph: tuple[int, list[Node]]) -> None:
    check(*graph)


def test_a_skip_over_four_layers_of_width_four() -> None:
    # one feature of the output: the skip ½, and 4⁴ = 256 others, ½·4⁻⁴ = 1/512 each; counted alike all have 1/257
    layers = [m for _ in range(4) for m in (nn.Linear(4, 4), nn.ReLU())]
    found = ps.path_lengths(Residual(*layers), torch.randn(2, 4))
    assert found.histogram.tolist() == [0.5, 0, 0, 0, 0.5]
    assert found.counts == (4, 0, 0, 0, 4 * 256)
    assert found.histogram[4] / (found.counts[4] / 4) == 1 / 512
    assert found.count_shares[0] == 1 / 257
    assert found.mean == 2
    assert found.mean_by_count == pytest.approx(4 * 256 / 257)


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.f = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


def test_a_plain_chain_is_poisson_binomial() -> None:
    p = [0.25, 0.5, 1.0, 0.0]
    layers = [m for _ in p for m in (nn.Linear(4, 4), nn.ReLU())]
    alpha = [torch.tensor([0.0] * int(4 * q) + [1.0] * (4 - int(4 * q))) for q in p]
    found = ps.path_lengths(nn.Sequential(*layers), torch.randn(2, 4), alpha=alpha)
    expected = [1.0]
    for q in p:
        expected = PLAIN.polymul(expected, [1 - q, q])
    np.testing.assert_allclose(found.histogram, np.trim_zeros(expected, "b"), atol=1e-15)
    assert found.mean == pytest.approx(sum(p), abs=1e-15)
    assert found.std == pytest.approx(math.sqrt(sum(q * (1 - q) for q in p)), abs=1e-15)


def test_cifar_resnet20() -> None:
    # Stem: t. A block with an identity skip and a ReLU after the join takes P to (½ + ½t)·t·P on average: its branch
    # reads the mean over channels and passes one ReLU, and the mean of the skips is that mean too. The first block of
    # stages 2 and 3 pads its skip with zeros in half of the channels: no path leads there, so the walk takes the
    # branch, t·t·P; the mean of the halves is (¼ + ¾t)·t·P. 9 blocks, 2 of them so.
    net = ps.knobs(arch.resnet20().eval(), torch.randn(2, 3, 32, 32))
    found = ps.path_lengths(net)
    expected = [0.0, 1.0]
    for factor in 7 * [[0, 0.5, 0.5]] + 2 * [[0, 0.25, 0.75]]:
        expected = PLAIN.polymul(expected, factor)
    np.testing.assert_allclose(found.histogram, expected, rtol=0, atol=1e-12)
    assert found.mean == pytest.approx(1 + 7 * 1.5 + 2 * 1.75, abs=1e-12)
    assert ps.average_path_length(net, alpha=1.0) == 0
    # every output: 10 logits, from 3 input channels through 19 convolutions by the longest path
    assert found.counts[19] == 10 * 64 * 3 * 16 ** (1 + 6) * 16 * 32**5 * 32 * 64**5


def test_transformers_count_their_mlps() -> None:
    # attention carries the walk along its values and has no unit: ½ + ½ = 1; an MLP gives ½ + ½t
    for make in (arch.PreLNTransformer, arch.PostLNTransformer):
        net = make().double().eval()
        x = torch.randint(5, (2, 4)) if isinstance(net, arch.PostLNTransformer) else None
        found = ps.path_lengths(net, *([x] if x is not None else [torch.randn(2, 5, 6).double()]))
        n = found.num_units
        np.testing.assert_allclose(found.histogram, [math.comb(n, k) / 2**n for k in range(n + 1)], atol=1e-12)


def test_attention_fused_written_out_and_of_torch_agree() -> None:
    x = torch.randn(2, 5, 8)

    class Written(nn.Module):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            self.qkv, self.out, self.fused = nn.Linear(8, 24), nn.Linear(8, 8), fused

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(F.relu(x)).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.transpose(-2, -1)).softmax(-1) @ v
            return x + self.out(y.transpose(1, 2).reshape(2, 5, 8))

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attn(F.relu(x), F.relu(x), F.relu(x), need_weights=False)[0]

    for net in (Written(True), Written(False), Module()):
        found = ps.path_lengths(net.eval(), x)
        assert found.histogram.tolist() == [0.5, 0.5]
        assert found.counts == (8, 8 * 8 * 8)  # 8 skips; by a branch 8 features of the values for each of 8 outputs


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


def test_a_gate_is_one_of_two_ways_or_none() -> None:
    net = ps.knobs(Squeezed().eval(), torch.randn(2, 3, 5, 5))
    half, value = ps.path_lengths(net), ps.path_lengths(net, gates="value")
    assert half.histogram.tolist() == [0, 0.5, 0, 0.5]
    assert half.counts == (0, 4 * 3, 0, 4 * 2 * 4 * 3)
    assert value.histogram.tolist() == [0, 1]


@pytest.mark.parametrize("written", [False, True])
def test_norms_leave_a_walk_alone(written: bool) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(3, 4), nn.Linear(4, 2), nn.RMSNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.gelu(self.a(x))
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) if written else self.norm(x)
            return self.b(x)

    found = ps.path_lengths(Normed().eval(), torch.randn(2, 3), alpha=[torch.tensor([0.0, 1.0, 1.0, 1.0])])
    assert found.histogram.tolist() == [0.75, 0.25]
    assert found.counts == (18, 6)


def test_channels_keep_their_units_through_moves() -> None:
    class Moved(nn.Module):
        def __init__(self, linear: bool) -> None:
            super().__init__()
            self.linear = nn.Linear(4 * 9, 1) if linear else None

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(x)
            a, b = x.chunk(2, 1)
            x = torch.cat([b, a, b], 1).permute(0, 2, 3, 1).flip(-1)[..., :4]  # b1 b0 a1 a0
            x = F.relu(x).flatten(1)
            return x if self.linear is None else self.linear(x)

    alpha = [torch.tensor([1.0, 0.0, 0.0, 0.0]), 1.0]
    for linear in (False, True):
        found = ps.path_lengths(Moved(linear).eval(), torch.randn(2, 4, 3, 3), alpha=alpha)
        np.testing.assert_allclose(found.histogram, [0.25, 0.75], atol=1e-15)
    second = [1.0, torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 4)]
    assert ps.average_path_length(Moved(True).eval(), torch.randn(2, 4, 3, 3), alpha=second) == 0.25


def test_alpha_for_each_element_gives_channels_a_share() -> None:
    alpha = torch.ones(6, 8, 8)
    alpha[0, :2] = 0.5  # a quarter of one channel of six
    net = ps.knobs(arch.PlainNet().eval(), torch.randn(2, 3, 8, 8))
    found = ps.path_lengths(net, alpha=[alpha, 1.0])
    assert found.mean == pytest.approx(1 / 24, abs=1e-15)
    assert sum(found.counts) == 5 * 6 * 6 * 3


def test_counts_of_a_deep_net_are_exact() -> None:
    width, depth = 64, 400
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    found = ps.path_lengths(nn.Sequential(*layers), torch.randn(1, width))
    assert found.counts[-1] == width ** (depth + 1)
    assert found.log_counts[-1] == pytest.approx((depth + 1) * math.log(width), rel=1e-14)
    assert found.log_counts[0] == -math.inf
    assert found.mean_by_count == depth


@pytest.mark.parametrize("make", [arch.DenselyConnected, arch.VGG, arch.PlainNet])
def test_real_blocks_give_distributions(make) -> None:
    found = ps.path_lengths(make().eval(), torch.randn(2, 3, 8, 8))
    assert found.histogram.sum() == pytest.approx(1, abs=1e-13)
    assert found.count_shares.sum() == pytest.approx(1, abs=1e-13)
    assert all(isinstance(c, int) for c in found.counts)


def test_results_show_themselves() -> None:
    found = ps.path_lengths(Residual(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    assert repr(found) == (
        "PathLengths(1 units: normalized average path length 0.5, standard deviation 0.5, lengths 0 to 1)"
    )
    assert found.table()["share"].tolist() == [0.5, 0.5]
    assert "<table" in found._repr_html_()
    assert found.plot().get_xlabel().startswith("path length")


# --------------------------------------------------------------------------------------------- bad input


def test_no_units() -> None:
    with pytest.raises(errors.PathsumError, match="Linear has no nonlinear units"):
        ps.path_lengths(nn.Linear(3, 4), torch.randn(1, 3))


def test_alpha_of_the_wrong_length_or_shape() -> None:
    net = ps.knobs(arch.PlainNet().eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(errors.LambdaError, match="α has 3 values; the model has 2 nonlinear units"):
        ps.average_path_length(net, alpha=[0, 0, 0])
    with pytest.raises(errors.LambdaError, match=r"α of unit 1 .* has shape \(5,\); the unit's is \(2, 6, 8, 8\)"):
        ps.path_lengths(net, alpha=[0.0, torch.zeros(5)])


def test_no_inputs_and_unknown_gates() -> None:
    with pytest.raises(errors.PathsumError, match="PlainNet has no knobs: give example inputs"):
        ps.path_lengths(arch.PlainNet())
    with pytest.raises(errors.LambdaError, match="gates='both': give 'half' or 'value'"):
        ps.path_lengths(arch.PlainNet(), torch.randn(2, 3, 8, 8), gates="both")


def test_a_function_without_a_convention() -> None:
    class Fourier(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(F.relu(x)).real

    with pytest.raises(errors.MissingRuleError, match="path lengths have no rule for torch.fft.fft"):
        ps.path_lengths(Fourier(), torch.randn(2, 4))
