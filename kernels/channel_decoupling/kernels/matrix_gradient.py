"""From what the output says about M to the gradient of the Gram matrix, and its operands."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import part_of_image
from intrasense_fast.kernels.channel_decoupling.kernels.square import product


@triton.jit
def decoupling_matrix_gradient(
    DECOUPLED_GRAM,
    MATRIX,
    PULL,
    GRAD_GAP,
    GRAD_DISTANCE,
    SLOPE,
    GRAD_SQUEEZED,
    MEAN,
    GRAD_MATRIX,
    INNER_PARTS,
    R,
    blocks,
    ridge,
    WITH_SQUEEZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """GRAD_MATRIX = P + du (ridge / R) (I + 2 K) + (a I + b S) (I - 2 M).

    a = -2 dg slope / R, b = 2 dg slope^2 / R. If WITH_SQUEEZE also sym(ds m^T).
    Pointers: DECOUPLED_GRAM (S), MATRIX (M), PULL (P), GRAD_MATRIX (B, R, R); GRAD_GAP (dg),
    GRAD_DISTANCE (du), SLOPE (B,); GRAD_SQUEEZED (ds), MEAN (m) (B, R); INNER_PARTS
    (B, blocks * blocks), of <GRAD_MATRIX, S>. Grid: (blocks * blocks * B,); a program owns a tile.
    """
    bj, bi, batch = part_of_image(blocks, blocks)
    i = bi * BLOCK + tl.arange(0, BLOCK)
    j = bj * BLOCK + tl.arange(0, BLOCK)
    mask = (i < R)[:, None] & (j < R)[None, :]
    square = batch * R * R
    element = square + (i[:, None] * R + j[None, :])
    twice = 2.0 * product(
        DECOUPLED_GRAM + square,
        MATRIX + square,
        None,
        i,
        j,
        R,
        False,
        BLOCK,
        BLOCK_K,
        PRECISION,
        COMPUTE,
    )
    identity = tl.where(i[:, None] == j[None, :], 1.0, 0.0)
    matrix = tl.load(MATRIX + element, mask=mask, other=0.0)
    decoupled_gram = tl.load(DECOUPLED_GRAM + element, mask=mask, other=0.0)
    slope = tl.load(SLOPE + batch)
    a = -2.0 * tl.load(GRAD_GAP + batch) * slope / R
    of_distance = tl.load(GRAD_DISTANCE + batch) * ridge / R
    pull = tl.load(PULL + element, mask=mask, other=0.0)
    # I + 2 K = 3 I - 2 M, and b = -a slope.
    grad = pull + of_distance * (3.0 * identity - 2.0 * matrix)
    grad += a * (identity - 2.0 * matrix) - a * slope * (decoupled_gram - twice)
    if WITH_SQUEEZE:
        ds_i = tl.load(GRAD_SQUEEZED + batch * R + i, mask=i < R, other=0.0)
        ds_j = tl.load(GRAD_SQUEEZED + batch * R + j, mask=j < R, other=0.0)
        mean_i = tl.load(MEAN + batch * R + i, mask=i < R, other=0.0)
        mean_j = tl.load(MEAN + batch * R + j, mask=j < R, other=0.0)
        grad += 0.5 * (ds_i[:, None] * mean_j[None, :] + mean_i[:, None] * ds_j[None, :])
    tl.store(GRAD_MATRIX + element, grad, mask=mask)
    inner = INNER_PARTS + batch * blocks * blocks + bi * blocks + bj
    tl.store(inner, tl.sum(tl.sum(grad * decoupled_gram, 1), 0))


@triton.jit
def decoupling_gram_gradient(
    MATRIX,
    GRAD_PRODUCT,
    INNER_PARTS,
    LARGEST,
    TRACE,
    WEIGHT,
    WEIGHTED_SHARED,
    HIGH,
    LOW,
    UNIT,
    R,
    blocks,
    ridge,
    row_sum,
    TALL: tl.constexpr,
    SPLIT: tl.constexpr,
    HEADROOM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """What decoupling_feature_gradient multiplies with, in the map's dtype.

    2 Gbar = 2 (R / t) (Ghbar - I <Ghbar, Gh> / R) with Ghbar = -M Mbar M / ridge, hence
    <Ghbar, Gh> = -<Mbar, S>; 0 for a zero map. 2 Gbar / UNIT = HIGH (+ LOW if SPLIT).
    WEIGHTED_SHARED = K diag(w) if TALL, else K, with K = I - M.
    UNIT is a power of two, 2^-HEADROOM of one near a bound on |2 Gbar| that is known before its
    entries are: M has no eigenvalue above 1, so no row of |M| sums to more than row_sum = sqrt(R).
    Pointers: MATRIX (M) (B, R, R); GRAD_PRODUCT (B, R, R), Mbar M; INNER_PARTS, of <Mbar, S>, and
    LARGEST, of |Mbar M|, (B, blocks * blocks); TRACE (B,), t; WEIGHT (w) (B, R), read if TALL;
    WEIGHTED_SHARED, HIGH, LOW (B, R, R), the map's dtype; UNIT (B,).
    Grid: (blocks * blocks * B,); a program owns a tile.
    """
    bj, bi, batch = part_of_image(blocks, blocks)
    i = bi * BLOCK + tl.arange(0, BLOCK)
    j = bj * BLOCK + tl.arange(0, BLOCK)
    mask = (i < R)[:, None] & (j < R)[None, :]
    square = batch * R * R
    tiles = blocks * blocks
    t = tl.arange(0, BLOCK_T)
    parts = tl.zeros([BLOCK_T], COMPUTE)
    largest = tl.zeros([BLOCK_T], COMPUTE)
    for start in range(0, tiles, BLOCK_T):
        part = batch * tiles + start + t
        part_in = t < tiles - start
        parts += tl.load(INNER_PARTS + part, mask=part_in, other=0.0)
        largest = tl.maximum(largest, tl.load(LARGEST + part, mask=part_in, other=0.0))
    inner = tl.sum(parts, 0) / R
    trace = tl.load(TRACE + batch)
    twice = tl.where(trace == 0, 0.0, 2.0 * R / tl.where(trace == 0, 1.0, trace))
    top = twice * (row_sum * tl.max(largest, 0) / ridge + tl.abs(inner))
    # Within 2^+-60, so that dividing a sum by it neither over- nor underflows.
    exponent = tl.floor(tl.log2(tl.where(top > 0, top, 1.0)))
    unit = tl.exp2(tl.minimum(tl.maximum(exponent, -60.0), 60.0) - HEADROOM)
    sandwich = product(
        MATRIX + square,
        GRAD_PRODUCT + square,
        None,
        i,
        j,
        R,
        False,
        BLOCK,
        BLOCK_K,
        PRECISION,
        COMPUTE,
    )
    on_diagonal = i[:, None] == j[None, :]
    grad_gram = twice * (tl.where(on_diagonal, inner, 0.0) - sandwich / ridge) / unit
    grad_gram = tl.where(trace == 0, 0.0, grad_gram)
    element = square + (i[:, None] * R + j[None, :])
    high = grad_gram.to(HIGH.dtype.element_ty)
    tl.store(HIGH + element, high, mask=mask)
    if SPLIT:
        low = (grad_gram - high.to(COMPUTE)).to(LOW.dtype.element_ty)
        tl.store(LOW + element, low, mask=mask)
    matrix = tl.load(MATRIX + element, mask=mask, other=0.0)
    shared = tl.where(on_diagonal, 1.0, 0.0) - matrix
    if TALL:
        shared = shared * tl.load(WEIGHT + batch * R + j, mask=j < R, other=0.0)[None, :]
    tl.store(WEIGHTED_SHARED + element, shared.to(WEIGHTED_SHARED.dtype.element_ty), mask=mask)
    if bi == 0 and bj == 0:
        tl.store(UNIT + batch, unit)
