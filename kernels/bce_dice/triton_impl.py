"""Kernels and launchers of bce_dice. Launchers take tensors, return tensors, and also run on meta tensors."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import cdiv, next_power_of_2

from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels._common.precision import compute_dtype, statistics_dtype

# Elements a program holds at once: eight 16-bit ones a thread are one 128-bit load.
TILE = 1024
# Programs of the forward sweep, and so partial sums of the finishing launch, unless there are more planes than that.
PROGRAMS = 1024


@triton.jit
def offsets(at, row, column, W, FLAT: tl.constexpr):
    """Element offsets of the positions `at` of a plane of width W: one stride if FLAT, else one a row and one a column."""
    if FLAT:
        return at.to(tl.int64) * column
    return (at // W).to(tl.int64) * row + (at % W).to(tl.int64) * column


@triton.jit
def probability(z):
    """sigmoid(z) and e^-|z|, neither of which overflows."""
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1.0 + e), e


@triton.jit
def bce_dice_partial(
    Z, Y, PART, z_batch, z_class, z_row, z_column, y_batch, y_class, y_row, y_column,
    K, W, plane, blocks, chunks, parts, steps,
    FLAT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Sums of the cross-entropy, y p, y and p over a share of one image's positions, for each class (Eq. 14-15).

    Pointers: Z, Y (B, K, H, W), any strides; PART (4, K, parts), parts = B * blocks. Grid: (blocks * chunks * B,); a program
    owns steps * BLOCK_P positions and BLOCK_K classes.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    chunk = (pid // blocks) % chunks
    image = (pid // (blocks * chunks)).to(tl.int64)
    k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    at = block * (steps * BLOCK_P) + tl.arange(0, BLOCK_P)
    z_base = Z + image * z_batch + k.to(tl.int64)[None, :] * z_class
    y_base = Y + image * y_batch + k.to(tl.int64)[None, :] * y_class
    loss = tl.zeros([BLOCK_P, BLOCK_K], COMPUTE)
    overlap = tl.zeros([BLOCK_P, BLOCK_K], COMPUTE)
    truth = tl.zeros([BLOCK_P, BLOCK_K], COMPUTE)
    guess = tl.zeros([BLOCK_P, BLOCK_K], COMPUTE)
    for _ in range(0, steps):
        inside = (at < plane)[:, None] & (k < K)[None, :]
        z = tl.load(
            z_base + offsets(at, z_row, z_column, W, FLAT)[:, None], mask=inside, other=0.0
        ).to(COMPUTE)
        y = tl.load(
            y_base + offsets(at, y_row, y_column, W, FLAT)[:, None], mask=inside, other=0
        ).to(COMPUTE)
        p, e = probability(z)
        # log(1 + e) is 0 for e < 6e-8: a confident and correct map would lose its loss.
        u = 1.0 + e
        log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
        # A NaN that the comparison drops comes back with z y.
        loss += tl.where(inside, tl.where(z > 0, z, 0.0) - z * y + log1p, 0.0)
        overlap += y * p
        truth += y
        guess += tl.where(inside, p, 0.0)
        at += BLOCK_P
    out = PART + k * parts + image * blocks + block
    quantity = K * parts
    tl.store(out, tl.sum(loss, 0), mask=k < K)
    tl.store(out + quantity, tl.sum(overlap, 0), mask=k < K)
    tl.store(out + 2 * quantity, tl.sum(truth, 0), mask=k < K)
    tl.store(out + 3 * quantity, tl.sum(guess, 0), mask=k < K)


@triton.jit
def bce_dice_finish(
    PART, BCE, DICE, SLOPE, RATIO, K, parts, count, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr
):
    """Both losses from the partial sums, and what the backward needs of a class: SLOPE = 2 / (K S) and RATIO = I / S with
    I = sum(y p) and S = sum y + sum p, both 0 where S is 0.

    Pointers: PART (4, K, parts); BCE, DICE (1,); SLOPE, RATIO (K,). Grid: (1,): one program, always the same order. It is
    small enough for float64, so that the losses are rounded once.
    """
    total = tl.zeros([BLOCK_K], tl.float64)
    dice = tl.zeros([BLOCK_K], tl.float64)
    quantity = K * parts
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        overlap = tl.zeros([BLOCK_K, BLOCK_R], tl.float64)
        area = tl.zeros([BLOCK_K, BLOCK_R], tl.float64)
        loss = tl.zeros([BLOCK_K, BLOCK_R], tl.float64)
        for start in range(0, parts, BLOCK_R):
            r = start + tl.arange(0, BLOCK_R)
            inside = (k < K)[:, None] & (r < parts)[None, :]
            at = PART + (k[:, None] * parts + r[None, :])
            loss += tl.load(at, mask=inside, other=0.0).to(tl.float64)
            overlap += tl.load(at + quantity, mask=inside, other=0.0).to(tl.float64)
            area += tl.load(at + 2 * quantity, mask=inside, other=0.0).to(tl.float64)
            area += tl.load(at + 3 * quantity, mask=inside, other=0.0).to(tl.float64)
        both = tl.sum(area, 1)
        # The division itself is guarded: an empty class has dice 0 and no gradient.
        divisor = tl.where(both == 0, 1.0, both)
        ratio = tl.sum(overlap, 1) / divisor
        empty = (both == 0) | (k >= K)
        total += tl.sum(loss, 1)
        dice += tl.where(empty, 0.0, 1.0 - 2.0 * ratio)
        tl.store(
            SLOPE + k,
            (tl.where(empty, 0.0, 2.0 / divisor) / K).to(SLOPE.dtype.element_ty),
            mask=k < K,
        )
        tl.store(RATIO + k, ratio.to(RATIO.dtype.element_ty), mask=k < K)
    tl.store(BCE, (tl.sum(total, 0) / count).to(BCE.dtype.element_ty))
    tl.store(DICE, (tl.sum(dice, 0) / K).to(DICE.dtype.element_ty))


@triton.jit
def bce_dice_gradient(
    Z, Y, SLOPE, RATIO, GBCE, GDICE, DZ,
    z_batch, z_class, z_row, z_column, y_batch, y_class, y_row, y_column, d_batch, d_class, d_row, d_column,
    K, W, plane, blocks, chunks, count,
    FLAT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """DZ = GBCE (p - y) / count + GDICE SLOPE (RATIO - y) p (1 - p).

    Pointers: Z, Y, DZ (B, K, H, W), any strides; SLOPE, RATIO (K,); GBCE, GDICE (1,), on the device. Grid:
    (blocks * chunks * B,); a program owns BLOCK_P positions and BLOCK_K classes of one image.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    chunk = (pid // blocks) % chunks
    image = (pid // (blocks * chunks)).to(tl.int64)
    k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    klass = k.to(tl.int64)[None, :]
    at = block * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (at < plane)[:, None] & (k < K)[None, :]
    z_at = Z + image * z_batch + klass * z_class + offsets(at, z_row, z_column, W, FLAT)[:, None]
    y_at = Y + image * y_batch + klass * y_class + offsets(at, y_row, y_column, W, FLAT)[:, None]
    d_at = DZ + image * d_batch + klass * d_class + offsets(at, d_row, d_column, W, FLAT)[:, None]
    z = tl.load(z_at, mask=inside, other=0.0).to(COMPUTE)
    y = tl.load(y_at, mask=inside, other=0).to(COMPUTE)
    p, e = probability(z)
    per_pixel = tl.load(GBCE).to(COMPUTE) / count
    slope = tl.load(GDICE).to(COMPUTE) * tl.load(SLOPE + k, mask=k < K, other=0.0)
    ratio = tl.load(RATIO + k, mask=k < K, other=0.0)
    spread = e / ((1.0 + e) * (1.0 + e))
    dz = per_pixel * (p - y) + slope[None, :] * (ratio[None, :] - y) * spread
    tl.store(d_at, dz.to(DZ.dtype.element_ty), mask=inside)


def _flat(tensor: Tensor) -> bool:
    """Whether one stride walks the positions of a plane."""
    _, _, height, width = tensor.shape
    return height == 1 or width == 1 or tensor.stride(2) == width * tensor.stride(3)


def _strides(tensor: Tensor, flat: bool) -> tuple[int, int, int, int]:
    batch, klass, row, column = tensor.stride()
    return (
        (batch, klass, 0, row if tensor.shape[3] == 1 else column)
        if flat
        else (batch, klass, row, column)
    )


def _tile(logits: Tensor) -> tuple[int, int]:
    """(BLOCK_P, BLOCK_K): a program takes the classes together where they are neighbours in memory."""
    classes = logits.shape[1]
    together = min(next_power_of_2(classes), 32) if classes > 1 and logits.stride(1) == 1 else 1
    return TILE // together, together


def _as_numbers(target: Tensor) -> Tensor:
    return target.view(torch.uint8) if target.dtype == torch.bool else target


def forward(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eq. 14-15 in one sweep over the maps and one small launch.

    Args:
        logits: (B, K, H, W), float. target: (B, K, H, W), bool, integer or float. Any strides.

    Returns:
        bce, dice: scalars; slope, ratio (K,): the classes' part of the gradient. All 0 for empty input.
    """
    batch, classes, height, width = logits.shape
    dtype = statistics_dtype(logits.dtype)
    target = _as_numbers(target)
    bce, dice = (logits.new_empty((), dtype=dtype) for _ in range(2))
    slope, ratio = (logits.new_empty(classes, dtype=dtype) for _ in range(2))
    if logits.numel() == 0:
        return bce.zero_(), dice.zero_(), slope.zero_(), ratio.zero_()
    block_p, block_k = _tile(logits)
    plane, chunks, flat = height * width, cdiv(classes, block_k), _flat(logits) and _flat(target)
    steps = cdiv(cdiv(plane, block_p), max(1, PROGRAMS // (batch * chunks)))
    blocks = cdiv(plane, block_p * steps)
    part = logits.new_empty(4, classes, batch * blocks, dtype=dtype)
    launch(
        bce_dice_partial, (blocks * chunks * batch,),
        logits, target, part, *_strides(logits, flat), *_strides(target, flat),
        classes, width, plane, blocks, chunks, batch * blocks, steps,
        FLAT=flat, BLOCK_P=block_p, BLOCK_K=block_k, COMPUTE=compute_dtype(logits.dtype), num_warps=4, num_stages=1,
    )  # fmt: skip
    rows = min(next_power_of_2(classes), 32)
    launch(
        bce_dice_finish, (1,), part, bce, dice, slope, ratio, classes, batch * blocks, logits.numel(),
        BLOCK_K=rows, BLOCK_R=TILE // rows, num_warps=4, num_stages=1,
    )  # fmt: skip
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
        logits, target: as in `forward`. slope, ratio: (K,), from `forward`. grad_bce, grad_dice: scalars on the device.
    """
    batch, classes, height, width = logits.shape
    target, grad = _as_numbers(target), torch.empty_like(logits)
    block_p, block_k = _tile(logits)
    plane, chunks, flat = (
        height * width,
        cdiv(classes, block_k),
        all(_flat(t) for t in (logits, target, grad)),
    )
    blocks = cdiv(plane, block_p)
    launch(
        bce_dice_gradient, (blocks * chunks * batch,),
        logits, target, slope, ratio, grad_bce, grad_dice, grad,
        *_strides(logits, flat), *_strides(target, flat), *_strides(grad, flat),
        classes, width, plane, blocks, chunks, logits.numel(),
        FLAT=flat, BLOCK_P=block_p, BLOCK_K=block_k, COMPUTE=compute_dtype(logits.dtype), num_warps=4, num_stages=1,
    )  # fmt: skip
    return grad


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
