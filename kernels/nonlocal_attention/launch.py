"""What nonlocal_attention starts, in which order: tensors in, tensors out, also on meta tensors."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.configs import architecture
from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels._common.layout import contiguous_rows
from intrasense_fast.kernels._common.precision import compute_dtype, dot_precision, statistics_dtype
from intrasense_fast.kernels.nonlocal_attention import configs
from intrasense_fast.kernels.nonlocal_attention.kernels.backward import (
    attention_prepare,
    attention_reduce,
    attention_value_gradient,
)
from intrasense_fast.kernels.nonlocal_attention.kernels.forward import (
    attention_forward,
    merge_statistics,
)
from intrasense_fast.kernels.nonlocal_attention.kernels.score_gradient import (
    attention_score_gradient,
)
from intrasense_fast.kernels.nonlocal_attention.kernels.score_gradient_resident import (
    attention_score_gradient_resident,
)
from intrasense_fast.kernels.nonlocal_attention.kernels.score_gradient_wide import (
    attention_score_gradient_wide,
)

# Positions a program of merge_statistics owns, and elements one of attention_reduce.
MERGE_BLOCK = 128
REDUCE_BLOCK = 1024


class Forward(NamedTuple):
    """What the forward writes. Symbols, shapes and dtypes: README.md."""

    features: Tensor
    channel_mean: Tensor
    channel_max: Tensor
    channel_argmax: Tensor
    lse: Tensor
    attended: Tensor


class Saved(NamedTuple):
    """What the backward needs; `attended` is empty where no gradient of query or key is wanted."""

    query: Tensor
    key: Tensor
    value: Tensor
    attended: Tensor
    lse: Tensor
    channel_argmax: Tensor


class Gradients(NamedTuple):
    """Of the inputs, in their shapes; those that are not wanted are empty."""

    query: Tensor
    key: Tensor
    value: Tensor
    residual: Tensor


def forward(query: Tensor, key: Tensor, value: Tensor, residual: Tensor, save: bool) -> Forward:
    """Eq. 2-3 and the channel statistics.

    Args:
        query, key: (B, N, d). value, residual: (B, N, C). Any strides.
        save: whether the backward of query or key will need A V; `attended` is empty without.
    """
    query, key = contiguous_rows(query), contiguous_rows(key)
    value, residual = contiguous_rows(value), contiguous_rows(residual)
    batch, positions, depth = query.shape
    channels = value.shape[-1]
    precision = dot_precision(query.dtype, query.device)
    even = aligned(channels, query, key, value, residual)
    config = configs.forward_config(
        depth, channels, query.dtype, architecture(query.device), precision, even
    )
    tiles = cdiv(positions, config.blocks["BLOCK_M"])
    chunks = cdiv(channels, config.blocks["BLOCK_C"])
    results = forward_fake(query, key, value, residual, save)
    statistics = (results.channel_mean, results.channel_max, results.channel_argmax)
    parts: tuple[Tensor, ...] = statistics
    if chunks > 1:
        parts = tuple(t.new_empty(batch, chunks, positions) for t in statistics)
    launch(
        attention_forward,
        (tiles * chunks * batch,),
        *(query, key, value, residual),
        *(results.features, results.attended if save else results.features, results.lse),
        *parts,
        *_strides(query, key, value, residual),
        *(positions, depth, channels),
        *(tiles, chunks),
        _scale_log2(depth),
        SAVE=save,
        WHOLE=chunks == 1,
        PRECISION=precision,
        COMPUTE=compute_dtype(query.dtype),
        **config.options(),
    )
    if chunks > 1:
        launch(
            merge_statistics,
            (cdiv(batch * positions, MERGE_BLOCK),),
            *parts,
            *statistics,
            *(positions, channels, chunks, batch * positions),
            BLOCK=MERGE_BLOCK,
            num_warps=4,
            num_stages=1,
        )
    return results


def forward_fake(
    query: Tensor, key: Tensor, value: Tensor, residual: Tensor, save: bool
) -> Forward:
    """What `forward` returns, unfilled."""
    batch, positions, channels = value.shape
    statistics = statistics_dtype(query.dtype)
    return Forward(
        features=query.new_empty(batch, positions, channels),
        channel_mean=query.new_empty(batch, positions, dtype=statistics),
        channel_max=query.new_empty(batch, positions, dtype=statistics),
        channel_argmax=query.new_empty(batch, positions, dtype=torch.int32),
        lse=query.new_empty(batch, positions, dtype=statistics),
        attended=query.new_empty((batch, positions, channels) if save else 0),
    )


def backward(
    saved: Saved,
    grad_features: Tensor,
    grad_channel_mean: Tensor,
    grad_channel_max: Tensor,
    scores: bool,
    values: bool,
) -> Gradients:
    """All gradients; of query and key only if `scores`, of value only if `values`.

    Args:
        saved: `attended` must have been saved if `scores`.
        grad_features: (B, N, C), any strides. grad_channel_mean, grad_channel_max: (B, N).
    """
    query, key, value, attended, lse, channel_argmax = saved
    grad_attended, delta = prepare(
        grad_features, grad_channel_mean, grad_channel_max, channel_argmax, attended
    )
    grad_query, grad_key, grad_value = query.new_empty(0), query.new_empty(0), query.new_empty(0)
    if values:
        grad_value = value_gradient(query, key, grad_attended, lse)
    if scores:
        grad_query, grad_key = score_gradient(query, key, value, grad_attended, lse, delta)
    return Gradients(grad_query, grad_key, grad_value, grad_attended)


def backward_fake(saved: Saved, scores: bool, values: bool) -> Gradients:
    """What `backward` returns, unfilled."""
    query, value = saved.query, saved.value
    return Gradients(
        query=query.new_empty(query.shape if scores else 0),
        key=query.new_empty(query.shape if scores else 0),
        value=query.new_empty(value.shape if values else 0),
        residual=query.new_empty(value.shape),
    )


def prepare(
    grad_features: Tensor,
    grad_channel_mean: Tensor,
    grad_channel_max: Tensor,
    channel_argmax: Tensor,
    attended: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fold the gradients of the statistics into the features' (README.md, step 1).

    Args:
        grad_features: (B, N, C), any strides.
        grad_channel_mean, grad_channel_max, channel_argmax: (B, N).
        attended: (B, N, C), the saved one, or empty.

    Returns:
        grad_attended (B, N, C), which is the residual's gradient too, and delta (B, N), 0 where
        `attended` is empty.
    """
    grad_features = contiguous_rows(grad_features)
    grad_channel_mean, grad_channel_max = (
        grad_channel_mean.contiguous(),
        grad_channel_max.contiguous(),
    )
    batch, positions, channels = grad_features.shape
    saved = attended.numel() > 0
    block_m = 32 if aligned(channels, grad_features) else 8
    block_c = min(128, max(16, 1 << (channels - 1).bit_length()))
    blocks = cdiv(positions, block_m)
    grad_attended = grad_features.new_empty(batch, positions, channels)
    delta = grad_channel_mean.new_empty(batch, positions)
    launch(
        attention_prepare,
        (blocks * batch,),
        *(grad_features, attended if saved else grad_attended),
        *(grad_channel_mean, grad_channel_max, channel_argmax),
        *(grad_attended, delta),
        *_strides(grad_features),
        *(positions, channels),
        blocks,
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        EVEN_C=channels % block_c == 0,
        SAVED=saved,
        COMPUTE=compute_dtype(grad_features.dtype),
        num_warps=4,
        num_stages=1,
    )
    return grad_attended, delta


