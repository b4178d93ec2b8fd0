"""Inverse of symmetric positive definite matrices by Gauss-Jordan without pivoting, in blocks.

The blocks are eliminated by columns: the error E of the inverse M then has the form (something) M,
so that E f is as small as M f for the directions f which M is there to suppress. By rows it is
f^T E that is small, and M f may lose all its digits. See README.md.
"""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import block_of_image, load_strided, part_of_image


@triton.jit
def invert_tile(tile, SIZE: tl.constexpr):
    """Inverse of a symmetric positive definite tile in registers, one column a step."""
    i = tl.arange(0, SIZE)
    for p in range(0, SIZE):
        on_row = (i == p)[:, None]
        on_column = (i == p)[None, :]
        row = tl.sum(tl.where(on_row, tile, 0.0), 0)
        column = tl.sum(tl.where(on_column, tile, 0.0), 1)
        pivot = tl.sum(tl.where(i == p, row, 0.0), 0)
        scaled = tl.where(i == p, 1.0, row) / pivot
        rest = tl.where(on_column, 0.0, tile) - column[:, None] * scaled[None, :]
        tile = tl.where(on_row, scaled[None, :], rest)
    return tile


@triton.jit
def invert_small(SHIFTED, OUT, R, SIZE: tl.constexpr, COMPUTE: tl.constexpr):
    """OUT = SHIFTED^-1 for R <= SIZE.

    Pointers: SHIFTED, OUT (B, R, R). Grid: (B,); a program owns a matrix.
    """
    square = tl.program_id(0).to(tl.int64) * R * R
    i = tl.arange(0, SIZE)
    element = square + (i[:, None] * R + i[None, :])
    mask = (i < R)[:, None] & (i < R)[None, :]
    shifted = tl.load(SHIFTED + element, mask=mask, other=0.0)
    # Beyond the edge the identity: it stays there.
    shifted = tl.where(mask, shifted, tl.where(i[:, None] == i[None, :], 1.0, 0.0))
    tl.store(OUT + element, invert_tile(shifted, SIZE), mask=mask)


@triton.jit
def invert_panel(
    SHIFTED,
    PANEL,
    SCRATCH,
    R,
    step,
    blocks,
    SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """First launch of a block step p: PANEL[i] = A[i, p] A[p, p]^-1, and A[p, p]^-1 for i = p.

    A is SHIFTED as the steps before left it.
    Pointers: SHIFTED (B, R, R); PANEL (B, R, SIZE); SCRATCH (B, blocks, 2, SIZE, SIZE).
    Grid: (blocks * B,); every program inverts the diagonal block itself and owns one block of the
    panel.
    """
    pid = tl.program_id(0)
    block, batch = block_of_image(blocks)
    i = tl.arange(0, SIZE)
    i_in = i < R - block * SIZE
    p_in = i < R - step * SIZE
    matrix = SHIFTED + batch * R * R + step * SIZE
    square = i[:, None] * SIZE + i[None, :]
    mask = p_in[:, None] & p_in[None, :]
    pivots = matrix + step * SIZE * R
    diagonal = tl.load(pivots + (i[:, None] * R + i[None, :]), mask=mask, other=0.0)
    diagonal = tl.where(mask, diagonal, tl.where(i[:, None] == i[None, :], 1.0, 0.0))
    inverse = invert_tile(diagonal, SIZE)
    panel = PANEL + batch * R * SIZE + block * SIZE * SIZE
    if block == step:
        tl.store(panel + square, inverse, mask=i_in[:, None])
    else:
        # The products go in slices, or they spill; so factors go through memory that only this
        # program touches.
        k = tl.arange(0, BLOCK_K)
        left = i[:, None] * SIZE + k[None, :]
        right = k[:, None] * SIZE + i[None, :]
        rows = matrix + block * SIZE * R
        scratch = SCRATCH + pid.to(tl.int64) * 2 * SIZE * SIZE
        tl.store(scratch + square, inverse)
        tl.debug_barrier()
        product = tl.zeros([SIZE, SIZE], COMPUTE)
        for start in range(0, SIZE, BLOCK_K):
            k_in = k < R - step * SIZE - start
            row_slice = load_strided(rows + start, i, k, R, 1, i_in, k_in)
            inverse_slice = tl.load(scratch + start * SIZE + right)
            product = tl.dot(
                row_slice, inverse_slice, product, input_precision=PRECISION, out_dtype=COMPUTE
            )
        # One step of refinement: the next blocks are small differences, which the rounding of an
        # explicit inverse would spoil.
        tl.store(panel + square, product, mask=i_in[:, None])
        tl.debug_barrier()
        rest = load_strided(rows, i, i, R, 1, i_in, p_in)
        for start in range(0, SIZE, BLOCK_K):
            k_in = k < R - step * SIZE - start
            panel_slice = tl.load(panel + start + left, mask=i_in[:, None], other=0.0)
            pivot_rows = matrix + (step * SIZE + start) * R
            pivot_slice = load_strided(pivot_rows, k, i, R, 1, k_in, p_in)
            rest = tl.dot(
                -panel_slice, pivot_slice, rest, input_precision=PRECISION, out_dtype=COMPUTE
            )
        tl.store(scratch + SIZE * SIZE + square, rest)
        tl.debug_barrier()
        for start in range(0, SIZE, BLOCK_K):
            rest_slice = tl.load(scratch + SIZE * SIZE + start + left)
            inverse_slice = tl.load(scratch + start * SIZE + right)
            product = tl.dot(
                rest_slice, inverse_slice, product, input_precision=PRECISION, out_dtype=COMPUTE
            )
        tl.debug_barrier()
        tl.store(panel + square, product, mask=i_in[:, None])


@triton.jit
def invert_update(
    SHIFTED,
    PANEL,
    OUT,
    R,
    step,
    blocks,
    SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Second launch of a block step p: OUT[i, j] = A[i, j] - PANEL[i] A[p, j].

    Column p becomes the panel, row p -PANEL[p] A[p, j]. A is SHIFTED as the steps before left it.
    Pointers: SHIFTED, OUT (B, R, R); PANEL (B, R, SIZE). Grid: (blocks * blocks * B,); a program
    owns a block.
    """
    bj, bi, batch = part_of_image(blocks, blocks)
    i = tl.arange(0, SIZE)
    i_in = i < R - bi * SIZE
    j_in = i < R - bj * SIZE
    mask = i_in[:, None] & j_in[None, :]
    matrix = batch * R * R + bj * SIZE
    panel = PANEL + batch * R * SIZE + bi * SIZE * SIZE
    element = matrix + bi * SIZE * R + (i[:, None] * R + i[None, :])
    if bj == step:
        tl.store(
            OUT + element,
            tl.load(panel + (i[:, None] * SIZE + i[None, :]), mask=mask, other=0.0),
            mask=mask,
        )
    else:
        block = tl.load(SHIFTED + element, mask=mask, other=0.0)
        block = tl.where(bi == step, 0.0, block)
        k = tl.arange(0, BLOCK_K)
        for start in range(0, SIZE, BLOCK_K):
            k_in = k < R - step * SIZE - start
            left = panel + start + (i[:, None] * SIZE + k[None, :])
            panel_slice = tl.load(left, mask=i_in[:, None], other=0.0)
            pivot_rows = SHIFTED + matrix + (step * SIZE + start) * R
            pivot_slice = load_strided(pivot_rows, k, i, R, 1, k_in, j_in)
            block = tl.dot(
                -panel_slice, pivot_slice, block, input_precision=PRECISION, out_dtype=COMPUTE
            )
        tl.store(OUT + element, block, mask=mask)
