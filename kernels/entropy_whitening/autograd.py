"""Registration of entropy_whitening's launchers, and its gradient."""

from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels._common.registration import refuse_double_backward, register
from intrasense_fast.kernels.entropy_whitening import triton_impl

_forward = register("entropy_whitening_forward", fake=triton_impl.forward_fake)(triton_impl.forward)
_backward = register("entropy_whitening_backward", fake=triton_impl.backward_fake)(
    triton_impl.backward
)


def entropy_whitening_fused(
    features: Tensor,
    mean: Tensor,
    top: Tensor,
    weight: Tensor,
    bias: Tensor,
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
    arguments = (
        features,
        mean,
        top,
        weight,
        bias,
        threshold,
        entropy_scale,
        window,
        eps,
        normalize,
    )
    if not torch.is_grad_enabled():
        return _forward(*arguments)[:2]
    return _EntropyWhitening.apply(*arguments)


class _EntropyWhitening(torch.autograd.Function):
    """Saves its inputs and two maps of one value a position: the mask and the gate."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        mean: Tensor,
        top: Tensor,
        weight: Tensor,
        bias: Tensor,
        threshold: float,
        entropy_scale: str,
        window: int,
        eps: float,
        normalize: bool,
    ) -> tuple[Tensor, Tensor]:
        whitened, mask, gate = _forward(
            features, mean, top, weight, bias, threshold, entropy_scale, window, eps, normalize
        )  # fmt: skip
        ctx.save_for_backward(features, mean, top, weight, bias, mask, gate)
        ctx.mark_non_differentiable(mask)
        ctx.options = window, eps, normalize
        return whitened, mask

    @staticmethod
    def backward(ctx: Any, grad_whitened: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward("entropy_whitening", "differentiate its reference.py")
        needed = ctx.needs_input_grad[:5]
        grads = _backward(*ctx.saved_tensors, grad_whitened, *ctx.options, any(needed[1:]))
        return *(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True)), *(
            None,
        ) * 5
