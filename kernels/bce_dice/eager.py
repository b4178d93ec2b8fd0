"""bce_dice without kernels: PyTorch's own stable cross-entropy, and the sums of Dice."""

import torch
from torch import Tensor
from torch.nn import functional

from intrasense_fast.kernels._common.precision import statistics_dtype


def eager(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Arguments and results as bce_dice's; everything is computed in the statistics' dtype."""
    dtype = statistics_dtype(logits.dtype)
    z, y = logits.to(dtype), target.detach().to(dtype)
    if z.numel() == 0:
        return z.sum(), z.sum()
    bce = functional.binary_cross_entropy_with_logits(z, y)
    p = torch.sigmoid(z)
    overlap = (y * p).sum((0, 2, 3))
    area = y.sum((0, 2, 3)) + p.sum((0, 2, 3))
    empty = area == 0
    ratio = overlap / area.masked_fill(empty, 1)
    return bce, (1 - 2 * ratio).masked_fill(empty, 0).mean()
