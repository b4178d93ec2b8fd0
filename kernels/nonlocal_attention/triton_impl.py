"""Launchers of nonlocal_attention: tensors in, tensors out, nothing else. They also run on meta tensors."""

import math

import torch
from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.configs import architecture
from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels._common.layout import contiguous_rows
from intrasense_fast.kernels._common.precision import compute_dtype, dot_precision, statistics_dtype
from intrasense_fast.kernels.nonlocal_attention import configs
from intrasense_fast.kernels.nonlocal_attention.backward import (
    attention_prepare,
    attention_reduce,
    attention_score_gradient,
    attention_score_gradient_wide,
    attention_value_gradient,
)
from intrasense_fast.kernels.nonlocal_attention.forward import attention_forward, merge_statistics
from intrasense_fast.kernels.nonlocal_attention.resident import attention_score_gradient_resident

# Programs the score gradient aims at: two a multiprocessor of the largest GPUs.
PROGRAMS = 256
# Partial sums of dQ and of dK each: at most 2 * 16 B N d floats of workspace, whatever N.
MAX_SPLITS = 16


def _strides(*tensors: Tensor) -> list[int]:
    """The strides of batch and row."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def aligned(channels: int, *tensors: Tensor) -> bool:
    """Whether every row starts at a multiple of 16 elements, which the compiler takes for wide loads."""
    return channels % 16 == 0 and all(tensor.stride(-2) % 16 == 0 for tensor in tensors)


def forward(
    query: Tensor, key: Tensor, value: Tensor, residual: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Eq. 2-3 and the channel statistics.

    Args:
        query, key: (B, N, d). value, residual: (B, N, C). Any strides.
        save: whether the backward of query or key will need A V.

    Returns:
        features (B, N, C), channel_mean (B, N), channel_max (B, N), argmax (B, N) int32, lse (B, N) in base 2, and
        A V (B, N, C), empty unless `save`.
    """
    query, key, value, residual = (
        contiguous_rows(tensor) for tensor in (query, key, value, residual)
    )
    batch, positions, depth = query.shape
    channels = value.shape[-1]
    dtype, statistics, precision = (
        query.dtype,
        statistics_dtype(query.dtype),
        dot_precision(query.dtype, query.device),
    )
    even = aligned(channels, query, key, value, residual)
    config = configs.forward_config(
        depth, channels, dtype, architecture(query.device), precision, even
    )
    tiles, chunks = (
        cdiv(positions, config.blocks["BLOCK_M"]),
        cdiv(channels, config.blocks["BLOCK_C"]),
    )
    features = query.new_empty(batch, positions, channels)
    attended = query.new_empty((batch, positions, channels) if save else 0)
    lse, mean, top = (query.new_empty(batch, positions, dtype=statistics) for _ in range(3))
    argmax = query.new_empty(batch, positions, dtype=torch.int32)
    parts: tuple[Tensor, ...] = (mean, top, argmax)
    if chunks > 1:
        parts = tuple(
            query.new_empty(batch, chunks, positions, dtype=t.dtype) for t in (mean, top, argmax)
        )
    launch(
        attention_forward, (tiles * chunks * batch,),
        query, key, value, residual, features, attended if save else features, lse, *parts,
        *_strides(query, key, value, residual), positions, depth, channels, tiles, chunks, math.log2(math.e) / math.sqrt(depth),
        SAVE=save, WHOLE=chunks == 1, PRECISION=precision, COMPUTE=compute_dtype(dtype), **config.options(),
    )  # fmt: skip
    if chunks > 1:
        launch(
            merge_statistics, (cdiv(batch * positions, 128),),
            *parts, mean, top, argmax, positions, channels, chunks, batch * positions, BLOCK=128, num_warps=4, num_stages=1,
        )  # fmt: skip
    return features, mean, top, argmax, lse, attended


