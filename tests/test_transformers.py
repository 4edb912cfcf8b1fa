"""transformers' own classes from tiny configurations: joins, lengths, orders and deletions, found unaided.

Some of these models compute parts in float32 whatever their weights are (RMSNorm, T5's softmax, GPT-J's attention).
Here those parts are kept in float64, so that all can be held to the same precision.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import pathsum as ps

T = pytest.importorskip("transformers", reason="pip install 'pathsum[hf]'")
IDS = torch.arange(14).view(2, 7) * 5 % 47
BLOCK = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 50, "intermediate_size": 32}
GROUPED = BLOCK | {"num_attention_heads": 4, "num_key_value_heads": 2}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Arch:
    """A model, and the joins that its definition implies."""

    build: Callable[[], nn.Module]
    joins: int
    inputs: dict | None = None
    smooth: bool = True  # no kinks: orders can be interpolated


class InDouble(torch.overrides.TorchFunctionMode):
    """Casts to float32 are left out."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            return args[0]
        if getattr(func, "__name__", "") in ("to", "softmax"):
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)


def image(size: int) -> dict:
    return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))}


VIT = {k: v for k, v in BLOCK.items() if k != "vocab_size"} | {"image_size": 16, "patch_size": 8}
TEXT = {"input_ids": IDS}
PADDED = TEXT | {"attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}
ARCHES = {
    "gpt2": Arch(
        lambda: T.GPT2LMHeadModel(T.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, **TOKENS)), 4, TEXT
    ),
    "gpt-neo": Arch(
        lambda: T.GPTNeoForCausalLM(
            T.GPTNeoConfig(
                num_layers=2,
                hidden_size=16,
                num_heads=2,
                vocab_size=50,
                attention_types=[[["global", "local"], 1]],
                max_position_embeddings=32,
                **TOKENS,
            )
        ),
        4,
        TEXT,
    ),
    "gpt-neox": Arch(lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**BLOCK)), 2, TEXT),
    "gpt-j": Arch(
        lambda: T.GPTJForCausalLM(T.GPTJConfig(n_layer=2, n_embd=16, n_head=2, vocab_size=50, rotary_dim=4, **TOKENS)),
        2,
        TEXT,
    ),
    "opt": Arch(
        lambda: T.OPTForCausalLM(
            T.OPTConfig(
                num_hidden_layers=2,
                hidden_size=16,
                num_attention_heads=2,
                vocab_size=50,
                ffn_dim=32,
                word_embed_proj_dim=16,
                max_position_embeddings=32,
            )
        ),
        4,
        TEXT,
        smooth=False,
    ),
    "llama": Arch(lambda: T.LlamaForCausalLM(T.LlamaConfig(**GROUPED)), 4, TEXT),
    "mistral": Arch(lambda: T.MistralForCausalLM(T.MistralConfig(**GROUPED)), 4, TEXT),
    "qwen2": Arch(lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**GROUPED)), 4, TEXT),
    "gemma": Arch(lambda: T.GemmaForCausalLM(T.GemmaConfig(**GROUPED, head_dim=4)), 4, TEXT),
    "bert": Arch(lambda: T.BertModel(T.BertConfig(**BLOCK)), 4, PADDED),
    "roberta": Arch(lambda: T.RobertaModel(T.RobertaConfig(**BLOCK)), 4, TEXT),
    "t5": Arch(
        lambda: T.T5ForConditionalGeneration(
            T.T5Config(num_layers=2, d_model=16, num_heads=2, vocab_size=50, d_ff=32, d_kv=8)
        ),
        10,
        TEXT | {"decoder_input_ids": IDS},
        smooth=False,
    ),
    "vit": Arch(lambda: T.ViTForImageClassification(T.ViTConfig(**VIT)), 4, image(16)),
    "deit": Arch(lambda: T.DeiTForImageClassification(T.DeiTConfig(**VIT)), 4, image(16), smooth=False),
    "swin": Arch(
        lambda: T.SwinForImageClassification(
            T.SwinConfig(depths=[2, 2], embed_dim=8, num_heads=[2, 2], window_size=4, image_size=32, patch_size=4)
        ),
        8,
        image(32),
    ),
    "convnext": Arch(
        lambda: T.ConvNextForImageClassification(
            T.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], layer_scale_init_value=0.5)
        ),
        4,
        image(64),
    ),
    "resnet": Arch(
        lambda: T.ResNetForImageClassification(
            T.ResNetConfig(depths=[2, 2], hidden_sizes=[8, 16], embedding_size=8, layer_type="bottleneck")
        ),
        4,
        image(32),
        smooth=False,
    ),
    "mobilenet-v2": Arch(
        lambda: T.MobileNetV2ForImageClassification(T.MobileNetV2Config(depth_multiplier=0.25)),
        10,
        image(64),
        smooth=False,
    ),
    "torch-encoder": Arch(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu"), 2, enable_nested_tensor=False
        ),
        4,
    ),
    "torch-encoder-pre-ln": Arch(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
        ),
        4,
        smooth=False,
    ),
}


