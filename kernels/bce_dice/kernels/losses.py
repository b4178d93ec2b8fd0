"""Both losses: one sweep of partial sums, and one program that adds and divides them."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import part_of_image
from intrasense_fast.kernels.bce_dice.kernels.elements import offsets, sigmoid


@triton.jit
def bce_dice_partial(
    LOGITS,
    TARGET,
    SUMS,
    logits_batch,
    logits_class,
    logits_row,
    logits_column,
    target_batch,
    target_class,
    target_row,
    target_column,
    K,
    W,
    plane,
    blocks,
    chunks,
    parts,
    steps,
    FLAT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums of the cross-entropy, y p, y and p of each class over a share of an image (Eq. 14-15).

    Pointers: LOGITS, TARGET (B, K, H, W), any strides; SUMS (4, K, parts), parts = B * blocks.
    Grid: (blocks * chunks * B,); a program owns steps * BLOCK_P positions and BLOCK_K classes.
    """
    block, chunk, image = part_of_image(blocks, chunks)
    k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    position = block * (steps * BLOCK_P) + tl.arange(0, BLOCK_P)
    logits_base = LOGITS + image * logits_batch + k.to(tl.int64)[None, :] * logits_class
    target_base = TARGET + image * target_batch + k.to(tl.int64)[None, :] * target_class
    loss = tl.zeros([BLOCK_P, BLOCK_K], COMPUTE)
    overlap = tl.zeros([BLOCK_P, BLOCK_K], COMPUTE)
    target_sum = tl.zeros([BLOCK_P, BLOCK_K], COMPUTE)
    probability_sum = tl.zeros([BLOCK_P, BLOCK_K], COMPUTE)
    for _ in range(0, steps):
        mask = (position < plane)[:, None] & (k < K)[None, :]
        logits_at = offsets(position, logits_row, logits_column, W, FLAT)[:, None]
        logit = tl.load(logits_base + logits_at, mask=mask, other=0.0).to(COMPUTE)
        target_at = offsets(position, target_row, target_column, W, FLAT)[:, None]
        target = tl.load(target_base + target_at, mask=mask, other=0).to(COMPUTE)
        probability, exponential = sigmoid(logit)
        # log(1 + e) is 0 for e < 6e-8: a confident and correct map would lose its loss.
        u = 1.0 + exponential
        lost = u == 1.0
        log1p = tl.log(u) * (exponential / tl.where(lost, 1.0, u - 1.0))
        log1p = tl.where(lost, exponential, log1p)
        # A NaN that the comparison drops comes back with z y.
        entropy = tl.where(logit > 0, logit, 0.0) - logit * target + log1p
        loss += tl.where(mask, entropy, 0.0)
        overlap += target * probability
        target_sum += target
        probability_sum += tl.where(mask, probability, 0.0)
        position += BLOCK_P
    out = SUMS + k * parts + image * blocks + block
    quantity = K * parts
    tl.store(out, tl.sum(loss, 0), mask=k < K)
    tl.store(out + quantity, tl.sum(overlap, 0), mask=k < K)
    tl.store(out + 2 * quantity, tl.sum(target_sum, 0), mask=k < K)
    tl.store(out + 3 * quantity, tl.sum(probability_sum, 0), mask=k < K)


@triton.jit
def bce_dice_finish(
    SUMS,
    BCE,
    DICE,
    SLOPE,
    RATIO,
    K,
    parts,
    count,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Both losses from the partial sums, and SLOPE = 2 / (K S), RATIO = I / S, both 0 where S is 0.

    I = sum(y p) is `overlap`, S = sum y + sum p is `area`.
    Pointers: SUMS (4, K, parts); BCE, DICE (1,); SLOPE, RATIO (K,). Grid: (1,): one program, always
    the same order. It is small enough for float64, so that the losses are rounded once.
    """
    loss_total = tl.zeros([BLOCK_K], tl.float64)
    dice_total = tl.zeros([BLOCK_K], tl.float64)
    quantity = K * parts
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        overlaps = tl.zeros([BLOCK_K, BLOCK_R], tl.float64)
        areas = tl.zeros([BLOCK_K, BLOCK_R], tl.float64)
        losses = tl.zeros([BLOCK_K, BLOCK_R], tl.float64)
        for start in range(0, parts, BLOCK_R):
            part = start + tl.arange(0, BLOCK_R)
            mask = (k < K)[:, None] & (part < parts)[None, :]
            sums = SUMS + (k[:, None] * parts + part[None, :])
            losses += tl.load(sums, mask=mask, other=0.0).to(tl.float64)
            overlaps += tl.load(sums + quantity, mask=mask, other=0.0).to(tl.float64)
            areas += tl.load(sums + 2 * quantity, mask=mask, other=0.0).to(tl.float64)
            areas += tl.load(sums + 3 * quantity, mask=mask, other=0.0).to(tl.float64)
        area = tl.sum(areas, 1)
        # The division itself is guarded: an empty class has dice 0 and no gradient.
        divisor = tl.where(area == 0, 1.0, area)
        ratio = tl.sum(overlaps, 1) / divisor
        empty = (area == 0) | (k >= K)
        loss_total += tl.sum(losses, 1)
        dice_total += tl.where(empty, 0.0, 1.0 - 2.0 * ratio)
        tl.store(
            SLOPE + k,
            (tl.where(empty, 0.0, 2.0 / divisor) / K).to(SLOPE.dtype.element_ty),
            mask=k < K,
        )
        tl.store(RATIO + k, ratio.to(RATIO.dtype.element_ty), mask=k < K)
    tl.store(BCE, (tl.sum(loss_total, 0) / count).to(BCE.dtype.element_ty))
    tl.store(DICE, (tl.sum(dice_total, 0) / K).to(DICE.dtype.element_ty))
