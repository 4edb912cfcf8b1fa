"""Residual convolutional networks as their authors write them. This file imports nothing of its own package, so that
`pathsum inspect tests/architectures/resnets.py:resnet20` works; `trained` loads weights.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------- CIFAR ResNets (He et al. 2016a, §4.2)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, an in-place addition, and a ReLU after it (v1); shortcut of option A."""

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.pad = (planes - in_planes) // 2

    def shortcut(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0) if self.pad else x

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """Stem, three stages of `blocks` basic blocks with `width`, 2·width, 4·width channels, pool, linear."""

    def __init__(self, blocks: int, *, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


def _stage(in_planes: int, planes: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(blocks - 1)))


def resnet20() -> CifarResNet:
    return CifarResNet(3)


def resnet32() -> CifarResNet:
    return CifarResNet(5)


def trained(name: str, shared: Path) -> CifarResNet:
    """`resnet20` or `resnet32` in eval mode, with the published weights."""
    from safetensors.torch import load_file

    model = {"resnet20": resnet20, "resnet32": resnet32}[name]()
    # the file has no `num_batches_tracked`, which eval mode never reads
    weights = load_file(shared / "models" / "cifar10-resnet" / f"{name}.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    wrong = [key for key in missing if not key.endswith("num_batches_tracked")] + unexpected
    if wrong:
        raise ValueError(f"{name}: weights do not fit: {wrong}")
    return model.eval()


# ------------------------------------------------------------------ bottleneck v1, as torchvision writes it


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1; one in-place ReLU module called three times; a projection where the shape changes."""

    def __init__(self, in_planes: int, planes: int, out_planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_planes != out_planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False), nn.BatchNorm2d(out_planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out  # noqa: RET504 (torchvision's way)


class BottleneckNet(nn.Module):
    """Stem with max-pool, four bottlenecks, `flatten` after adaptive pooling: torchvision in small."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Bottleneck(8, 4, 12), Bottleneck(12, 4, 12))
        self.layer2 = nn.Sequential(Bottleneck(12, 6, 16, stride=2), Bottleneck(16, 6, 16))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


# --------------------------------------------------------------------- pre-activation v2 (He et al. 2016b)


class PreactBlock(nn.Module):
    """BN-ReLU-conv twice; where the shape changes the projection starts after the first activation."""

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + shortcut


class PreactNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            PreactBlock(6, 6), PreactBlock(6, 6), PreactBlock(6, 10, stride=2), PreactBlock(10, 10)
        )
        self.bn = nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


# -------------------------------------------------- v1 with max-pools on the stream: ties between exact zeros


class PooledNet(nn.Module):
    """Post-activation blocks, and a 2×2 max-pool between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(4))
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for i, conv in enumerate(self.convs):
            x = F.relu(x + conv(x))
            if i % 2 == 0:
                x = self.pool(x)
        return self.fc(x.flatten(2).mean(-1))


# ------------------------------------------------- ResNet, ResNeXt, wide, squeeze-and-excitation: torchvision's plan


class TwoConvBlock(nn.Module):
    """3×3, 3×3 (torchvision's BasicBlock): one in-place ReLU module called twice, `out += identity`."""

    expansion = 1

    def __init__(self, in_planes: int, planes: int, stride: int, groups: int, base: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = projection(in_planes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ThreeConvBlock(nn.Module):
    """1×1, grouped 3×3 of planes·base/4·groups channels, 1×1 (torchvision's Bottleneck; ResNeXt; wide)."""

    expansion = 2

    def __init__(self, in_planes: int, planes: int, stride: int, groups: int, base: int) -> None:
        super().__init__()
        width = planes * base // 4 * groups
        self.conv1 = nn.Conv2d(in_planes, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, planes * 2, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 2)
        self.relu = nn.ReLU(inplace=True)
        self.recalibrate: nn.Module = nn.Identity()
        self.downsample = projection(in_planes, planes * 2, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.recalibrate(self.bn3(self.conv3(out)))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Recalibration(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018): channels times a sigmoid of what their means say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)
        self.relu, self.sigmoid = nn.ReLU(inplace=True), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(self.avgpool(x)))))


class SqueezedBlock(ThreeConvBlock):
    """The same with squeeze-and-excitation at the end of the branch."""

    def __init__(self, in_planes: int, planes: int, stride: int, groups: int, base: int) -> None:
        super().__init__(in_planes, planes, stride, groups, base)
        self.recalibrate = Recalibration(planes * 2)


def projection(in_planes: int, planes: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_planes == planes:
        return None
    return nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes))


class ResNet(nn.Module):
    """Stem with max-pool, stages of blocks, of which all but the first halve the picture, pool, linear."""

    def __init__(
        self,
        block: Callable[..., nn.Module],
        blocks: tuple[int, ...] = (2, 2),
        *,
        planes: int = 4,
        groups: int = 1,
        base: int = 4,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, planes, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stages = []
        width = planes
        for i, count in enumerate(blocks):
            layers = []
            for k in range(count):
                layers.append(block(width, planes << i, 2 if i and not k else 1, groups, base))
                width = (planes << i) * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*layers))
            self.stages.append(f"layer{i + 1}")
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))
