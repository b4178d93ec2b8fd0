"""The two terms of Eq. 9 from M and Gh alone, K = I - M for the output, and w."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import block_of_image, part_of_image
from intrasense_fast.kernels.channel_decoupling.kernels.square import product
from intrasense_fast.kernels.channel_decoupling.kernels.vectors import layer, sum_of_parts


@triton.jit
def decoupling_terms(
    MATRIX,
    GRAM,
    DECOUPLED_GRAM,
    SHARED,
    TERM_PARTS,
    SUMS,
    MEAN,
    SENT,
    R,
    blocks,
    parts,
    ridge,
    scale,
    SQUEEZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """K = I - M rounded to the map's dtype, S = M K, and the sums that Eq. 9 needs of a tile.

    K's diagonal is that of M Gh / ridge, the same number: 1 - M would leave it few digits where the
    ridge is large.
    Pointers: MATRIX (M), GRAM (Gh), DECOUPLED_GRAM (S) (B, R, R); SHARED (K) (B, R, R), the map's
    dtype; TERM_PARTS (B, 4, blocks * blocks): tr S, ||S||^2, <K - S, Gh>, ||Gh||^2.
    SQUEEZE "mean": MEAN (B, R), scale times the sum of SUMS (B, parts, R), and SENT (B, R), M MEAN;
    "row_mean": SENT is scale M 1; "none": neither.
    Grid: (blocks * blocks * B,); a program owns a tile.
    """
    bj, bi, batch = part_of_image(blocks, blocks)
    i = bi * BLOCK + tl.arange(0, BLOCK)
    j = bj * BLOCK + tl.arange(0, BLOCK)
    mask = (i < R)[:, None] & (j < R)[None, :]
    square = batch * R * R
    element = square + (i[:, None] * R + j[None, :])
    k = tl.arange(0, BLOCK_K)
    diagonal = tl.zeros([BLOCK], COMPUTE)
    sent = tl.zeros([BLOCK], COMPUTE)
    for start in range(0, R, BLOCK_K):
        k_in = k < R - start
        row = square + start + (j[:, None] * R + k[None, :])
        row_mask = (j < R)[:, None] & k_in[None, :]
        matrix_rows = tl.load(MATRIX + row, mask=row_mask, other=0.0)
        gram_rows = tl.load(GRAM + row, mask=row_mask, other=0.0)
        diagonal += tl.sum(matrix_rows * gram_rows, 1)
        if SQUEEZE == "mean":
            part = SUMS + batch * parts * R + start
            mean = scale * sum_of_parts(part, parts, R, k, k_in, BLOCK_K, COMPUTE)
            sent += tl.sum(matrix_rows * mean[None, :], 1)
            if bi == 0 and bj == 0:
                tl.store(MEAN + batch * R + start + k, mean, mask=k_in)
        elif SQUEEZE == "row_mean":
            sent += scale * tl.sum(matrix_rows, 1)
    if SQUEEZE != "none" and bi == 0:
        tl.store(SENT + batch * R + j, sent, mask=j < R)
    diagonal = diagonal / ridge
    decoupled_gram = product(
        MATRIX + square,
        MATRIX + square,
        diagonal,
        i,
        j,
        R,
        True,
        BLOCK,
        BLOCK_K,
        PRECISION,
        COMPUTE,
    )
    on_diagonal = i[:, None] == j[None, :]
    matrix = tl.load(MATRIX + element, mask=mask, other=0.0)
    shared = tl.where(on_diagonal, diagonal[None, :], -matrix)
    gram = tl.load(GRAM + element, mask=mask, other=0.0)
    tl.store(DECOUPLED_GRAM + element, decoupled_gram, mask=mask)
    tl.store(SHARED + element, shared.to(SHARED.dtype.element_ty), mask=mask)
    tiles = blocks * blocks
    out = TERM_PARTS + batch * 4 * tiles + bi * blocks + bj
    tl.store(out, tl.sum(tl.sum(tl.where(on_diagonal & mask, decoupled_gram, 0.0), 1), 0))
    tl.store(out + tiles, tl.sum(tl.sum(decoupled_gram * decoupled_gram, 1), 0))
    tl.store(out + 2 * tiles, tl.sum(tl.sum((shared - decoupled_gram) * gram, 1), 0))
    tl.store(out + 3 * tiles, tl.sum(tl.sum(gram * gram, 1), 0))


@triton.jit
def decoupling_finish(
    TERM_PARTS,
    TRACE,
    HIDDEN,
    EXPAND_WEIGHT,
    EXPAND_BIAS,
    RANK_GAP,
    DISTANCE,
    SLOPE,
    WEIGHT,
    R,
    C,
    C_R,
    tiles,
    blocks,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """w = sigmoid(W_2 HIDDEN + b_2); rank_gap and distance of Eq. 9, SLOPE = tr S / ||S||^2.

    Pointers: TERM_PARTS (B, 4, tiles); TRACE, RANK_GAP, DISTANCE, SLOPE (B,); HIDDEN (B, C_R);
    EXPAND_WEIGHT (W_2) (C, C_R), EXPAND_BIAS (b_2) (C,), contiguous; WEIGHT (w) (B, C).
    Grid: (blocks * B,); a program owns BLOCK_R channels, the first one of an image also its terms.
    """
    block, batch = block_of_image(blocks)
    layer(
        EXPAND_WEIGHT,
        HIDDEN + batch * C_R,
        EXPAND_BIAS,
        WEIGHT + batch * C,
        WEIGHT,
        C_R,
        1,
        C,
        C_R,
        1,
        block,
        1.0,
        "sigmoid",
        False,
        BLOCK_R,
        BLOCK_C,
        COMPUTE,
    )
    if block == 0:
        t = tl.arange(0, BLOCK_T)
        trace_parts = tl.zeros([BLOCK_T], COMPUTE)
        energy_parts = tl.zeros([BLOCK_T], COMPUTE)
        distance_parts = tl.zeros([BLOCK_T], COMPUTE)
        gram_parts = tl.zeros([BLOCK_T], COMPUTE)
        for start in range(0, tiles, BLOCK_T):
            part = TERM_PARTS + batch * 4 * tiles + start + t
            part_in = t < tiles - start
            trace_parts += tl.load(part, mask=part_in, other=0.0)
            energy_parts += tl.load(part + tiles, mask=part_in, other=0.0)
            distance_parts += tl.load(part + 2 * tiles, mask=part_in, other=0.0)
            gram_parts += tl.load(part + 3 * tiles, mask=part_in, other=0.0)
        # A zero map has S = Gh = 0: its divisions are guarded, not their results.
        zero_map = tl.load(TRACE + batch) == 0
        decoupled_trace = tl.sum(trace_parts, 0)
        slope = decoupled_trace / tl.where(zero_map, 1.0, tl.sum(energy_parts, 0))
        rank = R / tl.where(zero_map, 1.0, tl.sum(gram_parts, 0))
        rank_gap = rank - slope * decoupled_trace / R
        tl.store(RANK_GAP + batch, tl.where(zero_map, 0.0, rank_gap))
        tl.store(DISTANCE + batch, tl.sum(distance_parts, 0) / R)
        tl.store(SLOPE + batch, slope)
