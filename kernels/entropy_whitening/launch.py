"""What entropy_whitening starts, in which order: tensors in, tensors out, also on meta tensors.

The kernels read maps as rows of channels: a channels_last map is used where it lies, any other is
copied once.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels._common.layout import as_rows, memory_format
from intrasense_fast.kernels._common.precision import compute_dtype, statistics_dtype
from intrasense_fast.kernels.entropy_whitening import configs
from intrasense_fast.kernels.entropy_whitening.kernels.entropy import (
    channel_entropy,
    entropy_statistics,
)
from intrasense_fast.kernels.entropy_whitening.kernels.gate import (
    gate_gradient,
    gate_logit_gradient,
    gate_map,
    gate_weight_gradient,
)
from intrasense_fast.kernels.entropy_whitening.kernels.whiten import entropy_whiten, whiten
from intrasense_fast.kernels.entropy_whitening.kernels.whiten_gradient import (
    whiten_gather,
    whiten_moments,
)


class Forward(NamedTuple):
    """What the forward writes. Symbols, shapes and dtypes: README.md."""

    whitened: Tensor
    mask: Tensor
    gate: Tensor


class Saved(NamedTuple):
    """What the backward needs: the inputs and two maps of one number a position."""

    features: Tensor
    channel_mean: Tensor
    channel_max: Tensor
    gate_weight: Tensor
    gate_bias: Tensor
    mask: Tensor
    gate: Tensor


class Gradients(NamedTuple):
    """Of the inputs, in their shapes and dtypes."""

    features: Tensor
    channel_mean: Tensor
    channel_max: Tensor
    gate_weight: Tensor
    gate_bias: Tensor


def forward(
    features: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    threshold: float,
    entropy_scale: str,
    window: int,
    eps: float,
    normalize: bool,
) -> Forward:
    """Eq. 4-7 in two launches ("nats", "max", normalize=False) or four.

    Args:
        features: (B, C, H, W), any strides. channel_mean, channel_max: (B, H, W).
        gate_weight: (1, 2, k, k). gate_bias: (1,). Any float dtypes.
    """
    batch, channels, height, width = features.shape
    whitened = _new_map(features)
    mask, gate = _position_maps(features)
    if batch == 0:
        return Forward(_as_given(whitened, features), mask, gate)
    rows = _rows(features)
    _gate(gate, channel_mean, channel_max, gate_weight, gate_bias)
    radius = configs.radius_of(window, height, width) if normalize else 0
    config = configs.whiten_config(channels, radius, width)
    tiling = configs.tiling_of(config, channels, height, width)
    compute = compute_dtype(features.dtype)
    settings = {"EPS": eps, "R": radius, "COMPUTE": compute, **config.options()}
    if normalize and entropy_scale in ("nats", "max"):
        if not config.blocks["EVEN_C"]:
            # Entropy and moments in one program: too many registers for 4 channels a thread.
            settings["num_warps"] = 2 * config.num_warps
        launch(
            entropy_whiten,
            (tiling.tiles * batch,),
            *(rows, gate, whitened, mask.view(torch.uint8)),
            rows.stride(0),
            *(height, width, channels),
            *(tiling.across, tiling.tiles),
            *(threshold, _unit(entropy_scale, channels)),
            **settings,
        )
        return Forward(_as_given(whitened, features), mask, gate)
    entropy, statistics, limit = gate, gate, threshold
    if normalize:
        entropy, statistics = _entropy(rows, gate, entropy_scale)
        limit = _logit(threshold) if entropy_scale == "score" else threshold
    launch(
        whiten,
        (tiling.tiles * tiling.chunks * batch,),
        *(rows, gate, entropy, statistics, whitened, mask.view(torch.uint8)),
        rows.stride(0),
        *(height, width, channels),
        *tiling,
        limit,
        NORMALIZE=normalize,
        **settings,
    )
    return Forward(_as_given(whitened, features), mask, gate)


def forward_fake(features: Tensor, *arguments: Any) -> Forward:
    """What `forward` returns, unfilled; arguments as there."""
    return Forward(_as_given(_new_map(features), features), *_position_maps(features))


def backward(
    saved: Saved,
    grad_whitened: Tensor,
    window: int,
    eps: float,
    normalize: bool,
    through_gate: bool,
) -> Gradients:
    """Eq. 7, 5 and 4 backward: one launch for a window of at most 3, else two; three for the gate.

    Args:
        grad_whitened: (B, C, H, W), any strides.
        through_gate: whether any of the last four gradients is wanted; else they stay unfilled.
    """
    features, gate = saved.features, saved.gate
    batch, channels, height, width = features.shape
    gradients = _gradients(saved)
    grad_features = gradients.features
    if batch == 0:
        gradients.gate_weight.zero_()
        gradients.gate_bias.zero_()
        return gradients._replace(features=_as_given(grad_features, features))
    rows, grad_rows = _rows(features), _rows(grad_whitened)
    mask = saved.mask.view(torch.uint8)
    radius = configs.radius_of(window, height, width) if normalize else 0
    settings = {"EPS": eps, "R": radius, "COMPUTE": compute_dtype(features.dtype)}
    normalised, rstd = rows, rows
    stored = 2 * radius + 1 > configs.WIDEST_RECOMPUTED
    if stored:
        # In 16 bits they would cost the gate's gradient, a float32 sum, all but three digits.
        normalised = torch.empty_like(rows, dtype=gate.dtype, memory_format=torch.contiguous_format)
        rstd = torch.empty_like(normalised)
        config = configs.whiten_config(channels, radius, width)
        tiling = configs.tiling_of(config, channels, height, width)
        launch(
            whiten_moments,
            (tiling.tiles * tiling.chunks * batch,),
            *(rows, gate, mask, normalised, rstd),
            rows.stride(0),
            *(height, width, channels),
            *tiling,
            **settings,
            **config.options(),
        )
    config = configs.gather_config(channels, features.dtype, stored)
    tiling = configs.tiling_of(config, channels, height, width)
    grad_gate_parts = gate.new_empty(batch, tiling.chunks, height * width)
    launch(
        whiten_gather,
        (tiling.tiles * tiling.chunks * batch,),
        *(rows, gate, mask, grad_rows, normalised, rstd, grad_features, grad_gate_parts),
        *(rows.stride(0), grad_rows.stride(0)),
        *(height, width, channels),
        *tiling,
        STORED=stored,
        **settings,
        **config.options(),
    )
    if through_gate:
        _through_gate(saved, grad_gate_parts, gradients)
    return gradients._replace(features=_as_given(grad_features, features))


def backward_fake(saved: Saved) -> Gradients:
    """What `backward` returns, unfilled."""
    gradients = _gradients(saved)
    return gradients._replace(features=_as_given(gradients.features, saved.features))


def _gate(
    gate: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
) -> None:
    """Eq. 4 into `gate` (B, H, W)."""
    batch, height, width = gate.shape
    blocks = cdiv(height * width, configs.MAP_BLOCK)
    launch(
        gate_map,
        (blocks * batch,),
        *(channel_mean.contiguous(), channel_max.contiguous()),
        *(gate_weight.contiguous(), gate_bias, gate),
        *(height, width, height * width, blocks),
        R=gate_weight.shape[-1] // 2,
        BLOCK=configs.MAP_BLOCK,
        COMPUTE=compute_dtype(gate.dtype),
        num_warps=4,
        num_stages=1,
    )


def _entropy(rows: Tensor, gate: Tensor, entropy_scale: str) -> tuple[Tensor, Tensor]:
    """Eq. 6 before the threshold: the entropy (B, H, W), and (shift, unit) of each image (B, 2)."""
    batch, positions, channels = rows.shape
    config = configs.entropy_config(channels)
    blocks = cdiv(positions, config.blocks["BLOCK_P"])
    score, compute = entropy_scale == "score", compute_dtype(gate.dtype)
    entropy = torch.empty_like(gate)
    parts = gate.new_empty(2, batch * blocks)
    statistics = gate.new_empty(batch, 2)
    launch(
        channel_entropy,
        (blocks * batch,),
        *(rows, gate, entropy, parts),
        rows.stride(0),
        *(positions, channels),
        *(blocks, batch * blocks),
        SCORE=score,
        COMPUTE=compute,
        **config.options(),
    )
    launch(
        entropy_statistics,
        (batch,),
        *(parts, statistics),
        *(positions, blocks, batch * blocks),
        SCORE=score,
        BLOCK_P=config.blocks["BLOCK_P"],
        BLOCK=configs.PARTIALS,
        COMPUTE=compute,
        num_warps=4,
        num_stages=1,
    )
    return entropy, statistics


def _through_gate(saved: Saved, grad_gate_parts: Tensor, gradients: Gradients) -> None:
    """From the chunks' shares of the gate's gradient to all but the features', in `gradients`."""
    gate, gate_weight = saved.gate, saved.gate_weight.contiguous()
    batch, height, width = gate.shape
    positions, chunks = height * width, grad_gate_parts.shape[1]
    taps, side = gate_weight.numel(), gate_weight.shape[-1]
    compute = compute_dtype(gate.dtype)
    blocks = cdiv(positions, configs.MAP_BLOCK)
    grad_logit = torch.empty_like(gate)
    launch(
        gate_logit_gradient,
        (blocks * batch,),
        *(gate, grad_gate_parts, grad_logit),
        *(positions, blocks, chunks),
        BLOCK=configs.MAP_BLOCK,
        COMPUTE=compute,
        num_warps=4,
        num_stages=1,
    )
    config = configs.gate_config(side * side)
    blocks = cdiv(positions, config.blocks["BLOCK"])
    grad_gate_weight_parts = gate.new_empty(taps + 1, blocks * batch)
    launch(
        gate_gradient,
        (blocks * batch,),
        *(grad_logit, saved.channel_mean.contiguous(), saved.channel_max.contiguous(), gate_weight),
        *(gradients.channel_mean, gradients.channel_max, grad_gate_weight_parts),
        *(height, width, positions),
        *(blocks, blocks * batch),
        R=side // 2,
        COMPUTE=compute,
        **config.options(),
    )
    launch(
        gate_weight_gradient,
        (taps + 1,),
        *(grad_gate_weight_parts, gradients.gate_weight, gradients.gate_bias),
        *(blocks * batch, taps),
        BLOCK=4 * configs.PARTIALS,
        COMPUTE=compute,
        num_warps=4,
        num_stages=1,
    )


