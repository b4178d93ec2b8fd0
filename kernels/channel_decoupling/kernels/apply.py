"""The output: the only product over the map after the Gram matrix (Eq. 12).

Matrices are symmetric, so M F (C <= N) and F M' (N < C) are one formula:
OUT[i, l] = sum_k M[i, k] X[k, l].
"""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import load_strided, part_of_image


@triton.jit
def multiply(
    acc,
    MATRIX,
    X,
    x_rank,
    x_long,
    i_in,
    l_in,
    R,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """acc + MATRIX X for BLOCK_R rows of the matrix and BLOCK_L columns of the map.

    Both pointers are at the tile's start.
    """
    i = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    column = tl.arange(0, BLOCK_L)
    for start in range(0, R, BLOCK_K):
        k_in = k < R - start
        matrix = load_strided(MATRIX + start, i, k, R, 1, i_in, k_in)
        x = load_strided(X, k, column, x_rank, x_long, k_in, l_in)
        acc = tl.dot(matrix, x, acc, input_precision=PRECISION, out_dtype=COMPUTE)
        X += BLOCK_K * x_rank
    return acc


@triton.jit
def decoupling_apply(
    X,
    SHARED,
    WEIGHT,
    OUT,
    x_batch,
    x_rank,
    x_long,
    out_batch,
    out_rank,
    out_long,
    R,
    L,
    tiles_r,
    tiles_l,
    TALL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """OUT = w (X - K X) (Eq. 12), the subtraction in COMPUTE.

    Pointers: X, OUT (B, R, L), any strides; SHARED (K) (B, R, R), X's dtype; WEIGHT (w)
    (B, R if TALL else L).
    Grid: (tiles_r * tiles_l * B,); a program owns a tile of OUT.
    """
    tr, tile, batch = part_of_image(tiles_r, tiles_l)
    i = tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_L)
    i_in = i < R - tr * BLOCK_R
    l_in = column < L - tile * BLOCK_L
    panel = X + batch * x_batch + tile.to(tl.int64) * BLOCK_L * x_long
    shared = SHARED + batch * R * R + tr.to(tl.int64) * BLOCK_R * R
    removed = tl.zeros([BLOCK_R, BLOCK_L], COMPUTE)
    removed = multiply(
        removed,
        shared,
        panel,
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
    rows = panel + tr.to(tl.int64) * BLOCK_R * x_rank
    x_element = i[:, None] * x_rank + column[None, :] * x_long
    x = tl.load(rows + x_element, mask=mask, other=0.0).to(COMPUTE)
    if TALL:
        weight = tl.load(WEIGHT + batch * R + tr * BLOCK_R + i, mask=i_in, other=0.0)
        weight = weight[:, None]
    else:
        weight = tl.load(WEIGHT + batch * L + tile * BLOCK_L + column, mask=l_in, other=0.0)
        weight = weight[None, :]
    out = OUT + batch * out_batch + tr.to(tl.int64) * BLOCK_R * out_rank
    out += tile.to(tl.int64) * BLOCK_L * out_long
    out += i[:, None] * out_rank + column[None, :] * out_long
    tl.store(out, (weight * (x - removed)).to(OUT.dtype.element_ty), mask=mask)
