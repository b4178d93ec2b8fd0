"""Registration of entropy_whitening's launches as torch operators, and its gradient."""

from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels._common.registration import refuse_double_backward, register
from intrasense_fast.kernels.entropy_whitening import launch
from intrasense_fast.kernels.entropy_whitening.launch import Forward, Saved


@register("entropy_whitening_forward", fake=launch.forward_fake)
def _forward(
    features: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    threshold: float,
    entropy_scale: str,
    window: int,
    eps: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (features, channel_mean, channel_max, gate_weight, gate_bias)
    return launch.forward(*inputs, threshold, entropy_scale, window, eps, normalize)


def _backward_fake(
    features: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    mask: Tensor,
    gate: Tensor,
    grad_whitened: Tensor,
    window: int,
    eps: float,
    normalize: bool,
    through_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    saved = Saved(features, channel_mean, channel_max, gate_weight, gate_bias, mask, gate)
    return launch.backward_fake(saved)


@register("entropy_whitening_backward", fake=_backward_fake)
def _backward(
    features: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    mask: Tensor,
    gate: Tensor,
    grad_whitened: Tensor,
    window: int,
    eps: float,
    normalize: bool,
    through_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    saved = Saved(features, channel_mean, channel_max, gate_weight, gate_bias, mask, gate)
    return launch.backward(saved, grad_whitened, window, eps, normalize, through_gate)


def entropy_whitening_fused(
    features: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    threshold: float,
    entropy_scale: str,
    window: int,
    eps: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """entropy_whitening through the kernels; arguments are checked by the caller (api.py).

    Returns:
        (whitened (B, C, H, W), mask (B, H, W) bool). The mask takes no gradient.
    """
    inputs = (features, channel_mean, channel_max, gate_weight, gate_bias)
    options = (threshold, entropy_scale, window, eps, normalize)
    if not torch.is_grad_enabled():
        return _forward(*inputs, *options)[:2]
    return _EntropyWhitening.apply(*inputs, *options)


class _EntropyWhitening(torch.autograd.Function):
    """Saves what Saved names: its inputs, the mask and the gate."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        channel_mean: Tensor,
        channel_max: Tensor,
        gate_weight: Tensor,
        gate_bias: Tensor,
        threshold: float,
        entropy_scale: str,
        window: int,
        eps: float,
        normalize: bool,
    ) -> tuple[Tensor, Tensor]:
        inputs = (features, channel_mean, channel_max, gate_weight, gate_bias)
        options = (threshold, entropy_scale, window, eps, normalize)
        result = Forward(*_forward(*inputs, *options))
        ctx.save_for_backward(*Saved(*inputs, result.mask, result.gate))
        ctx.mark_non_differentiable(result.mask)
        ctx.options = (window, eps, normalize)
        return result.whitened, result.mask

    @staticmethod
    def backward(ctx: Any, grad_whitened: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward("entropy_whitening", "differentiate its reference.py")
        needed = ctx.needs_input_grad[:5]
        through_gate = any(needed[1:])
        gradients = _backward(*ctx.saved_tensors, grad_whitened, *ctx.options, through_gate)
        wanted = (grad if need else None for grad, need in zip(gradients, needed, strict=True))
        options = (None,) * 5
        return *wanted, *options