def _gradients(saved: Saved) -> Gradients:
    """Unfilled; the features' in rows."""
    others = (saved.channel_mean, saved.channel_max, saved.gate_weight, saved.gate_bias)
    empty = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in others)
    return Gradients(_new_map(saved.features), *empty)


def _position_maps(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mask (B, H, W) bool and the gate (B, H, W), unfilled."""
    batch, _, height, width = features.shape
    mask = torch.empty(batch, height, width, dtype=torch.bool, device=features.device)
    return mask, torch.empty_like(mask, dtype=statistics_dtype(features.dtype))


def _rows(features: Tensor) -> Tensor:
    """(B, H W, C) with dense images: a view where the channels are neighbours, else a copy."""
    rows = as_rows(features)
    _, positions, channels = rows.shape
    dense_row = channels == 1 or rows.stride(2) == 1
    dense_map = positions == 1 or rows.stride(1) == channels
    return rows if dense_row and dense_map else rows.contiguous()


def _new_map(features: Tensor) -> Tensor:
    return torch.empty_like(features, memory_format=torch.channels_last)


def _as_given(result: Tensor, features: Tensor) -> Tensor:
    return result.contiguous(memory_format=memory_format(features))


def _unit(entropy_scale: str, channels: int) -> float:
    """What the entropy is divided by; where log 1 = 0 is no unit, NaN: no threshold exceeds it."""
    if entropy_scale == "nats":
        return 1.0
    return math.log(channels) if channels > 1 else math.nan


def _logit(threshold: float) -> float:
    """What a score's argument must stay below for its sigmoid to stay below the threshold."""
    if threshold <= 0:
        return -math.inf
    if threshold >= 1:
        return math.inf
    return math.log(threshold) - math.log1p(-threshold)
