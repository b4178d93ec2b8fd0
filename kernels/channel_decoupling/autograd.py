"""Registration of channel_decoupling's launchers, and its gradient."""

from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels._common.registration import refuse_double_backward, register
from intrasense_fast.kernels.channel_decoupling import triton_impl

_forward = register("channel_decoupling_forward", fake=triton_impl.forward_fake)(
    triton_impl.forward
)
_backward = register("channel_decoupling_backward", fake=triton_impl.backward_fake)(
    triton_impl.backward
)


def channel_decoupling_fused(
    features: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    ridge: float,
    squeeze: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """channel_decoupling through the kernels; arguments are checked by the caller (api.py).

    Returns:
        (reweighted (B, C, H, W), rank_gap (B,), distance (B,)).
    """
    arguments = (
        features,
        reduce_weight,
        reduce_bias,
        expand_weight,
        expand_bias,
        ridge,
        squeeze == "decoupled",
    )
    if not torch.is_grad_enabled():
        return _forward(*arguments)[:3]
    return _ChannelDecoupling.apply(*arguments)


class _ChannelDecoupling(torch.autograd.Function):
    """Saves the map, the MLP's weights, two R x R matrices and a few numbers a channel; neither F_dec nor the output."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        ridge: float,
        decoupled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        reweighted, rank_gap, distance, *saved = _forward(
            features, w1, b1, w2, b2, ridge, decoupled
        )
        ctx.save_for_backward(features, w1, b1, w2, b2, *saved)
        ctx.options = ridge, decoupled
        return reweighted, rank_gap, distance

    @staticmethod
    def backward(
        ctx: Any, grad_reweighted: Tensor, grad_gap: Tensor, grad_distance: Tensor
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward("channel_decoupling")
        needed = ctx.needs_input_grad
        grads = _backward(
            *ctx.saved_tensors,
            grad_reweighted,
            grad_gap,
            grad_distance,
            *ctx.options,
            needed[0],
            any(needed[1:5]),
        )
        return (
            *(grad if wanted else None for grad, wanted in zip(grads, needed, strict=False)),
            None,
            None,
        )
