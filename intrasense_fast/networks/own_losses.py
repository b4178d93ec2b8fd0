"""Losses that the compared networks' papers train with, where they differ from Eq. 14-15."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits

DICE_SMOOTH = 1e-5
_BOUNDARY_WINDOW = 31
_BOUNDARY_WEIGHT = 5


def half_bce_and_dice(logits: Tensor, target: Tensor) -> Tensor:
    """0.5 BCE + Dice, the loss of CMU-Net and Rolling-Unet (notes, sections 2 and 4).

    Args:
        logits: (B, K, H, W).
        target: (B, K, H, W), any dtype, values in [0, 1].

    Returns:
        Scalar: float64 for float64 logits, float32 otherwise.
    """
    logits, target = loss_precision(logits, target)
    return 0.5 * binary_cross_entropy_with_logits(logits, target) + dice_per_image(logits, target)


def dice_per_image(logits: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum(p y) + s) / (sum p + sum y + s), s = 1e-5: sums over an image, mean over images.

    Args:
        logits: (B, K, H, W), float.
        target: (B, K, H, W), of the same dtype.

    Returns:
        Scalar in [0, 1].
    """
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum((1, 2, 3))
    total = probability.sum((1, 2, 3)) + target.sum((1, 2, 3))
    return (1 - (2 * overlap + DICE_SMOOTH) / (total + DICE_SMOOTH)).mean()


def boundary_weighted_bce(logits: Tensor, target: Tensor) -> Tensor:
    """BCE with the weight 1 + 5 |m - average of m over 31 x 31|, m the target (notes, section 1).

    The average counts zeros beyond the border; each mask's weights are normalised by their sum.

    Args:
        logits: (B, K, H, W), float.
        target: (B, K, H, W), of the same dtype.

    Returns:
        Scalar.
    """
    average = avg_pool2d(target, _BOUNDARY_WINDOW, 1, _BOUNDARY_WINDOW // 2)
    weight = 1 + _BOUNDARY_WEIGHT * (average - target).abs()
    pixels = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return ((weight * pixels).sum((2, 3)) / weight.sum((2, 3))).mean()


def loss_precision(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype of the loss: float64 for float64 logits, float32 otherwise."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.to(dtype), target.to(dtype)
