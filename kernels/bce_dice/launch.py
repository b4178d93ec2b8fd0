"""What bce_dice starts, in which order: tensors in, tensors out. Runs on meta tensors too."""

from typing import Any

import torch
from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels._common.precision import compute_dtype, statistics_dtype
from intrasense_fast.kernels.bce_dice import configs
from intrasense_fast.kernels.bce_dice.kernels.gradient import bce_dice_gradient
from intrasense_fast.kernels.bce_dice.kernels.losses import bce_dice_finish, bce_dice_partial


def forward(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eq. 14-15 in one sweep over the maps and one small launch.

    Args:
        logits: (B, K, H, W), float, any strides.
        target: (B, K, H, W), bool, integer or float, any strides.

    Returns:
        bce, dice: scalars; slope, ratio (K,): the classes' part of the gradient. All 0 for empty
        input.
    """
    bce, dice, slope, ratio = forward_fake(logits, target)
    if logits.numel() == 0:
        return bce.zero_(), dice.zero_(), slope.zero_(), ratio.zero_()
    batch, classes, height, width = logits.shape
    plane = height * width
    target = _as_numbers(target)
    flat = _is_flat(logits) and _is_flat(target)

    tile = _sweep_tile(logits)
    chunks = cdiv(classes, tile["BLOCK_K"])
    steps = configs.sweep_steps(plane, tile["BLOCK_P"], batch * chunks)
    blocks = cdiv(plane, tile["BLOCK_P"] * steps)
    parts = batch * blocks
    sums = logits.new_empty(4, classes, parts, dtype=bce.dtype)
    strides = (*_strides(logits, flat), *_strides(target, flat))
    sizes = (classes, width, plane, blocks, chunks, parts, steps)
    launch(
        bce_dice_partial,
        (blocks * chunks * batch,),
        *(logits, target, sums),
        *strides,
        *sizes,
        FLAT=flat,
        COMPUTE=compute_dtype(logits.dtype),
        **tile,
        **configs.OPTIONS,
    )
    launch(
        bce_dice_finish,
        (1,),
        *(sums, bce, dice, slope, ratio),
        *(classes, parts, logits.numel()),
        **configs.finish_tile(classes),
        **configs.OPTIONS,
    )
    return bce, dice, slope, ratio


def forward_fake(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `forward` returns, unfilled."""
    dtype = statistics_dtype(logits.dtype)
    bce, dice = (logits.new_empty((), dtype=dtype) for _ in range(2))
    slope, ratio = (logits.new_empty(logits.shape[1], dtype=dtype) for _ in range(2))
    return bce, dice, slope, ratio


def backward(
    logits: Tensor,
    target: Tensor,
    slope: Tensor,
    ratio: Tensor,
    grad_bce: Tensor,
    grad_dice: Tensor,
) -> Tensor:
    """The gradient of the logits, in their memory format, in one sweep.

    Args:
        logits, target: as in `forward`.
        slope, ratio: (K,), from `forward`.
        grad_bce, grad_dice: scalars on the device.
    """
    grad_logits = torch.empty_like(logits)
    batch, classes, height, width = logits.shape
    plane = height * width
    target = _as_numbers(target)
    flat = _is_flat(logits) and _is_flat(target) and _is_flat(grad_logits)

    tile = _sweep_tile(logits)
    chunks = cdiv(classes, tile["BLOCK_K"])
    blocks = cdiv(plane, tile["BLOCK_P"])
    strides = (
        *_strides(logits, flat),
        *_strides(target, flat),
        *_strides(grad_logits, flat),
    )
    sizes = (classes, width, plane, blocks, chunks, logits.numel())
    launch(
        bce_dice_gradient,
        (blocks * chunks * batch,),
        *(logits, target, slope, ratio),
        *(grad_bce, grad_dice, grad_logits),
        *strides,
        *sizes,
        FLAT=flat,
        COMPUTE=compute_dtype(logits.dtype),
        **tile,
        **configs.OPTIONS,
    )
    return grad_logits


def backward_fake(
    logits: Tensor,
    target: Tensor,
    slope: Tensor,
    ratio: Tensor,
    grad_bce: Tensor,
    grad_dice: Tensor,
) -> Tensor:
    """What `backward` returns, unfilled."""
    return torch.empty_like(logits)


def _is_flat(maps: Tensor) -> bool:
    """Whether one stride walks the positions of a plane."""
    _, _, height, width = maps.shape
    return height == 1 or width == 1 or maps.stride(2) == width * maps.stride(3)


def _strides(maps: Tensor, flat: bool) -> tuple[int, int, int, int]:
    """Strides of image, class, row and column; flat: of the position in the column's place."""
    batch, klass, row, column = maps.stride()
    if not flat:
        return batch, klass, row, column
    position = row if maps.shape[3] == 1 else column
    return batch, klass, 0, position


def _sweep_tile(logits: Tensor) -> dict[str, Any]:
    return configs.sweep_tile(logits.shape[1], neighbours=logits.stride(1) == 1)


def _as_numbers(target: Tensor) -> Tensor:
    """A mask as bytes: Triton has no pointer to booleans that it would convert."""
    return target.view(torch.uint8) if target.dtype == torch.bool else target
