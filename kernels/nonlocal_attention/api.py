"""nonlocal_attention: the contract, the checks and the choice of path."""

from torch import Tensor

from intrasense_fast.kernels._common.validation import (
    check_dim,
    check_positive,
    check_same_dtype,
    check_shape,
    check_tensors,
    once_a_signature,
)
from intrasense_fast.kernels.nonlocal_attention.eager import eager
from intrasense_fast.kernels.runtime import use_fused


def nonlocal_attention(
    query: Tensor, key: Tensor, value: Tensor, residual: Tensor, *, fused: bool | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Single-head attention over all positions, plus a residual, with channel statistics (Eq. 2-4).

    features = softmax(query key^T / sqrt(d)) value + residual; channel_mean and channel_max are
    taken over the channels of `features` before it is rounded to the inputs' dtype, as Eq. 4 reads
    them. The maximum's gradient goes to the lowest channel that attains it.

    Args:
        query: (B, N, d), float32, float16, bfloat16 or float64 (float64 is eager on a GPU); strided
            views are fine.
        key: (B, N, d), as query.
        value: (B, N, C), as query; C may be much larger than d.
        residual: (B, N, C), as query.
        fused: True = the Triton kernels or an error; False = eager; None = the kernels where they
            can run. Eager products are in the inputs' dtype: a float16 score above 65504 is
            infinite there, in the kernels it is not.

    Returns:
        (features, channel_mean, channel_max): (B, N, C) in the inputs' dtype, and twice (B, N) in
        float64 for float64 inputs, float32 otherwise. Gradients flow through all three. B = 0
        gives empty outputs.

    Raises:
        ValueError: shapes, dtypes or devices that do not agree, integer tensors, or N, d or C of
            zero.
        FusedUnavailableError: fused=True where the kernels cannot run.
    """
    _check(query, key, value, residual)
    if use_fused(fused, query, "nonlocal_attention"):
        from intrasense_fast.kernels.nonlocal_attention.autograd import nonlocal_attention_fused

        return nonlocal_attention_fused(query, key, value, residual)
    return eager(query, key, value, residual)


@once_a_signature
def _check(query: Tensor, key: Tensor, value: Tensor, residual: Tensor) -> None:
    name = "nonlocal_attention"
    check_tensors(name, query=query, key=key, value=value, residual=residual)
    check_same_dtype(name, query=query, key=key, value=value, residual=residual)
    check_dim(name, "query", query, 3, "(B, N, d)")
    check_dim(name, "value", value, 3, "(B, N, C)")
    batch, positions, depth = query.shape
    channels = value.shape[-1]
    check_shape(name, "key", key, (batch, positions, depth), "(B, N, d), as query")
    check_shape(
        name, "value", value, (batch, positions, channels), "(B, N, C), with query's B and N"
    )
    check_shape(name, "residual", residual, (batch, positions, channels), "(B, N, C), as value")
    check_positive(name, N=positions, d=depth, C=channels)
