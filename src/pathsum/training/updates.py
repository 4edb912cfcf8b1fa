"""One optimizer step for all networks of a stack, each with its own learning rate, momentum and weight decay.

The arithmetic is that of `torch.optim.SGD` and `AdamW`. Each network keeps its own such optimizer, whose state is a
view into the stack's, so that a checkpoint of one network is what it is when the network is trained alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathsum.training.record import Record
from pathsum.training.stacking import StackedTower


@dataclass(frozen=True)
class Part:
    """One leaf of the stack; all tensors have the slots along their first axis, the options a 1 along the others."""

    name: str
    weights: Tensor
    state: tuple[Tensor, ...]
    lr: Tensor  # 0 for a network that does not train this leaf, as where λ is fixed
    momentum: Tensor
    decay: Tensor


class StackedOptimizer:
    """SGD or AdamW over the leaves of a stack; `records` hold each network's options and optimizer."""

    def __init__(self, stack: StackedTower, records: Sequence[Record]) -> None:
        self.stack, self.records, self.first = stack, list(records), records[0]
        self.trained = [{n: p for n, p in r.model.named_parameters() if p.requires_grad} for r in records]
        self.adamw = self.first.config.optimizer == "adamw"
        self.decays = any(record.config.weight_decay for record in records)
        self.parts = [self._part(name, leaf.detach()) for name, leaf in stack.leaves().items()]
        self.count = torch.zeros(stack.slots, device=self.parts[0].lr.device)  # steps, which all have in common
        self.count[: stack.num] = self.first.step
        if self.adamw:
            for slot, record in enumerate(records):
                for parameter in record.parameters:
                    record.optimizer.state[parameter]["step"] = self.count[slot]

    def _part(self, name: str, leaf: Tensor) -> Part:
        weights = self._rows(leaf)
        configs = [record.config for record in self.records]

        def each(values: Sequence[float]) -> Tensor:
            filled = [*values, *[0.0] * (self.stack.slots - len(values))]
            return torch.tensor(filled, dtype=leaf.dtype, device=leaf.device).view(-1, *[1] * (weights.ndim - 1))

        return Part(
            name,
            weights,
            tuple(
                self._state(name, leaf, key)
                for key in (("exp_avg", "exp_avg_sq") if self.adamw else ("momentum_buffer",))
            ),
            each([c.lr * (name in trained) for c, trained in zip(configs, self.trained, strict=True)]),
            each([c.momentum for c in configs]),
            each([c.weight_decay for c in configs]),
        )

    def _state(self, name: str, leaf: Tensor, key: str) -> Tensor:
        """One of the optimizer's running means of one leaf; each network's optimizer gets a view of its slot."""
        whole = self._rows(torch.zeros_like(leaf))
        for record, trained, slot in zip(self.records, self.trained, whole, strict=False):
            if name not in trained or (key == "momentum_buffer" and not record.config.momentum):
                continue
            own = record.optimizer.state[trained[name]]
            view = slot.reshape(trained[name].shape)
            if own.get(key) is not None:
                view.copy_(own[key])
            own[key] = view
        return whole

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (self.stack.slots, -1))

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], *, probe: bool = False) -> Tensor | None:
        """Update every leaf; where probed, `(2, leaves, slots)`: gradient norms, and whether anything moved."""
        self.count += 1
        before = [part.weights.clone() for part in self.parts] if probe else []
        rows = [self._rows(grad) for grad in grads]
        for part, grad in zip(self.parts, rows, strict=True):
            self._adamw(part, grad) if self.adamw else self._sgd(part, grad)
        if not probe:
            return None
        norms = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in rows]
        pairs = zip(self.parts, before, strict=True)
        moved = [(part.weights != old).flatten(1).any(1).to(old.dtype) for part, old in pairs]
        return torch.stack([torch.stack(norms), torch.stack(moved)])

    def _sgd(self, part: Part, grad: Tensor) -> None:
        """v ← μv + (g + wd·p); p ← p − lr·v."""
        if self.decays:
            grad = grad.addcmul(part.weights, part.decay)
        (velocity,) = part.state
        velocity.mul_(part.momentum).add_(grad)
        part.weights.addcmul_(velocity, part.lr, value=-1)

    def _adamw(self, part: Part, grad: Tensor) -> None:
        """p ← (1 − lr·wd)·p − lr·m̂/(√v̂ + ε), with m̂ and v̂ the unbiased running means of g and g²."""
        mean, square = part.state
        (beta1, beta2), eps = self.first.optimizer.defaults["betas"], self.first.optimizer.defaults["eps"]
        steps = self.count.double()
        bias1, bias2 = ((1 - beta**steps).to(grad.dtype).view_as(part.lr) for beta in (beta1, beta2))
        part.weights.mul_(1 - part.lr * part.decay)
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale = square.sqrt().div_(bias2.sqrt()).add_(eps)
        part.weights.addcmul_(mean / scale, part.lr / bias1, value=-1)

    def seen(self, probe: list[list[list[float]]]) -> list[tuple[list[float], bool]]:
        """For each network, from a probe: the norm of each of its gradients, and whether a weight of it moved."""
        found = []
        places = {part.name: i for i, part in enumerate(self.parts)}
        for slot, (record, trained) in enumerate(zip(self.records, self.trained, strict=True)):
            norms = [probe[0][places[name]][slot] if name in places else 0.0 for name in trained]
            names = [name for name, judged in zip(trained, record.judged, strict=True) if judged and name in places]
            found.append((norms, any(probe[1][places[name]][slot] for name in names)))
        return found
