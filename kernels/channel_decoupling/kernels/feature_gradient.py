"""The gradients that read the map once more: of the map, and of the weights where N < C."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import load_strided, part_of_image
from intrasense_fast.kernels.channel_decoupling.kernels.apply import multiply
from intrasense_fast.kernels.channel_decoupling.kernels.vectors import store_hidden_part


@triton.jit
def decoupling_weight_gradient(
    X,
    GRAD_OUT,
    MATRIX,
    WEIGHT,
    EXPAND_WEIGHT,
    GRAD_LOGIT,
    HIDDEN_PARTS,
    x_batch,
    x_rank,
    x_long,
    grad_batch,
    grad_rank,
    grad_long,
    R,
    L,
    C_R,
    tiles_r,
    tiles_l,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """N < C: GRAD_LOGIT = w (1 - w) sum over positions of dOut (F M'), before the sigmoid.

    A part for each tile of positions, and of each tile W_2^T GRAD_LOGIT. M enters unrounded and X
    widened: the gradients of the MLP are float32.
    Pointers: X, GRAD_OUT (B, R, L), any strides; MATRIX (M) (B, R, R); WEIGHT (w) (B, L);
    EXPAND_WEIGHT (W_2) (L, C_R); GRAD_LOGIT (B, tiles_r, L); HIDDEN_PARTS
    (B, tiles_l * tiles_r, C_R).
    Grid: (tiles_r * tiles_l * B,); a program owns a tile of the map.
    """
    tr, tile, batch = part_of_image(tiles_r, tiles_l)
    i = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    column = tl.arange(0, BLOCK_L)
    i_in = i < R - tr * BLOCK_R
    l_in = column < L - tile * BLOCK_L
    panel = X + batch * x_batch + tile.to(tl.int64) * BLOCK_L * x_long
    rows = MATRIX + batch * R * R + tr.to(tl.int64) * BLOCK_R * R
    decoupled = tl.zeros([BLOCK_R, BLOCK_L], COMPUTE)
    for start in range(0, R, BLOCK_K):
        k_in = k < R - start
        matrix = load_strided(rows + start, i, k, R, 1, i_in, k_in)
        x = load_strided(panel, k, column, x_rank, x_long, k_in, l_in).to(COMPUTE)
        decoupled = tl.dot(matrix, x, decoupled, input_precision=PRECISION, out_dtype=COMPUTE)
        panel += BLOCK_K * x_rank
    grad_tile = GRAD_OUT + batch * grad_batch + tile.to(tl.int64) * BLOCK_L * grad_long
    grad_tile += tr.to(tl.int64) * BLOCK_R * grad_rank
    grad_out = load_strided(grad_tile, i, column, grad_rank, grad_long, i_in, l_in).to(COMPUTE)
    weight = tl.load(WEIGHT + batch * L + tile * BLOCK_L + column, mask=l_in, other=0.0)
    out = GRAD_LOGIT + (batch * tiles_r + tr) * L + tile * BLOCK_L + column
    grad_logit = tl.sum(decoupled * grad_out, 0) * weight * (1.0 - weight)
    tl.store(out, grad_logit, mask=l_in)
    part = HIDDEN_PARTS + (batch * tiles_r * tiles_l + tile * tiles_r + tr) * C_R
    row = tile * BLOCK_L + column
    store_hidden_part(EXPAND_WEIGHT, part, grad_logit, row, l_in, C_R, BLOCK_H, COMPUTE)


@triton.jit
def decoupling_feature_gradient(
    X,
    GRAD_OUT,
    WEIGHTED_SHARED,
    HIGH,
    LOW,
    UNIT,
    WEIGHT,
    PER_RANK,
    PER_LONG,
    GRAD_X,
    x_batch,
    x_rank,
    x_long,
    grad_batch,
    grad_rank,
    grad_long,
    out_batch,
    out_rank,
    out_long,
    R,
    L,
    tiles_r,
    tiles_l,
    scale,
    TALL: tl.constexpr,
    OUTER: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The map's gradient: M diag(w) dOut + 2 Gbar F, or diag(w) dOut M' + 2 F Gbar (N < C).

    Both are w GRAD_OUT - (the product with K) + UNIT (HIGH + LOW) X + what the squeeze sends, K =
    I - M; WEIGHTED_SHARED holds w already if TALL. The squeeze sends scale PER_RANK[i] if TALL,
    scale PER_LONG[l] if not, times PER_RANK[i] if OUTER.
    Pointers: X, GRAD_OUT, GRAD_X (B, R, L), any strides; WEIGHTED_SHARED, HIGH, LOW (B, R, R), X's
    dtype; UNIT (B,); WEIGHT (w) (B, R if TALL else L); PER_RANK (B, R); PER_LONG (B, L).
    Grid: (tiles_r * tiles_l * B,); a program owns a tile of GRAD_X.
    """
    tr, tile, batch = part_of_image(tiles_r, tiles_l)
    i = tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_L)
    i_in = i < R - tr * BLOCK_R
    l_in = column < L - tile * BLOCK_L
    x_panel = X + batch * x_batch + tile.to(tl.int64) * BLOCK_L * x_long
    grad_panel = GRAD_OUT + batch * grad_batch + tile.to(tl.int64) * BLOCK_L * grad_long
    rows = batch * R * R + tr.to(tl.int64) * BLOCK_R * R
    grad = tl.zeros([BLOCK_R, BLOCK_L], COMPUTE)
    grad = multiply(
        grad,
        WEIGHTED_SHARED + rows,
        grad_panel,
        grad_rank,
        grad_long,
        i_in,
        l_in,
        R,
        BLOCK_R,
        BLOCK_L,
        BLOCK_K,
        PRECISION,
        COMPUTE,
    )
    unit = tl.load(UNIT + batch)
    # One accumulator for both products: this one in units of the other, and taken off.
    if TALL:
        grad = grad / -unit
        weight = tl.load(WEIGHT + batch * R + tr * BLOCK_R + i, mask=i_in, other=0.0)
        weight = weight[:, None]
    else:
        weight = tl.load(WEIGHT + batch * L + tile * BLOCK_L + column, mask=l_in, other=0.0)
        weight = weight[None, :]
        grad = grad * -(weight / unit)
    grad = multiply(
        grad,
        HIGH + rows,
        x_panel,
        x_rank,
        x_long,
        i_in,
        l_in,
        R,
        BLOCK_R,
        BLOCK_L,
        BLOCK_K,
        PRECISION,
        COMPUTE,
    )
    if SPLIT:
        grad = multiply(
            grad,
            LOW + rows,
            x_panel,
            x_rank,
            x_long,
            i_in,
            l_in,
            R,
            BLOCK_R,
            BLOCK_L,
            BLOCK_K,
            PRECISION,
            COMPUTE,
        )
    mask = i_in[:, None] & l_in[None, :]
    grad_tile = grad_panel + tr.to(tl.int64) * BLOCK_R * grad_rank
    grad_element = i[:, None] * grad_rank + column[None, :] * grad_long
    grad_out = tl.load(grad_tile + grad_element, mask=mask, other=0.0).to(COMPUTE)
    grad = grad * unit + weight * grad_out
    if TALL:
        per_rank = tl.load(PER_RANK + batch * R + tr * BLOCK_R + i, mask=i_in, other=0.0)
        grad += scale * per_rank[:, None]
    else:
        per_long = tl.load(PER_LONG + batch * L + tile * BLOCK_L + column, mask=l_in, other=0.0)
        sent = scale * per_long[None, :]
        if OUTER:
            per_rank = tl.load(PER_RANK + batch * R + tr * BLOCK_R + i, mask=i_in, other=0.0)
            sent = sent * per_rank[:, None]
        grad += sent
    out = GRAD_X + batch * out_batch + tr.to(tl.int64) * BLOCK_R * out_rank
    out += tile.to(tl.int64) * BLOCK_L * out_long
    tl.store(
        out + (i[:, None] * out_rank + column[None, :] * out_long),
        grad.to(GRAD_X.dtype.element_ty),
        mask=mask,
    )