@pytest.fixture(params=ARCHES)
def case(request):
    arch = ARCHES[request.param]
    torch.manual_seed(0)
    model = arch.build().double().eval()
    with torch.no_grad():  # norms, biases and tokens that are born 0 or 1 would hide mistakes
        for p in model.parameters():
            if p.ndim < 2 or not bool(p.any()):
                p.add_(0.1 * torch.randn_like(p))
    named = {k: v.double() if v.is_floating_point() else v for k, v in (arch.inputs or {}).items()}
    inputs = () if arch.inputs else (torch.randn(2, 5, 16, dtype=torch.float64),)
    return arch, model, inputs, named


def test_joins_lengths_orders_and_deletions(case):
    with InDouble():
        check(*case)


def check(arch, model, inputs, named):
    net = ps.knobs(model, *inputs, **named)  # bitwise at default, shortcuts at 0: checked there
    assert len(net.branches) == arch.joins
    assert len({b.name for b in net.branches}) == arch.joins

    s = ps.spectrum(net, *inputs, **named)
    assert s.conservation < 1e-12
    assert len(s.terms) == arch.joins + 1

    def at(lam):
        with torch.no_grad():
            return net.pick(net.run(inputs, named, lam=lam)[0])

    for branch in net.branches:
        if not branch.last:
            continue
        without = copy.deepcopy(model)
        layer = without.get_submodule(branch.last)
        for p in layer.parameters():
            nn.init.zeros_(p)
        lam = torch.ones(arch.joins)
        lam[branch.index] = 0
        with torch.no_grad():
            deleted = net.pick(without(*inputs, **named))
        torch.testing.assert_close(at(lam), deleted, rtol=1e-11, atol=1e-12)

    e = ps.expand(net, *inputs, order=2, **named)
    torch.testing.assert_close(e.terms[0], at(0.0), rtol=1e-11, atol=1e-12)
    if arch.smooth:
        # Chebyshev interpolation on [−r, r]: float64 leaves 1e-16/r^k at order k, the next degrees (r/R)^(degree+1−k).
        degree, radius = 12, 0.01
        nodes = radius * torch.cos(math.pi * (torch.arange(degree + 1) + 0.5) / (degree + 1)).double()
        values = torch.stack([at(float(t)) for t in nodes]).flatten(1)
        vander = torch.stack([(nodes / radius) ** k for k in range(degree + 1)], 1)
        slow = torch.linalg.solve(vander, values)
        for k in (1, 2):
            expected = slow[k].view_as(e.output) / radius**k
            error = float((e.terms[k] - expected).norm() / expected.norm())
            assert error < 1e-6


def test_knobs_on_a_language_model_rescale_fold_and_keep_its_class():
    model = ARCHES["gpt2"].build().eval()
    net = ps.knobs(model, input_ids=IDS).rescale("1/sqrt(n)")
    folded = net.fold(input_ids=IDS)
    assert type(folded) is type(model)
    assert folded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(folded(input_ids=IDS).logits, net(input_ids=IDS).logits, rtol=1e-5, atol=1e-6)
