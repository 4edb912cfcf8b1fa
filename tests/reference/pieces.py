"""A residual network taken apart by hand, and run with any number on its branches.

`Pieces` is the literal form of `f = D ∘ (1+λF_n) ∘ … ∘ (1+λF_1) ∘ E` with what real models add: a shortcut,
something before the fork and something after the join. A step is a function `(v, ops)`, where `ops` decides what
a nonlinearity does: compute, compute and record, or replay what was recorded. Every formula holds for complex v
too: then λ may be complex.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from scipy import special
from torch import Tensor, nn


@dataclass
class Tape:
    """What one step decided at one forward pass, in the order of its calls."""

    kinks: list[Tensor] = field(default_factory=list)
    gates: list[Tensor] = field(default_factory=list)


class Ops:
    """Nonlinear functions in one of four modes.

    exact: the function. record: the function, and its choices go on the tape. kinks: piecewise-linear
    functions replay their recorded choices, smooth ones are exact. gates: every function is a recorded linear
    map.
    """

    def __init__(self, mode: str = "exact", tape: Tape | None = None) -> None:
        self.mode, self.tape = mode, tape or Tape()
        self.kinks, self.gates = iter(list(self.tape.kinks)), iter(list(self.tape.gates))

    def relu(self, a: Tensor) -> Tensor:
        return a * self._choice(lambda: (a > 0).to(a.dtype), gate=True)

    def max_pool(self, a: Tensor, size: int) -> Tensor:
        """Windows of size×size without overlap; the recorded choice is the winner of each window."""
        windows = a.unfold(2, size, size).unfold(3, size, size).flatten(-2)
        winner = self._choice(lambda: windows.argmax(-1, keepdim=True), gate=True)
        return windows.gather(-1, winner).squeeze(-1)

    def tanh(self, a: Tensor) -> Tensor:
        return self._smooth(a, torch.tanh, 1.0)

    def gelu(self, a: Tensor) -> Tensor:
        return self._smooth(a, lambda a: 0.5 * a * (1 + erf(a / math.sqrt(2))), 0.5)

    def gelu_tanh(self, a: Tensor) -> Tensor:
        return self._smooth(
            a, lambda a: 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))), 0.5
        )

    def silu(self, a: Tensor) -> Tensor:
        return self._smooth(a, lambda a: a / (1 + torch.exp(-a)), 0.5)

    def hardswish(self, a: Tensor) -> Tensor:
        """0 below −3, a above 3, a(a+3)/6 between."""
        return self._smooth(a, lambda a: a * self._hard_sigmoid(a), 0.5)

    def times_hardsigmoid(self, u: Tensor, a: Tensor) -> Tensor:
        """u·hardsigmoid(a), the modulating factor frozen."""
        return u * self._gate(lambda: self._hard_sigmoid(a))

    def _hard_sigmoid(self, a: Tensor) -> Tensor:
        low, high = self._choice(lambda: (a <= -3).to(a.dtype)), self._choice(lambda: (a >= 3).to(a.dtype))
        return high + (1 - low - high) * (a + 3) / 6

    def times_sigmoid(self, u: Tensor, a: Tensor) -> Tensor:
        """u·σ(a), the modulating factor frozen."""
        return u * self._gate(lambda: 1 / (1 + torch.exp(-a)))

    def times_silu(self, u: Tensor, a: Tensor) -> Tensor:
        """u·SiLU(a), the modulating factor frozen (THEORY §3: u⊙g(v) freezes g(v))."""
        return u * self._gate(lambda: a / (1 + torch.exp(-a)))

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        inverse = self._gate(lambda: 1 / torch.sqrt((centered**2).mean(-1, keepdim=True) + norm.eps))
        return centered * inverse * norm.weight + norm.bias

    def rms_norm(self, x: Tensor, norm: nn.RMSNorm) -> Tensor:
        inverse = self._gate(lambda: 1 / torch.sqrt((x**2).mean(-1, keepdim=True) + norm.eps))
        return x * inverse * norm.weight

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        """softmax(qkᵀ/√d)·v over (…, length, d); the pattern is what gets frozen."""

        def pattern() -> Tensor:
            weights = torch.exp(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]))
            weights = weights.tril() if causal else weights
            return weights / weights.sum(-1, keepdim=True)

        return self._gate(pattern).to(v.dtype) @ v

    def _choice(self, compute: Callable[[], Tensor], *, gate: bool = False) -> Tensor:
        """A discrete choice: which side of a kink; with `gate` it is all that makes the function nonlinear."""
        if self.mode == "gates":
            return next(self.gates)
        if self.mode == "kinks":
            return next(self.kinks)
        value = compute()
        if self.mode == "record":
            self.tape.kinks.append(value)
            if gate:
                self.tape.gates.append(value)
        return value

    def _gate(self, compute: Callable[[], Tensor]) -> Tensor:
        """A factor that depends on the input smoothly."""
        if self.mode == "gates":
            return next(self.gates)
        value = compute()
        if self.mode == "record":
            self.tape.gates.append(value)
        return value

    def _smooth(self, a: Tensor, phi: Callable[[Tensor], Tensor], slope: float) -> Tensor:
        """φ(a) = a·g(a) with φ(0) = 0 and g(0) = φ'(0)."""
        if self.mode == "gates":
            return a * next(self.gates)
        value = phi(a)
        if self.mode == "record":
            self.tape.gates.append(torch.where(a == 0, slope, value / torch.where(a == 0, 1.0, a)))
        return value


