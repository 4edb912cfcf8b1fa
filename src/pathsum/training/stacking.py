"""Several towers of one architecture as one program: every convolution of all of them is one grouped convolution.

Network g has the channels from g·C on, so a batch is `(B, G·C, H, W)` with each network's own images in its own
channels. Groups do not mix in a convolution, in a batch norm or in a pool: a network that overflows spoils nothing but
its own slot. A grouped convolution rounds alike however many groups there are, from two on, and so does everything else
as long as all channels together fill whole vector registers. Empty slots see to both, so that on the CPU a network
gets bitwise the same weights whichever company it has (where its width is a multiple of 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathsum.nets.tower import MeanPool, ResidualTower, SamePool
from pathsum.training.convolutions import Blocks, Convolution, Stem, grouped

LANES = 16  # numbers in the widest vector register; what is left over after whole ones may round otherwise


class Shift(torch.autograd.Function):
    """`x + b` for a bias per channel; its gradient is summed channel by channel, alike for any number of them."""

    @staticmethod
    def forward(x: Tensor, bias: Tensor) -> Tensor:
        return x + bias.to(x.dtype).view(-1, 1, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        means_CB = F.avg_pool2d(grad, grad.shape[2:]).flatten(1).to(ctx.dtype).t().contiguous()
        return grad, means_CB.sum(1) * grad[0, 0].numel()


class StackedTower:
    """G towers as one: images `(B, G·C, H, W)` to logits `(G, B, classes)`; `(B, C, H, W)` are seen by all.

    While it lives, the towers' parameters and buffers are views into the stack's tensors; `release` gives them
    memory of their own again. `parameters` are the stack's leaves, by the names they have in a tower, with the
    networks one after the other along the first axis; λ is `lam`, `(slots, depth)`, learned by those that learn it.
    """

    def __init__(self, models: Sequence[ResidualTower], *, convolution: Convolution = grouped) -> None:
        self.models, self.num, self.convolution = list(models), len(models), convolution
        self.first = models[0]
        weight = self.first.decoder.get_parameter("linear.weight")
        # A GPU promises no bits, and an empty slot would cost it what a network does.
        self.slots = self.num if weight.is_cuda else num_slots(self.num, weight.shape[1])
        self.blocked = can_block(self.first, weight) and len(self.first.blocks) > 0
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        for name, like in self.first.named_parameters():
            if name != "lam":
                stacked = self._gather([model.get_parameter(name) for model in models])
                self.parameters[name] = stacked.requires_grad_(like.requires_grad)
        for name, _ in self.first.named_buffers():
            self.buffers[name] = self._gather([model.get_buffer(name) for model in models])
        self.parameters["lam"] = self._scales()

    def _gather(self, parts: Sequence[Tensor]) -> Tensor:
        """Stack tensors along their first axis, and make each a view of its slot; an empty slot is zero."""
        like = parts[0].detach()
        row = like.reshape(1) if like.ndim == 0 else like
        stacked = row.new_zeros(self.slots * len(row), *row.shape[1:])
        if like.ndim == 4 and not (self.blocked and len(like) == like.shape[1]):
            stacked = stacked.to(memory_format=torch.channels_last)
        for part, slot in zip(parts, self.split(stacked), strict=False):
            slot.copy_(part.detach())
            part.data = slot[0] if part.ndim == 0 else slot
        return stacked

    def _scales(self) -> Tensor:
        """λ of all networks; a learned one becomes a view."""
        weight = self.first.decoder.get_parameter("linear.weight")
        lam = weight.detach().new_zeros(self.slots, len(self.first.blocks))
        for model, row in zip(self.models, lam, strict=False):
            row.copy_(torch.tensor(model.scales, dtype=lam.dtype))
            if model.lam is not None:
                model.lam.data = row
        return lam.requires_grad_(any(model.lam is not None and model.lam.requires_grad for model in self.models))

    @torch.no_grad()
    def release(self) -> None:
        """Give every network memory of its own again."""
        for model in self.models:
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)

    def split(self, stacked: Tensor) -> Sequence[Tensor]:
        """The slots of a tensor that has the networks along its first axis."""
        return stacked.unflatten(0, (self.slots, -1)).unbind(0)

    def leaves(self) -> dict[str, Tensor]:
        """The tensors to be trained."""
        return {name: p for name, p in self.parameters.items() if p.requires_grad and p.numel()}

    def __call__(self, x: Tensor, *, training: bool) -> Tensor:
        shared = not training and x.shape[1] == self.first.config["in_channels"]
        if self.slots > self.num and not shared:
            x = F.pad(x, (0, 0, 0, 0, 0, x.shape[1] // self.num * (self.slots - self.num)))
            x = x.contiguous(memory_format=torch.channels_last)
        z = self._layers("encoder", self.first.encoder, x, training)
        z = self._blocked(z) if self.blocked and self._plain() else self._blocks(z, training)
        for name, layer in self.first.decoder.named_children():
            z = (
                self._logits(f"decoder.{name}", z)
                if isinstance(layer, nn.Linear)
                else self._layer(name, layer, z, training)
            )
        return z

    def _plain(self) -> bool:
        """Whether convolutions may take the forms that are quicker on a CPU."""
        return self.convolution is grouped and not torch.is_autocast_enabled("cpu")

    def _blocks(self, z: Tensor, training: bool) -> Tensor:
        branches = [branch for branch in self.first.blocks if isinstance(branch, nn.Sequential)]
        for i, (branch, lam) in enumerate(zip(branches, self.parameters["lam"].unbind(1), strict=True)):
            z = z + self._layers(f"blocks.{i}", branch, z, training, lam)
        return z

    def _blocked(self, z: Tensor) -> Tensor:
        """The blocks in oneDNN's layout."""
        depth, layer = len(self.first.blocks), self.first.blocks[0].get_submodule("conv1")
        weights = [self.parameters[f"blocks.{i}.{name}.weight"] for i in range(depth) for name in ("conv1", "conv2")]
        return Blocks.apply(z, layer, self.slots, torch.is_grad_enabled(), self.parameters["lam"], *weights)

    def _layers(self, path: str, module: nn.Module, x: Tensor, training: bool, lam: Tensor | None = None) -> Tensor:
        """A chain of layers; the last one that has weights is multiplied by λ, which is linear in them."""
        chain = list(_chain(path, module))
        weighted = [name for name, layer in chain if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        for name, layer in chain:
            x = self._layer(name, layer, x, training, lam if name == weighted[-1] else None)
        return x

    def _layer(self, name: str, layer: nn.Module, x: Tensor, training: bool, lam: Tensor | None = None) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            weight, bias = self._scaled(name, lam)
            groups = x.shape[1] // layer.in_channels  # one where all see the same images, else a slot's each
            if x.device.type == "cpu" and not x.requires_grad and weight.requires_grad and self._plain():
                x = Stem.apply(x, weight, layer, groups)
            else:
                x = self.convolution(x, weight, layer, groups)
            return x if bias is None else Shift.apply(x, bias)
        if isinstance(layer, nn.BatchNorm2d):
            return self._norm(name, layer, x, training, lam)
        if isinstance(layer, SamePool):  # where the size is even, the extra row and column come last
            return F.max_pool2d(x, 3, stride=2, padding=(x.shape[2] % 2, x.shape[3] % 2), ceil_mode=True)
        if isinstance(layer, MeanPool):  # with maps channels-last, a gradient that is so too
            return x.flatten(2).mean(2) if x.is_contiguous() else F.avg_pool2d(x, x.shape[2:]).flatten(1)
        return layer(x)

    def _scaled(self, name: str, lam: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, times each network's λ."""
        weight, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        if lam is None:
            return weight, bias
        return self._times(weight, lam), None if bias is None else self._times(bias, lam)

    def _times(self, tensor: Tensor, lam: Tensor) -> Tensor:
        each = tensor.unflatten(0, (self.slots, -1))
        return (each * lam.view(-1, *[1] * tensor.ndim)).flatten(0, 1)

    def _norm(self, name: str, layer: nn.BatchNorm2d, x: Tensor, training: bool, lam: Tensor | None) -> Tensor:
        """Batch norm of all channels of all networks; in training it updates the running statistics."""
        if training:
            self.buffers[f"{name}.num_batches_tracked"] += 1
        weight, bias = self._scaled(name, lam)
        mean, var = self.buffers[f"{name}.running_mean"], self.buffers[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, weight, bias, training, layer.momentum or 0.0, layer.eps)

    def _logits(self, name: str, z: Tensor) -> Tensor:
        """The last layer: `(B, G·C)` to `(G, B, classes)` of the networks that are there."""
        weight, bias = self._scaled(name, None)
        weight_GKC = weight.unflatten(0, (self.slots, -1))
        z_GBC = z.unflatten(1, (self.slots, -1)).transpose(0, 1)
        logits_GBK = torch.bmm(z_GBC, weight_GKC.transpose(1, 2))
        if bias is not None:
            logits_GBK = logits_GBK + bias.view(self.slots, 1, -1)
        return logits_GBK[: self.num]


def can_block(tower: ResidualTower, weight: Tensor) -> bool:
    """Whether its blocks can stay in oneDNN's own layout, eight channels at a time, which its convolutions work in.

    From ordinary layouts they convert at each call. Its ReLU makes 0 of NaN, which no skip does: what overflows in a
    branch still shows in the output.
    """
    config = tower.config
    plain = config["norm"] is None and config["activation"] == "relu"
    fits = weight.dtype == torch.float32 and config["width"] % 8 == 0
    x86 = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return plain and fits and weight.device.type == "cpu" and x86


def num_slots(num: int, width: int) -> int:
    """At least two, and as many as make all channels a multiple of the lanes, where few are enough for that.

    >>> num_slots(1, 16), num_slots(3, 8), num_slots(10, 256)
    (2, 4, 10)
    """
    step = LANES // math.gcd(LANES, width) if width % 4 == 0 else 1
    return -(-max(num, 2) // step) * step


def _chain(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers of an encoder or a branch, with their names in the tower."""
    if not isinstance(module, nn.Sequential):
        yield path, module
        return
    layers = [(f"{path}.{name}", layer) for name, layer in module.named_children()]
    kinds = [type(layer) for _, layer in layers[-2:]]
    # A maximum and a ReLU commute, gradients included, and after the pool there is less to do.
    yield from [*layers[:-2], *layers[:-3:-1]] if kinds == [nn.ReLU, SamePool] else layers
