"""Registration of channel_decoupling's launches, and its gradient.

torch.library's operators take and return flat tensors: named tuples end at this boundary.
"""

from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels._common.registration import refuse_double_backward, register
from intrasense_fast.kernels.channel_decoupling import launch
from intrasense_fast.kernels.channel_decoupling.launch import Mlp, Outputs, Saved


def _forward_fake(features: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *mlp, ridge, decoupled = rest
    outputs, saved = launch.forward_fake(features, Mlp(*mlp), ridge, decoupled)
    return *outputs, *saved


@register("channel_decoupling_forward", fake=_forward_fake)
def _forward(
    features: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    ridge: float,
    decoupled: bool,
) -> tuple[
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
]:
    """The fields of Outputs, then those of Saved."""
    mlp = Mlp(reduce_weight, reduce_bias, expand_weight, expand_bias)
    outputs, saved = launch.forward(features, mlp, ridge, decoupled)
    return *outputs, *saved


def _backward_arguments(features: Tensor, *rest: Any) -> tuple[Any, ...]:
    """Flat tensors and options as launch.backward takes them."""
    mlp, saved, grads, options = rest[:4], rest[4:-7], rest[-7:-4], rest[-4:]
    return features, Mlp(*mlp), Saved(*saved), Outputs(*grads), *options


def _backward_fake(*flat: Any) -> tuple[Tensor, ...]:
    grad_features, grad_mlp = launch.backward_fake(*_backward_arguments(*flat))
    return grad_features, *grad_mlp


@register("channel_decoupling_backward", fake=_backward_fake)
def _backward(
    features: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    matrix: Tensor,
    decoupled_gram: Tensor,
    trace: Tensor,
    slope: Tensor,
    squeezed: Tensor,
    hidden: Tensor,
    weight: Tensor,
    mean: Tensor,
    row_mean: Tensor,
    grad_reweighted: Tensor,
    grad_gap: Tensor,
    grad_distance: Tensor,
    ridge: float,
    decoupled: bool,
    to_map: bool,
    to_mlp: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the first five; those not wanted are empty."""
    grad_features, grad_mlp = launch.backward(
        features,
        Mlp(reduce_weight, reduce_bias, expand_weight, expand_bias),
        Saved(matrix, decoupled_gram, trace, slope, squeezed, hidden, weight, mean, row_mean),
        Outputs(grad_reweighted, grad_gap, grad_distance),
        ridge,
        decoupled,
        to_map,
        to_mlp,
    )
    return grad_features, *grad_mlp


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
    mlp = Mlp(reduce_weight, reduce_bias, expand_weight, expand_bias)
    decoupled = squeeze == "decoupled"
    if not torch.is_grad_enabled():
        return _forward(features, *mlp, ridge, decoupled)[:3]
    return _ChannelDecoupling.apply(features, *mlp, ridge, decoupled)


class _ChannelDecoupling(torch.autograd.Function):
    """Saves the map, the MLP's weights and `Saved`; neither F_dec nor the output."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, ridge, decoupled = arguments
        reweighted, rank_gap, distance, *saved = _forward(*arguments)
        ctx.save_for_backward(*tensors, *saved)
        ctx.options = ridge, decoupled
        return reweighted, rank_gap, distance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("channel_decoupling")
        needed = ctx.needs_input_grad[:5]
        to_map, to_mlp = needed[0], any(needed[1:])
        results = _backward(*ctx.saved_tensors, *grads, *ctx.options, to_map, to_mlp)
        wanted = (
            grad if is_wanted else None for grad, is_wanted in zip(results, needed, strict=True)
        )
        return *wanted, None, None
