"""How rules are found, spelled, added and refused: every way to call a function, and what the errors say."""

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from pathsum.coefficients import Space
from pathsum.rules import bound, register_rule, spellings
from pathsum.rules.__main__ import page
from pathsum.rules.analytic import ANALYTIC
from pathsum.rules.elementwise import SMOOTH
from pathsum.series import RULES, Series, name_of
from tests.test_rules import GATED, TAYLOR, polynomial

UNARY = [*SMOOTH, *(n for names in ANALYTIC for n in names.split()), "log", "sqrt", "rsqrt", "square", "reciprocal"]
UNARY += ["relu", "abs", "neg", "floor", "sign", "exp", "softmax", "hardswish", "hardsigmoid", "selu", "relu6"]


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("space", [TAYLOR, GATED], ids=["taylor", "gated"])
def test_all_spellings_of_a_function_agree(name, space):
    """In torch, Tensor, torch.nn.functional and torch.special; by position, by name, in place."""
    c = polynomial((3, 4), positive=True) * 0.5 + (0.6 if name.startswith(("acosh", "arccosh")) else 0)
    options = {"dim": -1} if name == "softmax" else {}
    found = []
    for func in (*spellings(name), *spellings(f"{name}_")):
        x = Series(c.clone(), space)
        out = func(x, **options)
        found.append(out)
        if func.__name__ == f"{name}_":
            found.append(x)
        elif not func.__qualname__.startswith("Tensor") and func is not getattr(torch.Tensor, name, None):
            found.append(func(input=Series(c, space), **options))
    assert found
    for out in found:
        a, b = (t.c if isinstance(t, Series) else t[None] for t in (out, found[0]))  # plain: of order 0
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


class Odd(nn.Module):
    def __init__(self, func):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.func = func

    def forward(self, x):
        return x + self.func(self.inner(x + self.inner(x)))


