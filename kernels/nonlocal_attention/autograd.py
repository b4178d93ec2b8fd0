"""Registration of nonlocal_attention's launches as torch operators, and its gradient."""

from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels._common.registration import refuse_double_backward, register
from intrasense_fast.kernels.nonlocal_attention import launch
from intrasense_fast.kernels.nonlocal_attention.launch import Forward, Saved


def _backward_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    lse: Tensor,
    channel_argmax: Tensor,
    grad_features: Tensor,
    grad_channel_mean: Tensor,
    grad_channel_max: Tensor,
    scores: bool,
    values: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    saved = Saved(query, key, value, attended, lse, channel_argmax)
    return launch.backward_fake(saved, scores, values)


@register("nonlocal_attention_forward", fake=launch.forward_fake)
def _forward(
    query: Tensor, key: Tensor, value: Tensor, residual: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return launch.forward(query, key, value, residual, save)


@register("nonlocal_attention_backward", fake=_backward_fake)
def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    lse: Tensor,
    channel_argmax: Tensor,
    grad_features: Tensor,
    grad_channel_mean: Tensor,
    grad_channel_max: Tensor,
    scores: bool,
    values: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    saved = Saved(query, key, value, attended, lse, channel_argmax)
    return launch.backward(
        saved, grad_features, grad_channel_mean, grad_channel_max, scores, values
    )


def nonlocal_attention_fused(
    query: Tensor, key: Tensor, value: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """nonlocal_attention through the kernels; arguments are checked by the caller (api.py).

    Returns:
        (features (B, N, C), channel_mean (B, N), channel_max (B, N)).
    """
    if not torch.is_grad_enabled():
        return _forward(query, key, value, residual, False)[:3]
    # A V is one more feature map: only the gradients of query and key read it.
    save = query.requires_grad or key.requires_grad
    return _NonlocalAttention.apply(query, key, value, residual, save)


class _NonlocalAttention(torch.autograd.Function):
    """Saves what Saved names: neither residual nor output."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, residual: Tensor, save: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        result = Forward(*_forward(query, key, value, residual, save))
        saved = Saved(query, key, value, result.attended, result.lse, result.channel_argmax)
        ctx.save_for_backward(*saved)
        return result.features, result.channel_mean, result.channel_max

    @staticmethod
    def backward(
        ctx: Any, grad_features: Tensor, grad_channel_mean: Tensor, grad_channel_max: Tensor
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward("nonlocal_attention")
        query, key, value, residual, _ = ctx.needs_input_grad
        gradients = _backward(
            *ctx.saved_tensors,
            grad_features,
            grad_channel_mean,
            grad_channel_max,
            query or key,
            value,
        )
        needed = (query, key, value, residual)
        wanted = (grad if need else None for grad, need in zip(gradients, needed, strict=True))
        return *wanted, None
