"""One run on several processes, as `torchrun` starts them: each takes its part of every batch.

A process draws the whole batch, which is a function of seed and step, and keeps its own rows. The mean gradient and
the mean loss over all rows are those of one process up to the rounding of sums, so the rows of a run are too. One
process, the writer, has the output folder; what it knows, the others are told.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pathsum.data import Split
from pathsum.errors import DataError, ModeError, PathsumError
from pathsum.nets.tower import SumOfPaths
from pathsum.training.state import pack, unpack
from pathsum.training.synchronized import BatchNorm, synchronized

if TYPE_CHECKING:
    from pathsum.training.record import Record

T = TypeVar("T")
CPU = torch.device("cpu")
# Buffers agree without being sent at each step; the option was renamed in PyTorch 2.13.
NEW = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
UNSYNCED = "forward_sync_buffers" if NEW else "broadcast_buffers"
STARTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun


@contextmanager
def processes(device: torch.device | str = "cpu") -> Iterator[Shard]:
    """Join the processes that torchrun started, and yield this one's `Shard`; alone, the one that is everything.

    A process group that exists already is used, and left. `device` is the model's: gloo connects CPUs, nccl GPUs
    (move the model to `own_device()` before).
    """
    device = torch.device(device)
    joined = dist.is_available() and dist.is_initialized()
    if not joined:
        if any(name not in os.environ for name in STARTED) or int(os.environ["WORLD_SIZE"]) < 2:
            yield Shard()
            return
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Shard(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if not joined:
            dist.destroy_process_group()


def own_device() -> torch.device:
    """The GPU that torchrun means for this process, where there are GPUs; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


@dataclass(frozen=True)
class Shard:
    """One of `size` processes that train one network together; alone, all of these do nothing.

    >>> shard = Shard()
    >>> shard.is_writer, shard.rows(64), shard.share(64)
    (True, slice(0, 64, None), 1.0)
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def is_writer(self) -> bool:
        """Whether rows, checkpoints and progress are this process's business."""
        return self.rank == 0

    def rows(self, num: int) -> slice:
        """This process's rows of `num`; the numbers of two processes differ by one at most."""
        return slice(num * self.rank // self.size, num * (self.rank + 1) // self.size)

    def share(self, num: int) -> float:
        """Weight of this process's mean, with which the mean over processes is the one over all `num` rows.

        Raises `DataError` where some process would have no row.
        """
        if num < self.size:
            raise DataError(
                f"a batch of {num} images cannot be divided among {self.size} processes; "
                f"use a batch size of {self.size} or more, or fewer processes"
            )
        own = self.rows(num)
        return (own.stop - own.start) * self.size / num

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        return values if self.size == 1 else self._total(values) / self.size

    def gather(self, part: Tensor, num: int) -> Tensor:
        """All `num` rows from each process's own."""
        if self.size == 1:
            return part
        whole = part.new_zeros(num, *part.shape[1:])
        whole[self.rows(num)] = part
        return self._total(whole)

    def agree(self, number: int) -> int:
        """The largest of the processes' numbers, such as a signal that one of them received."""
        if self.size == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def scores(
        self, split: Split, evaluate: Callable[[Split], tuple[float, float] | None]
    ) -> tuple[float, float] | None:
        """Mean loss and accuracy on a split of which each process evaluates a part."""
        if self.size == 1:
            return evaluate(split)
        own = self.rows(len(split))
        part = split.take(torch.arange(own.start, own.stop))
        loss, accuracy = (evaluate(part) if len(part) else None) or (0.0, 0.0)
        sums = [loss * len(part), round(accuracy * len(part))]
        loss, correct = self._total(torch.tensor(sums, dtype=torch.float64, device=self.device)).tolist()
        return loss / len(split), correct / len(split)

    def ask(self, function: Callable[[], T]) -> T:
        """What `function` returns on the writer, everywhere; JSON must be able to hold it.

        Its error, where it raises a `PathsumError`, is raised everywhere too.
        """
        if self.size == 1:
            return function()
        answer: dict[str, Any] = {}
        error: PathsumError | None = None
        if self.is_writer:
            try:
                answer = {"value": function()}
            except PathsumError as raised:
                error, answer = raised, {"error": str(raised)}
        answer = self._told(answer)
        if "error" in answer:
            raise error or PathsumError(answer["error"])
        return answer["value"]

    def check_same(self, asked: Mapping[str, Any]) -> None:
        """Raise `PathsumError` where the processes were given different runs."""
        own = json.dumps(asked, sort_keys=True, default=str)
        writers = self.ask(lambda: own)
        if self.agree(int(own != writers)):
            raise PathsumError(
                f"the {self.size} processes were given different runs, and would mix their gradients; give all of them "
                "the same model and configuration, or train different runs outside torchrun"
            )

    def follow(self, record: Record) -> None:
        """Bring every process to the writer's state: weights, optimizer, monitor, rows.

        Random generators (dropout) stay each process's own.
        """
        if self.size == 1:
            return
        tensors, numbers = pack(record.model, record.optimizer, [])
        facts = {name: getattr(record, name) for name in ("step", "spent", "grad_norm")}
        state: dict[str, Any] = {
            "optimizer": numbers,
            "monitor": record.monitor.state(),
            "facts": facts,
            "rows": record.rows,
        }
        tensors, state = self._sent(tensors, state)
        if self.is_writer:
            return
        unpack(tensors, state["optimizer"], record.model, record.optimizer, [], Path("the state of the first process"))
        record.monitor.restore(state["monitor"])
        record.rows[:] = state["rows"]
        for name, value in state["facts"].items():
            setattr(record, name, value)

    def share_weights(self, model: nn.Module) -> None:
        """Give every process the writer's weights and buffers."""
        if self.size > 1:
            tensors, _ = self._sent(dict(model.state_dict()), {})
            model.load_state_dict(tensors)

    @contextmanager
    def joined(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yield what to call in place of `model` for a forward pass whose gradients are averaged over processes.

        Weights start as the writer's. BatchNorm in train mode takes its statistics over all processes meanwhile.
        Raises `ModeError` for reversal of blocks with BatchNorm.
        """
        if self.size == 1:
            yield model
            return
        reversed_ = [m.blocks for m in model.modules() if isinstance(m, SumOfPaths) and m.memory.mode == "reverse"]
        if any(isinstance(m, BatchNorm) for blocks in reversed_ for m in blocks.modules()):
            raise ModeError(
                "memory 'reverse' with BatchNorm in the blocks, on several processes, is not possible: they would "
                "iterate different numbers of times and wait for each other's statistics; use memory 'checkpoint'"
            )
        own = None if self.device.type == "cpu" else [self.device.index]
        with synchronized(model):
            options: dict[str, Any] = {"device_ids": own, "gradient_as_bucket_view": True, UNSYNCED: False}
            yield DistributedDataParallel(model, **options)

    def _total(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def _sent(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The writer's tensors and JSON."""
        shapes = {name: (list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()}
        shapes, state = self._told({"shapes": shapes, "state": state}).values()
        received = {}
        for name, (shape, dtype) in shapes.items():
            if self.is_writer:
                sent = tensors[name].detach().to(self.device).contiguous()
            else:
                sent = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            dist.broadcast(sent, 0)
            received[name] = sent
        return received, state

    def _told(self, value: dict[str, Any]) -> dict[str, Any]:
        """The writer's JSON."""
        sent = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        size = torch.tensor(len(sent), device=self.device)
        dist.broadcast(size, 0)
        if not self.is_writer:
            sent = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        dist.broadcast(sent, 0)
        return json.loads(bytes(sent.tolist()))


ALONE = Shard()