MISSING = {
    "torch.special.bessel_j0": torch.special.bessel_j0,
    "torch.lgamma": torch.lgamma,
    "torch.Tensor.sinc": torch.Tensor.sinc,
    "torch._adaptive_avg_pool2d": lambda x: torch._adaptive_avg_pool2d(x[None], (2, 3))[0],
    "torch.linalg.matrix_exp": lambda x: torch.linalg.matrix_exp(x.T @ x)[:2],
    "torch.nn.functional.multi_margin_loss": lambda x: F.multi_margin_loss(x, torch.tensor([0, 1])) + x,
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_rule_names_the_function_the_place_and_the_line_to_write(name):
    with pytest.raises(ps.PathsumError) as error:
        ps.expand(Odd(MISSING[name]), torch.randn(2, 3))
    text = str(error.value)
    assert f"no series rule for {name}: add one, ps.register_rule({name}, handler)" in text
    assert f"or ps.register_rule({name}, linear=True) if it is linear" in text
    assert "branch" in text
    assert "\n" not in text


def test_the_names_in_errors_can_be_pasted():
    public = [f for group in torch.overrides.get_overridable_functions().values() for f in group if f not in RULES]
    ours = [f for f in RULES if (getattr(f, "__module__", "") or "").startswith("torch")]
    assert len(public) > 300
    for func in public + ours:
        name = name_of(func)
        assert eval(name, {"torch": torch}) == func, name


@pytest.fixture
def operator():
    """A user's own operator."""
    library = torch.library.Library("pathsum_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
    yield torch.ops.pathsum_test.twice
    RULES.pop(torch.ops.pathsum_test.twice, None)
    library._destroy()


def test_register_rule(operator):
    c = polynomial()
    with pytest.raises(ps.PathsumError, match=r"ps\.register_rule\(torch\.ops\.pathsum_test\.twice, linear=True\)"):
        operator(Series(c, TAYLOR))
    with pytest.raises(ps.PathsumError, match=r"ps\.register_rule\(torch\.ops\.pathsum_test\.twice\.default, handler"):
        operator.default(Series(c, TAYLOR))
    register_rule(operator, linear=True)
    torch.testing.assert_close(operator(Series(c, TAYLOR)).c, 2 * c)
    torch.testing.assert_close(operator.default(Series(c, TAYLOR)).c, 2 * c)
    net = Odd(operator)
    assert len(ps.expand(net, torch.randn(2, 3), order=2).terms) == 3
    register_rule(operator, lambda func, args, kwargs: args[0].like(args[0].c * 3))
    torch.testing.assert_close(operator(Series(c, GATED)).c, 3 * c)
    with pytest.raises(TypeError, match="either a handler or linear=True"):
        register_rule(operator)


REFUSED = {
    "gumbel_softmax": (lambda x: F.gumbel_softmax(x), "draws random numbers on each call"),
    "fractional_max_pool2d": (lambda x: F.fractional_max_pool2d(x, 2, output_size=2), "draws random numbers"),
    "rrelu": (lambda x: F.rrelu(x, training=True), r"model\.eval\(\)"),
    "dropout": (lambda x: F.dropout(x, 0.5), r"model\.eval\(\)"),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, training=True), r"model\.eval\(\)"),
    "attention dropout": (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), r"model\.eval\(\)"),
    "lstm dropout": (lambda x: nn.LSTM(4, 3, 2, dropout=0.5).double()(x[0]), r"model\.eval\(\)"),
    "item": (lambda x: x.mean().item(), "torch.Tensor.item: it reads numbers out of a tensor that depends on λ"),
    "bool": (lambda x: 1 if x.sum() else 0, "torch.where instead of if"),
    "out": (lambda x: torch.exp(x, out=torch.empty(0)), "out= on a series: use the tensor that it returns"),
    "grid": (lambda x: F.grid_sample(x, x[:, 0, :, :2, None].expand(2, 4, 2, 2)), "grid that depends on λ"),
    "index": (lambda x: torch.index_add(x, 0, x, x), "whose index depends on λ"),
    "scatter": (
        lambda x: x.scatter_reduce(0, torch.zeros(1, 3, 4, 4).long(), x, reduce="amax"),
        "only 'sum' and 'mean'",
    ),
    "rounding": (lambda x: torch.div(x, 2, rounding_mode="floor"), "rounding_mode"),
    "matrix norm": (lambda x: torch.linalg.norm(x[0, 0], ord=2), "only 'fro' is covered"),
    "conv weight": (lambda x: F.conv2d(torch.ones(1, 3, 5, 5).double(), x), "only its input may"),
    "mask": (lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x), "add the mask to the scores"),
    "condition": (lambda x: torch.where(x, x, x), "compare it first"),
    "packed": (
        lambda x: nn.LSTM(4, 3).double()(nn.utils.rnn.PackedSequence(x[0, 0], torch.tensor([2, 2]))),
        "packed sequence",
    ),
    "loss options": (lambda x: F.l1_loss(x, x, reduce=False), "write reduction="),
    "embedding_bag": (lambda x: F.embedding_bag(torch.tensor([[0, 1]]), x[0, 0], mode="max"), "an embedding and a sum"),
    "odd arguments": (lambda x: x.movedim(9, 0), "[Dd]imension"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("space", [TAYLOR, GATED], ids=["taylor", "gated"])
def test_what_a_series_cannot_do_is_refused_with_the_next_step(name, space):
    call, text = REFUSED[name]
    with pytest.raises((ps.PathsumError, IndexError), match=text), torch.no_grad():
        call(Series(polynomial(), space))


def test_a_rule_that_fails_on_its_arguments_says_so():
    register_rule(torch.lgamma, lambda func, args, kwargs: kwargs["absent"])
    try:
        with pytest.raises(ps.PathsumError, match=r"rule for torch\.lgamma does not cover this call \(KeyError"):
            torch.lgamma(Series(polynomial(), TAYLOR))
    finally:
        del RULES[torch.lgamma]


def test_bound_reads_arguments_by_position_or_name():
    assert bound("input dim keepdim", torch.amax, (1, 2), {"keepdim": True}) == [1, 2, True]
    assert bound("input dim keepdim", torch.amax, (), {"input": 1, "dim": 2}, keepdim=False) == [1, 2, False]
    with pytest.raises(ps.PathsumError, match="torch.amax with 4 arguments on a series"):
        bound("input dim keepdim", torch.amax, (1, 2, 3, 4), {})


def test_a_series_tells_its_shape_and_is_not_pickled():
    x = Series(polynomial(), TAYLOR)
    assert (x.shape, x.dtype, x.ndim, len(x), x.size(1)) == ((2, 3, 4, 4), torch.float64, 4, 2, 3)
    assert x.new_zeros(2).tolist() == [0, 0]
    assert "Taylor" in repr(x)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(x)


def test_a_stale_view_is_an_error_not_a_wrong_number():
    x = Series(polynomial(), TAYLOR)
    part = x[:, :1]
    part.mul_(2)
    for read in (lambda: x + 1, lambda: torch.add(input=x, other=1), lambda: torch.cat([x, x])):
        with pytest.raises(ps.PathsumError, match="changed in place"):
            read()
    assert (x.shape, x.size(0), x.dim(), x.dtype) == ((2, 3, 4, 4), 2, 4, torch.float64)


def test_weights_in_a_parametrization_are_plain():
    """Weight normalization computes on parameters alone; embeddings of tokens are plain as well."""
    x = torch.randn(2, 3, dtype=torch.float64)
    model = Odd(torch.tanh).double().requires_grad_(False)
    torch.nn.utils.parametrizations.weight_norm(model.inner[0])
    torch.nn.utils.parametrizations.spectral_norm(model.inner[1])
    model.eval()
    s = ps.spectrum(model, x)
    assert s.conservation < 1e-14


def test_custom_autograd_functions_are_seen_through():
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * torch.sigmoid(x)

    x = torch.randn(2, 3, dtype=torch.float64)
    ours, plain = Odd(Swish.apply).double().eval(), Odd(F.silu).double().eval()
    plain.load_state_dict(ours.state_dict())
    a, b = (ps.expand(m, x, order=3).terms for m in (ours, plain))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_page_of_rules_is_the_rules():
    """After a change: python -W ignore -m pathsum.rules > docs/rules.md"""
    written = (Path(__file__).parents[1] / "docs" / "rules.md").read_text(encoding="utf-8")
    assert page() == written
    assert "`conv2d`" in written
    assert "`scaled_dot_product_attention`" in written


def test_a_power_of_zero_and_of_a_plain_base():
    c = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    x = Series(c, Space(1, gated=True))
    assert (x**0).c.sum(0).tolist() == [1, 1, 1]
    assert (x**2).c.sum(0).tolist() == [0, 4, 4]
    assert torch.allclose((2**x).c.sum(0), torch.tensor([1.0, 4.0, 4.0]))
    assert x.sqrt().c.sum(0).tolist() == pytest.approx([0, 2**0.5, 2**0.5])
