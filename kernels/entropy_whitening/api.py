"""entropy_whitening: the contract, the checks and the choice of path."""

import math

import torch
from torch import Tensor

from intrasense_fast.kernels._common.layout import without_autocast
from intrasense_fast.kernels._common.precision import statistics_dtype
from intrasense_fast.kernels._common.validation import (
    check_dim,
    check_number,
    check_positive,
    check_shape,
    check_tensors,
    once_a_signature,
    shape_of,
)
from intrasense_fast.kernels.entropy_whitening.eager import eager, gated, scaled_entropy
from intrasense_fast.kernels.runtime import use_fused

ENTROPY_SCALES = ("score", "relative", "max", "nats")


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
    fused: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Gate the map by its channel statistics, then whiten it where its entropy is low (Eq. 4-7).

    gate = sigmoid(conv([channel_mean, channel_max])); attended = gate * features;
    mask = Ent_s(attended) < threshold, strictly, and without gradient;
    whitened = (attended - mean) / sqrt(variance + eps) where mask, else attended; mean and biased
    variance over the part of the window that lies inside the image, per channel.

    Args:
        features: (B, C, H, W), float32, float16, bfloat16 or float64 (float64 is eager on a GPU);
            NCHW or channels_last.
        channel_mean: (B, H, W), float: what nonlocal_attention returns, or features.mean(1).
        channel_max: (B, H, W), float.
        gate_weight: (1, 2, k, k), k odd; zero padding.
        gate_bias: (1,).
        threshold: tau of Eq. 6, >= 0 and finite.
        entropy_scale: what is compared with tau. "score" = sigmoid((Ent - mean) / sd) over the
            image's positions; "relative" = (Ent - min) / (max - min); "max" = Ent / log C;
            "nats" = Ent itself, the paper's letter.
        window: side of the whitening window in positions, odd; may exceed the map.
        eps: added to the variance, > 0.
        normalize: False = the gate alone: the entropy is not computed and the mask is all False.
        fused: True = the Triton kernels or an error; False = eager; None = the kernels where they
            can run.

    Returns:
        (whitened, mask): (B, C, H, W) in the features' dtype and memory format, and (B, H, W) bool.
        Gradients reach the features, the statistics, the gate's weight and its bias. B = 0 gives
        empty outputs.

    Raises:
        ValueError: shapes or devices that do not agree, integer tensors, an empty map, an even or
            non-positive window or gate, a negative or non-finite threshold, eps <= 0, or an unknown
            scale.
        TypeError: an argument that is no tensor, or an option that is no number.
        FusedUnavailableError: fused=True where the kernels cannot run.
    """
    inputs = (features, channel_mean, channel_max, gate_weight, gate_bias)
    _check_call(*inputs, entropy_scale, threshold, window, eps)
    options = (float(threshold), entropy_scale, window, float(eps), bool(normalize))
    if use_fused(fused, features, "entropy_whitening"):
        from intrasense_fast.kernels.entropy_whitening.autograd import entropy_whitening_fused

        return entropy_whitening_fused(*inputs, *options)
    return eager(*inputs, *options)


@torch.no_grad()
def entropy_map(
    features: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    *,
    entropy_scale: str = "score",
) -> Tensor:
    """Ent_s of Eq. 6, for pictures: what entropy_whitening compares with its threshold.

    Args:
        features, channel_mean, channel_max, gate_weight, gate_bias, entropy_scale: as there.

    Returns:
        (B, H, W), float64 for float64 features and float32 otherwise; NaN where the scale leaves
        the mask empty.
    """
    _check(
        "entropy_map", features, channel_mean, channel_max, gate_weight, gate_bias, entropy_scale
    )
    with without_autocast(features):
        attended = gated(
            features,
            channel_mean,
            channel_max,
            gate_weight,
            gate_bias,
            statistics_dtype(features.dtype),
        )
        return scaled_entropy(attended, entropy_scale)


@once_a_signature
def _check_call(
    features: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    entropy_scale: str,
    threshold: float,
    window: int,
    eps: float,
) -> None:
    name = "entropy_whitening"
    inputs = (features, channel_mean, channel_max, gate_weight, gate_bias)
    _check(name, *inputs, entropy_scale)
    if isinstance(window, bool) or not isinstance(window, int) or window < 1 or window % 2 == 0:
        raise ValueError(
            f"{name}: window must be an odd integer >= 1, got {window!r}; "
            "the nearest are 3, 5 and 7"
        )
    check_number(name, threshold=threshold, eps=eps)
    if not 0 <= threshold < math.inf:
        raise ValueError(f"{name}: threshold must be finite and >= 0, got {threshold}")
    if not 0 < eps < math.inf:
        raise ValueError(f"{name}: eps must be finite and > 0, got {eps}")


def _check(
    name: str,
    features: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    entropy_scale: str,
) -> None:
    check_tensors(
        name,
        features=features,
        channel_mean=channel_mean,
        channel_max=channel_max,
        gate_weight=gate_weight,
        gate_bias=gate_bias,
    )
    check_dim(name, "features", features, 4, "(B, C, H, W)")
    batch, channels, height, width = features.shape
    check_positive(name, C=channels, H=height, W=width)
    check_shape(
        name, "channel_mean", channel_mean, (batch, height, width), "(B, H, W), as features"
    )
    check_shape(name, "channel_max", channel_max, (batch, height, width), "(B, H, W), as features")
    side = gate_weight.shape[-1] if gate_weight.dim() else 0
    if tuple(gate_weight.shape) != (1, 2, side, side) or side % 2 == 0:
        raise ValueError(
            f"{name}: gate_weight must have shape (1, 2, k, k) with k odd, "
            f"got {shape_of(gate_weight)}"
        )
    check_shape(name, "gate_bias", gate_bias, (1,), "(1,)")
    if entropy_scale not in ENTROPY_SCALES:
        raise ValueError(
            f"{name}: entropy_scale must be one of {ENTROPY_SCALES}, got {entropy_scale!r}"
        )
