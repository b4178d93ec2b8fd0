"""What the gradient of the output says about the matrix M: a product over the long axis."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import block_of_image, load_strided
from intrasense_fast.kernels.channel_decoupling.kernels.vectors import store_hidden_part


@triton.jit
def decoupling_pull(
    X,
    GRAD_OUT,
    WEIGHT,
    GRAD_SQUEEZED,
    PULL_PARTS,
    DOT_PARTS,
    x_batch,
    x_rank,
    x_long,
    grad_batch,
    grad_rank,
    grad_long,
    R,
    L,
    tiles,
    splits,
    share,
    TALL: tl.constexpr,
    WITH_DOT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """What dOut says about M, before it is made symmetric, over a share of the long axis.

    TALL: PULL_PARTS[i, j] = sum_l GRAD_OUT[i, l] X[j, l]. Else PULL_PARTS[i, j] = sum_l WEIGHT[l]
    X[i, l] GRAD_OUT[j, l], and if WITH_DOT DOT_PARTS[i] = sum_l X[i, l] GRAD_SQUEEZED[l].
    Pointers: X, GRAD_OUT (B, R, L), any strides; WEIGHT, GRAD_SQUEEZED (B, L), not read if TALL;
    PULL_PARTS (B, splits, R, R); DOT_PARTS (B, splits, R).
    Grid: (tiles * tiles * splits * B,); a program owns a tile of one split's part.
    """
    pid = tl.program_id(0)
    tj = pid % tiles
    ti = (pid // tiles) % tiles
    split = (pid // (tiles * tiles)) % splits
    batch = (pid // (tiles * tiles * splits)).to(tl.int64)
    i = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_L)
    i_in = i < R - ti * BLOCK_R
    j_in = i < R - tj * BLOCK_R
    first = split.to(tl.int64) * share
    x_tile = X + batch * x_batch + first * x_long
    grad_tile = GRAD_OUT + batch * grad_batch + first * grad_long
    pull = tl.zeros([BLOCK_R, BLOCK_R], COMPUTE)
    dot = tl.zeros([BLOCK_R], COMPUTE)
    if TALL:
        x_tile += tj.to(tl.int64) * BLOCK_R * x_rank
        grad_tile += ti.to(tl.int64) * BLOCK_R * grad_rank
    else:
        x_tile += ti.to(tl.int64) * BLOCK_R * x_rank
        grad_tile += tj.to(tl.int64) * BLOCK_R * grad_rank
    for start in range(split * share, tl.minimum(L, (split + 1) * share), BLOCK_L):
        k_in = k < L - start
        if TALL:
            grad_out = load_strided(grad_tile, i, k, grad_rank, grad_long, i_in, k_in)
            x = load_strided(x_tile, k, i, x_long, x_rank, k_in, j_in)
            pull = tl.dot(grad_out, x, pull, input_precision=PRECISION, out_dtype=COMPUTE)
        else:
            x = load_strided(x_tile, i, k, x_rank, x_long, i_in, k_in)
            grad_out = load_strided(grad_tile, k, i, grad_long, grad_rank, k_in, j_in)
            weight = tl.load(WEIGHT + batch * L + start + k, mask=k_in, other=0.0)
            weighted = x.to(COMPUTE) * weight[None, :]
            high = weighted.to(X.dtype.element_ty)
            pull = tl.dot(high, grad_out, pull, input_precision=PRECISION, out_dtype=COMPUTE)
            if X.dtype.element_ty.primitive_bitwidth == 16:
                # The weighted map rounded to 16 bits would be the largest error of the backward:
                # its rest goes in too.
                low = (weighted - high.to(COMPUTE)).to(X.dtype.element_ty)
                pull = tl.dot(low, grad_out, pull, input_precision=PRECISION, out_dtype=COMPUTE)
            if WITH_DOT and tj == 0:
                grad_squeezed = tl.load(GRAD_SQUEEZED + batch * L + start + k, mask=k_in, other=0.0)
                dot += tl.sum(x.to(COMPUTE) * grad_squeezed[None, :], 1)
        x_tile += BLOCK_L * x_long
        grad_tile += BLOCK_L * grad_long
    part = batch * splits + split
    out = PULL_PARTS + part * R * R + ti.to(tl.int64) * BLOCK_R * R + tj * BLOCK_R
    tl.store(out + (i[:, None] * R + i[None, :]), pull, mask=i_in[:, None] & j_in[None, :])
    if WITH_DOT and tj == 0:
        tl.store(DOT_PARTS + part * R + ti * BLOCK_R + i, dot, mask=i_in)


@triton.jit
def decoupling_symmetrise(
    PULL_PARTS,
    DOT_PARTS,
    MATRIX,
    WEIGHT,
    EXPAND_WEIGHT,
    PULL,
    GRAD_LOGIT,
    HIDDEN_PARTS,
    R,
    C_R,
    splits,
    blocks,
    half,
    TALL: tl.constexpr,
    WITH_DOT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """TALL: PULL = sym(diag(w) dA), GRAD_LOGIT = dw w (1 - w) with dw = rowsum(dA * M).

    dA is the sum of PULL_PARTS; HIDDEN_PARTS are the rows' shares of W_2^T GRAD_LOGIT. Else
    PULL = sym(dA), with the squeeze's share half (dot[i] + dot[j]) if WITH_DOT, dot the sum of
    DOT_PARTS.
    Pointers: PULL_PARTS (B, splits, R, R) and DOT_PARTS (B, splits, R) from decoupling_pull;
    MATRIX, PULL (B, R, R); WEIGHT, GRAD_LOGIT (B, R); EXPAND_WEIGHT (W_2) (R, C_R), HIDDEN_PARTS
    (B, blocks, C_R), used if TALL. Grid: (blocks * B,); a program owns BLOCK rows.
    """
    bi, batch = block_of_image(blocks)
    i = bi * BLOCK + tl.arange(0, BLOCK)
    i_in = i < R
    square = batch * R * R
    parts = PULL_PARTS + batch * splits * R * R
    grad_weight = tl.zeros([BLOCK], COMPUTE)
    dot_i = tl.zeros([BLOCK], COMPUTE)
    if TALL:
        weight_i = tl.load(WEIGHT + batch * R + i, mask=i_in, other=0.0)
    if WITH_DOT:
        for split in range(0, splits):
            dot_i += tl.load(DOT_PARTS + (batch * splits + split) * R + i, mask=i_in, other=0.0)
    for bj in range(0, blocks):
        j = bj * BLOCK + tl.arange(0, BLOCK)
        j_in = j < R
        mask = i_in[:, None] & j_in[None, :]
        element = i[:, None] * R + j[None, :]
        one_sided = tl.zeros([BLOCK, BLOCK], COMPUTE)
        mirrored = tl.zeros([BLOCK, BLOCK], COMPUTE)
        for split in range(0, splits):
            part = parts + split * R * R
            one_sided += tl.load(part + element, mask=mask, other=0.0)
            mirrored += tl.load(part + (j[None, :] * R + i[:, None]), mask=mask, other=0.0)
        if TALL:
            weight_j = tl.load(WEIGHT + batch * R + j, mask=j_in, other=0.0)
            pull = 0.5 * (weight_i[:, None] * one_sided + weight_j[None, :] * mirrored)
            matrix = tl.load(MATRIX + square + element, mask=mask, other=0.0)
            grad_weight += tl.sum(one_sided * matrix, 1)
        else:
            pull = 0.5 * (one_sided + mirrored)
        if WITH_DOT:
            dot_j = tl.zeros([BLOCK], COMPUTE)
            for split in range(0, splits):
                dot_j += tl.load(DOT_PARTS + (batch * splits + split) * R + j, mask=j_in, other=0.0)
            pull += half * (dot_i[:, None] + dot_j[None, :])
        tl.store(PULL + square + element, pull, mask=mask)
    if TALL:
        grad_logit = grad_weight * weight_i * (1.0 - weight_i)
        tl.store(GRAD_LOGIT + batch * R + i, grad_logit, mask=i_in)
        part = HIDDEN_PARTS + (batch * blocks + bi) * C_R
        store_hidden_part(EXPAND_WEIGHT, part, grad_logit, i, i_in, C_R, BLOCK_H, COMPUTE)
