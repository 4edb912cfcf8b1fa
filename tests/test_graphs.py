"""A captured step does what the step does, shown without a GPU: a stand-in for CUDA graphs records and repeats.

The stand-in has what a graph has that can go wrong: nothing but the recorded operations runs again, on the very
tensors of the recording; a step that looks at a number fails. It does not show that CUDA's own libraries agree.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pathsum.data import Dataset, load
from pathsum.data.batching import send
from pathsum.nets.tower import ResidualTower
from pathsum.train import TrainConfig, fit, fit_stack
from pathsum.training import graphs, stacked, stacking
from pathsum.training.contexts import channels_last
from pathsum.training.graphs import Captured

pytestmark = pytest.mark.usefixtures("one_thread")
CUDA = torch.device("cuda")
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default", "masked_select", "unique")


class Recorder(TorchDispatchMode):
    """Keeps every operation with its tensors; refuses those for which the host waits for the GPU."""

    def __init__(self):
        super().__init__()
        self.tape = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(word in str(func) for word in WAITS):
            raise RuntimeError(f"{func} waits for the GPU: not permitted when a stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, out))
        return out


class Graph:
    """A graph on the CPU. Recording has run the operations once already, so that the first replay is that run."""

    live = 0

    def __init__(self):
        self.tape, self.replays = [], 0
        Graph.live += 1

    def __del__(self):
        Graph.live -= 1

    def pool(self):
        return self

    def replay(self):
        self.replays += 1
        with torch._C._AutoDispatchBelowADInplaceOrView():  # kernels only, as a graph has them
            for func, args, kwargs, out in self.tape if self.replays > 1 else ():
                again = func(*args, **kwargs)
                for kept, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(kept, torch.Tensor) and kept.data_ptr() != new.data_ptr():
                        kept.copy_(new)  # a graph writes to where it wrote when it was recorded


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        assert isinstance(other, Stream)


@pytest.fixture
def cuda(monkeypatch):
    """A GPU as far as a capture is concerned; returns the graphs."""
    made = []

    @contextlib.contextmanager
    def graph(one, pool=None, stream=None):
        assert isinstance(stream, Stream)
        assert pool is None or pool in made
        made.append(one)
        with Recorder() as recorder:
            yield
        one.tape = recorder.tape

    stand_in = {
        "Stream": Stream, "CUDAGraph": Graph, "graph": graph, "current_stream": lambda device: Stream(),
        "stream": lambda stream: contextlib.nullcontext(), "device": lambda device: contextlib.nullcontext(),
    }  # fmt: skip
    for name, value in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", train_limit=400, test_limit=60)


def tower(seed, **options):
    return ResidualTower(2, 4, seed=seed, in_channels=1, **{"encoder": "conv3x3", **options})


def test_each_kind_of_step_runs_once_is_recorded_once_and_then_repeated(cuda):
    weight, calls = torch.ones(2), []

    def step(x, y, probe):
        calls.append(probe)
        weight.add_(x + y)
        return weight * 2, weight.sum() if probe else None

    captured, expected = Captured(step, CUDA), torch.ones(2)
    for number in range(12):
        x, y, probe = torch.full((2,), 1.0 + number), torch.full((2,), 0.5), number % 3 == 2
        losses, seen = captured(x, y, probe)
        expected = expected + x + y
        assert torch.equal(losses, 2 * expected)
        assert torch.equal(weight, expected)
        assert (seen is None) == (not probe)
        assert seen is None or seen == expected.sum()
        if number > 2:
            assert losses.data_ptr() not in {out[0].data_ptr() for out in captured.outputs.values()}
    assert calls == [False, False, True, True]  # everything else was a replay
    assert [graph.replays for graph in cuda] == [7, 3]
    cuda.clear()
    captured.release()
    assert Graph.live == 0


def test_on_the_cpu_nothing_is_recorded(cuda):
    captured = Captured(lambda x, y, probe: (x + y, None), torch.device("cpu"))
    assert [captured(torch.ones(1), torch.ones(1), False)[0].item() for _ in range(3)] == [2.0, 2.0, 2.0]
    assert cuda == []


def test_a_step_that_waits_cannot_be_recorded(cuda):
    captured = Captured(lambda x, y, probe: (x * x.sum().item(), None), CUDA)
    captured(torch.ones(2), torch.ones(2), False)
    with pytest.raises(RuntimeError, match="waits for the GPU"):
        captured(torch.ones(2), torch.ones(2), False)
    assert captured.graphs == {}


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [
        ({}, "sgd"), ({"norm": "batch"}, "sgd"), ({"scale": "learned:1/n"}, "adamw"), ({"encoder": "imagenet"}, "sgd"),
        ({"encoder": "affine"}, "sgd"),
    ],
    ids=["plain", "norm", "learned-adamw", "imagenet", "affine"],
)  # fmt: skip
def test_a_stack_in_captured_steps_is_the_stack(cuda, digits, monkeypatch, options, optimizer):
    """Bitwise: the same operations on the same tensors. One diverges, so the others are captured anew."""
    rates = (0.02, 1e25 if optimizer == "sgd" else 0.01, 0.01)
    configs = [
        TrainConfig(lr=lr, seed=i, steps=40, batch_size=16, eval_every=20, weight_decay=0.01, optimizer=optimizer)
        for i, lr in enumerate(rates)
    ]
    plain = [tower(i, **options) for i in range(3)]
    expected = fit_stack(plain, digits, configs)
    monkeypatch.setattr(stacked, "Captured", lambda step, device: Captured(step, CUDA))
    models = [tower(i, **options) for i in range(3)]
    results = fit_stack(models, digits, configs)
    diverged = [result.status for result in results].count("diverged")
    assert diverged == (optimizer == "sgd")
    assert len(cuda) == 2 + diverged  # the first program ended before its second probe
    assert sum(graph.replays for graph in cuda) >= 30
    cuda.clear()
    assert Graph.live == 0  # an ended program holds no graph, though the objects of it form a cycle
    for result, twin in zip(results, expected, strict=True):
        assert (result.status, result.steps) == (twin.status, twin.steps)
        assert result.final_loss == twin.final_loss or result.status == "diverged"
        assert [row["test_loss"] for row in result.rows] == [row["test_loss"] for row in twin.rows]
        assert [row["grad_norm"] for row in result.rows] == [row["grad_norm"] for row in twin.rows]
    for model, other, result in zip(models, plain, results, strict=True):
        same = [
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        ]
        assert all(same) or result.status == "diverged"


def test_a_stack_without_empty_slots_as_on_a_gpu(digits, monkeypatch):
    """One network in one slot, then three; close to `fit`, which sums in another order."""
    monkeypatch.setattr(stacking, "num_slots", lambda num, width: num)
    for num in (1, 3):
        configs = [TrainConfig(lr=0.02, seed=i, steps=20, batch_size=16) for i in range(num)]
        results = fit_stack([tower(i, norm="batch") for i in range(num)], digits, configs)
        for i, result in enumerate(results):
            alone = fit(tower(i, norm="batch"), digits, configs[i])
            assert result.final_loss == pytest.approx(alone.final_loss, rel=2e-3)
            assert len(result.rows) == len(alone.rows)


@pytest.mark.parametrize(("precision", "last"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_on_a_gpu_weights_are_channels_last_for_the_tensor_cores(precision, last):
    net = tower(0)
    weight = net.blocks[0].conv1.weight
    before = weight.detach().clone()
    with channels_last(net, CUDA, precision):
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
        assert torch.equal(weight, before)
    assert weight.is_contiguous()


def test_batches_of_a_gpu_are_sent_from_pinned_memory(monkeypatch):
    sent = []

    class Pinned:
        def to(self, device, non_blocking):
            sent.append((device, non_blocking))
            return "there"

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: Pinned())
    assert send(torch.ones(2), CUDA) == "there"
    assert sent == [(CUDA, True)]
    x = torch.ones(2)
    assert send(x, torch.device("cpu")) is x


def test_the_quickest_form_is_measured_by_replays(cuda, monkeypatch):
    class Event:
        now = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = Event.now

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    original = Graph.replay

    def replay(self):
        original(self)
        Event.now += len(self.tape)  # as if every operation took as long

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Graph, "replay", replay)
    x = torch.ones(3)
    forms = {"slow": lambda: x + 1 + 2, "quick": lambda: x + 3}
    assert graphs.quickest(forms, lambda form: form(), CUDA) is forms["quick"]
