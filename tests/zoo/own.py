"""Same-shaped architectures of our own, so that nothing goes untested without transformers, torchvision or timm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests import architectures as arch
from tests.zoo import Net, each, numbers

PICTURES = (numbers(2, 3, 8, 8),)
LARGER = (numbers(2, 3, 32, 32),)  # for a stem that divides by four
PATCHES = (numbers(2, 4, 6),)
IDS = (torch.tensor([[1, 5, 2, 8, 3], [4, 0, 9, 7, 10]]),)


def resnet(block: Callable[..., nn.Module], last: str, **options: int) -> Net:
    return Net(
        lambda: arch.ResNet(block, **options),
        LARGER,
        4,
        "two stages of two blocks",
        [f"layer{stage}.{k}.{last}" for stage in (1, 2) for k in (0, 1)],
        smooth=False,
    )


def plan(block: type[nn.Module], last: str = "f", *, smooth: bool = True) -> Net:
    return Net(
        lambda: arch.DenseNet(block), (numbers(3, 6),), 5, "five blocks", each(5, f"blocks.{{}}.{last}"), smooth=smooth
    )


def inverted(act: type[nn.Module], gate: type[nn.Module] | None, *, smooth: bool, drop: float = 0.0) -> Net:
    return Net(
        lambda: arch.InvertedNet(act, gate, drop),
        PICTURES,
        4,
        "of seven blocks four keep stride and width",
        lambda model: [
            f"features.{i}.block.{len(m.block) - 1}"
            for i, m in enumerate(model.features)
            if getattr(m, "use_res_connect", False)
        ],
        smooth=smooth,
    )


def encoder(activation: str, *, pre: bool, masked: bool = False) -> Net:
    named = {"src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])} if masked else {}

    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=activation, norm_first=pre)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    return Net(
        build,
        (numbers(2, 5, 8),),
        4,
        "two layers of attention and MLP",
        each(2, "layers.{}.self_attn", "layers.{}.linear2"),
        smooth=activation != "relu",
        named=named,
    )


class SequenceToSequence(nn.Module):
    """`torch.nn.Transformer` with causal mask for the decoder, one input for both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(8, 2, 2, 2, 16, activation="gelu", batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        length = target.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.transformer(source, target, tgt_mask=mask)


UNET_ENDS = ["up2", "up1"]
NESTED_UNET_ENDS = ["enc1.act", "enc2.act", "bottom.act", "up2", "dec2.act", "up1", "dec1.act"]
UNET_WHY = "each of two encoder features is added to what comes back from below it"

OWN: dict[str, Net] = {
    "cifar-resnet": Net(
        lambda: arch.CifarResNet(2, width=4),
        PICTURES,
        6,
        "three stages of two blocks",
        [f"layer{s}.{b}.bn2" for s in (1, 2, 3) for b in (0, 1)],
        smooth=False,
        units=13,
    ),
    "resnet-v1-basic": resnet(arch.TwoConvBlock, "bn2"),
    "resnet-v1-bottleneck": resnet(arch.ThreeConvBlock, "bn3"),
    "resnext": resnet(arch.ThreeConvBlock, "bn3", groups=2),
    "wide-resnet": resnet(arch.ThreeConvBlock, "bn3", base=8),
    "se-resnet": resnet(arch.SqueezedBlock, "recalibrate"),
    "resnet-v2": Net(lambda: arch.PreactNet(), PICTURES, 4, "four blocks", each(4, "blocks.{}.conv2"), smooth=False),
    "pooled-resnet": Net(lambda: arch.PooledNet(), PICTURES, 4, "four blocks", each(4, "convs.{}"), smooth=False),
    "convnext": Net(
        lambda: arch.ConvNeXt(),
        PICTURES,
        4,
        "two stages of two blocks",
        ["stage1.0.pwconv2", "stage1.1.pwconv2", "stage2.0.pwconv2", "stage2.1.pwconv2"],
        units=4,
    ),
    "efficientnet": inverted(nn.SiLU, nn.Sigmoid, smooth=True, drop=0.2),
    "mobilenet-v2": inverted(nn.ReLU6, None, smooth=False),
    "mobilenet-v3": inverted(nn.Hardswish, nn.Hardsigmoid, smooth=False),
    "unet": Net(lambda: arch.UNet(), PICTURES, 2, UNET_WHY, UNET_ENDS),
    "unet-interpolated": Net(lambda: arch.UNet(interpolate=True), PICTURES, 2, UNET_WHY, UNET_ENDS),
    "unet-relu": Net(lambda: arch.UNet(nn.ReLU), PICTURES, 2, UNET_WHY, UNET_ENDS, smooth=False),
    "unet-of-residual-blocks": Net(
        lambda: arch.UNet(nn.Tanh, residual=True), PICTURES, 7, f"{UNET_WHY}; five residual blocks", NESTED_UNET_ENDS
    ),
    "residual-in-residual": Net(
        lambda: arch.ResidualInResidual(),
        PICTURES,
        7,
        "two blocks of two dense blocks each, and the long skip",
        ["body.0.0.last", "body.0.1.last", "body.0", "body.1.0.last", "body.1.1.last", "body.1", "trunk"],
    ),
    "pre-ln-transformer": Net(
        lambda: arch.PreLNTransformer(),
        IDS,
        4,
        "two layers of attention and MLP",
        each(2, "h.{}.attn.proj", "h.{}.down"),
        units=2,
    ),
    "post-ln-transformer": Net(
        lambda: arch.PostLNTransformer(),
        PATCHES,
        4,
        "two layers of attention and MLP",
        each(2, "layers.{}.attn.proj", "layers.{}.down"),
    ),
    "parallel-transformer": Net(
        lambda: arch.ParallelTransformer(),
        IDS,
        2,
        "two layers; attention and MLP are one branch",
        [("h.0.attn.proj", "h.0.down"), ("h.1.attn.proj", "h.1.down")],
    ),
    "shared-block": Net(
        lambda: arch.SharedBlock(),
        PATCHES,
        6,
        "attention and MLP of one block, three times",
        [f"block.{end}#{k}" for k in (1, 2, 3) for end in ("attn.proj", "down")],
    ),
    "torch-encoder": encoder("gelu", pre=False),
    "torch-encoder-pre-ln": encoder("relu", pre=True),
    "torch-encoder-padded": encoder("gelu", pre=True, masked=True),
    "torch-transformer": Net(
        SequenceToSequence,
        (numbers(2, 5, 8), numbers(2, 4, 8, seed=2)),
        10,
        "two a layer in the encoder, three (with cross-attention) in the decoder",
        each(2, "transformer.encoder.layers.{}.self_attn", "transformer.encoder.layers.{}.linear2")
        + each(
            2,
            "transformer.decoder.layers.{}.self_attn",
            "transformer.decoder.layers.{}.multihead_attn",
            "transformer.decoder.layers.{}.linear2",
        ),
    ),
    "stochastic-depth": plan(arch.StochasticDepth),
    "subtracted": plan(arch.Subtracted),
    "alpha-added": plan(arch.AlphaAdded),
    "added-in-place": plan(arch.AddedInPlace),
    "rezero": plan(arch.ReZero),
    "layer-scale": plan(arch.LayerScale),
    "gated-mlp": plan(arch.GatedMLP, "down"),
    "rms-norm": plan(arch.RMSNormed),
    "densenet": Net(arch.DenselyConnected, PICTURES, 0, "joined by concatenation", (), units=5),
    "vgg": Net(arch.VGG, PICTURES, 0, "plain", (), units=4),
    "plain": Net(arch.PlainNet, PICTURES, 0, "plain", (), units=2),
}