def value_gradient(query: Tensor, key: Tensor, grad_attended: Tensor, lse: Tensor) -> Tensor:
    """dV = P^T dY (README.md, step 2): (B, N, C)."""
    query, key = contiguous_rows(query), contiguous_rows(key)
    batch, positions, depth = query.shape
    channels = grad_attended.shape[-1]
    precision = dot_precision(query.dtype, query.device)
    even = aligned(channels, query, key)
    config = configs.value_gradient_config(
        depth, channels, query.dtype, architecture(query.device), precision, even
    )
    tiles = cdiv(positions, config.blocks["BLOCK_N"])
    chunks = cdiv(channels, config.blocks["BLOCK_C"])
    grad_value = torch.empty_like(grad_attended)
    launch(
        attention_value_gradient,
        (tiles * chunks * batch,),
        *(query, key, grad_attended, lse, grad_value),
        *_strides(query, key),
        *(positions, depth, channels),
        *(tiles, chunks),
        _scale_log2(depth),
        PRECISION=precision,
        COMPUTE=compute_dtype(query.dtype),
        **config.options(),
    )
    return grad_value


def score_gradient(
    query: Tensor, key: Tensor, value: Tensor, grad_attended: Tensor, lse: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """dQ and dK through partial sums that one program each owns (README.md, steps 3 and 4)."""
    query, key, value = contiguous_rows(query), contiguous_rows(key), contiguous_rows(value)
    batch, positions, depth = query.shape
    channels = value.shape[-1]
    precision = dot_precision(query.dtype, query.device)
    even = aligned(channels, query, key, value)
    config = configs.score_gradient_config(
        depth, channels, query.dtype, architecture(query.device), precision, even
    )
    block_m, block_n = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
    key_splits, tiles, query_splits, row_tiles = configs.splits(
        batch, cdiv(positions, block_m), cdiv(positions, block_n)
    )
    grad_query_parts = lse.new_empty(batch, key_splits, positions, depth)
    grad_key_parts = lse.new_empty(batch, query_splits, positions, depth)
    kernel = attention_score_gradient
    if "BLOCK_V" in config.blocks:
        kernel = attention_score_gradient_resident
    elif "BLOCK_S" in config.blocks:
        kernel = attention_score_gradient_wide
    launch(
        kernel,
        (key_splits * query_splits * batch,),
        *(query, key, value, grad_attended, lse, delta),
        *(grad_query_parts, grad_key_parts),
        *_strides(query, key, value),
        *(positions, depth, channels),
        *(key_splits, query_splits, tiles, row_tiles * block_m),
        _scale_log2(depth),
        PRECISION=precision,
        COMPUTE=compute_dtype(query.dtype),
        **config.options(),
    )
    grad_query = query.new_empty(batch, positions, depth)
    grad_key = query.new_empty(batch, positions, depth)
    blocks = cdiv(positions * depth, REDUCE_BLOCK)
    launch(
        attention_reduce,
        (blocks * batch,),
        *(grad_query_parts, grad_key_parts, grad_query, grad_key),
        *(positions * depth, key_splits, query_splits, blocks),
        1 / math.sqrt(depth),
        BLOCK=REDUCE_BLOCK,
        num_warps=4,
        num_stages=1,
    )
    return grad_query, grad_key


def aligned(channels: int, *tensors: Tensor) -> bool:
    """Whether every row starts at a multiple of 16 elements, which wide loads need."""
    return channels % 16 == 0 and all(tensor.stride(-2) % 16 == 0 for tensor in tensors)


def _strides(*tensors: Tensor) -> list[int]:
    """The strides of batch and row."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _scale_log2(depth: int) -> float:
    """What makes a product of query and key an exponent of 2: log2(e) / sqrt(d)."""
    return math.log2(math.e) / math.sqrt(depth)
