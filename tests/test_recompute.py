"""The option recompute of `spectrum`: norms and attention taken of the paths so far, against a walk by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathsum as ps
from pathsum.coefficients import Space
from pathsum.rules.recompute import CHOICES
from pathsum.series import Series
from tests import architectures as zoo
from tests.reference import recomputed

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
CHOSEN = [(), ("norm",), ("attention",), CHOICES]


class WrittenRMSNorm(nn.Module):
    """As transformers writes it for Llama."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        variance = hidden_states.to(torch.float64).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + 1e-6)
        return self.weight * hidden_states.to(input_dtype)


class RMSBlock(nn.Module):
    def __init__(self, width, heads, attention):
        super().__init__()
        self.norm1, self.norm2 = WrittenRMSNorm(width), WrittenRMSNorm(width)
        self.attn = attention(width, heads)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class RMSTransformer(nn.Module):
    """Pre-norm blocks with every norm, and attention, written out in elementary calls."""

    def __init__(self, depth=2, width=8, heads=2, attention=zoo.PatchAttention):
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.layers = nn.ModuleList(RMSBlock(width, heads, attention) for _ in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        for block in self.layers:
            x = block(x)
        return self.head(x.mean(dim=1))


def patches():
    return torch.randn(2, 5, 6, dtype=torch.float64)


MODELS = {
    "pre-ln": (zoo.PreLNTransformer, lambda: IDS, recomputed.pre_ln),
    "post-ln": (zoo.PostLNTransformer, patches, recomputed.post_ln),
    "rms written out": (RMSTransformer, patches, recomputed.rms),
}


def randomized(model):
    """In double precision, with norms and biases that are not born 0 or 1."""
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("chosen", CHOSEN, ids=lambda c: "+".join(c) or "frozen")
@pytest.mark.parametrize("name", MODELS)
def test_lengths_are_those_of_a_walk_by_hand(name, chosen):
    build, inputs, walk = MODELS[name]
    model, x = randomized(build()), inputs()
    slow = walk(model, x, frozenset(chosen))
    s = ps.spectrum(model, x, recompute=chosen)
    torch.testing.assert_close(s.terms, slow, rtol=1e-12, atol=1e-12)
    assert s.conservation < 1e-12
    assert s.terms.abs().flatten(1).amax(1).min() > 1e-6  # every length counts
    short = ps.spectrum(model, x, recompute=chosen, max_length=1)
    merged = torch.cat([slow[:2], slow[2:].sum(0, keepdim=True)])
    torch.testing.assert_close(short.terms, merged, rtol=1e-12, atol=1e-12)


def test_every_choice_gives_other_lengths_and_none_is_the_default():
    model = randomized(zoo.PreLNTransformer())
    found = [ps.spectrum(model, IDS, recompute=chosen).terms for chosen in CHOSEN]
    for a, b in itertools.combinations(found, 2):
        assert (a - b).norm() > 1e-3 * a.norm()
    assert torch.equal(found[0], ps.spectrum(model, IDS).terms)
    assert torch.equal(found[1], ps.spectrum(model, IDS, recompute="norm").terms)


class ModuleAttention(nn.Module):
    """`nn.MultiheadAttention` with the weights of another attention."""

    def __init__(self, other):
        super().__init__()
        width = other.proj.in_features
        self.inner = nn.MultiheadAttention(width, other.heads, batch_first=True).double()
        self.inner.in_proj_weight, self.inner.in_proj_bias = other.qkv.weight, other.qkv.bias
        self.inner.out_proj.weight, self.inner.out_proj.bias = other.proj.weight, other.proj.bias

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


class FusedAttention(zoo.Attention):
    """`PatchAttention` through PyTorch's fused kernel."""

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_written_out_fused_and_module_attention_agree():
    eager = randomized(RMSTransformer())
    fused = RMSTransformer(attention=FusedAttention).double().eval()
    fused.load_state_dict(eager.state_dict())
    module = RMSTransformer().double().eval()
    module.load_state_dict(eager.state_dict())
    for block in module.layers:
        block.attn = ModuleAttention(block.attn)
    x = patches()
    terms = [ps.spectrum(m.eval(), x, recompute=CHOICES).terms for m in (eager, fused, module)]
    for other in terms[1:]:
        torch.testing.assert_close(other, terms[0], rtol=1e-12, atol=1e-12)


WAYS_TO_NORM = {
    "layer norm": [
        lambda x: F.layer_norm(x, (8,), eps=1e-5),
        lambda x: nn.LayerNorm(8, elementwise_affine=False)(x),
        lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5),
        lambda x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(torch.var(x, -1, False, True) + 1e-5),
        lambda x: (x - x.mean(-1, True)) / ((x - x.mean(-1, True)).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt(),
        lambda x: (x - x.mean(-1, True)).div((torch.square(x - x.mean(-1, True)).sum(-1, True) / 8 + 1e-5) ** 0.5),
        lambda x: F.group_norm(x.reshape(3, 8), 1, eps=1e-5).reshape(1, 3, 8),
        lambda x: F.instance_norm(x, eps=1e-5),
    ],
    "rms norm": [
        lambda x: F.rms_norm(x, (8,), eps=1e-6),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: x * torch.rsqrt((x**2).mean(dim=-1, keepdim=True).add_(1e-6)),
        lambda x: x * (1 / torch.sqrt(torch.mean(input=x * x, dim=-1, keepdim=True) + 1e-6)),
        lambda x: x.mul(torch.reciprocal((x.square().sum(-1, keepdim=True) / 8 + 1e-6).sqrt())),
        lambda x: x / torch.sqrt(x.norm(dim=-1, keepdim=True) ** 2 / 8 + 1e-6),
        lambda x: torch.div(
            x.clone(), torch.linalg.vector_norm(x, dim=-1, keepdim=True).square().div(8).add(1e-6).sqrt()
        ),
    ],
    "normalize": [
        lambda x: F.normalize(x, dim=-1),
        lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12),
        lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True),
    ],
    "global response norm": [
        lambda x: x * ((x * x).sum(1, True).sqrt() / ((x * x).sum(1, True).sqrt().mean(-1, keepdim=True) + 1e-6)),
        lambda x: x * (x.norm(p=2, dim=1, keepdim=True) / (x.norm(p=2, dim=1, keepdim=True).mean(-1, True) + 1e-6)),
    ],
}
WAYS_TO_ATTEND = [
    lambda x: F.scaled_dot_product_attention(x, x * 0.5, x.flip(-1), is_causal=True),
    lambda x: (
        torch.softmax(
            (x @ (x * 0.5).transpose(-1, -2) / 8**0.5).masked_fill(~torch.ones(3, 3).tril().bool(), -torch.inf), dim=-1
        )
        @ x.flip(-1)
    ),
    lambda x: torch.einsum(
        "bij,bjd->bid",
        F.softmax(
            torch.einsum("bid,bjd->bij", x, x * 0.5) * 8**-0.5
            + torch.full((3, 3), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1),
            dim=-1,
        ),
        x.flip(-1),
    ),
    lambda x: F.dropout(
        torch.baddbmm(
            torch.zeros(1, 3, 3).double().masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf),
            x,
            x.transpose(1, 2),
            alpha=0.5 * 8**-0.5,
        ).softmax(-1),
        training=False,
    ).bmm(x.flip(-1)),
]


