"""Orders and path lengths of a GPT-2-shaped model (12 layers, width 256, 64 tokens), and what the knobs cost idle."""

from __future__ import annotations

from typing import Any

import torch

import pathsum as ps

from .timing import interleaved, rows


def bench(*, quick: bool = False) -> list[dict[str, Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width, batch = (2, 64, 2) if quick else (12, 256, 4)
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=4, vocab_size=256, bos_token_id=1, eos_token_id=2)
    net = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 256, (batch, 64))
    knobbed = ps.knobs(net, ids, use_cache=False)
    with torch.no_grad():
        sides = {
            "forward": lambda: net(ids, use_cache=False),
            "knobs, default": lambda: knobbed(ids, use_cache=False),
            "knobs, λ = 0.5": lambda: knobbed(ids, use_cache=False, lam=0.5),
            "expand order 4": lambda: ps.expand(knobbed, ids, order=4, use_cache=False),
            "spectrum, all lengths": lambda: ps.spectrum(knobbed, ids, use_cache=False),
        }
        seconds = interleaved(sides, repeats=3 if quick else 7)
    made = {"layers": layers, "width": width, "batch": batch, "tokens": 64, "branches": len(knobbed.branches)}
    return rows("language", f"GPT-2, {layers} layers, width {width}", seconds, "forward", made)
