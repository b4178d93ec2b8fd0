"""Registration of bce_dice's launches, and its gradient."""

from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels._common.registration import refuse_double_backward, register
from intrasense_fast.kernels.bce_dice import launch

_forward = register("bce_dice_forward", fake=launch.forward_fake)(launch.forward)
_backward = register("bce_dice_backward", fake=launch.backward_fake)(launch.backward)


def bce_dice_fused(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """bce_dice through the kernels; arguments are checked by the caller (api.py).

    Returns:
        (bce, dice): scalars. Gradients flow to `logits` only.
    """
    target = target.detach()
    if not torch.is_grad_enabled():
        return _forward(logits, target)[:2]
    return _BceDice.apply(logits, target)


class _BceDice(torch.autograd.Function):
    """Saves both inputs and two numbers a class."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        bce, dice, slope, ratio = _forward(logits, target)
        ctx.save_for_backward(logits, target, slope, ratio)
        return bce, dice

    @staticmethod
    def backward(ctx: Any, grad_bce: Tensor, grad_dice: Tensor) -> tuple[Tensor, None]:
        refuse_double_backward("bce_dice")
        return _backward(*ctx.saved_tensors, grad_bce, grad_dice), None