def telescoped(f, c):
    values = torch.stack([f(s) for s in c.cumsum(0)])
    return torch.cat([values[:1], values.diff(dim=0)])


@pytest.mark.parametrize(
    ("kind", "way"),
    [(k, i) for k, ways in [*WAYS_TO_NORM.items(), ("attention", WAYS_TO_ATTEND)] for i in range(len(ways))],
)
def test_a_function_is_recomputed_however_it_is_written(kind, way):
    ways = WAYS_TO_ATTEND if kind == "attention" else WAYS_TO_NORM[kind]
    wanted = "attention" if kind == "attention" else "norm"
    c = torch.randn(4, 1, 3, 8, dtype=torch.float64)
    ours = ways[way](Series(c, Space(3, gated=True, recompute=frozenset([wanted]))))
    torch.testing.assert_close(ours.c, telescoped(ways[0], c), rtol=1e-12, atol=1e-12)
    assert ours.gate == 0
    other = frozenset(CHOICES) - {wanted}
    frozen = ways[way](Series(c, Space(3, gated=True, recompute=other)))
    plain = ways[way](Series(c, Space(3, gated=True)))
    torch.testing.assert_close(frozen.c.sum(0), plain.c.sum(0), rtol=1e-12, atol=1e-12)
    assert (ours.c - plain.c).norm() > 1e-2 * plain.c.norm()


def test_a_square_on_its_own_stays_frozen():
    """ReLU² of an MLP is no statistic."""
    c = torch.randn(4, 2, 8, dtype=torch.float64)
    spaces = (Space(3, gated=True), Space(3, gated=True, recompute=frozenset(["norm"])))
    a, b = (F.relu(Series(c, space)).pow(2) @ torch.ones(8, 2).double() for space in spaces)
    assert torch.equal(a.c, b.c)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("chosen", CHOSEN[1:], ids="+".join)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_transformers_own_classes(name, chosen, implementation):
    pytest.importorskip("transformers", reason="pip install 'pathsum[hf]'")
    from tests.test_transformers import ARCHES, TEXT, InDouble

    torch.manual_seed(0)
    model = randomized(ARCHES[name].build())
    with InDouble():
        model.set_attn_implementation(implementation)
        s = ps.spectrum(model, recompute=chosen, **TEXT)
        assert s.conservation < 1e-12
        model.set_attn_implementation("eager" if implementation == "sdpa" else "sdpa")
        other = ps.spectrum(model, recompute=chosen, **TEXT)
    torch.testing.assert_close(s.terms, other.terms, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wrong", ["Norm", ["norm", "softmax"], 3, None, [["norm"]]])
def test_unknown_choices_are_refused(wrong):
    with pytest.raises(
        ps.PathsumError, match="give 'norm', 'attention', both in a list, or \\(\\) to freeze everything"
    ):
        ps.spectrum(zoo.PreLNTransformer().eval(), IDS, recompute=wrong)


def test_a_function_without_a_value_on_short_paths_is_refused():
    c = torch.randn(3, 2, 4, dtype=torch.float64)
    c[0] = 0
    x = Series(c, Space(3, gated=True, recompute=frozenset(["norm"])))
    with pytest.raises(ps.PathsumError, match=r"not a number on the paths up to some length.*recompute=\(\)"):
        x / x.std(-1, keepdim=True)
