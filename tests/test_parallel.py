"""Two processes train one network, and its rows are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from pathsum.data import batches, load
from pathsum.errors import DataError, ModeError, OutputError, PathsumError
from pathsum.nets import ResidualTower, saving
from pathsum.train import evaluate
from pathsum.training.parallel import Shard, processes

STEPS, BATCH = 20, 33  # which two processes cannot halve
CASES = {"plain": {}, "batch norm": {"norm": "batch"}, "learned": {"scale": "learned:0.3"}}


def net(**options):
    """In float64, so that the order of a sum changes the last of 16 digits."""
    return ResidualTower(4, 4, in_channels=1, encoder="conv3x3", seed=0, **options).double()


def train(shard, model):
    """20 plain steps on the shard's rows of each batch: mean losses, gradient norms, scores, then weights."""
    data = load("digits", test_limit=101)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    stream = batches(
        data.train, BATCH, mean=data.mean, std=data.std, seed=1, augment=True, crop_pad=1, dtype=torch.float64
    )
    losses, norms = [], []
    first = []
    with shard.joined(model) as forward:
        for _ in range(STEPS):
            _, x, y = next(stream)
            own = shard.rows(BATCH)
            logits = forward(x[own])
            loss = F.cross_entropy(logits, y[own]) * shard.share(BATCH)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            norms.append(float(sum(p.grad.square().sum() for p in model.parameters())))
            first = first or shard.gather(F.cross_entropy(logits.detach(), y[own], reduction="none"), BATCH).tolist()
    scores = shard.scores(data.test, lambda split: evaluate(model, split, data, 30))
    weights = [v.double().flatten().tolist() for v in model.state_dict().values()]
    mean = shard.mean(torch.stack(losses)).tolist()
    return {"losses": mean, "norms": norms, "scores": scores, "first": first, "weights": weights}


def told(call, kind=PathsumError):
    """The text of the error that a call raises."""
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def full():
    raise OutputError("cannot write rows.jsonl: disk full")


class Books:
    """What `Shard.follow` reads and writes of a run's record."""

    def __init__(self, shard):
        from pathsum.training.monitor import Monitor

        torch.manual_seed(shard.rank)
        self.model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.model(torch.randn(4, 3)).square().sum().backward()
        self.optimizer.step()
        self.monitor, self.rows = Monitor(), [{"step": 3 * shard.rank, "test_loss": None}]
        self.monitor.add(float(shard.rank))
        self.step, self.spent, self.grad_norm = 10 + shard.rank, 1.5 + shard.rank, None

    def seen(self):
        state = self.optimizer.state_dict()["state"]
        tensors = [*self.model.state_dict().values(), *(v for entry in state.values() for v in entry.values())]
        facts = [self.step, self.spent, self.grad_norm, self.rows, self.monitor.recent]
        return [t.tolist() for t in tensors] + facts


