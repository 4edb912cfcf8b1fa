"""One optimizer step for all networks of a stack, each with its own learning rate, momentum and weight decay.

The arithmetic is that of `torch.optim.SGD` and `AdamW`. Each network keeps its own such optimizer, whose state is a
view into the stack's, so that a checkpoint of one network is what it is when the network is trained alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pathsum.training.record import Record
from pathsum.training.stacking import StackedTower


class StackedOptimizer:
    """SGD or AdamW over the leaves of a stack; `records` hold each network's options and optimizer.

    Everything is a list with a tensor for each leaf, and one call updates all leaves: while a program is in Python,
    the other of a stack of two waits for it. Options are columns, a number for each row of the leaf.
    """

    def __init__(self, stack: StackedTower, records: Sequence[Record]) -> None:
        self.stack, self.records, self.first = stack, list(records), records[0]
        self.trained = [{n: p for n, p in r.model.named_parameters() if p.requires_grad} for r in records]
        self.adamw = self.first.config.optimizer == "adamw"
        self.decays = any(record.config.weight_decay for record in records)
        self.names = list(stack.leaves())
        self.weights = [leaf.detach() for leaf in stack.leaves().values()]
        configs = [record.config for record in records]
        # 0 for a network that does not train this leaf, as where λ is fixed
        self.lr = self._columns(lambda name, i: configs[i].lr * (name in self.trained[i]))
        self.momentum = self._columns(lambda _, i: configs[i].momentum)
        self.decay = self._columns(lambda _, i: configs[i].weight_decay)
        keys = ("exp_avg", "exp_avg_sq") if self.adamw else ("momentum_buffer",)
        self.state = [[self._state(*leaf, key) for leaf in zip(self.names, self.weights, strict=True)] for key in keys]
        self.count = torch.full((), float(self.first.step), device=self.weights[0].device)  # steps, of all the same
        if self.adamw:
            for record in records:
                for parameter in record.parameters:
                    record.optimizer.state[parameter]["step"] = self.count

    def _columns(self, option: Callable[[str, int], float]) -> list[Tensor]:
        """One option of every network, for each leaf."""
        found = []
        for name, leaf in zip(self.names, self.weights, strict=True):
            values = [option(name, i) for i in range(self.stack.num)] + [0.0] * (self.stack.slots - self.stack.num)
            column = torch.tensor(values, dtype=leaf.dtype, device=leaf.device)
            found.append(column.repeat_interleave(len(leaf) // len(values)).view(-1, *[1] * (leaf.ndim - 1)))
        return found

    def _state(self, name: str, leaf: Tensor, key: str) -> Tensor:
        """One of the optimizer's running means of one leaf; each network's optimizer gets a view of its slot."""
        whole = torch.zeros_like(leaf)
        for record, trained, slot in zip(self.records, self.trained, self._rows(whole), strict=False):
            if name not in trained or (key == "momentum_buffer" and not record.config.momentum):
                continue
            own = record.optimizer.state[trained[name]]
            view = slot.reshape(trained[name].shape)
            if own.get(key) is not None:
                view.copy_(own[key])
            own[key] = view
        return whole

    def _rows(self, tensor: Tensor) -> Tensor:
        """A leaf, or what is shaped as one, with the slots along its first axis."""
        return tensor.unflatten(0, (self.stack.slots, -1))

    @torch.no_grad()
    def step(self, grads: tuple[Tensor, ...], *, probe: bool = False) -> Tensor | None:
        """Update every leaf; where probed, `(2, leaves, slots)`: gradient norms, and whether anything moved."""
        self.count += 1
        before = [leaf.clone() for leaf in self.weights] if probe else []
        self._adamw(grads) if self.adamw else self._sgd(grads)
        if not probe:
            return None
        norms = [torch.linalg.vector_norm(self._rows(grad).flatten(1), dim=1) for grad in grads]
        pairs = zip(self.weights, before, norms, strict=True)
        moved = [self._rows(leaf != old).flatten(1).any(1).to(norm.dtype) for leaf, old, norm in pairs]
        return torch.stack([torch.stack(norms), torch.stack(moved)])

    def _sgd(self, grads: tuple[Tensor, ...]) -> None:
        """v ← μv + (g + wd·p); p ← p − lr·v."""
        if self.decays:
            grads = torch._foreach_addcmul(grads, self.weights, self.decay)
        (velocity,) = self.state
        torch._foreach_mul_(velocity, self.momentum)
        torch._foreach_add_(velocity, grads)
        torch._foreach_addcmul_(self.weights, velocity, self.lr, value=-1)

    def _adamw(self, grads: tuple[Tensor, ...]) -> None:
        """p ← (1 − lr·wd)·p − lr·m̂/(√v̂ + ε), with m̂ and v̂ the unbiased running means of g and g²."""
        mean, square = self.state
        (beta1, beta2), eps = self.first.optimizer.defaults["betas"], self.first.optimizer.defaults["eps"]
        bias1, bias2 = ((1 - beta ** self.count.double()).to(grads[0].dtype) for beta in (beta1, beta2))
        if self.decays:
            shrink = [1 - lr * decay for lr, decay in zip(self.lr, self.decay, strict=True)]
            torch._foreach_mul_(self.weights, shrink)
        torch._foreach_lerp_(mean, grads, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, value=1 - beta2)
        scale = torch._foreach_sqrt(square)
        torch._foreach_div_(scale, [bias2.sqrt()] * len(scale))
        torch._foreach_add_(scale, eps)
        steps = torch._foreach_div(self.lr, [bias1] * len(scale))
        torch._foreach_addcmul_(self.weights, torch._foreach_div(mean, scale), steps, value=-1)

    def seen(self, probe: list[list[list[float]]]) -> list[tuple[list[float], bool]]:
        """For each network, from a probe: the norm of each of its gradients, and whether a weight of it moved."""
        found = []
        places = {name: i for i, name in enumerate(self.names)}
        for slot, (record, trained) in enumerate(zip(self.records, self.trained, strict=True)):
            norms = [probe[0][places[name]][slot] if name in places else 0.0 for name in trained]
            names = [name for name, judged in zip(trained, record.judged, strict=True) if judged and name in places]
            found.append((norms, any(probe[1][places[name]][slot] for name in names)))
        return found
