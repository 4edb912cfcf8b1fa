"""Many networks trained as one program: each keeps its own data order, options, verdict, rows and folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathsum.allocation import freed_memory
from pathsum.data import Dataset
from pathsum.errors import PathsumError
from pathsum.nets.tower import ResidualTower
from pathsum.progress import bar
from pathsum.runs import differences
from pathsum.training.contexts import (
    autocast,
    generators,
    interruptible,
    rare_collections,
    side_by_side,
    tensor_cores,
    threads,
)
from pathsum.training.convolutions import Convolution, each, grouped
from pathsum.training.evaluation import placement
from pathsum.training.graphs import Captured, quickest
from pathsum.training.monitor import CHECK
from pathsum.training.opening import check_fit, check_out, check_trainable, open_folder
from pathsum.training.options import TrainConfig
from pathsum.training.record import Record
from pathsum.training.result import FitResult
from pathsum.training.stackdata import StackedData
from pathsum.training.stacking import StackedTower
from pathsum.training.updates import StackedOptimizer
from pathsum.training.watch import observe

OWN_MODEL = ("scale", "seed", "init", "zero_init_last")  # in which the networks of a stack may differ
OWN_TRAIN = (
    "lr", "seed", "momentum", "weight_decay", "divergence_window", "frozen_window", "frozen_tolerance",
    "checkpoint_every", "tensorboard",
)  # fmt: skip


def stack_key(model: ResidualTower | Mapping[str, Any], config: TrainConfig) -> Hashable:
    """Equal for runs on the same data that can share a stack; `model` is a tower or its `config`.

    They may differ in λ, initialization, seed, learning rate, momentum, weight decay, and in when the monitor
    judges; not in architecture, batch size, number of steps or evaluations, augmentation, optimizer, precision.

    >>> stack_key({"depth": 2, "scale": "1/n"}, TrainConfig(lr=0.1)) == stack_key({"depth": 2}, TrainConfig(seed=1))
    True
    """
    return json.dumps(_shared(model, config), sort_keys=True)


def _shared(model: ResidualTower | Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """What all networks of a stack have in common, as JSON holds it."""
    built = model.config if isinstance(model, ResidualTower) else model
    return {
        "model": {name: value for name, value in built.items() if name not in OWN_MODEL},
        "train": {name: value for name, value in asdict(config).items() if name not in OWN_TRAIN},
    }


def fit_stack(
    models: Sequence[ResidualTower],
    data: Dataset,
    configs: Sequence[TrainConfig],
    *,
    outs: Sequence[str | Path] | None = None,
    resume: bool = True,
    progress: bool | None = None,
) -> list[FitResult]:
    """Train several towers in place as one program, each by its own `config`; the results in the same order.

    On a CPU with an even number of threads the networks are dealt to two such programs, which run side by side.

    Every network sees the batches it would see in `fit`, and ends with the same status at the same step; its numbers
    differ from `fit`'s by the rounding of sums, which training amplifies. On the CPU they are bitwise the same
    whichever networks share the stack, also where one diverges: it leaves the stack, and the rest goes on. (Widths
    that are multiples of 4, and the same number of threads; of one and two the same.) Fewer than four networks
    do not fill both programs.

    `outs` gives each network its folder, as `fit` writes it: a run may be interrupted here and continue alone or in
    another stack. `seconds` in the rows is the time of the whole stack. On a GPU the step is one CUDA graph.

    Raises `PathsumError` where the networks cannot share a program (see `stack_key`), and what `fit` raises.
    """
    folders: list[Path | None] = [None] * len(models)
    results: list[FitResult | None] = [None] * len(models)
    _check(models, data, configs, outs)
    if not models:
        return []
    device = placement(models[0])[0]
    with ExitStack() as held:
        for i, out in enumerate(outs or ()):
            folders[i], results[i] = open_folder(held, models[i], data, configs[i], out, resume=resume)
        signals: list[int] = held.enter_context(interruptible()) if outs is not None else []
        held.enter_context(threads(configs[0].threads))
        held.enter_context(freed_memory("kept"))
        held.enter_context(rare_collections())
        held.enter_context(tensor_cores(configs[0].precision))
        records = {}
        for i, (model, config) in enumerate(zip(models, configs, strict=True)):
            if results[i] is None:
                own = [torch.Generator(g.device).manual_seed(config.seed) for g in generators(device)]
                records[i] = Record(model, data, config, own, folders[i])
                held.callback(records[i].close)
        num_parts, share = parts(len(records), configs[0], device)
        with threads(share):
            done = _train(list(records.values()), data, signals, num_parts, progress) if records else {}
        for i, record in records.items():
            results[i] = done[id(record)]
    return [result for result in results if result is not None]


def _check(
    models: Sequence[ResidualTower],
    data: Dataset,
    configs: Sequence[TrainConfig],
    outs: Sequence[str | Path] | None,
) -> None:
    """Refuse what cannot be one program."""
    counts = {"models": len(models), "configs": len(configs)} | ({} if outs is None else {"outs": len(outs)})
    if len(set(counts.values())) > 1:
        raise PathsumError(f"a stack needs one of each for every network, got {counts}")
    for i, model in enumerate(models):
        if type(model) is not ResidualTower:
            raise PathsumError(f"network {i} is a {type(model).__name__}; only ResidualTower can be stacked: use fit")
        if model.memory.mode != "plain":
            raise PathsumError(f"network {i} has memory {model.memory.mode!r}, a stack keeps all activations: use fit")
        if any(model is other for other in models[:i]):
            raise PathsumError(f"network {i} is in the stack twice; build one model for each run")
        changed = differences(_facts(models[0], configs[0]), _facts(model, configs[i]))
        if changed:
            raise PathsumError(
                f"network {i} cannot share a stack with network 0 ({'; '.join(changed)}); group the runs by stack_key"
            )
    if models:  # what else it looks at, all have in common
        check_fit(models[0], data, configs[0])
    for i, (model, config) in enumerate(zip(models, configs, strict=True)):
        check_trainable(model)
        check_out(config, None if outs is None else outs[i])


def _facts(model: ResidualTower, config: TrainConfig) -> dict[str, Any]:
    """What must agree: the key, and where and how the weights are kept."""
    device, dtype = placement(model)
    fixed = [name for name, p in model.named_parameters() if not p.requires_grad and name != "lam"]
    facts = {"device": str(device), "dtype": str(dtype), "fixed parameters": fixed}
    return dict(json.loads(json.dumps({**_shared(model, config), **facts})))


def parts(num: int, config: TrainConfig, device: torch.device) -> tuple[int, int]:
    """How many programs `num` networks are on `device`, side by side, and the CPU threads of each.

    On a CPU with an even number of threads, two: while one is in Python or in an operation too small to share, the
    other computes. How many threads an operation has may decide how its sums round, so each program has half of them
    also where there are too few networks for two (a program has two slots at least). Observers take turns: one.
    """
    available = torch.get_num_threads()
    if device.type != "cpu" or available % 2 or config.observe:
        return 1, available
    return min(2, -(-num // 2)), available // 2


def _train(
    records: Sequence[Record], data: Dataset, signals: list[int], num_parts: int, progress: bool | None
) -> dict[int, FitResult]:
    """Train all in so many programs side by side; the results by the `id` of the record."""
    total, num_threads, one_at_a_time = sum(r.num_steps - r.step for r in records), torch.get_num_threads(), Lock()
    shares = [records[i::num_parts] for i in range(num_parts)]  # neighbors apart: alike ones may end alike
    at_work = [len(share) for share in shares]
    with bar(f"training {len(records)} networks", total, show=progress) as update:

        def run(part: int) -> dict[int, FitResult]:
            def tell(steps: int, networks: int) -> None:
                with one_at_a_time:
                    at_work[part] = networks
                    update(steps, networks=str(sum(at_work)))

            torch.set_num_threads(num_threads)  # each Python thread has its own number
            return StackTraining(shares[part], data, signals, tell).run()

        found = side_by_side([partial(run, part) for part in range(num_parts)], signals)
    return {key: result for part in found for key, result in part.items()}


class StackTraining:
    """Runs of one stack key at work. Those at the same step form one program; the ones behind catch up first."""

    def __init__(
        self, records: Sequence[Record], data: Dataset, signals: list[int], tell: Callable[[int, int], None]
    ) -> None:
        self.records, self.data, self.signals, self.tell = list(records), data, signals, tell
        self.results: dict[int, FitResult] = {}

    def run(self) -> dict[int, FitResult]:
        """Train each to its end or verdict, or all until a signal; the results by the `id` of the record."""
        while not self.signals:
            left = [record for record in self.records if record.row_is_due or not record.ended]
            if not left:
                break
            step = min(record.step for record in left)
            until = min((record.step for record in left if record.step > step), default=left[0].num_steps)
            program = Program([record for record in left if record.step == step], self.data, self.signals)
            program.run(until, self.tell)
            self._finish([record for record in left if record.ended and not record.row_is_due])
        self._finish(self.records)
        return self.results

    def _finish(self, records: Sequence[Record]) -> None:
        """Record how these ended, once."""
        for record in records:
            if id(record) not in self.results:
                self.results[id(record)] = record.finish(self.signals)


class Program:
    """Networks at the same step as one program, until one of them ends."""

    def __init__(self, records: Sequence[Record], data: Dataset, signals: list[int]) -> None:
        self.records, self.signals, self.config = list(records), signals, records[0].config
        models = [record.model for record in records if isinstance(record.model, ResidualTower)]
        self.device, self.dtype = placement(models[0])
        self.data = StackedData(data, [record.config for record in records], self.device, self.dtype)
        self.tower = StackedTower(models)
        self.tower.convolution = self._convolution(models[0].config["width"])
        self.optimizer = StackedOptimizer(self.tower, records)
        self.leaves = list(self.tower.leaves().values())
        self.update = Captured(self._update, self.device)
        self.step = records[0].step
        self.pending: list[Tensor] = []  # losses still on the device
        self.probe: Tensor | None = None

    def _convolution(self, width: int) -> Convolution:
        """Grouped on the CPU, on a GPU what is quicker. Products of bfloat16 take channels in pairs: odd ones leak."""
        if self.config.precision == "bf16" and width % 2:
            return each
        if self.device.type != "cuda" or self.tower.slots == 1:
            return grouped
        x, _ = self.data.batch(self.step)

        def run(form: Convolution) -> None:
            self.tower.convolution = form
            with self._autocast():
                out = self.tower(x, training=False)
            torch.autograd.grad(out.sum(), list(self.tower.leaves().values()))

        return quickest({"grouped": grouped, "each": each}, run, self.device)

    def _autocast(self) -> torch.autocast:
        return autocast(self.config.precision, self.device, cache=False)  # a graph may not keep casts

    def run(self, until: int, tell: Callable[[int, int], None]) -> None:
        """Train until one has ended, all have taken `until` steps, or a signal came."""
        try:
            while self._rows_are_written() and self._are_observed() and not self._over(until):
                x, y = self.data.batch(self.step)
                self._take(x, y)
                if self.step % CHECK == 0:
                    self._sync()
                    tell(CHECK * len(self.records), len(self.records))
                self._checkpoint()
            self._sync()
            self._rows_are_written()
            self._are_observed()
        finally:
            self.update.release()
            self.tower.release()

    def _over(self, until: int) -> bool:
        return bool(self.step >= until or self.signals or any(record.ended for record in self.records))

    def _take(self, x: Tensor, y: Tensor) -> None:
        """One step of every network; the losses stay on the device."""
        probe = (self.step + 1) % CHECK == 0
        losses_GB, seen = self.update(x, y, probe)
        if self.step == 0:
            for record, losses in zip(self.records, losses_GB.tolist(), strict=True):
                record.monitor.start(losses)
        self.step += 1
        for record in self.records:
            record.step = self.step
        self.probe = seen if probe else self.probe
        self.pending.append(losses_GB.mean(1))

    def _update(self, x: Tensor, y: Tensor, probe: bool) -> tuple[Tensor, Tensor | None]:
        """One optimizer step; each image's loss `(G, B)`, and what the optimizer saw."""
        with self._autocast():
            logits = self.tower(x, training=True)
        losses = F.cross_entropy(logits.flatten(0, 1).to(self.dtype), y.flatten(), reduction="none").view_as(y)
        means = losses.mean(1)
        grads = torch.autograd.grad(means, self.leaves, torch.ones_like(means))
        return losses.detach(), self.optimizer.step(grads, probe=probe)

    def _sync(self) -> None:
        """Fetch the pending losses and let each network's monitor judge its own."""
        if not self.pending:
            return
        losses, self.pending = torch.stack(self.pending, 1).tolist(), []
        if self.probe is None:
            for record, own in zip(self.records, losses, strict=True):
                record.take(own)
            return
        seen, self.probe = self.optimizer.seen(self.probe.tolist()), None
        for record, own, (norms, moved) in zip(self.records, losses, seen, strict=True):
            record.take(own, norms, moved=moved)

    def _rows_are_written(self) -> bool:
        """Evaluate and write the rows that are due; False where a signal came first."""
        if not any(record.row_is_due for record in self.records):
            return True
        self._sync()
        due = [record for record in self.records if record.row_is_due]
        splits = ("test", "val") if self.config.val_size else ("test",)
        scores: dict[str, list[tuple[float, float]]] = {}
        for name in splits if any(record.healthy for record in due) else ():
            with self._autocast():
                found = self.data.evaluate(self.tower, name, lambda: self.signals)
            if found is None:
                return False
            scores[name] = found
        for i, record in enumerate(self.records):
            if record in due:
                record.write_row({name: found[i] for name, found in scores.items()} if record.healthy else {})
        return True

    def _are_observed(self) -> bool:
        """Observe the networks for which that is due, one by one in their slots of the stack; always True."""
        if any(record.observation_is_due for record in self.records):
            self._sync()
            observe([r.watch for r in self.records if r.watch is not None and r.observation_is_due], self.step)
        return True

    def _checkpoint(self) -> None:
        """Write the checkpoints that are due."""
        due = [record for record in self.records if record.checkpoint_is_due]
        if due:
            self._sync()
        for record in due:
            record.checkpoint()
