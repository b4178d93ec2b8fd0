"""Registration of nonlocal_attention's launchers, and its gradient."""

from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels._common.registration import refuse_double_backward, register
from intrasense_fast.kernels.nonlocal_attention import triton_impl

_forward = register("nonlocal_attention_forward", fake=triton_impl.forward_fake)(
    triton_impl.forward
)
_backward = register("nonlocal_attention_backward", fake=triton_impl.backward_fake)(
    triton_impl.backward
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
    return _NonlocalAttention.apply(
        query, key, value, residual, query.requires_grad or key.requires_grad
    )


class _NonlocalAttention(torch.autograd.Function):
    """Saves query, key, value, A V, the log-sum-exp and the index of the maximum; neither residual nor output."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, residual: Tensor, save: bool
    ) -> tuple[Tensor, ...]:
        features, mean, top, argmax, lse, attended = _forward(query, key, value, residual, save)
        ctx.save_for_backward(query, key, value, attended, lse, argmax)
        return features, mean, top

    @staticmethod
    def backward(
        ctx: Any, grad_features: Tensor, grad_mean: Tensor, grad_max: Tensor
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward("nonlocal_attention")
        scores, values = ctx.needs_input_grad[0] or ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        grads = _backward(*ctx.saved_tensors, grad_features, grad_mean, grad_max, scores, values)
        return *(
            grad if needed else None
            for grad, needed in zip(grads, ctx.needs_input_grad, strict=False)
        ), None
