"""A network under learnable α: one flat parameter for all slopes, and what follows each optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LambdaError
from ..knobs import Knobs
from ..recording import Recorder
from .budget import Budget, controlled, first_omega
from .layout import Site
from .options import LinearizeOptions
from .proximal import proximal
from .saliency import felt, samples_first

LEAST = 100.0  # a slope's prior is at most so many times that of the median
EDGE = 1e-6  # where there is no band: 1 − α of a slope that is not to be linear, at least
LOOK = 10  # steps between two looks for units that are linear as a whole, where a look waits for a GPU


class Slopes(nn.Module):
    """`net` under α, which its parameter `slopes` (N,) holds for all chosen units; `advance` after each step.

    A slope that is exactly 1 is frozen: it gets no gradient. `control` (float64) is ω, the steps taken, the slopes
    that were made linear from outside the band, and whether the budget is met.
    """

    control: Tensor

    def __init__(
        self,
        net: Knobs,
        sites: Sequence[Site],
        options: LinearizeOptions,
        *,
        steps: int,
        recorder: Recorder,
    ) -> None:
        super().__init__()
        self.net, self.sites, self.options, self.num_steps = net, tuple(sites), options, steps
        self.recorder = recorder  # of a run on one sample
        self.teach: Callable[[Tensor], Tensor] | None = None  # logits to learn from, for `distill`
        self.config: dict[str, Any] = {}  # what tells this run from others
        self.chosen = [site for site in self.sites if site.slopes is not None]
        self.sizes = [site.num for site in self.chosen]
        like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
        self.slopes = nn.Parameter(torch.zeros(sum(self.sizes), dtype=like.dtype, device=like.device))
        weights = [1 / site.num if options.normalize else 1.0 for site in self.chosen]
        self.prior = torch.cat([torch.full((n,), w) for n, w in zip(self.sizes, weights, strict=True)]).to(self.slopes)
        self.budget: Budget | None = None
        alone = first_omega(self.ramp, options.alpha_lr * float(self.prior.mean()), options.power)
        omega = options.omega[0] if options.omega else alone
        self.register_buffer("control", torch.tensor([omega, 0, 0, 0], dtype=torch.float64))
        self.whole: list[bool] | None = None  # of each chosen unit: every slope is 1
        self.register_load_state_dict_post_hook(lambda module, keys: module.forget())

    @property
    def ramp(self) -> int:
        """Steps in which a target is reached."""
        return max(1, round(self.options.ramp * self.num_steps))

    @property
    def omega(self) -> float:
        """ω of the next step."""
        return float(self.control[0])

    @property
    def met(self) -> bool:
        """Whether there is a budget, and it is met."""
        return bool(self.control[3])

    def weigh(self, x: Tensor, *, progress: bool | None = None) -> None:
        """Divide each slope's prior by how much the logits of images x feel it, times what it counts in the budget.

        The divisor is 1/`LEAST` of its median at least; the priors of the slopes that are not linear keep their mean.
        """
        flat = self.slopes.detach().split(self.sizes)
        parts = [p.view(site.slopes or ()) for p, site in zip(flat, self.chosen, strict=True)]
        try:
            by_sample = samples_first(self.chosen, self.recorder)
            sensed = felt(self._logits, parts, x, by_sample=by_sample, progress=progress)
        except LambdaError:  # an axis of length 1 before that of the samples
            sensed = felt(self._logits, parts, x, by_sample=False, progress=progress)
        free = self.slopes.detach() != 1
        some = sensed[free & (sensed > 0)]
        if len(some):
            typical = float(some.median())
            weights = typical / sensed.clamp_min(typical / LEAST)
            if self.budget is not None:
                weights = weights * self.budget.prices(self.sizes, weights.device)
            self.prior.mul_(weights / weights[free].mean())

    def _logits(self, x: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """Under α of the chosen units, (N, …) with one for each image, or (1, …)."""
        alphas: list[float | Tensor] = [0.0] * len(self.sites)
        for each, site in zip(slopes, self.chosen, strict=True):
            own, dims = site.slopes or (), len(site.shape)
            maps = len(own) == 1 and dims in (3, 4)  # one a channel, which is the first axis of a sample
            rest = (1,) * (dims - len(own))
            alphas[site.index] = each.view(len(each), *(own + rest if maps else rest + own))
        return self.net.pick(self.net(x, alpha=alphas))

    def forget(self) -> None:
        """The slopes were changed from outside."""
        self.whole = None

    def train(self, mode: bool = True) -> Slopes:
        super().train(mode)
        self.net.train(mode and self.options.train_mode)
        return self

    def forward(self, *inputs: Any) -> Tensor:
        held = self.slopes.detach() == 1
        return self.net.pick(self.net(*inputs, alpha=self.spread(self.slopes.masked_fill(held, 1.0))))

    def spread(self, flat: Tensor) -> list[float | Tensor]:
        """One entry a unit of `net.units`: 0 where it was not chosen, 1 where all of it is linear."""
        if self.whole is None:
            self.whole = [bool(part.all()) for part in (self.slopes.detach() == 1).split(self.sizes)]
        parts = zip(flat.split(self.sizes), self.whole, self.chosen, strict=True)
        alphas: list[float | Tensor] = [0.0] * len(self.sites)
        for part, whole, site in parts:
            alphas[site.index] = 1.0 if whole else part.view(site.slopes or ())
        return alphas

    def alpha(self, linear: Tensor | None = None) -> list[float | Tensor]:
        """α as `net(x, alpha=…)` takes it, of its own memory; or 1 where a mask (N,) is true and 0 elsewhere."""
        flat = self.slopes.detach().clone() if linear is None else linear.to(self.slopes)
        alphas: list[float | Tensor] = [0.0] * len(self.sites)
        for part, site in zip(flat.split(self.sizes), self.chosen, strict=True):
            alphas[site.index] = part.view(site.slopes) if site.slopes else float(part)
        return alphas

    @torch.no_grad()
    def start(self, alpha: Sequence[float | Tensor]) -> None:
        """Begin from these α, which may be coarser than the slopes."""
        for part, site in zip(self.slopes.split(self.sizes), self.chosen, strict=True):
            value = torch.as_tensor(alpha[site.index]).to(part)
            shape = site.slopes or ()
            try:
                if value.ndim == 1 and len(shape) > 1 and len(shape) in (3, 4):
                    value = value.view(-1, *(1,) * (len(shape) - 1))
                part.copy_(value.expand(shape).reshape(-1))
            except RuntimeError:
                raise LambdaError(
                    f"α of unit {site.name} has shape {tuple(value.shape)}, which does not spread over slopes of "
                    f"shape {tuple(shape)}; start from α of this granularity or a coarser one"
                ) from None
        self.slopes.clamp_(max=1.0)
        self.forget()

    def rest_if_met(self) -> None:
        """No prior where the budget is met from the start."""
        if self.budget is not None and self.budget.met(self.slopes.detach() == 1):
            self.control[0], self.control[3] = 0.0, 1.0

    @torch.no_grad()
    def advance(self) -> None:
        """Take a gradient step in α, the prior's proximal step, freeze what is near 1, and set the next ω."""
        slopes, options = self.slopes, self.options
        step = int(self.control[1]) + 1
        held = slopes == 1
        if slopes.grad is not None:
            slopes.add_(slopes.grad, alpha=-options.alpha_lr)
        away = (1 - slopes).clamp_min_(0)
        left = proximal(away, options.alpha_lr * self.omega * self.prior, options.power)
        band = max(options.freeze, EDGE)
        near = (left < band) & ~held
        if self.budget is not None:
            frozen = self._within(self.budget, away, near, held, last=step >= self.ramp)
            # what the budget has no need of stays at the edge of the band
            left = torch.where(near & ~frozen, left.clamp_min(band), left)
            near = frozen
        slopes.copy_(torch.where(near | held, torch.ones_like(slopes), 1 - left))
        self.control[1] = step
        self._set_omega(step, held | near)
        if slopes.device.type == "cpu" or step % LOOK == 0:
            self.whole = None

    def _within(self, budget: Budget, away: Tensor, near: Tensor, held: Tensor, *, last: bool) -> Tensor:
        """Which slopes to freeze: of those near 1 the nearest that the budget needs; at the end of the ramp of all."""
        frozen = torch.zeros_like(near)
        if not self.met:
            order = torch.argsort(away, stable=True)
            order = order[(~held if last else near)[order]]
            frozen[order[: budget.enough(held, order)]] = True
            self.control[2] += int((frozen & ~near).sum())
            self.control[3] = float(budget.met(held | frozen))
        return frozen

    def _set_omega(self, step: int, linear: Tensor) -> None:
        options, budget = self.options, self.budget
        if budget is None:
            first, last = options.omega[0], options.omega[-1]
            self.control[0] = first + (last - first) * min(1.0, step / max(self.num_steps - 1, 1))
        elif self.met:
            self.control[0] = 0.0
        else:
            whole = budget.value(torch.zeros_like(linear))
            wanted = whole - (whole - budget.target) * min(1.0, step / self.ramp)
            lag = (budget.value(linear) - wanted) / max(whole - budget.target, 1e-12)
            self.control[0] = controlled(self.omega, max(-1.0, min(1.0, lag)), self.ramp)