def forward_fake(
    query: Tensor, key: Tensor, value: Tensor, residual: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `forward` returns, unfilled."""
    batch, positions, channels = value.shape
    statistics = statistics_dtype(query.dtype)
    features = query.new_empty(batch, positions, channels)
    lse, mean, top = (query.new_empty(batch, positions, dtype=statistics) for _ in range(3))
    argmax = query.new_empty(batch, positions, dtype=torch.int32)
    return (
        features,
        mean,
        top,
        argmax,
        lse,
        query.new_empty((batch, positions, channels) if save else 0),
    )


def prepare(
    grad_features: Tensor, grad_mean: Tensor, grad_max: Tensor, argmax: Tensor, attended: Tensor
) -> tuple[Tensor, Tensor]:
    """Fold the gradients of the statistics into the features' (README.md, step 1).

    Args:
        grad_features (B, N, C), any strides; grad_mean, grad_max, argmax (B, N); attended (B, N, C), the saved A V, or empty.

    Returns:
        grad_attended (B, N, C), which is the residual's gradient too, and delta (B, N) (0 where `attended` is empty).
    """
    grad_features, grad_mean, grad_max = (
        contiguous_rows(grad_features),
        grad_mean.contiguous(),
        grad_max.contiguous(),
    )
    batch, positions, channels = grad_features.shape
    block_c = min(128, max(16, 1 << (channels - 1).bit_length()))
    grad_attended = grad_features.new_empty(batch, positions, channels)
    delta = grad_mean.new_empty(batch, positions)
    block_m = 32 if aligned(channels, grad_features) else 8
    blocks = cdiv(positions, block_m)
    launch(
        attention_prepare, (blocks * batch,),
        grad_features, attended if attended.numel() else grad_attended, grad_mean, grad_max, argmax, grad_attended, delta,
        *_strides(grad_features), positions, channels, blocks,
        BLOCK_M=block_m, BLOCK_C=block_c, EVEN_C=channels % block_c == 0, SAVED=attended.numel() > 0,
        COMPUTE=compute_dtype(grad_features.dtype), num_warps=4, num_stages=1,
    )  # fmt: skip
    return grad_attended, delta


def value_gradient(query: Tensor, key: Tensor, grad_attended: Tensor, lse: Tensor) -> Tensor:
    """dV = A^T grad_attended (README.md, step 2)."""
    query, key = contiguous_rows(query), contiguous_rows(key)
    batch, positions, depth = query.shape
    channels = grad_attended.shape[-1]
    precision = dot_precision(query.dtype, query.device)
    even = aligned(channels, query, key)
    config = configs.value_gradient_config(
        depth, channels, query.dtype, architecture(query.device), precision, even
    )
    tiles, chunks = (
        cdiv(positions, config.blocks["BLOCK_N"]),
        cdiv(channels, config.blocks["BLOCK_C"]),
    )
    grad_value = torch.empty_like(grad_attended)
    launch(
        attention_value_gradient, (tiles * chunks * batch,),
        query, key, grad_attended, lse, grad_value, *_strides(query, key), positions, depth, channels, tiles, chunks,
        math.log2(math.e) / math.sqrt(depth),
        PRECISION=precision, COMPUTE=compute_dtype(query.dtype), **config.options(),
    )  # fmt: skip
    return grad_value


def splits(batch: int, row_tiles: int, key_tiles: int) -> tuple[int, int, int, int]:
    """How the score gradient is divided: (key splits, tiles of keys each, query splits, tiles of queries each).

    Enough programs for a large GPU at any batch, and partial sums bounded whatever N.
    """
    wanted = math.isqrt(max(1, cdiv(PROGRAMS, max(1, batch))) - 1) + 1
    keys = min(key_tiles, MAX_SPLITS, wanted)
    tiles = cdiv(key_tiles, keys)
    queries = min(row_tiles, MAX_SPLITS, cdiv(PROGRAMS, max(1, batch) * keys))
    rows = cdiv(row_tiles, queries)
    return cdiv(key_tiles, tiles), tiles, cdiv(row_tiles, rows), rows


def score_gradient(
    query: Tensor, key: Tensor, value: Tensor, grad_attended: Tensor, lse: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """dQ and dK through partial sums that one program each owns (README.md, steps 3 and 4)."""
    query, key, value = (contiguous_rows(tensor) for tensor in (query, key, value))
    batch, positions, depth = query.shape
    channels = value.shape[-1]
    precision = dot_precision(query.dtype, query.device)
    even = aligned(channels, query, key, value)
    config = configs.score_gradient_config(
        depth, channels, query.dtype, architecture(query.device), precision, even
    )
    block_m, block_n = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
    key_splits, tiles, query_splits, row_tiles = splits(
        batch, cdiv(positions, block_m), cdiv(positions, block_n)
    )
    dq_parts = lse.new_empty(batch, key_splits, positions, depth)
    dk_parts = lse.new_empty(batch, query_splits, positions, depth)
    kernel = attention_score_gradient
    if "BLOCK_V" in config.blocks:
        kernel = attention_score_gradient_resident
    elif "BLOCK_S" in config.blocks:
        kernel = attention_score_gradient_wide
    launch(
        kernel,
        (key_splits * query_splits * batch,),
        query, key, value, grad_attended, lse, delta, dq_parts, dk_parts, *_strides(query, key, value),
        positions, depth, channels, key_splits, query_splits, tiles, row_tiles * block_m, math.log2(math.e) / math.sqrt(depth),
        PRECISION=precision, COMPUTE=compute_dtype(query.dtype), **config.options(),
    )  # fmt: skip
    grad_query, grad_key = (query.new_empty(batch, positions, depth) for _ in range(2))
    blocks = cdiv(positions * depth, 1024)
    launch(
        attention_reduce, (blocks * batch,),
        dq_parts, dk_parts, grad_query, grad_key, positions * depth, key_splits, query_splits, blocks, 1 / math.sqrt(depth),
        BLOCK=1024, num_warps=4, num_stages=1,
    )  # fmt: skip
    return grad_query, grad_key


def backward(
    query: Tensor, key: Tensor, value: Tensor, attended: Tensor, lse: Tensor, argmax: Tensor,
    grad_features: Tensor, grad_mean: Tensor, grad_max: Tensor, scores: bool, values: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """All gradients; of query and key only if `scores` (then `attended` must have been saved), of value only if `values`.

    Returns:
        grad_query (B, N, d), grad_key (B, N, d), grad_value (B, N, C), grad_residual (B, N, C).
    """
    grad_attended, delta = prepare(grad_features, grad_mean, grad_max, argmax, attended)
    grad_value = value_gradient(query, key, grad_attended, lse) if values else query.new_empty(0)
    if scores:
        grad_query, grad_key = score_gradient(query, key, value, grad_attended, lse, delta)
    else:
        grad_query, grad_key = query.new_empty(0), query.new_empty(0)
    return grad_query, grad_key, grad_value, grad_attended


def backward_fake(
    query: Tensor, key: Tensor, value: Tensor, attended: Tensor, lse: Tensor, argmax: Tensor,
    grad_features: Tensor, grad_mean: Tensor, grad_max: Tensor, scores: bool, values: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What `backward` returns, unfilled."""
    grad_query, grad_key = (query.new_empty(query.shape if scores else 0) for _ in range(2))
    return (
        grad_query,
        grad_key,
        query.new_empty(value.shape if values else 0),
        query.new_empty(value.shape),
    )
