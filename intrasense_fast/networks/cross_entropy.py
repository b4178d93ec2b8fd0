"""Binary cross-entropy for the networks' own losses, in float32 at least."""

import torch
from torch import Tensor
from torch.nn import functional as F


def pixel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-[y log p + (1 - y) log(1 - p)] with p = sigmoid(logits), for every pixel and class.

    Args:
        logits: (B, K, H, W), floating point.
        target: of the same shape, any dtype, values in [0, 1].

    Returns:
        (B, K, H, W), float64 for float64 logits and float32 otherwise.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.binary_cross_entropy_with_logits(logits.to(dtype), target.to(dtype), reduction="none")
