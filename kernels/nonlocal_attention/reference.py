"""The specification of nonlocal_attention, Eq. 2-3 and the statistics of Eq. 4.

Plain PyTorch, any float dtype, any device.
"""

import math

import torch
from torch import Tensor


def nonlocal_attention(
    query: Tensor, key: Tensor, value: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 2 and 3 as written, then the mean and the maximum over the channels that Eq. 4 needs.

    Args:
        query, key: (B, N, d). value, residual: (B, N, C). One float dtype.

    Returns:
        features (B, N, C) in the inputs' dtype; channel_mean, channel_max (B, N), float64 for
        float64 and float32 otherwise.
    """
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    q, k, v, x = (tensor.to(dtype) for tensor in (query, key, value, residual))

    # Eq. 2: A = softmax(Q K^T / sqrt(d)), one head, over all N positions.
    attention = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)

    # Eq. 3: F_nl = A V + x.
    features = attention @ v + x

    # Eq. 4 reads these before F_nl is rounded; max sends its gradient to the lowest channel that
    # attains it.
    return features.to(query.dtype), features.mean(-1), features.max(-1).values
