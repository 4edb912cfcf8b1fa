"""Torch functions by what they do to a walk."""

from __future__ import annotations

from ..functions import ADDITIONS, DATA_GETTERS, _functions

CONVOLUTIONS = _functions("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
LINEAR = _functions("linear")
EMBEDDINGS = _functions("embedding embedding_bag")
MATMUL = _functions("matmul mm bmm mv __matmul__ __rmatmul__")
ADDED_MATMUL = _functions("addmm baddbmm addmv")  # the sum comes first
EINSUM = _functions("einsum")
ATTENTION = _functions("scaled_dot_product_attention")
MULTI_HEAD = _functions("multi_head_attention_forward")
WHERE = _functions("where")
SUMS = ADDITIONS | WHERE | _functions("maximum minimum fmax fmin")
MULTIPLICATIONS = _functions("mul multiply")
DIVISIONS = _functions("div divide true_divide")
PRODUCTS = MULTIPLICATIONS | MATMUL | ADDED_MATMUL | EINSUM
SOFTMAX = _functions("softmax")
SQUASHING = frozenset("sigmoid tanh hardsigmoid".split())  # names of units
REDUCTIONS = _functions("mean sum amax amin max min std var norm vector_norm logsumexp nanmean median prod")
POOLS = _functions(
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d lp_pool3d "
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "interpolate upsample upsample_nearest upsample_bilinear grid_sample"
)
CONCATENATIONS = _functions("cat concat concatenate")
STACKS = _functions("stack")
PADS = _functions("pad")
HALVES = _functions("glu")
# Of the first argument, whatever the others are.
FIRST = _functions("masked_fill type_as to clamp clip clamp_min clamp_max")
MOVES = _functions(
    "view reshape flatten unflatten squeeze unsqueeze permute transpose t swapaxes swapdims movedim moveaxis "
    "__getitem__ __setitem__ select narrow chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind "
    "unsafe_chunk unsafe_split expand expand_as broadcast_to repeat repeat_interleave tile flip fliplr flipud rot90 "
    "roll index_select gather take_along_dim unfold pixel_shuffle pixel_unshuffle channel_shuffle ravel diagonal "
    "view_as reshape_as atleast_1d atleast_2d atleast_3d adjoint"
) | dict.fromkeys(DATA_GETTERS, "T")
REFUSED = _functions("fft fft2 fftn ifft ifft2 ifftn rfft rfft2 irfft irfft2 cumsum cumprod bilinear")