def erf(a: Tensor) -> Tensor:
    """The error function, also of complex numbers (which PyTorch leaves out)."""
    return torch.from_numpy(special.erf(a.detach().numpy())) if a.is_complex() else torch.erf(a)


Step = Callable[[Tensor, Ops], Tensor]


def identity(v: Tensor, ops: Ops) -> Tensor:
    return v


@dataclass(frozen=True)
class Block:
    """`after(shortcut(u) + t·scale·branch(u))` with `u = before(z)`."""

    branch: Step
    shortcut: Step = identity
    before: Step = identity
    after: Step = identity
    scale: float = 1.0


@dataclass(frozen=True)
class Pieces:
    encoder: Callable[[Tensor], Tensor]
    blocks: tuple[Block, ...]
    decoder: Step

    def scaled(self, scales: list[float] | float) -> "Pieces":
        """The same network with other λ_i."""
        values = [scales] * len(self.blocks) if isinstance(scales, int | float) else scales
        return replace(self, blocks=tuple(replace(b, scale=s) for b, s in zip(self.blocks, values, strict=True)))


@torch.no_grad()
def run(pieces: Pieces, x: Tensor, t: complex | float = 1.0, ops: Ops | None = None) -> Tensor:
    """The output with every λ_i multiplied by t; t = 1 is the model."""
    ops = ops or Ops()
    z = pieces.encoder(x)
    for block in pieces.blocks:
        z = block.before(z, ops)
        z = block.after(block.shortcut(z, ops) + t * block.scale * block.branch(z, ops), ops)
    return pieces.decoder(z, ops)


@torch.no_grad()
def freeze(pieces: Pieces, x: Tensor, t: float, mode: str) -> Pieces:
    """The network whose steps replay, in mode `kinks` or `gates`, what they did at the forward pass at t."""

    def recorded(step: Step, v: Tensor) -> tuple[Tensor, Step]:
        tape = Tape()
        return step(v, Ops("record", tape)), lambda u, _: step(u, Ops(mode, tape))

    z = pieces.encoder(x)
    blocks = []
    for block in pieces.blocks:
        z, before = recorded(block.before, z)
        skip, shortcut = recorded(block.shortcut, z)
        value, branch = recorded(block.branch, z)
        z, after = recorded(block.after, skip + t * block.scale * value)
        blocks.append(Block(branch, shortcut, before, after, block.scale))
    _, decoder = recorded(pieces.decoder, z)
    return Pieces(pieces.encoder, tuple(blocks), decoder)


def kinks(pieces: Pieces, x: Tensor, t: float) -> list[Tensor]:
    """All discrete choices of one forward pass."""
    tape = Tape()
    run(pieces, x, t, Ops("record", tape))
    return tape.kinks


# Linear layers, for complex v as well as real.


def linear(v: Tensor, layer: nn.Linear) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(v.dtype)
    return F.linear(v, layer.weight.to(v.dtype), bias)


def conv(v: Tensor, layer: nn.Conv2d) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(v.dtype)
    return F.conv2d(v, layer.weight.to(v.dtype), bias, layer.stride, layer.padding, 1, layer.groups)


def batch_norm(v: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    shape = (1, -1) + (1,) * (v.ndim - 2)
    mean, var, weight, bias = (a.view(shape) for a in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (v - mean) / torch.sqrt(var + norm.eps) * weight + bias
