"""The models of `tests/architectures.py` and the towers of `pathsum.nets`, taken apart by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import architectures as arch
from tests.reference.pieces import Block, Ops, Pieces, Step, batch_norm, conv, identity, linear


def layers(sequence: nn.Sequential) -> Step:
    """One layer after another."""

    def step(v: Tensor, ops: Ops) -> Tensor:
        for layer in sequence:
            v = one_layer(v, layer, ops)
        return v

    return step


def one_layer(v: Tensor, layer: nn.Module, ops: Ops) -> Tensor:
    match layer:
        case nn.Conv2d():
            return conv(v, layer)
        case nn.Linear():
            return linear(v, layer)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return batch_norm(v, layer)
        case nn.ReLU():
            return ops.relu(v)
        case nn.Tanh():
            return ops.tanh(v)
        case nn.GELU():
            return ops.gelu(v)
        case nn.SiLU():
            return ops.silu(v)
        case nn.Hardswish():
            return ops.hardswish(v)
        case nn.Identity():
            return v
    raise TypeError(f"no literal form of {layer}")


def tower(net: nn.Module) -> Pieces:
    """`pathsum.nets.ResidualTower` and `ResidualMLP`."""

    def decode(v: Tensor, ops: Ops) -> Tensor:
        return linear(v.mean((2, 3)) if v.ndim == 4 else v, net.decoder.linear)

    blocks = zip(net.blocks, net.scales, strict=True)
    return Pieces(net.encoder, tuple(Block(layers(b), scale=s) for b, s in blocks), decode)


def cifar_resnet(net: arch.CifarResNet) -> Pieces:
    def encode(x: Tensor) -> Tensor:
        return torch.relu(net.bn1(net.conv1(x)))

    def parts(block: arch.BasicBlock) -> Block:
        def branch(v: Tensor, ops: Ops) -> Tensor:
            v = ops.relu(batch_norm(conv(v, block.conv1), block.bn1))
            return batch_norm(conv(v, block.conv2), block.bn2)

        def shortcut(v: Tensor, ops: Ops) -> Tensor:
            return F.pad(v[:, :, ::2, ::2], (0, 0, 0, 0, block.pad, block.pad)) if block.pad else v

        return Block(branch, shortcut, after=rectify)

    def decode(v: Tensor, ops: Ops) -> Tensor:
        return linear(v.mean((2, 3)), net.linear)

    return Pieces(encode, tuple(parts(b) for s in (net.layer1, net.layer2, net.layer3) for b in s), decode)


def rectify(v: Tensor, ops: Ops) -> Tensor:
    return ops.relu(v)


def bottleneck(net: arch.BottleneckNet) -> Pieces:
    def encode(x: Tensor) -> Tensor:
        return net.maxpool(torch.relu(net.bn1(net.conv1(x))))

    def parts(block: arch.Bottleneck) -> Block:
        def branch(v: Tensor, ops: Ops) -> Tensor:
            v = ops.relu(batch_norm(conv(v, block.conv1), block.bn1))
            v = ops.relu(batch_norm(conv(v, block.conv2), block.bn2))
            return batch_norm(conv(v, block.conv3), block.bn3)

        shortcut = identity if block.downsample is None else layers(block.downsample)
        return Block(branch, shortcut, after=rectify)

    def decode(v: Tensor, ops: Ops) -> Tensor:
        return linear(v.mean((2, 3)), net.fc)

    return Pieces(encode, tuple(parts(b) for b in (*net.layer1, *net.layer2)), decode)


def preact(net: arch.PreactNet) -> Pieces:
    def parts(block: arch.PreactBlock) -> Block:
        def activated(v: Tensor, ops: Ops) -> Tensor:
            return ops.relu(batch_norm(v, block.bn1))

        def rest(v: Tensor, ops: Ops) -> Tensor:
            return conv(ops.relu(batch_norm(conv(v, block.conv1), block.bn2)), block.conv2)

        if block.shortcut is None:
            return Block(lambda v, ops: rest(activated(v, ops), ops))
        # a projection forks after the first activation, which therefore belongs to the stream
        return Block(rest, shortcut=lambda v, ops: conv(v, block.shortcut), before=activated)

    def decode(v: Tensor, ops: Ops) -> Tensor:
        return linear(ops.relu(batch_norm(v, net.bn)).mean((2, 3)), net.fc)

    return Pieces(net.conv1, tuple(parts(b) for b in net.blocks), decode)


def pooled(net: arch.PooledNet) -> Pieces:
    def parts(i: int, layer: nn.Conv2d) -> Block:
        def after(v: Tensor, ops: Ops) -> Tensor:
            v = ops.relu(v)
            return ops.max_pool(v, 2) if i % 2 == 0 else v

        return Block(lambda v, ops: conv(v, layer), after=after)

    def decode(v: Tensor, ops: Ops) -> Tensor:
        return linear(v.mean((2, 3)), net.fc)

    return Pieces(lambda x: torch.relu(net.stem(x)), tuple(parts(i, c) for i, c in enumerate(net.convs)), decode)


def attention(module: arch.Attention | arch.PatchAttention, v: Tensor, ops: Ops, *, causal: bool = False) -> Tensor:
    """(batch, length, width), one head after another."""
    q, k, value = linear(v, module.qkv).chunk(3, dim=-1)
    size = v.shape[-1] // module.heads
    heads = [
        ops.attention(*(a[..., h * size : (h + 1) * size] for a in (q, k, value)), causal=causal)
        for h in range(module.heads)
    ]
    return linear(torch.cat(heads, dim=-1), module.proj)


def pre_ln(net: arch.PreLNTransformer) -> Pieces:
    def encode(ids: Tensor) -> Tensor:
        return net.wte.weight[ids] + net.wpe.weight[: ids.shape[1]]

    def parts(block: arch.PreLNBlock) -> tuple[Block, Block]:
        def mlp(v: Tensor, ops: Ops) -> Tensor:
            return linear(ops.gelu_tanh(linear(ops.layer_norm(v, block.ln2), block.up)), block.down)

        return Block(lambda v, ops: attention(block.attn, ops.layer_norm(v, block.ln1), ops, causal=True)), Block(mlp)

    def decode(v: Tensor, ops: Ops) -> Tensor:
        return linear(ops.layer_norm(v, net.ln_f), net.head)

    return Pieces(encode, tuple(b for block in net.h for b in parts(block)), decode)


def post_ln(net: arch.PostLNTransformer) -> Pieces:
    def parts(block: arch.PostLNBlock) -> tuple[Block, Block]:
        def mlp(v: Tensor, ops: Ops) -> Tensor:
            return linear(ops.gelu(linear(v, block.up)), block.down)

        return (
            Block(lambda v, ops: attention(block.attn, v, ops), after=normed(block.ln1)),
            Block(mlp, after=normed(block.ln2)),
        )

    def normed(norm: nn.LayerNorm) -> Step:
        return lambda v, ops: ops.layer_norm(v, norm)

    def decode(v: Tensor, ops: Ops) -> Tensor:
        return linear(v.mean(1), net.head)

    return Pieces(net.embed, tuple(b for layer in net.layers for b in parts(layer)), decode)


def dense(net: arch.DenseNet) -> Pieces:
    """The many ways to write a join, each as the formula it stands for."""

    def parts(block: nn.Module) -> Block:
        match block:
            case arch.Subtracted():
                return Block(lambda v, ops: -layers(block.f)(v, ops))
            case arch.AlphaAdded():
                return Block(lambda v, ops: 0.5 * layers(block.f)(v, ops))
            case arch.ReZero():
                return Block(lambda v, ops: block.scale * layers(block.f)(v, ops))
            case arch.LayerScale():
                return Block(lambda v, ops: block.gamma * layers(block.f)(v, ops))
            case arch.AddedInPlace() | arch.StochasticDepth():
                return Block(layers(block.f))
            case arch.LayerNormed():
                return Block(lambda v, ops: layers(block.f)(ops.layer_norm(v, block.norm), ops))
            case arch.RMSNormed():
                return Block(lambda v, ops: layers(block.f)(ops.rms_norm(v, block.norm), ops))
            case arch.GatedMLP():
                return Block(lambda v, ops: gated_mlp(block, v, ops))
        raise TypeError(f"no literal form of {block}")

    def decode(v: Tensor, ops: Ops) -> Tensor:
        return linear(v, net.decoder)

    return Pieces(net.encoder, tuple(parts(b) for b in net.blocks), decode)


def gated_mlp(block: arch.GatedMLP, v: Tensor, ops: Ops) -> Tensor:
    return linear(ops.times_silu(linear(v, block.up), linear(v, block.gate)), block.down)


def squeeze(net: arch.SqueezeNet) -> Pieces:
    def parts(block: arch.SqueezeBlock) -> Block:
        def branch(v: Tensor, ops: Ops) -> Tensor:
            out = ops.tanh(conv(v, block.conv))
            hidden = ops.tanh(linear(out.mean((2, 3)), block.squeeze))
            return ops.times_sigmoid(out, linear(hidden, block.excite)[:, :, None, None])

        return Block(branch)

    def decode(v: Tensor, ops: Ops) -> Tensor:
        return linear(v.mean((2, 3)), net.fc)

    return Pieces(net.stem, tuple(parts(b) for b in net.blocks), decode)


def mobilenet(net: arch.MobileNet) -> Pieces:
    def parts(block: arch.InvertedResidual) -> Block:
        def branch(v: Tensor, ops: Ops) -> Tensor:
            v = layers(block.depthwise)(layers(block.expand)(v, ops), ops)
            hidden = ops.relu(conv(v.mean((2, 3), keepdim=True), block.squeeze))
            return layers(block.project)(ops.times_hardsigmoid(v, conv(hidden, block.excite)), ops)

        return Block(branch)

    def decode(v: Tensor, ops: Ops) -> Tensor:
        return linear(v.mean((2, 3)), net.fc)

    return Pieces(net.stem, tuple(parts(b) for b in net.blocks), decode)
