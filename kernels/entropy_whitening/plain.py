"""Eq. 7 in plain steps, for torch.func, torch.export, ONNX and TorchScript: nothing in place, no
loop over a size, no gradient of its own."""

import torch
from torch import Tensor
from torch.nn import functional


def masked_whitening(attended: Tensor, mask: Tensor, window: int, eps: float) -> Tensor:
    """Eq. 7 from F_att (B, C, H, W) and the mask (B, H, W)."""
    mean, variance = window_moments(attended, window)
    whitened = (attended - mean) * (variance + eps).rsqrt()
    return torch.where(mask[:, None], whitened, attended)


def window_moments(values: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the window's positions inside the map, as eager.py has them:
    rows of the window first, each with its centre as pivot, then the rows merged."""
    columns, rows = _inside(values, window, -1), _inside(values, window, -2)
    row_mean, row_second = _merged(values, columns, window, -1)
    mean, between = _merged(row_mean, rows, window, -2)
    within = sum(
        torch.where(inside, one, 0)
        for one, inside in zip(_taps(row_second, window, -2), rows, strict=True)
    )
    return mean, within / _count(columns, values) / _count(rows, values) + between


def _merged(values: Tensor, inside: list[Tensor], window: int, axis: int) -> tuple[Tensor, Tensor]:
    """Mean of the window along an axis, and mean or, along rows, sum of squares about it."""
    differences = [
        torch.where(within, one - values, 0)
        for one, within in zip(_taps(values, window, axis), inside, strict=True)
    ]
    count = _count(inside, values)
    total = sum(differences[1:], differences[0])
    shift = total / count
    # The pivot is in the window, so that nothing cancels.
    second = sum(one.square() for one in differences) - total * shift
    return values + shift, second if axis == -1 else second / count


def _taps(values: Tensor, window: int, axis: int) -> list[Tensor]:
    """The map shifted by every offset of the window along an axis, 0 from outside."""
    radius = window // 2
    padding = (radius, radius) if axis == -1 else (0, 0, radius, radius)
    padded = functional.pad(values, padding)
    # Ends are counted from the back: the size stays open.
    slices = [slice(start, start - 2 * radius or None) for start in range(window)]
    return [padded[..., each] if axis == -1 else padded[..., each, :] for each in slices]


def _inside(values: Tensor, window: int, axis: int) -> list[Tensor]:
    """For every offset where it stays inside the map: bool, (1, 1, 1, W) or (1, 1, H, 1)."""
    line = values[:1, :1, :1] if axis == -1 else values[:1, :1, :, :1]
    return [one > 0 for one in _taps(torch.ones_like(line), window, axis)]


def _count(inside: list[Tensor], like: Tensor) -> Tensor:
    return sum((one.to(like.dtype) for one in inside[1:]), inside[0].to(like.dtype))
