"""transformers' own classes from tiny configurations, weights random.

Some of these models compute parts in float32 whatever their weights are (RMSNorm, T5's softmax, GPT-J's attention).
`InDouble` keeps those parts in float64, so that all can be held to the same precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo import Net, each, numbers

IDS = torch.arange(14).view(2, 7) * 5 % 47
TEXT = {"input_ids": IDS}
PADDED = TEXT | {"attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}
BLOCK = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 50, "intermediate_size": 32}
GROUPED = BLOCK | {"num_attention_heads": 4, "num_key_value_heads": 2}
GPT = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
VISION = {k: v for k, v in BLOCK.items() if k != "vocab_size"} | {"image_size": 16, "patch_size": 8}
TWO_LAYERS = "two layers of attention and MLP"


class InDouble(torch.overrides.TorchFunctionMode):
    """Casts to float32 are left out."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            return args[0]
        if getattr(func, "__name__", "") in ("to", "softmax"):
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)


def build(kind: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """A class of transformers, made from a configuration class and its options."""

    def make() -> nn.Module:
        import transformers

        return getattr(transformers, kind)(getattr(transformers, config)(**options))

    return make


def text(make: Callable[[], nn.Module], *ends: str, named: dict[str, Tensor] = TEXT, smooth: bool = True) -> Net:
    """Two layers with one join for each of the patterns."""
    return Net(make, (), 2 * len(ends), TWO_LAYERS, each(2, *ends), named=named, smooth=smooth)


def image(make: Callable[[], nn.Module], size: int, joins: int, why: str, ends: Any, *, smooth: bool = True) -> Net:
    return Net(make, (), joins, why, ends, named={"pixel_values": numbers(2, 3, size, size)}, smooth=smooth)


def llama(kind: str, **options: Any) -> Net:
    make = build(f"{kind}ForCausalLM", f"{kind}Config", **GROUPED | options)
    return text(make, "model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj")


def bert(kind: str, named: dict[str, Tensor]) -> Net:
    make = build(f"{kind}Model", f"{kind}Config", **BLOCK)
    return text(make, "encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense", named=named)


def vit(kind: str) -> Net:
    make = build(f"{kind}ForImageClassification", f"{kind}Config", **VISION)
    layers = f"{kind.lower()}.layers"
    return image(make, 16, 4, TWO_LAYERS, each(2, layers + ".{}.attention.o_proj", layers + ".{}.mlp.fc2"))


def mobile_ends(model: nn.Module) -> list[str]:
    """The inverted residuals that keep stride and width say so themselves."""
    return [f"{name}.reduce_1x1" for name, m in model.named_modules() if getattr(m, "use_residual", False)]


T5_ENDS = each(2, "encoder.block.{}.layer.0.SelfAttention.o", "encoder.block.{}.layer.1.DenseReluDense.wo") + each(
    2,
    "decoder.block.{}.layer.0.SelfAttention.o",
    "decoder.block.{}.layer.1.EncDecAttention.o",
    "decoder.block.{}.layer.2.DenseReluDense.wo",
)
T5 = {"num_layers": 2, "d_model": 16, "num_heads": 2, "vocab_size": 50, "d_ff": 32, "d_kv": 8}
NEO = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 50, "max_position_embeddings": 32}
NEO |= {"attention_types": [[["global", "local"], 1]], "bos_token_id": 1, "eos_token_id": 2}
OPT = BLOCK | {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
OPT.pop("intermediate_size")
SWIN = {"depths": [2, 2], "embed_dim": 8, "num_heads": [2, 2], "window_size": 4, "image_size": 32, "patch_size": 4}
SWIN_LAYER = "swin.encoder.layers.{}.blocks.{}"

TRANSFORMERS: dict[str, Net] = {
    "gpt2": text(
        build("GPT2LMHeadModel", "GPT2Config", **GPT), "transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"
    ),
    "gpt-neo": text(
        build("GPTNeoForCausalLM", "GPTNeoConfig", **NEO),
        "transformer.h.{}.attn.attention.out_proj",
        "transformer.h.{}.mlp.c_proj",
    ),
    "gpt-neox": Net(
        build("GPTNeoXForCausalLM", "GPTNeoXConfig", **BLOCK),
        (),
        2,
        "two parallel layers: attention and MLP are one branch",
        [(f"gpt_neox.layers.{i}.attention.dense", f"gpt_neox.layers.{i}.mlp.dense_4h_to_h") for i in (0, 1)],
        named=TEXT,
    ),
    "gpt-j": Net(
        build("GPTJForCausalLM", "GPTJConfig", **GPT, rotary_dim=4),
        (),
        2,
        "two parallel layers: attention and MLP are one branch",
        [(f"transformer.h.{i}.attn.out_proj", f"transformer.h.{i}.mlp.fc_out") for i in (0, 1)],
        named=TEXT,
    ),
    "opt": text(
        build("OPTForCausalLM", "OPTConfig", **OPT),
        "model.decoder.layers.{}.self_attn.out_proj",
        "model.decoder.layers.{}.fc2",
        smooth=False,
    ),
    "llama": llama("Llama"),
    "mistral": llama("Mistral"),
    "qwen2": llama("Qwen2"),
    "gemma": llama("Gemma", head_dim=4),
    "bert": bert("Bert", PADDED),
    "roberta": bert("Roberta", TEXT),
    "t5": Net(
        build("T5ForConditionalGeneration", "T5Config", **T5),
        (),
        10,
        "two a layer in the encoder, three (with cross-attention) in the decoder",
        T5_ENDS,
        named=TEXT | {"decoder_input_ids": IDS},
        smooth=False,
    ),
    "vit": vit("ViT"),
    "deit": vit("DeiT"),
    "swin": image(
        build("SwinForImageClassification", "SwinConfig", **SWIN),
        32,
        8,
        "two stages of two layers of attention and MLP",
        [f"{SWIN_LAYER.format(i, k)}.{end}" for i in (0, 1) for k in (0, 1) for end in ("attention.o_proj", "mlp.fc2")],
    ),
    "convnext": image(
        build(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            depths=[1, 1, 1, 1],
            hidden_sizes=[8, 8, 8, 8],
            layer_scale_init_value=0.5,
        ),
        64,
        4,
        "four stages of one block",
        each(4, "convnext.encoder.stages.{}.layers.0.pwconv2"),
    ),
    "resnet": image(
        build(
            "ResNetForImageClassification",
            "ResNetConfig",
            depths=[2, 2],
            hidden_sizes=[8, 16],
            embedding_size=8,
            layer_type="bottleneck",
        ),
        32,
        4,
        "two stages of two blocks",
        [f"resnet.encoder.stages.{i}.layers.{k}.layer.2" for i in (0, 1) for k in (0, 1)],
        smooth=False,
    ),
    "mobilenet-v2": image(
        build("MobileNetV2ForImageClassification", "MobileNetV2Config", depth_multiplier=0.25),
        64,
        10,
        "of seventeen blocks in stages of 1, 2, 3, 4, 3, 3, 1 all but each stage's first keep stride and width",
        mobile_ends,
        smooth=False,
    ),
}