def work(rank, folder):
    """What each of two processes does; its findings go into a file."""
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {}
    with processes() as shard:
        assert (shard.rank, shard.size) == (rank, 2)
        for name, options in CASES.items():
            found[name] = train(shard, net(**options))
        model = net(norm="batch")
        with saving(model, "checkpoint"):
            found["checkpoint"] = train(shard, model)
        model = net()
        with saving(model, "reverse"):
            found["reverse"] = train(shard, model)
        model = net(norm="batch")
        model.memory = "reverse"
        found["refused"] = told(shard.joined(model).__enter__, ModeError)
        model.memory = "plain"
        with shard.joined(model):
            inside = [type(m).__name__ for m in model.modules()]
        kinds = [type(m).__name__ for m in model.modules()]
        found["kinds"] = [sorted(set(inside) - set(kinds)), "BatchNorm2d" in kinds]
        model(torch.randn(2, 1, 8, 8).double()).sum().backward()  # alone again: no process waits for another
        found["alone"] = all(p.grad is not None for p in model.parameters())
        found["agree"] = [shard.agree(0), shard.agree(15 * rank), shard.agree(2 - 2 * rank)]
        found["asked"] = shard.ask(lambda: {"done": [True, rank]})
        found["error"] = told(lambda: shard.ask(full), OutputError if rank == 0 else PathsumError)
        shard.check_same({"train": {"lr": 0.1}})
        found["different"] = told(lambda: shard.check_same({"train": {"lr": 0.1 * (1 + rank)}}))
        books = Books(shard)
        shard.follow(books)
        found["followed"] = books.seen()
    assert dist.is_initialized()  # it was there before
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The findings of two processes."""
    folder = tmp_path_factory.mktemp("pair")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def close(a, b):
    """Equal to 1e-10: rounding of 1e-16 a step, which 20 steps of training magnify by less than 10⁵."""
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [*CASES, "checkpoint", "reverse"])
def test_the_rows_are_those_of_one_process(pair, name):
    alone = train(Shard(), net(**CASES.get(name, {"norm": "batch"} if name == "checkpoint" else {})))
    assert alone["losses"][-1] < 0.95 * alone["losses"][0]
    assert sum(alone["first"]) / BATCH == pytest.approx(alone["losses"][0])
    for found in pair:
        for key in ("losses", "norms", "first"):
            close(found[name][key], alone[key])
        for a, b in zip(found[name]["weights"], alone["weights"], strict=True):
            close(a, b)
        close(found[name]["scores"][0], alone["scores"][0])
        assert found[name]["scores"][1] == alone["scores"][1]
    assert pair[0][name] == pair[1][name]  # bitwise, so that both come to the same verdict


def test_the_model_is_left_as_it_was(pair):
    for found in pair:
        assert found["kinds"] == [["SynchronizedBatchNorm2d"], True]
        assert found["alone"]


def test_reversal_does_not_go_with_statistics_over_processes(pair):
    assert all(
        "memory 'reverse' with BatchNorm in the blocks, on several processes, is not" in found["refused"]
        for found in pair
    )


def test_processes_decide_together(pair):
    for found in pair:
        assert found["agree"] == [0, 15, 2]
        assert found["asked"] == {"done": [True, 0]}
        assert found["error"] == "cannot write rows.jsonl: disk full"
        assert "the 2 processes were given different runs" in found["different"]


def test_the_others_follow_the_first(pair, one_thread):  # as each of the pair has
    assert pair[0]["followed"] == pair[1]["followed"] == json.loads(json.dumps(Books(Shard()).seen()))


def test_alone_nothing_changes():
    with processes() as shard:
        assert shard == Shard()
        model = net()
        with shard.joined(model) as forward:
            assert forward is model
    assert not dist.is_initialized()
    with pytest.raises(OutputError):
        shard.ask(full)


@pytest.mark.parametrize(("num", "size"), [(64, 3), (7, 7), (5, 2), (1000, 16)])
def test_every_row_belongs_to_one_process(num, size):
    shards = [Shard(rank, size) for rank in range(size)]
    assert [i for shard in shards for i in range(num)[shard.rows(num)]] == list(range(num))
    values = torch.randn(num, dtype=torch.float64)
    mean = sum(values[shard.rows(num)].mean() * shard.share(num) for shard in shards) / size
    assert float(mean) == pytest.approx(float(values.mean()), abs=1e-15)


def test_a_batch_smaller_than_the_processes_is_refused():
    with pytest.raises(DataError, match="a batch of 3 images cannot be divided among 4 processes; use a batch size"):
        Shard(1, 4).share(3)


SCRIPT = """
import json, pathlib, sys
import torch
from tests.test_parallel import net, train
from pathsum.training.parallel import own_device, processes

torch.set_num_threads(1)
assert own_device().type == "cpu"
with processes() as shard:
    found = train(shard, net(norm="batch"))
    pathlib.Path(sys.argv[1], f"{shard.rank} of {shard.size}.json").write_text(json.dumps(found))
assert not torch.distributed.is_initialized()
"""


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "script.py", "."]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(run, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone = train(Shard(), net(norm="batch"))
    for rank in range(3):
        found = json.loads((tmp_path / f"{rank} of 3.json").read_text())
        close(found["losses"], alone["losses"])
        assert found["scores"][1] == alone["scores"][1]
