"""Transformers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class ParallelBlock(nn.Module):
    """Attention and MLP side by side (GPT-J): one join, whose branch is their sum."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln(x)
        return self.attn(y) + self.down(F.gelu(self.up(y))) + x


class ParallelTransformer(nn.Module):
    def __init__(self, depth: int = 2, width: int = 8, heads: int = 2, tokens: int = 11) -> None:
        super().__init__()
        self.wte = nn.Embedding(tokens, width)
        self.h = nn.ModuleList(ParallelBlock(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, tokens)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids)
        for block in self.h:
            x = block(x)
        return self.head(x)


class SharedBlock(nn.Module):
    """One pre-LN block applied again and again (Universal Transformer, ALBERT)."""

    def __init__(self, times: int = 3, width: int = 8, heads: int = 2, patch: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(patch, width)
        self.block = PreLNBlock(width, heads)
        self.head = nn.Linear(width, 5)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(self.times):
            x = self.block(x)
        return self.head(x)
