"""The specification of entropy_whitening, Eq. 4-7: plain PyTorch, any float dtype, any device."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def entropy_whitening(
    features: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    *,
    threshold: float = 0.5,
    entropy_scale: str = "score",
    window: int = 7,
    eps: float = 1e-3,
    normalize: bool = True,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Eq. 4 to 7 as written.

    Args:
        features: (B, C, H, W). channel_mean, channel_max: (B, H, W).
        gate_weight: (1, 2, k, k). gate_bias: (1,).
        threshold, entropy_scale, window, eps, normalize: as in entropy_whitening.
        mask: forces Eq. 6's mask (B, H, W) bool, so that a comparison does not hang on a tie.

    Returns:
        whitened (B, C, H, W) in the features' dtype; mask (B, H, W) bool.
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    f = features.to(dtype)

    # Eq. 4: a = sigmoid(conv([mean_c, max_c])), zero padding. Eq. 5: F_att = a * F_nl.
    statistics = torch.stack([channel_mean, channel_max], 1).to(dtype)
    gate = torch.sigmoid(
        functional.conv2d(
            statistics,
            gate_weight.to(dtype),
            gate_bias.to(dtype),
            padding=gate_weight.shape[-1] // 2,
        )
    )
    attended = gate * f
    if not normalize:
        return attended.to(features.dtype), torch.zeros_like(channel_mean, dtype=torch.bool)

    # Eq. 6: the mask carries no gradient.
    if mask is None:
        mask = scaled_entropy(attended.detach(), entropy_scale) < threshold

    # Eq. 7: mean and biased variance over the positions of the window that lie inside the image.
    batch, _, height, width = f.shape
    taps = window * window
    unfold = lambda x: functional.unfold(x, window, padding=window // 2).reshape(
        batch, x.shape[1], taps, height, width
    )
    inside = unfold(torch.ones_like(f[:, :1]))
    values = unfold(attended)
    count = inside.sum(2)
    mu = values.sum(2) / count
    variance = (torch.where(inside > 0, values - mu[:, :, None], 0) ** 2).sum(2) / count
    whitened = torch.where(mask[:, None], (attended - mu) / torch.sqrt(variance + eps), attended)
    return whitened.to(features.dtype), mask


def scaled_entropy(attended: Tensor, entropy_scale: str) -> Tensor:
    """Ent_s of Eq. 6 from F_att (B, C, H, W): (B, H, W); NaN where the mask must be empty."""
    z = attended - attended.amax(1, keepdim=True)
    p = torch.softmax(z, 1)
    entropy = torch.exp(z).sum(1).log() - (p * z).sum(1)
    if entropy_scale == "nats":
        return entropy
    if entropy_scale == "max":
        channels = attended.shape[1]
        return entropy / math.log(channels) if channels > 1 else torch.full_like(entropy, torch.nan)
    if entropy_scale == "relative":
        low, high = entropy.amin((1, 2), keepdim=True), entropy.amax((1, 2), keepdim=True)
        return torch.where(high - low > 1e-3, (entropy - low) / (high - low), torch.nan)
    if entropy_scale == "score":
        mean = entropy.mean((1, 2), keepdim=True)
        deviation = (entropy - mean).square().mean((1, 2), keepdim=True).sqrt()
        return torch.where(deviation > 1e-4, torch.sigmoid((entropy - mean) / deviation), torch.nan)
    raise ValueError(f"unknown entropy_scale {entropy_scale!r}")
