"""Launchers of entropy_whitening. They take tensors, return tensors, and also run on meta tensors.

The kernels read maps as rows of channels: a channels_last map is used where it lies, any other is copied once.
"""

import math

import torch
from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.configs import KernelConfig
from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels._common.layout import as_rows, memory_format
from intrasense_fast.kernels._common.precision import compute_dtype, statistics_dtype
from intrasense_fast.kernels.entropy_whitening import backward as gradients
from intrasense_fast.kernels.entropy_whitening import entropy as entropies
from intrasense_fast.kernels.entropy_whitening import forward as kernels
from intrasense_fast.kernels.entropy_whitening import gate as gates
from intrasense_fast.kernels.entropy_whitening.configs import (
    MAP_BLOCK,
    PARTIALS,
    WIDEST_RECOMPUTED,
    entropy_config,
    gate_config,
    gather_config,
    whiten_config,
)


def _rows(features: Tensor) -> Tensor:
    """(B, H W, C) with dense images: a view where the channels are neighbours, else a copy."""
    rows = as_rows(features)
    _, positions, channels = rows.shape
    dense = (channels == 1 or rows.stride(2) == 1) and (
        positions == 1 or rows.stride(1) == channels
    )
    return rows if dense else rows.contiguous()


def _new_map(features: Tensor) -> Tensor:
    return torch.empty_like(features, memory_format=torch.channels_last)


def _as_given(result: Tensor, features: Tensor) -> Tensor:
    return result.contiguous(memory_format=memory_format(features))


