"""Training: ten thin towers as one program beside one after the other, and one network beside the loop one writes.

Images are noise of CIFAR-10's shape: the arithmetic is the same. Runs are timed whole, data, evaluations and all.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pathsum.data import Dataset, Split
from pathsum.nets.tower import ResidualTower
from pathsum.train import TrainConfig, fit, fit_stack

from .timing import interleaved, rows

NETWORKS, DEPTH, WIDTH, LR = 10, 10, 16, 0.01
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def noise(num_train: int, num_test: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def split(num: int) -> Split:
        images = torch.randint(0, 256, (num, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Split(images, torch.randint(0, 10, (num,), generator=generator))

    names = tuple(str(k) for k in range(10))
    return Dataset("noise", split(num_train), split(num_test), names, MEAN, STD, flip=True)


class Images(TorchDataset):
    """One image at a time, as a map-style data set gives it: padded, cropped and mirrored at random, normalized."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.mean, self.std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = F.pad(self.split.images[index], (4, 4, 4, 4))
        top, left = torch.randint(0, 9, (2,)).tolist()
        image = image[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image.float() / 255 - self.mean) / self.std, self.split.labels[index]


def plain_loop(data: Dataset, batch: int, steps: int, workers: int) -> Callable[[], None]:
    """The loop one writes: a DataLoader, zero_grad, backward, step, and the loss looked at every step."""
    # Not by fork, which may hang beside jax's threads; the round that warms up starts the workers.
    several = {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": "forkserver"}
    loader = DataLoader(Images(data.train), batch, shuffle=True, drop_last=True, **several if workers else {})

    def run() -> None:
        net = ResidualTower(DEPTH, WIDTH, seed=0)
        optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9)
        done, total = 0, 0.0
        while done < steps:
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(net(x), y)
                loss.backward()
                optimizer.step()
                total += loss.item()
                done += 1
                if done == steps:
                    break

    return run


def flax_loop(data: Dataset, batch: int, steps: int) -> Callable[[], None]:
    """The same network in flax, its step compiled, with optax; on batches that are ready."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen

    class Tower(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            z = linen.Conv(WIDTH, (7, 7), 2, padding=3, use_bias=False)(x)
            z = linen.relu(linen.BatchNorm(use_running_average=False, momentum=0.9)(z))
            z = linen.max_pool(z, (3, 3), (2, 2), "SAME")
            for _ in range(DEPTH):
                h = linen.relu(linen.Conv(WIDTH, (3, 3), use_bias=False)(z))
                z = z + linen.Conv(WIDTH, (3, 3), use_bias=False)(h) / math.sqrt(DEPTH)
            return linen.Dense(10)(z.mean((1, 2)))

    picked = [data.train.take(torch.arange(i * batch, (i + 1) * batch)) for i in range(4)]
    ready = [(jnp.asarray(s.images.permute(0, 2, 3, 1) / 255.0), jnp.asarray(s.labels)) for s in picked]
    net, optimizer = Tower(), optax.sgd(LR, momentum=0.9)
    start = net.init(jax.random.key(0), ready[0][0])

    @jax.jit
    def step(params: Any, stats: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, new = net.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new["batch_stats"]

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        change, state = optimizer.update(grads, state)
        return optax.apply_updates(params, change), stats, state, value

    def run() -> None:
        params, stats, state = start["params"], start["batch_stats"], optimizer.init(start["params"])
        for i in range(steps):
            params, stats, state, value = step(params, stats, state, *ready[i % len(ready)])
        value.block_until_ready()

    return run


def stacking(batch: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Ten runs of `fit` one after the other, and the same runs in one `fit_stack`."""
    data = noise(32 * batch, 250)
    configs = [TrainConfig(lr=LR, steps=steps, eval_every=steps, batch_size=batch, seed=i) for i in range(NETWORKS)]

    def towers() -> list[ResidualTower]:
        return [ResidualTower(DEPTH, WIDTH, seed=i) for i in range(NETWORKS)]

    def one_by_one() -> None:
        for net, config in zip(towers(), configs, strict=True):
            fit(net, data, config)

    sides = {"one stack": lambda: fit_stack(towers(), data, configs), "one after the other": one_by_one}
    seconds = interleaved(sides, repeats=repeats, warmup=1)
    config = {"networks": NETWORKS, "depth": DEPTH, "width": WIDTH, "maps": "8x8", "batch": batch, "steps": steps}
    return rows("training", f"{NETWORKS} runs, batch {batch}, {steps} steps each", seconds, "one stack", config)


def single(batch: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """One step of one network, in seconds."""
    data = noise(32 * batch, 1)
    config = TrainConfig(lr=LR, steps=steps, eval_every=steps, batch_size=batch)
    sides: dict[str, Callable[[], Any]] = {
        "fit": lambda: fit(ResidualTower(DEPTH, WIDTH, seed=0), data, config),
        "plain loop, DataLoader": plain_loop(data, batch, steps, 0),
        "plain loop, DataLoader with 2 workers": plain_loop(data, batch, steps, 2),
    }
    flax = "flax and optax, batches ready"
    if all(importlib.util.find_spec(name) for name in ("jax", "flax", "optax")):
        sides[flax] = flax_loop(data, batch, steps)
    else:
        flax = "flax and optax: not installed"
    seconds = {flax: math.nan} | interleaved(sides, repeats=repeats, warmup=1)
    per_step = {name: seconds[name] / steps for name in (*sides, flax)}
    made = {"depth": DEPTH, "width": WIDTH, "maps": "8x8", "batch": batch, "steps": steps}
    return rows("training", f"one step, batch {batch}", per_step, "fit", made)


def bench(*, quick: bool = False) -> list[dict[str, Any]]:
    steps, repeats = (4, 1) if quick else (100, 5)
    found = []
    for batch in (16, 64):
        found += stacking(batch, steps, repeats)
        found += single(batch, steps, repeats)
    return found
