"""Models that nobody wrote the engine for, each written as its authors write it.

`file.py:function` of the command line finds `resnet20` and `resnet32` here; `trained` loads their weights.
"""

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


class PlainNet(nn.Module):
    """A CNN without joins."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x).mean((2, 3)))


# ------------------------------------------------------------------------------------------- transformers


class Attention(nn.Module):
    """Causal multi-head attention with one projection for all, through PyTorch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class PatchAttention(nn.Module):
    """The same without a fused kernel, as vision transformers write it: a softmax between two products."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads, self.scale = heads, (width // heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        pattern = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((pattern @ v).transpose(1, 2).flatten(2))


class PreLNBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


class PreLNTransformer(nn.Module):
    """Token and position embeddings, pre-LN blocks, final LN, logits at each position (GPT-2's plan)."""

    def __init__(self, depth: int = 2, width: int = 8, heads: int = 2, tokens: int = 11, length: int = 5) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.h = nn.ModuleList(PreLNBlock(width, heads) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


class PostLNBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = PatchAttention(width, heads)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(x + self.attn(x))
        return self.ln2(x + self.down(F.gelu(self.up(x))))


class PostLNTransformer(nn.Module):
    """Projected patches, post-LN blocks, mean over positions (BERT's plan)."""

    def __init__(self, depth: int = 2, width: int = 8, heads: int = 2, patch: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(patch, width)
        self.layers = nn.ModuleList(PostLNBlock(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.layers:
            x = block(x)
        return self.head(x.mean(dim=1))


# --------------------------------------- one plan, many ways to write the join: encoder, n blocks, decoder


class Dense(nn.Sequential):
    """Linear, activation, Linear."""

    def __init__(self, width: int, act: type[nn.Module] = nn.Tanh) -> None:
        super().__init__(nn.Linear(width, width), act(), nn.Linear(width, width))


class Subtracted(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.f(x)


class AlphaAdded(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.f(x), alpha=0.5)


class AddedInPlace(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width)

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.f(x))


class ReZero(nn.Module):
    """A learned 0-dim multiplier (Bachlechner et al. 2021), here away from its start at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width)
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.f(x)


class LayerScale(nn.Module):
    """A learned multiplier for each channel (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width)
        self.gamma = nn.Parameter(torch.linspace(0.2, 0.8, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.f(x)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016) as timm writes it: the identity in eval mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)


class StochasticDepth(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width, nn.SiLU)
        self.drop_path = DropPath(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.f(x))


class GatedMLP(nn.Module):
    """SiLU(gate)·up, without norm (Shazeer 2020; Llama's MLP)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class LayerNormed(nn.Module):
    """Pre-LN dense block with any activation."""

    def __init__(self, width: int, act: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.f = Dense(width, act)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(self.norm(x))


class LayerNormedRelu(LayerNormed):
    def __init__(self, width: int) -> None:
        super().__init__(width, nn.ReLU)


class RMSNormed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.f = Dense(width, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(self.norm(x))


class DenseNet(nn.Module):
    """Linear encoder, `depth` blocks of one kind, linear decoder."""

    def __init__(self, block: type[nn.Module], *, depth: int = 5, width: int = 7, num_classes: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, width)
        self.blocks = nn.ModuleList(block(width) for _ in range(depth))
        self.decoder = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return self.decoder(x)


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


class Bessel(nn.Module):
    """A branch with a function that nobody gave a rule."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.special.bessel_j0(self.linear(x))
