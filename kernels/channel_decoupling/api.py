"""channel_decoupling: the contract, the checks and the choice of path."""

import math

from torch import Tensor

from intrasense_fast.kernels._common.validation import (
    check_dim,
    check_number,
    check_positive,
    check_shape,
    check_tensors,
    once_a_signature,
)
from intrasense_fast.kernels.channel_decoupling.eager import eager
from intrasense_fast.kernels.runtime import use_fused

SQUEEZES = ("input", "decoupled")


def channel_decoupling(
    features: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    *,
    ridge: float = 10.0,
    squeeze: str = "input",
    fused: bool | None = None,
    terms: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress what all channels share, re-weight the channels, and measure both (Eq. 8-12).

    F_dec = M F with M = lambda (F F^T + lambda I)^-1 and lambda = ridge tr(F F^T) / min(C, H W),
    per image; the output is sigmoid(MLP(s)) F_dec with s the mean of F over the positions. A zero
    map returns itself. A NaN or Inf anywhere in an image makes that image's three outputs NaN, and
    no other image's.

    Args:
        features: (B, C, H, W), float32, float16, bfloat16 or float64 (float64 is eager on a GPU);
            NCHW or channels_last.
        reduce_weight: (C_r, C), float; the MLP C -> C_r -> C with ReLU runs in float32 (float64 for
            float64 features).
        reduce_bias: (C_r,).
        expand_weight: (C, C_r).
        expand_bias: (C,).
        ridge: lambda in units of the mean energy of a direction; > 0.
        squeeze: what Eq. 10 averages: "input" (F) or "decoupled" (F_dec).
        fused: True = the Triton kernels or an error; False = the path without them; None = the
            kernels where they can run.
        terms: False = rank_gap and distance are not wanted: without the kernels, which have them
            at no cost, they are not computed and are 0.

    Returns:
        (reweighted, rank_gap, distance): (B, C, H, W) in the features' dtype and memory format, and
        twice (B,), float64 for float64 features and float32 otherwise: the terms of Eq. 9 before
        alpha and beta. rank_gap is negative where decoupling raises the rank. The rank of F in it
        carries no gradient. B = 0 gives empty outputs.

    Raises:
        ValueError: shapes or devices that do not agree, integer tensors, an empty map, ridge <= 0,
            or an unknown squeeze.
        TypeError: an argument that is no tensor, or a ridge that is no number.
        FusedUnavailableError: fused=True where the kernels cannot run.
    """
    _check(features, reduce_weight, reduce_bias, expand_weight, expand_bias, ridge, squeeze)
    if use_fused(fused, features, "channel_decoupling"):
        from intrasense_fast.kernels.channel_decoupling.autograd import channel_decoupling_fused

        return channel_decoupling_fused(
            features, reduce_weight, reduce_bias, expand_weight, expand_bias, float(ridge), squeeze
        )
    weights = (reduce_weight, reduce_bias, expand_weight, expand_bias)
    return eager(features, *weights, float(ridge), squeeze, terms)


@once_a_signature
def _check(
    features: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    ridge: float,
    squeeze: str,
) -> None:
    name = "channel_decoupling"
    weights = {
        "reduce_weight": reduce_weight,
        "reduce_bias": reduce_bias,
        "expand_weight": expand_weight,
        "expand_bias": expand_bias,
    }
    check_tensors(name, features=features, **weights)
    check_dim(name, "features", features, 4, "(B, C, H, W)")
    _, channels, height, width = features.shape
    check_positive(name, C=channels, H=height, W=width)
    check_dim(name, "reduce_weight", reduce_weight, 2, "(C_r, C)")
    reduced = reduce_weight.shape[0]
    check_positive(name, C_r=reduced)
    check_shape(name, "reduce_weight", reduce_weight, (reduced, channels), "(C_r, C)")
    check_shape(name, "reduce_bias", reduce_bias, (reduced,), "(C_r,)")
    check_shape(name, "expand_weight", expand_weight, (channels, reduced), "(C, C_r)")
    check_shape(name, "expand_bias", expand_bias, (channels,), "(C,)")
    check_number(name, ridge=ridge)
    if not 0 < ridge < math.inf:
        raise ValueError(f"{name}: ridge must be a finite number > 0, got {ridge}")
    if squeeze not in SQUEEZES:
        raise ValueError(f"{name}: squeeze must be one of {SQUEEZES}, got {squeeze!r}")
