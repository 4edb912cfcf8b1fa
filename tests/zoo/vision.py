"""torchvision's and timm's own classes, weights random, small pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tests.zoo import End, Net, numbers

Ends = Callable[[nn.Module], Sequence[End]]


def blocks(class_name: str, *ends: str, where: str = "") -> Ends:
    """Each module of this class, in order: its parts that end a branch; only those whose attribute `where` is true."""

    def find(model: nn.Module) -> list[str]:
        return [
            f"{name}.{end}"
            for name, module in model.named_modules()
            if type(module).__name__ == class_name and (not where or getattr(module, where))
            for end in ends
        ]

    return find


def torchvision(
    name: str,
    joins: int,
    why: str,
    ends: Ends | tuple,
    *,
    smooth: bool = False,
    units: int | None = None,
    **options: Any,
) -> Net:
    def build() -> nn.Module:
        from torchvision import models

        return getattr(models, name)(weights=None, **options)

    size = options.get("image_size", 64)
    return Net(build, (numbers(2, 3, size, size),), joins, why, ends, smooth=smooth, units=units)


def timm(
    name: str,
    joins: int,
    why: str,
    ends: Ends | tuple,
    *,
    size: int = 64,
    smooth: bool = False,
    units: int | None = None,
) -> Net:
    def build() -> nn.Module:
        import timm as library

        options = {"img_size": size} if "patch" in name else {}
        return library.create_model(name, pretrained=False, **options)

    return Net(build, (numbers(2, 3, size, size),), joins, why, ends, smooth=smooth, units=units)


RESNET50 = "stages of 3, 4, 6 and 3 bottlenecks"
DENSE = "joined by concatenation: 58 layers of two convolutions, three transitions"
INVERTED = "all inverted residuals but those that change stride or width"

TORCHVISION: dict[str, Net] = {
    "resnet18": torchvision("resnet18", 8, "four stages of two blocks", blocks("BasicBlock", "bn2")),
    "resnet50": torchvision("resnet50", 16, RESNET50, blocks("Bottleneck", "bn3")),
    "resnext50_32x4d": torchvision("resnext50_32x4d", 16, RESNET50, blocks("Bottleneck", "bn3")),
    "wide_resnet50_2": torchvision("wide_resnet50_2", 16, RESNET50, blocks("Bottleneck", "bn3")),
    "convnext_tiny": torchvision(
        "convnext_tiny", 18, "stages of 3, 3, 9 and 3 blocks", blocks("CNBlock", "block"), smooth=True
    ),
    "efficientnet_b0": torchvision(
        "efficientnet_b0",
        9,
        f"{INVERTED}: stages of 1, 2, 2, 3, 3, 4, 1",
        blocks("MBConv", "block", where="use_res_connect"),
        smooth=True,
    ),
    "mobilenet_v2": torchvision(
        "mobilenet_v2",
        10,
        f"{INVERTED}: stages of 1, 2, 3, 4, 3, 3, 1",
        blocks("InvertedResidual", "conv", where="use_res_connect"),
    ),
    "mobilenet_v3_small": torchvision(
        "mobilenet_v3_small", 6, INVERTED, blocks("InvertedResidual", "block", where="use_res_connect")
    ),
    "vit_b_16": torchvision(
        "vit_b_16",
        24,
        "twelve layers of attention and MLP",
        blocks("EncoderBlock", "self_attention", "mlp"),
        smooth=True,
        image_size=32,
    ),
    "swin_t": torchvision(
        "swin_t",
        24,
        "2 + 2 + 6 + 2 layers of attention and MLP",
        blocks("SwinTransformerBlock", "attn", "mlp"),
        smooth=True,
    ),
    "densenet121": torchvision("densenet121", 0, DENSE, (), units=121),
    "vgg11": torchvision("vgg11", 0, "plain: eight convolutions, three linear layers", (), units=10),
}

TIMM: dict[str, Net] = {
    "resnet18": timm("resnet18", 8, "four stages of two blocks", blocks("BasicBlock", "bn2")),
    "seresnet50": timm("seresnet50", 16, RESNET50, blocks("Bottleneck", "se")),
    "resnetv2_50": timm("resnetv2_50", 16, RESNET50, blocks("PreActBottleneck", "conv3")),
    "convnext_atto": timm(
        "convnext_atto", 12, "stages of 2, 2, 6 and 2 blocks", blocks("ConvNeXtBlock", "mlp"), smooth=True
    ),
    "efficientnet_b0": timm(
        "efficientnet_b0", 9, INVERTED, blocks("InvertedResidual", "bn3", where="has_skip"), smooth=True
    ),
    "mobilenetv3_small_100": timm(
        "mobilenetv3_small_100", 6, INVERTED, blocks("InvertedResidual", "bn3", where="has_skip")
    ),
    "vit_tiny_patch16_224": timm(
        "vit_tiny_patch16_224", 24, "twelve layers of attention and MLP", blocks("Block", "ls1", "ls2"), smooth=True
    ),
    "deit_tiny_patch16_224": timm(
        "deit_tiny_patch16_224", 24, "twelve layers of attention and MLP", blocks("Block", "ls1", "ls2"), smooth=True
    ),
    "swin_tiny_patch4_window7_224": timm(
        "swin_tiny_patch4_window7_224",
        24,
        "2 + 2 + 6 + 2 layers of attention and MLP",
        blocks("SwinTransformerBlock", "attn", "mlp"),
        smooth=True,
    ),
    "densenet121": timm("densenet121", 0, DENSE, (), units=121),
    "vgg11": timm("vgg11", 0, "plain: eight convolutions, three linear layers", (), units=10),
}
