"""Convolutional networks other than ResNets: inverted residuals, ConvNeXt, and those without joins."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.blocks import DropPath

# ------------------------------------------------------------------------------------------------ small ones


class SqueezeBlock(nn.Module):
    """Convolution whose channels are rescaled by a sigmoid of their means (Hu et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.squeeze, self.excite = nn.Linear(width, 3), nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.tanh(self.conv(x))
        gate = torch.sigmoid(self.excite(torch.tanh(self.squeeze(out.mean((2, 3))))))
        return x + out * gate[:, :, None, None]


class SqueezeNet(nn.Module):
    def __init__(self, depth: int = 4, width: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(SqueezeBlock(width) for _ in range(depth)))
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class InvertedResidual(nn.Module):
    """MobileNetV3's block (Howard et al. 2019): wide depthwise middle, hard activations, squeeze-and-excitation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
        )
        self.squeeze, self.excite = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.depthwise(self.expand(x))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(out, 1))))
        return x + self.project(F.hardsigmoid(gate) * out)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.blocks = nn.Sequential(*(InvertedResidual(5, 8) for _ in range(4)))
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


# ------------------------------------------------- EfficientNet, MobileNetV2, MobileNetV3: torchvision's plan


class SqueezeExcitation(nn.Module):
    def __init__(self, width: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.activation, self.scale_activation = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x))))) * x


def convolution(in_planes: int, planes: int, size: int, stride: int, groups: int, act: type[nn.Module] | None) -> list:
    layers: list[nn.Module] = [
        nn.Conv2d(in_planes, planes, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(planes),
    ]
    return layers if act is None else [*layers, act()]


class MBConv(nn.Module):
    """Widen, depthwise convolution, squeeze-and-excitation, project; a skip only where the shape stays."""

    def __init__(
        self, in_planes: int, planes: int, stride: int, act: type[nn.Module], gate: type[nn.Module] | None, drop: float
    ) -> None:
        super().__init__()
        hidden = 2 * in_planes
        layers = convolution(in_planes, hidden, 1, 1, 1, act) + convolution(hidden, hidden, 3, stride, hidden, act)
        if gate is not None:
            layers.append(SqueezeExcitation(hidden, nn.SiLU if act is nn.SiLU else nn.ReLU, gate))
        self.block = nn.Sequential(*layers, *convolution(hidden, planes, 1, 1, 1, None))
        self.use_res_connect = stride == 1 and in_planes == planes
        self.stochastic_depth = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        if self.use_res_connect:
            out = self.stochastic_depth(out)
            out += x
        return out


class InvertedNet(nn.Module):
    """Seven inverted residuals, of which the 2nd, 4th, 5th and 7th keep their shape and so have a skip."""

    PLAN = ((4, 6, 1), (6, 6, 1), (6, 8, 2), (8, 8, 1), (8, 8, 1), (8, 8, 2), (8, 8, 1))

    def __init__(self, act: type[nn.Module], gate: type[nn.Module] | None, drop: float = 0.0) -> None:
        super().__init__()
        blocks = [MBConv(a, b, stride, act, gate, drop) for a, b, stride in self.PLAN]
        self.features = nn.Sequential(*convolution(3, 4, 3, 1, 1, act), *blocks, *convolution(8, 10, 1, 1, 1, act))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(10, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


# ---------------------------------------------------------------------------- ConvNeXt (Liu et al. 2022)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, LayerNorm with the channels last, two linear layers, layer scale, stochastic depth."""

    def __init__(self, width: int, drop: float = 0.1) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.0, width))
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        out = self.dwconv(x).permute(0, 2, 3, 1)
        out = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(out))))
        return x + self.drop_path(out.permute(0, 3, 1, 2))


class ConvNeXt(nn.Module):
    """Patch stem, two stages of two blocks, a norm and a strided convolution between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.stage1 = nn.Sequential(ConvNeXtBlock(6), ConvNeXtBlock(6))
        self.norm, self.down = nn.LayerNorm(6), nn.Conv2d(6, 8, 2, stride=2)
        self.stage2 = nn.Sequential(ConvNeXtBlock(8), ConvNeXtBlock(8))
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.stem(x))
        x = self.down(self.norm(x.movedim(1, -1)).movedim(-1, 1))
        return self.head(self.stage2(x).mean((-2, -1)))


# --------------------------------------------------------------------------------- U-Nets, residual in residual


class UNet(nn.Module):
    """Encoder features are added to what comes back from below: each is the skip, the deeper way its branch."""

    def __init__(self, act: type[nn.Module] = nn.GELU, *, interpolate: bool = False, residual: bool = False) -> None:
        super().__init__()
        block = ConvResidual if residual else ConvAct
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.enc1, self.enc2, self.bottom = block(4, act), block(6, act), block(8, act)
        self.down1, self.down2 = nn.Conv2d(4, 6, 2, stride=2), nn.Conv2d(6, 8, 2, stride=2)
        self.up2: nn.Module = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.up1: nn.Module = nn.ConvTranspose2d(6, 4, 2, stride=2)
        if interpolate:
            self.up2 = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 6, 1))
            self.up1 = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(6, 4, 1))
        self.dec2, self.dec1 = block(6, act), block(4, act)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        e1 = self.enc1(self.stem(x))
        e2 = self.enc2(self.down1(e1))
        d2 = self.dec2(e2 + self.up2(self.bottom(self.down2(e2))))
        return self.head(self.dec1(e1 + self.up1(d2)))


class ConvAct(nn.Module):
    def __init__(self, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(width, width, 3, padding=1), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class ConvResidual(ConvAct):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.conv(x))


class DenseResidual(nn.Module):
    """Three convolutions, each of all before it, scaled by 0.2 (ESRGAN's residual dense block)."""

    def __init__(self, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width + 3 * i, 3, 3, padding=1) for i in range(2))
        self.last = nn.Conv2d(width + 6, width, 3, padding=1)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in self.convs:
            features.append(self.act(conv(torch.cat(features, 1))))
        return x + 0.2 * self.last(torch.cat(features, 1))


class ResidualInResidual(nn.Module):
    """RRDB (Wang et al. 2018): residual blocks inside the branch of a residual block, inside a long skip."""

    def __init__(self, act: type[nn.Module] = nn.Tanh, width: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(nn.Sequential(*(DenseResidual(width, act) for _ in range(2))) for _ in range(2))
        self.trunk, self.tail = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.head(x)
        for inner in self.body:
            x = 0.2 * inner(x) + x
        return self.tail(first + self.trunk(x))


# ------------------------------------------------------------------------------------------- without joins


class PlainNet(nn.Module):
    """A CNN without joins."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x).mean((2, 3)))


class VGG(nn.Module):
    """Convolutions, in-place ReLUs, max-pools, and linear layers with dropout."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((3, 4), (4, 6), (6, 8)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(2).mean(-1))


class DenselyConnected(nn.Module):
    """DenseNet (Huang et al. 2017): each layer reads all before it, joined by concatenation."""

    def __init__(self, layers: int = 4, growth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        widths = [4 + growth * i for i in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.convs = nn.ModuleList(nn.Conv2d(w, growth, 3, padding=1, bias=False) for w in widths)
        self.fc = nn.Linear(4 + growth * layers, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.fc(F.relu(torch.cat(features, 1)).mean((2, 3)))
