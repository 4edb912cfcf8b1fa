"""Smooth functions that a series can pass through: name to call. POSITIVE ones are for positive arguments."""

import torch
import torch.nn.functional as F
from torch import nn

DOUBLE = torch.float64


def plain(*shape, seed=5):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


CLASSES = torch.tensor([[0, 2, 1, -100], [1, 1, 0, 2]])
SIGNS = torch.tensor([[[1.0, -1.0, 1.0, -1.0]] * 4] * 3, dtype=DOUBLE)
SHARES = plain(2, 3, 4, 4).softmax(1)
EYE = torch.eye(4, dtype=torch.bool)


def unit(x):
    """Within (0, 1)."""
    return torch.sigmoid(x)


def frozen(module):
    module = module.double().eval().requires_grad_(False)
    for i, p in enumerate(module.parameters()):
        p.copy_(plain(*p.shape, seed=i) / 2)
    return module


def pairs(x):
    """Complex numbers from the last axis."""
    return torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))


RECURRENT = {
    "lstm": frozen(nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True)),
    "lstm projected": frozen(nn.LSTM(4, 4, proj_size=2, bias=False)),
    "gru": frozen(nn.GRU(4, 3, bidirectional=True)),
    "rnn": frozen(nn.RNN(4, 3)),
    "rnn relu": frozen(nn.RNN(4, 3, nonlinearity="relu")),
    "lstm cell": frozen(nn.LSTMCell(4, 3)),
    "gru cell": frozen(nn.GRUCell(4, 3)),
}
SMOOTH = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "erf": torch.erf,
    "softplus": F.softplus,
    "softplus beta": lambda x: F.softplus(x, beta=2.0),
    "silu": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sin": torch.sin,
    "cos": lambda x: x.cos(),
    "square": torch.square,
    "x**3": lambda x: x**3,
    "x*x": lambda x: x * x,
    "layer_norm": lambda x: F.layer_norm(x, (4,), torch.arange(1.0, 5).double(), torch.ones(4).double()),
    "layer_norm named": lambda x: F.layer_norm(input=x, normalized_shape=[3, 4, 4], eps=1e-3),
    "rms_norm": lambda x: F.rms_norm(x, (4,), eps=1e-6),
    "group_norm": lambda x: F.group_norm(x, 3, torch.arange(1.0, 4).double(), torch.ones(3).double()),
    "group_norm named": lambda x: F.group_norm(input=x, num_groups=1, eps=1e-3),
    "instance_norm": lambda x: F.instance_norm(x),
    "torch.layer_norm": lambda x: torch.layer_norm(input=x, normalized_shape=(4,), eps=1e-4),
    "torch.group_norm": lambda x: torch.group_norm(x, 3, torch.arange(1.0, 4).double(), None, 1e-4),
    "torch.instance_norm": lambda x: torch.instance_norm(
        x, torch.arange(1.0, 4).double(), torch.ones(3).double(), None, None, True, 0.1, 1e-4, False
    ),
    "local_response_norm": lambda x: F.local_response_norm(x, 2, alpha=0.5, beta=0.7, k=2.0),
    "local_response_norm 3d": lambda x: F.local_response_norm(x[:, :, 0], 3, alpha=0.5),
    "softmax": lambda x: F.softmax(x, dim=1),
    "softmin": lambda x: F.softmin(x, dim=1),
    "softmax named": lambda x: torch.softmax(input=x, dim=-1),
    "softmax method": lambda x: x.softmax(-1, dtype=torch.float64),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 0.5, x.flip(-1)),
    "attention 3d": lambda x: F.scaled_dot_product_attention(x[0], x[0], x[1], scale=0.3),
    "attention named": lambda x: F.scaled_dot_product_attention(query=x, key=x * 0.5, value=x.flip(-1), is_causal=True),
    "attention float mask": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=plain(2, 1, 4, 4)),
    "attention of nothing": lambda x: F.scaled_dot_product_attention(
        x, x, x, attn_mask=~EYE & torch.ones(4, 4).triu(0).bool()
    ),
    "attention of nothing, float": lambda x: F.scaled_dot_product_attention(
        x, x, x, torch.zeros(4, 4).double().masked_fill(torch.tensor([[True], [False], [False], [True]]), -torch.inf)
    ),
    "grouped attention": lambda x: F.scaled_dot_product_attention(
        torch.cat([x, x * 2], 1), x, x.flip(-1), is_causal=True, enable_gqa=True
    ),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "matmul": lambda x: x @ x.transpose(-1, -2),
    "matmul named": lambda x: torch.matmul(input=x, other=x),
    "matmul vector": lambda x: x @ x[0, 0, 0],
    "vector matmul": lambda x: x[0, 0, 0] @ x,
    "vector @ vector": lambda x: x[0, 0, 0] @ x[0, 0, 1],
    "linalg matmul": lambda x: torch.linalg.matmul(x, x),
    "bmm": lambda x: torch.bmm(x[0], mat2=x[1]),
    "mm": lambda x: x[0, 0].mm(x[0, 1]),
    "mv": lambda x: torch.mv(x[0, 0], x[0, 1, 0]),
    "dot": lambda x: torch.dot(x[0, 0, 0], x[0, 1, 0]),
    "vdot": lambda x: torch.vdot(x[0, 0, 0], x[0, 1, 0]),
    "vecdot": lambda x: torch.linalg.vecdot(x, x * x, dim=1),
    "inner": lambda x: torch.inner(x[0, 0], x[0]),
    "outer": lambda x: torch.outer(x[0, 0, 0], vec2=x[0, 1, 0]),
    "tensordot": lambda x: (
        torch.tensordot(x, x, dims=2) if x.shape[0] == x.shape[2] else torch.tensordot(x, x, dims=([1, -1], [1, 2]))
    ),
    "tensordot int": lambda x: torch.tensordot(x[0], x[0, 0], dims=1),
    "kron": lambda x: torch.kron(x[0, 0], x[0, 1, :2]),
    "kron of other dimensions": lambda x: torch.kron(x[0], x[0, 0, 0]),
    "chain_matmul": lambda x: torch.linalg.multi_dot([x[0, 0], x[0, 1], x[0, 2]]),
    "baddbmm": lambda x: torch.baddbmm(x[0], x[0], x[1], beta=0.5, alpha=2.0),
    "addbmm": lambda x: torch.addbmm(x[0, 0], x[0], x[1], beta=0.5),
    "addmv": lambda x: torch.addmv(x[0, 0, 0], x[0, 1], x[0, 2, 0], alpha=0.5),
    "addr": lambda x: torch.addr(x[0, 0], x[0, 1, 0], x[0, 2, 0], beta=0.3),
    "addmm of two": lambda x: torch.addmm(x[0, 0], x[0, 1], x[0, 2], beta=0.3, alpha=0.5),
    "addcmul": lambda x: torch.addcmul(x, x, x.flip(0), value=0.5),
    "cross": lambda x: torch.cross(x, x * x, dim=1),
    "bilinear": lambda x: F.bilinear(x, x.flip(-1), plain(5, 4, 4), plain(5)),
    "linear of two": lambda x: F.linear(x, x[0, 0]),
    "einsum": lambda x: torch.einsum("bchw,bchv->bcwv", x, x),
    "einsum implicit": lambda x: torch.einsum("bchw,bcwv", x, x),
    "einsum ellipsis": lambda x: torch.einsum("...hw,...vw->...hv", x, x),
    "einsum of three": lambda x: torch.einsum("bchw,bc,bcwv->bhv", x, x[:, :, 0, 0], x),
    "einsum lists": lambda x: torch.einsum(x[0, 0], [0, 1], x[0, 1], [1, 2], [0, 2]),
    "atan": torch.atan,
    "expm1": torch.expm1,
    "special expm1": torch.special.expm1,
    "expit": torch.special.expit,
    "ndtr": torch.special.ndtr,
    "tanhshrink": F.tanhshrink,
    "logsigmoid": F.logsigmoid,
    "erfc": torch.erfc,
    "exp2": torch.exp2,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tan": lambda x: torch.tan(x * 0.3),
    "asinh": torch.asinh,
    "arcsinh": lambda x: x.arcsinh(),
    "asin": lambda x: torch.asin(unit(x) * 0.8),
    "acos": lambda x: torch.acos(unit(x) * 0.8),
    "atanh": lambda x: torch.atanh(unit(x) * 0.8),
    "logit": lambda x: torch.logit(unit(x)),
    "2**x": lambda x: 2**x,
    "x**y": lambda x: (1 + x * x) ** x,
    "tensor**x": lambda x: torch.pow(torch.tensor(1.5).double(), x),
    "x**tensor": lambda x: (1 + x * x / 4) ** torch.tensor([0.5, 2.0, 1.5, 3.0]),
    "x**scalar tensor": lambda x: torch.pow(x, torch.tensor(2.0)),
    "float_power": lambda x: torch.float_power(x, 2),
    "hypot": lambda x: torch.hypot(x, x.flip(-1) + 3),
    "atan2": lambda x: torch.atan2(x + 3, x.flip(-1)),
    "logaddexp": lambda x: torch.logaddexp(x, other=3 * x.flip(-1)),
    "logaddexp2": lambda x: torch.logaddexp2(x, 3 * x.flip(-1)),
    "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "ldexp": lambda x: torch.ldexp(x, torch.tensor(3)),
    "glu": lambda x: F.glu(x, -1),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "lerp by a series": lambda x: torch.lerp(x, x * x, weight=x),
    "var": lambda x: x.var(-1),
    "var biased": lambda x: torch.var(x, -1, False),
    "var method": lambda x: x.var(-1, keepdim=True, unbiased=False),
    "var correction": lambda x: torch.var(x, dim=(1, 2), correction=0, keepdim=True),
    "var of all": lambda x: x.var(False),
    "var_mean": lambda x: torch.stack(torch.var_mean(x, dim=-1)),
    "std": lambda x: torch.std(x, dim=(2, 3), unbiased=False, keepdim=True),
    "std_mean": lambda x: torch.stack(torch.std_mean(x, dim=(1, -1), keepdim=True)),
    "norm": lambda x: x.norm(dim=-1),
    "norm positional": lambda x: torch.norm(x, 2, 1, True),
    "norm 4": lambda x: (x + 2).norm(p=4, dim=1),
    "norm of complex": lambda x: pairs(x).norm(dim=-1),
    "var of complex": lambda x: pairs(x).var(dim=1),
    "norm of all": lambda x: torch.linalg.norm(x),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=(1, 2)),
    "matrix_norm": lambda x: torch.linalg.matrix_norm(x),
    "normalize": lambda x: F.normalize(x + 2, dim=1),
    "cosine_similarity": lambda x: F.cosine_similarity(x + 2, x.flip(-1) + 3, dim=1),
    "cosine module": lambda x: nn.CosineSimilarity(dim=-1)(x, torch.ones(4).double()),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x.flip(-1) + 1, keepdim=True),
    "cdist": lambda x: torch.cdist(x, x.flip(-1) + 1),
    "pdist": lambda x: F.pdist(x[0, 0]),
    "dist": lambda x: torch.dist(x, x * x),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "exp of masked": lambda x: x.masked_fill(EYE, -torch.inf).exp(),
    "sigmoid of masked": lambda x: torch.sigmoid(x.masked_fill(EYE, -torch.inf)),
    "tanh of masked": lambda x: torch.tanh(x.masked_fill(EYE, torch.inf)),
    "logsumexp of masked": lambda x: x.masked_fill(EYE, -torch.inf).logsumexp(-1),
    "softmax of masked": lambda x: x.masked_fill(EYE, -torch.inf).softmax(-1),
    "softplus of masked": lambda x: F.softplus(x.masked_fill(EYE, -torch.inf)),
    "logsumexp of two axes": lambda x: x.logsumexp(dim=(1, 2), keepdim=True),
    "prod": lambda x: x.prod(1),
    "prod of all": lambda x: x[0, 0, 0].prod(),
    "prod kept": lambda x: torch.prod(x, dim=-1, keepdim=True, dtype=DOUBLE),
    "cumprod": lambda x: torch.cumprod(x, dim=-1),
    "polar": lambda x: torch.view_as_real(torch.polar(1 + x * x, x)),
    "complex product": lambda x: torch.view_as_real(pairs(x) * pairs(x.flip(0)).conj()),
    "fft product": lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(x.flip(0)), n=4),
    "embedding_bag of series": lambda x: F.embedding_bag(
        torch.tensor([[0, 1], [2, 3]]), plain(4, 5), per_sample_weights=x[0, 0, :2, :2] ** 2, mode="sum"
    ),
    "lstm": lambda x: RECURRENT["lstm"](x[0])[0],
    "lstm states": lambda x: torch.cat(RECURRENT["lstm projected"](x[0], (x[0, :1, :, :2], x[0, :1]))[1], -1),
    "gru": lambda x: torch.cat([t.flatten() for t in RECURRENT["gru"](x[0, 0])]),
    "rnn": lambda x: RECURRENT["rnn"](x[0])[0],
    "lstm cell": lambda x: RECURRENT["lstm cell"](x[0, 0])[1],
    "gru cell": lambda x: RECURRENT["gru cell"](x[0, 0], x[0, 1, :, :3]),
    "angle": lambda x: (pairs(x) + 3).angle(),
    "lp_pool2d": lambda x: F.lp_pool2d(x, 2, 2),
    "lp_pool1d": lambda x: F.lp_pool1d(x[:, 0], norm_type=2, kernel_size=3, stride=1),
    "lp_pool3d": lambda x: F.lp_pool3d(x, 2, (1, 2, 2)),
    "mse_loss": lambda x: F.mse_loss(x, plain(2, 3, 4, 4)),
    "mse_loss weighted": lambda x: F.mse_loss(x, plain(2, 3, 4, 4), weight=SHARES),
    "cross_entropy": lambda x: F.cross_entropy(x[:, :, 0], CLASSES),
    "cross_entropy weighted": lambda x: F.cross_entropy(
        x[:, :, 0], CLASSES, weight=torch.arange(1.0, 4).double(), reduction="none", label_smoothing=0.1
    ),
    "cross_entropy mean": lambda x: F.cross_entropy(
        x[:, :, 0], CLASSES, weight=torch.arange(1.0, 4).double(), label_smoothing=0.1
    ),
    "cross_entropy of shares": lambda x: F.cross_entropy(x, SHARES, label_smoothing=0.2),
    "cross_entropy unbatched": lambda x: F.cross_entropy(x[0, :, 0, 0], torch.tensor(2)),
    "linear_cross_entropy": lambda x: F.linear_cross_entropy(x[0, 0], plain(6, 4), torch.tensor([0, 5, 1, 1])),
    "nll_loss": lambda x: F.nll_loss(torch.log_softmax(x[:, :, 0], 1), CLASSES, reduction="sum"),
    "kl_div": lambda x: F.kl_div(torch.log_softmax(x, 1), SHARES, reduction="batchmean"),
    "kl_div of logs": lambda x: F.kl_div(x.log_softmax(1), SHARES.log(), log_target=True, reduction="sum"),
    "bce with logits": lambda x: F.binary_cross_entropy_with_logits(x, SHARES, pos_weight=torch.tensor(2.0).double()),
    "bce": lambda x: F.binary_cross_entropy(unit(x), SHARES),
    "poisson_nll_loss": lambda x: F.poisson_nll_loss(x, SHARES * 4, full=True),
    "gaussian_nll_loss": lambda x: F.gaussian_nll_loss(x, SHARES, 1 + x * x, full=True),
    "soft_margin_loss": lambda x: F.soft_margin_loss(x, SIGNS.expand(2, 3, 4, 4)),
    "triplet_margin_loss": lambda x: F.triplet_margin_loss(x, x.flip(0) + 5, x * 0.5, swap=False),
    "cosine_embedding_loss": lambda x: F.cosine_embedding_loss(x[0, 0], x[0, 1], torch.ones(4)),
}
POSITIVE = {
    "log": torch.log,
    "log2": torch.log2,
    "log10": lambda x: x.log10(),
    "log1p": torch.log1p,
    "special log1p": torch.special.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "x**-1.5": lambda x: x**-1.5,
    "x**y": lambda x: x**x,
    "acosh": lambda x: torch.acosh(x + 1.5),
    "logit eps": lambda x: torch.logit(x * 0.1, eps=0.01),
    "reciprocal": torch.reciprocal,
    "1/x": lambda x: 1 / x,
    "x/y": lambda x: x / (x + 1).sqrt(),
    "addcdiv": lambda x: torch.addcdiv(x, x, x + 1, value=0.5),
    "div named": lambda x: torch.div(input=torch.ones(4).double(), other=x),
    "xlogy": lambda x: torch.xlogy(x, x + 1),
    "lp_pool p=3": lambda x: F.lp_pool2d(x, 3, 2, ceil_mode=True),
    "norm 1.5": lambda x: torch.norm(x, p=1.5, dim=-1),
}
