"""The specification of bce_dice, Eq. 14-15: plain PyTorch, any float dtype, any device."""

import torch
from torch import Tensor


def bce_dice(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 14 and 15 as written.

    Args:
        logits: (B, K, H, W), float.
        target: (B, K, H, W), any dtype, values in [0, 1].

    Returns:
        (bce, dice): scalars, float64 for float64 logits and float32 otherwise.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    z, y = logits.to(dtype), target.to(dtype)
    if z.shape[0] == 0:
        return z.sum(), z.sum()

    # Eq. 14: -[y log p + (1 - y) log(1 - p)] with p = sigmoid(z) is
    # max(z, 0) - z y + log(1 + e^-|z|).
    bce = (z.clamp(min=0) - z * y + torch.log1p(torch.exp(-z.abs()))).mean()

    # Eq. 15: 1 - 2 sum(y p) / (sum y + sum p), sums over the whole batch, mean over the classes.
    p = torch.sigmoid(z)
    overlap = (y * p).sum((0, 2, 3))
    area = y.sum((0, 2, 3)) + p.sum((0, 2, 3))
    empty = area == 0
    ratio = overlap / torch.where(empty, torch.ones_like(area), area)
    dice = torch.where(empty, torch.zeros_like(area), 1 - 2 * ratio).mean()
    return bce, dice
