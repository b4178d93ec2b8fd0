"""Inverse of symmetric positive definite matrices by Gauss-Jordan without pivoting, in blocks.

The blocks are eliminated by columns: the error E of the inverse M then has the form (something) M,
so that E f is as small as M f for the directions f which M is there to suppress. By rows it is
f^T E that is small, and M f may lose all its digits. See README.md.
"""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import load_strided
from intrasense_fast.kernels.channel_decoupling.kernels.block import invert_diagonal


@triton.jit
def multiplied(
    acc,
    LEFT,
    RIGHT,
    left_row,
    i_in,
    columns,
    NEGATIVE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """acc + LEFT RIGHT, or acc - LEFT RIGHT.

    LEFT (SIZE, SIZE), of which rows i_in and the first `columns` exist, left_row apart; RIGHT
    (SIZE, SIZE), contiguous. In slices from memory that only this program touches: whole factors in
    registers spill.
    """
    i = tl.arange(0, SIZE)
    k = tl.arange(0, BLOCK_K)
    for start in range(0, SIZE, BLOCK_K):
        left_slice = load_strided(LEFT + start, i, k, left_row, 1, i_in, k < columns - start)
        if NEGATIVE:
            left_slice = -left_slice
        right_slice = tl.load(RIGHT + start * SIZE + (k[:, None] * SIZE + i[None, :]))
        acc = tl.dot(left_slice, right_slice, acc, input_precision=PRECISION, out_dtype=COMPUTE)
    return acc


@triton.jit
def store_panel(
    TILE,
    diagonal,
    on_diagonal,
    PANEL,
    SCRATCH,
    R,
    rows,
    columns,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """PANEL = TILE diagonal^-1, refined once; diagonal^-1 itself where the tile is `on_diagonal`.

    TILE (SIZE, SIZE), of which the first `rows` and `columns` exist, rows R apart; PANEL
    (SIZE, SIZE), its first `rows`; SCRATCH (2, SIZE, SIZE). All are this program's own.
    """
    i = tl.arange(0, SIZE)
    i_in = i < rows
    panel = PANEL + (i[:, None] * SIZE + i[None, :])
    invert_diagonal(diagonal, SCRATCH, SIZE, HALF, COMPUTE)
    INVERSE = SCRATCH + SIZE * SIZE
    if on_diagonal:
        inverse = tl.load(INVERSE + (i[:, None] * SIZE + i[None, :]))
        tl.store(panel, inverse, mask=i_in[:, None])
    else:
        product = tl.zeros([SIZE, SIZE], COMPUTE)
        product = multiplied(
            product,
            TILE,
            INVERSE,
            R,
            i_in,
            columns,
            False,
            SIZE,
            BLOCK_K,
            PRECISION,
            COMPUTE,
        )
        # One step of refinement: the next blocks are small differences, which the rounding of an
        # explicit inverse would spoil.
        tl.store(panel, product, mask=i_in[:, None])
        tl.debug_barrier()
        rest = load_strided(TILE, i, i, R, 1, i_in, i < columns)
        rest = multiplied(
            rest,
            PANEL,
            SCRATCH,
            SIZE,
            i_in,
            SIZE,
            True,
            SIZE,
            BLOCK_K,
            PRECISION,
            COMPUTE,
        )
        tl.debug_barrier()
        tl.store(panel, rest, mask=i_in[:, None])
        tl.debug_barrier()
        product = multiplied(
            product,
            PANEL,
            INVERSE,
            SIZE,
            i_in,
            SIZE,
            False,
            SIZE,
            BLOCK_K,
            PRECISION,
            COMPUTE,
        )
        tl.debug_barrier()
        tl.store(panel, product, mask=i_in[:, None])


@triton.jit
def eliminated(
    MATRIX,
    PANEL,
    bi,
    bj,
    step,
    R,
    SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Block (bi, bj) of A - PANEL A[p], A without its row p; beyond the edge the identity's.

    MATRIX (A) (R, R) and PANEL (R, SIZE) are those of one image.
    """
    i = tl.arange(0, SIZE)
    i_in = i < R - bi * SIZE
    j_in = i < R - bj * SIZE
    mask = i_in[:, None] & j_in[None, :]
    columns = MATRIX + bj * SIZE
    element = bi * SIZE * R + (i[:, None] * R + i[None, :])
    block = tl.load(columns + element, mask=mask, other=0.0)
    block = tl.where(bi == step, 0.0, block)
    k = tl.arange(0, BLOCK_K)
    for start in range(0, SIZE, BLOCK_K):
        k_in = k < R - step * SIZE - start
        left = PANEL + bi * SIZE * SIZE + start + (i[:, None] * SIZE + k[None, :])
        panel_slice = tl.load(left, mask=i_in[:, None], other=0.0)
        pivot_slice = load_strided(columns + (step * SIZE + start) * R, k, i, R, 1, k_in, j_in)
        block = tl.dot(
            -panel_slice, pivot_slice, block, input_precision=PRECISION, out_dtype=COMPUTE
        )
    identity = tl.where((i[:, None] == i[None, :]) & (bi == bj), 1.0, 0.0)
    return tl.where(mask, block, identity)


@triton.jit
def invert_step(
    MATRIX,
    PANEL,
    OUT,
    NEXT_PANEL,
    SCRATCH,
    R,
    step,
    blocks,
    images,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Block step p: OUT[i, j] = A[i, j] - PANEL[i] A[p, j], and the panel of step p + 1.

    Column p becomes the panel, row p -PANEL[p] A[p, j]. NEXT_PANEL[i] = OUT[i, p + 1]
    OUT[p + 1, p + 1]^-1, and the inverse itself for i = p + 1. A is MATRIX as the steps before left
    it: what a step reads, it does not write.
    Pointers: MATRIX, OUT (images, R, R); PANEL, NEXT_PANEL (images, R, SIZE); SCRATCH
    (images, blocks, 2, SIZE, SIZE). Grid: (blocks * blocks * images,); a program owns a block, and
    one in column p + 1 a block of the next panel: these come first, as they take longest, and each
    makes the diagonal block and its inverse itself.
    """
    pid = tl.program_id(0)
    bi = pid % blocks
    image = (pid // blocks) % images
    bj = (pid // (blocks * images) + step + 1) % blocks
    batch = image.to(tl.int64)
    i = tl.arange(0, SIZE)
    i_in = i < R - bi * SIZE
    j_in = i < R - bj * SIZE
    mask = i_in[:, None] & j_in[None, :]
    matrix = MATRIX + batch * R * R
    panel = PANEL + batch * R * SIZE
    own = OUT + batch * R * R + bi * SIZE * R + bj * SIZE
    out = own + (i[:, None] * R + i[None, :])
    if bj == step:
        column = panel + bi * SIZE * SIZE + (i[:, None] * SIZE + i[None, :])
        tl.store(out, tl.load(column, mask=mask, other=0.0), mask=mask)
    else:
        tile = eliminated(matrix, panel, bi, bj, step, R, SIZE, BLOCK_K, PRECISION, COMPUTE)
        tl.store(out, tile, mask=mask)
        if bj == step + 1:
            diagonal = tile
            if bi != bj:
                diagonal = eliminated(
                    matrix, panel, bj, bj, step, R, SIZE, BLOCK_K, PRECISION, COMPUTE
                )
            store_panel(
                own,
                diagonal,
                bi == bj,
                NEXT_PANEL + batch * R * SIZE + bi * SIZE * SIZE,
                SCRATCH + (batch * blocks + bi) * 2 * SIZE * SIZE,
                R,
                R - bi * SIZE,
                R - bj * SIZE,
                SIZE,
                HALF,
                BLOCK_K,
                PRECISION,
                COMPUTE,
            )