def _radius(window: int, height: int, width: int) -> int:
    """Half the window, cut where it reaches over the whole map from everywhere: the taps beyond are never inside."""
    return min(window // 2, max(height, width) - 1)


def _logit(threshold: float) -> float:
    """What a score's argument must stay below for the score, its sigmoid, to stay below the threshold."""
    if threshold <= 0 or threshold >= 1:
        return -math.inf if threshold <= 0 else math.inf
    return math.log(threshold) - math.log1p(-threshold)


def _tiles(config: KernelConfig, channels: int, height: int, width: int) -> tuple[int, int, int]:
    """How many tiles lie across a map, how many there are, and how many chunks of channels."""
    blocks = config.blocks
    across = cdiv(
        width, blocks["TILE_W"] if "TILE_W" in blocks else blocks["STRIP"] * blocks["LANES"]
    )
    return (
        across,
        across * cdiv(height, config.blocks["TILE_H"]),
        cdiv(channels, config.blocks["BLOCK_C"]),
    )


def forward(
    features: Tensor,
    mean: Tensor,
    top: Tensor,
    weight: Tensor,
    bias: Tensor,
    threshold: float,
    entropy_scale: str,
    window: int,
    eps: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 4-7 in two launches ("nats", "max", normalize=False) or four.

    Args:
        features: (B, C, H, W), any strides. mean, top: (B, H, W). weight: (1, 2, k, k). bias: (1,). Any float dtypes.

    Returns:
        whitened (B, C, H, W) in the features' memory format, mask (B, H, W) bool, gate (B, H, W) float32 (float64).
    """
    batch, channels, height, width = features.shape
    dtype, compute = statistics_dtype(features.dtype), compute_dtype(features.dtype)
    out = _new_map(features)
    mask = torch.empty(batch, height, width, dtype=torch.bool, device=features.device)
    gate = torch.empty(batch, height, width, dtype=dtype, device=features.device)
    if batch == 0:
        return _as_given(out, features), mask, gate
    rows, plane = _rows(features), height * width
    blocks = cdiv(plane, MAP_BLOCK)
    launch(
        gates.gate_map, (blocks * batch,),
        mean.contiguous(), top.contiguous(), weight.contiguous(), bias, gate, height, width, plane, blocks,
        R=weight.shape[-1] // 2, BLOCK=MAP_BLOCK, COMPUTE=compute, num_warps=4, num_stages=1,
    )  # fmt: skip
    radius = _radius(window, height, width) if normalize else 0
    config = whiten_config(channels, radius, width)
    across, tiles, chunks = _tiles(config, channels, height, width)
    settings = {"EPS": eps, "R": radius, "COMPUTE": compute, **config.options()}
    if normalize and entropy_scale in ("nats", "max"):
        # NaN, which no threshold exceeds: log 1 = 0 is no unit.
        unit = 1.0 if entropy_scale == "nats" else math.log(channels) if channels > 1 else math.nan
        launch(
            kernels.entropy_whiten, (tiles * batch,),
            rows, gate, out, mask.view(torch.uint8), rows.stride(0), height, width, channels, across, tiles, threshold, unit,
            # Padded channels, entropy and moments in one program: too many registers for 4 channels a thread.
            **settings | ({} if config.blocks["EVEN_C"] else {"num_warps": 2 * config.num_warps}),
        )  # fmt: skip
        return _as_given(out, features), mask, gate
    entropy, statistics = gate, gate
    if normalize:
        sweep = entropy_config(channels)
        shares = cdiv(plane, sweep.blocks["BLOCK_P"])
        entropy, score = torch.empty_like(gate), entropy_scale == "score"
        part = torch.empty(2, batch * shares, dtype=dtype, device=features.device)
        statistics = torch.empty(batch, 2, dtype=dtype, device=features.device)
        launch(
            entropies.entropy_map, (shares * batch,),
            rows, gate, entropy, part, rows.stride(0), plane, channels, shares, batch * shares,
            SCORE=score, COMPUTE=compute, **sweep.options(),
        )  # fmt: skip
        launch(
            entropies.entropy_statistics, (batch,), part, statistics, plane, shares, batch * shares,
            SCORE=score, BLOCK_P=sweep.blocks["BLOCK_P"], BLOCK=PARTIALS, COMPUTE=compute, num_warps=4, num_stages=1,
        )  # fmt: skip
    launch(
        kernels.whiten, (tiles * chunks * batch,),
        rows, gate, entropy, statistics, out, mask.view(torch.uint8), rows.stride(0),
        height, width, channels, across, tiles, chunks,
        _logit(threshold) if entropy_scale == "score" else threshold, NORMALIZE=normalize, **settings,
    )  # fmt: skip
    return _as_given(out, features), mask, gate


def forward_fake(
    features: Tensor,
    mean: Tensor,
    top: Tensor,
    weight: Tensor,
    bias: Tensor,
    threshold: float,
    entropy_scale: str,
    window: int,
    eps: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `forward` returns, unfilled."""
    batch, _, height, width = features.shape
    mask = torch.empty(batch, height, width, dtype=torch.bool, device=features.device)
    gate = torch.empty(
        batch, height, width, dtype=statistics_dtype(features.dtype), device=features.device
    )
    return _as_given(_new_map(features), features), mask, gate


def backward(
    features: Tensor,
    mean: Tensor,
    top: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor,
    gate: Tensor,
    grad: Tensor,
    window: int,
    eps: float,
    normalize: bool,
    through_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Eq. 7, 5 and 4 backward: one launch over the maps for a window of at most 3, else two; three more through the gate.

    Args:
        features, mean, top, weight, bias: as in `forward`. mask, gate: its results. grad: (B, C, H, W), of whitened.
        through_gate: whether any of the last four gradients is wanted; they stay unfilled where it is False.

    Returns:
        Gradients of features, mean, top, weight and bias, in their shapes and dtypes.
    """
    batch, channels, height, width = features.shape
    dtype, compute = statistics_dtype(features.dtype), compute_dtype(features.dtype)
    d_features, d_mean, d_top, d_weight, d_bias = _gradients(features, mean, top, weight, bias)
    if batch == 0:
        return _as_given(d_features, features), d_mean, d_top, d_weight.zero_(), d_bias.zero_()
    rows, grad_rows, plane = _rows(features), _rows(grad), height * width
    radius, masked = _radius(window, height, width) if normalize else 0, mask.view(torch.uint8)
    settings = {"EPS": eps, "R": radius, "COMPUTE": compute}
    y = inverse = rows
    stored = 2 * radius + 1 > WIDEST_RECOMPUTED
    if stored:
        # In 16 bits they would cost the gate's gradient, a float32 sum, all but three digits.
        y, inverse = (
            torch.empty_like(rows, dtype=dtype, memory_format=torch.contiguous_format)
            for _ in range(2)
        )
        config = whiten_config(channels, radius, width)
        across, tiles, chunks = _tiles(config, channels, height, width)
        launch(
            gradients.whiten_moments, (tiles * chunks * batch,),
            rows, gate, masked, y, inverse, rows.stride(0), height, width, channels, across, tiles, chunks,
            **settings, **config.options(),
        )  # fmt: skip
    config = gather_config(channels, features.dtype, stored)
    across, tiles, chunks = _tiles(config, channels, height, width)
    partial = torch.empty(batch, chunks, plane, dtype=dtype, device=features.device)
    launch(
        gradients.whiten_gather, (tiles * chunks * batch,),
        rows, gate, masked, grad_rows, y, inverse, d_features, partial, rows.stride(0), grad_rows.stride(0),
        height, width, channels, across, tiles, chunks, STORED=stored, **settings, **config.options(),
    )  # fmt: skip
    if through_gate:
        found = (d_mean, d_top, d_weight, d_bias)
        _through_gate(
            gate, partial, mean.contiguous(), top.contiguous(), weight.contiguous(), found, compute
        )
    return _as_given(d_features, features), d_mean, d_top, d_weight, d_bias


def _through_gate(
    gate: Tensor,
    partial: Tensor,
    mean: Tensor,
    top: Tensor,
    weight: Tensor,
    found: tuple[Tensor, ...],
    compute: object,
) -> None:
    """Gradients of the statistics, the weight and the bias from the gate's, into `found`."""
    batch, height, width = gate.shape
    plane, chunks = height * width, partial.shape[1]
    blocks, taps, side = cdiv(plane, MAP_BLOCK), weight.numel(), weight.shape[-1]
    config = gate_config(side * side)
    shares = cdiv(plane, config.blocks["BLOCK"])
    d_mean, d_top, d_weight, d_bias = found
    d_logit, part = torch.empty_like(gate), gate.new_empty(taps + 1, shares * batch)
    launch(
        gates.gate_logit_gradient, (blocks * batch,), gate, partial, d_logit, plane, blocks, chunks,
        BLOCK=MAP_BLOCK, COMPUTE=compute, num_warps=4, num_stages=1,
    )  # fmt: skip
    launch(
        gates.gate_gradient, (shares * batch,),
        d_logit, mean, top, weight, d_mean, d_top, part, height, width, plane, shares, shares * batch,
        R=side // 2, COMPUTE=compute, **config.options(),
    )  # fmt: skip
    launch(
        gates.gate_weight_gradient, (taps + 1,), part, d_weight, d_bias, shares * batch, taps,
        BLOCK=4 * PARTIALS, COMPUTE=compute, num_warps=4, num_stages=1,
    )  # fmt: skip


def _gradients(
    features: Tensor, mean: Tensor, top: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_mean, d_top, d_weight, d_bias = (
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (mean, top, weight, bias)
    )
    return _new_map(features), d_mean, d_top, d_weight, d_bias


def backward_fake(
    features: Tensor,
    mean: Tensor,
    top: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor,
    gate: Tensor,
    grad: Tensor,
    window: int,
    eps: float,
    normalize: bool,
    through_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `backward` returns, unfilled."""
    d_features, d_mean, d_top, d_weight, d_bias = _gradients(features, mean, top, weight, bias)
    return _as_given(d_features, features), d_mean, d_top, d_weight, d_bias
