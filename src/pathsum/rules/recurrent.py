"""Recurrent layers, unrolled: RNN, LSTM and GRU. Gated: their gates are frozen before their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import MissingRuleError, ModeError
from . import bound, rule

State = tuple[Any, ...]


def lstm_step(x: Any, state: State, weights: list[Any]) -> State:
    """c' = σ(f)·c + σ(i)·tanh(g), h' = σ(o)·tanh(c'), projected where there is a fifth weight."""
    h, c = state
    i, f, g, o = both(x, h, weights).chunk(4, -1)
    c = c * f.sigmoid() + g.tanh() * i.sigmoid()
    h = c.tanh() * o.sigmoid()
    return (F.linear(h, weights[-1]) if len(weights) % 2 else h), c


def gru_step(x: Any, state: State, weights: list[Any]) -> State:
    """h' = n + σ(z)·(h − n), n = tanh(W_n x + σ(r)·(U_n h))."""
    (h,) = state
    w, u, *biases = weights
    given = F.linear(x, w, biases[0] if biases else None).chunk(3, -1)
    kept = F.linear(h, u, biases[1] if biases else None).chunk(3, -1)
    r, z = (given[0] + kept[0]).sigmoid(), (given[1] + kept[1]).sigmoid()
    n = (given[2] + kept[2] * r).tanh()
    return (n + (h - n) * z,)


def tanh_step(x: Any, state: State, weights: list[Any]) -> State:
    return (both(x, state[0], weights).tanh(),)


def relu_step(x: Any, state: State, weights: list[Any]) -> State:
    return (both(x, state[0], weights).relu(),)


def both(x: Any, h: Any, weights: list[Any]) -> Any:
    """W x + U h and their biases."""
    w, u, *biases = weights
    b, c = biases[:2] if len(biases) > 1 else (None, None)
    return F.linear(x, w, b) + F.linear(h, u, c)


STEPS = {"lstm": lstm_step, "gru": gru_step, "rnn_tanh": tanh_step, "rnn_relu": relu_step}


@rule(*STEPS)
def unrolled(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """All layers and directions, step by step; as torch does, the outputs and the last states."""
    names = "input hx params has_biases num_layers dropout train bidirectional batch_first"
    if len(args) > 3 and isinstance(args[3], list | tuple):  # (data, batch sizes, states, weights, …)
        raise MissingRuleError(f"{func.__name__} of a packed sequence on a series: pass the padded batch")
    x, first, params, _biases, layers, dropout, train, bidirectional, batch_first = bound(names, func, args, kwargs)
    if dropout and train and layers > 1:
        raise ModeError(f"{func.__name__} with dropout in train mode: call model.eval() first")
    step, states = STEPS[func.__name__], tuple(first) if isinstance(first, list | tuple) else (first,)
    runs = layers * (2 if bidirectional else 1)
    each = len(params) // runs
    steps = list(x.unbind(1 if batch_first and x.ndim == 3 else 0))
    last: list[State] = []
    for _ in range(layers):
        heard = []
        for backward in (False, True) if bidirectional else (False,):
            run = len(last)
            state = tuple(s[run] for s in states)
            outputs = []
            for now in reversed(steps) if backward else steps:
                state = step(now, state, list(params[run * each : (run + 1) * each]))
                outputs.append(state[0])
            last.append(state)
            heard.append(outputs[::-1] if backward else outputs)
        steps = [torch.cat(pair, -1) if len(pair) > 1 else pair[0] for pair in zip(*heard, strict=True)]
    out = torch.stack(steps, 1 if batch_first and x.ndim == 3 else 0)
    return (out, *(torch.stack(list(parts)) for parts in zip(*last, strict=True)))


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, first, *weights = bound("input hx w_ih w_hh b_ih b_hh", func, args, kwargs)
    states = tuple(first) if isinstance(first, list | tuple) else (first,)
    state = STEPS[func.__name__.removesuffix("_cell")](x, states, [w for w in weights if w is not None])
    return state if len(state) > 1 else state[0]
