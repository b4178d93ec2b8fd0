"""The gradient of both losses, in one sweep."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import part_of_image
from intrasense_fast.kernels.bce_dice.kernels.elements import offsets, sigmoid


@triton.jit
def bce_dice_gradient(
    LOGITS,
    TARGET,
    SLOPE,
    RATIO,
    GRAD_BCE,
    GRAD_DICE,
    GRAD_LOGITS,
    logits_batch,
    logits_class,
    logits_row,
    logits_column,
    target_batch,
    target_class,
    target_row,
    target_column,
    grad_batch,
    grad_class,
    grad_row,
    grad_column,
    K,
    W,
    plane,
    blocks,
    chunks,
    count,
    FLAT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """GRAD_LOGITS = GRAD_BCE (p - y) / count + GRAD_DICE SLOPE (RATIO - y) p (1 - p).

    Pointers: LOGITS, TARGET, GRAD_LOGITS (B, K, H, W), any strides; SLOPE, RATIO (K,); GRAD_BCE,
    GRAD_DICE (1,), on the device. Grid: (blocks * chunks * B,); a program owns BLOCK_P positions
    and BLOCK_K classes of one image.
    """
    block, chunk, image = part_of_image(blocks, chunks)
    k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    klass = k.to(tl.int64)[None, :]
    position = block * BLOCK_P + tl.arange(0, BLOCK_P)
    mask = (position < plane)[:, None] & (k < K)[None, :]
    logits_base = LOGITS + image * logits_batch + klass * logits_class
    logits_at = logits_base + offsets(position, logits_row, logits_column, W, FLAT)[:, None]
    target_base = TARGET + image * target_batch + klass * target_class
    target_at = target_base + offsets(position, target_row, target_column, W, FLAT)[:, None]
    grad_base = GRAD_LOGITS + image * grad_batch + klass * grad_class
    grad_at = grad_base + offsets(position, grad_row, grad_column, W, FLAT)[:, None]
    logit = tl.load(logits_at, mask=mask, other=0.0).to(COMPUTE)
    target = tl.load(target_at, mask=mask, other=0).to(COMPUTE)
    probability, exponential = sigmoid(logit)
    per_pixel = tl.load(GRAD_BCE).to(COMPUTE) / count
    slope = tl.load(GRAD_DICE).to(COMPUTE) * tl.load(SLOPE + k, mask=k < K, other=0.0)
    ratio = tl.load(RATIO + k, mask=k < K, other=0.0)
    # dp / dz, which is p times 1 - p.
    variance = exponential / ((1.0 + exponential) * (1.0 + exponential))
    of_bce = per_pixel * (probability - target)
    of_dice = slope[None, :] * (ratio[None, :] - target) * variance
    tl.store(grad_at, (of_bce + of_dice).to(GRAD_LOGITS.dtype.element_ty), mask=mask)
