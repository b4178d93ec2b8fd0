"""Eq. 7 in plain steps, for torch.func, torch.export, ONNX and TorchScript: nothing in place, no
loop over a size, no gradient of its own."""

import torch
from torch import Tensor


def masked_whitening(attended: Tensor, mask: Tensor, window: int, eps: float) -> Tensor:
    """Eq. 7 from F_att (B, C, H, W) and the mask (B, H, W)."""
    mean, variance = window_moments(attended, window)
    whitened = (attended - mean) * (variance + eps).rsqrt()
    return torch.where(mask[:, None], whitened, attended)


def window_moments(values: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the window's positions inside the map, as eager.py has them:
    rows of the window first, each with its centre as pivot, then the rows merged."""
    (columns, in_columns), (rows, in_rows) = (_window(values, window, axis) for axis in (-1, -2))
    taps = _taken(values, columns, -1)
    row_mean, row_variance = _moments(values[..., None], taps, in_columns, -1)
    taps = _taken(row_mean, rows, -2)
    in_rows = in_rows[..., None]
    mean, between = _moments(row_mean[..., None, :], taps, in_rows, -2)
    # Every row of a window counts the same: it has as many columns.
    within = _mean(_taken(row_variance, rows, -2), in_rows, -2)
    return mean, within + between


def _moments(pivot: Tensor, taps: Tensor, inside: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the taps inside the map. The pivot is one of them, so that
    nothing cancels."""
    differences = taps - pivot
    shift = _mean(differences, inside, axis)
    second = _mean(differences.square(), inside, axis)
    return pivot.squeeze(axis) + shift, second - shift.square()


def _mean(taps: Tensor, inside: Tensor, axis: int) -> Tensor:
    return torch.where(inside, taps, 0).sum(axis) / inside.to(taps.dtype).sum(axis)


def _window(values: Tensor, window: int, axis: int) -> tuple[Tensor, Tensor]:
    """(size, window): the positions of the window about each one along an axis, and which of them
    lie inside the map."""
    size = values.shape[axis]
    offsets = torch.arange(window, device=values.device) - window // 2
    positions = torch.arange(size, device=values.device)[:, None] + offsets
    return positions.clamp(0, size - 1), (positions >= 0) & (positions < size)


def _taken(values: Tensor, positions: Tensor, axis: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W, k) along the last axis, (B, C, H, k, W) along the one before."""
    batch, channels, height, width = values.shape
    window = positions.shape[1]
    shape = (height, width, window) if axis == -1 else (height, window, width)
    return values.index_select(axis, positions.flatten()).reshape(batch, channels, *shape)
