"""Products of R x R matrices, a tile a program."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import load_strided, part_of_image


@triton.jit
def product(
    LEFT,
    RIGHT,
    diagonal,
    i,
    j,
    R,
    COMPLEMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Rows i, columns j of LEFT RIGHT, both (R, R).

    COMPLEMENT: of LEFT (I - RIGHT), the diagonal of I - RIGHT being given.
    """
    acc = tl.zeros([BLOCK, BLOCK], COMPUTE)
    k = tl.arange(0, BLOCK_K)
    for start in range(0, R, BLOCK_K):
        k_in = k < R - start
        left = load_strided(LEFT + start, i, k, R, 1, i < R, k_in)
        right = load_strided(RIGHT + start * R, k, j, R, 1, k_in, j < R)
        if COMPLEMENT:
            right = tl.where((k + start)[:, None] == j[None, :], diagonal[None, :], -right)
        acc = tl.dot(left, right, acc, input_precision=PRECISION, out_dtype=COMPUTE)
    return acc


@triton.jit
def decoupling_product(
    LEFT,
    RIGHT,
    OUT,
    LARGEST,
    R,
    blocks,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """OUT = LEFT RIGHT, all (B, R, R); LARGEST (B, blocks * blocks), the largest |OUT| of a tile.

    Grid: (blocks * blocks * B,); a program owns a tile.
    """
    bj, bi, batch = part_of_image(blocks, blocks)
    i = bi * BLOCK + tl.arange(0, BLOCK)
    j = bj * BLOCK + tl.arange(0, BLOCK)
    square = batch * R * R
    out = product(
        LEFT + square,
        RIGHT + square,
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
    mask = (i < R)[:, None] & (j < R)[None, :]
    tl.store(OUT + square + (i[:, None] * R + j[None, :]), out, mask=mask)
    largest = LARGEST + batch * blocks * blocks + bi * blocks + bj
    tl.store(largest, tl.max(tl.max(tl.abs(out), 1), 0))
