"""Jets of one transformer block, beside the JetExpansions package (github lucfra/JetExpansions) from a checkout.

Both give the Taylor coefficients of a block's output along a line through its input. The checkout's path is in the
environment variable JEX; without it only our side is measured.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.reference.interpolation import line_terms
from torch import Tensor

import pathsum as ps

from .timing import interleaved, rows

ORDERS = (1, 2, 3)


def peer() -> Callable[..., Any] | None:
    """The peer's `jet`, where JEX names a checkout of it."""
    path = os.environ.get("JEX")
    if not path:
        return None
    source = Path(path) / "src"
    if not (source / "jex").is_dir():
        raise SystemExit(f"JEX={path}: no src/jex there; give the root of a JetExpansions checkout")
    sys.path.insert(0, str(source))
    return importlib.import_module("jex.jet").jet


def bench(*, quick: bool = False) -> list[dict[str, Any]]:
    from transformers import GPT2Config, GPT2Model

    width, tokens = (32, 8) if quick else (256, 64)
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=width, n_head=4, vocab_size=256, bos_token_id=1, eos_token_id=2)
    config._attn_implementation = "eager"  # the peer differentiates through it
    model = GPT2Model(config).eval().requires_grad_(False)
    x, y = torch.randn(2, 1, tokens, width)

    def block(h: Tensor) -> Tensor:
        out = model.h[0](h)
        return out if isinstance(out, Tensor) else out[0]

    theirs = peer()
    sides: dict[str, Callable[[], Any]] = {"forward": lambda: block(x)}
    for k in ORDERS:
        sides[f"jet order {k}"] = lambda k=k: ps.jet(block, x, y - x, order=k)
        if theirs is not None:
            sides[f"jex order {k}"] = lambda k=k: theirs(block, x, y, k, return_coefficients=True)[1]
    seconds = interleaved(sides, repeats=3 if quick else 9)
    made = {"width": width, "tokens": tokens, "batch": 1}
    found = rows("jets", f"a GPT-2 block, width {width}, {tokens} tokens", seconds, "forward", made)
    errors = accuracy(block, x, y, model, theirs)
    return [row | {"error": errors.get(row["side"])} for row in found]


def accuracy(
    block: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, model: torch.nn.Module, theirs: Callable[..., Any] | None
) -> dict[str, float]:
    """Relative error of the highest coefficient of each side, all in float64."""
    model.double()
    x, v = x.double(), (y - x).double()
    exact = line_terms(lambda t: block(x + t * v), max(ORDERS))
    found = {}
    for k in ORDERS:
        sides = {f"jet order {k}": ps.jet(block, x, v, order=k)[k]}
        if theirs is not None:
            sides[f"jex order {k}"] = theirs(block, x, x + v, k, return_coefficients=True)[1][k]
        found |= {name: float((c - exact[k]).detach().norm() / exact[k].norm()) for name, c in sides.items()}
    model.float()
    return found
