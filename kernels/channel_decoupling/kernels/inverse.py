"""Inverse of symmetric positive definite matrices by Gauss-Jordan without pivoting, in blocks.

The blocks are eliminated by columns: the error E of the inverse M then has the form (something) M,
so that E f is as small as M f for the directions f which M is there to suppress. By rows it is
f^T E that is small, and M f may lose all its digits. See README.md.
"""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import load_strided


@triton.jit
def invert_tile(tile, SIZE: tl.constexpr):
    """Inverse of a symmetric positive definite tile in registers, one column a step.

    Row p is column p, with the other sign where a row was the pivot's before: one sum, which a warp
    makes alone, brings both.
    """
    i = tl.arange(0, SIZE)
    for p in range(0, SIZE):
        on_column = (i == p)[None, :]
        column = tl.sum(tl.where(on_column, tile, 0.0), 1)
        row = column[None, :]
        pivot = tl.sum(tl.where(on_column, row, 0.0), 1)[:, None]
        row = tl.where((i < p)[None, :], -row, row)
        scaled = tl.where(on_column, 1.0, row) / pivot
        rest = tl.where(on_column, 0.0, tile) - column[:, None] * scaled
        tile = tl.where((i == p)[:, None], scaled, rest)
    return tile


@triton.jit
def invert_halves(WORK, HALF: tl.constexpr, COMPUTE: tl.constexpr):
    """WORK (2 HALF, 2 HALF), contiguous, becomes its inverse, in two block steps.

    A column of half a tile takes a third of the instructions of a whole one's. Each tile comes from
    memory, in the order of threads that invert_tile is quick in. The products are plain float32:
    they are small, and emulated ones would take more registers and twice the error.
    """
    i = tl.arange(0, HALF)
    element = i[:, None] * (2 * HALF) + i[None, :]
    for p in range(0, 2):
        rows, other_rows = p * 2 * HALF * HALF, (1 - p) * 2 * HALF * HALF
        column, other_column = p * HALF, (1 - p) * HALF
        pivots = tl.load(WORK + rows + column + element)
        inverse = invert_tile(pivots, HALF)
        below = tl.load(WORK + other_rows + column + element)
        panel = tl.dot(below, inverse, input_precision="ieee", out_dtype=COMPUTE)
        for _ in range(0, 2):
            rest = tl.dot(-panel, pivots, below, input_precision="ieee", out_dtype=COMPUTE)
            panel = tl.dot(rest, inverse, panel, input_precision="ieee", out_dtype=COMPUTE)
        beside = tl.load(WORK + rows + other_column + element)
        other = tl.load(WORK + other_rows + other_column + element)
        other = tl.dot(-panel, beside, other, input_precision="ieee", out_dtype=COMPUTE)
        beside = tl.dot(-inverse, beside, input_precision="ieee", out_dtype=COMPUTE)
        tl.debug_barrier()
        tl.store(WORK + rows + column + element, inverse)
        tl.store(WORK + other_rows + column + element, panel)
        tl.store(WORK + rows + other_column + element, beside)
        tl.store(WORK + other_rows + other_column + element, other)
        tl.debug_barrier()


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
def invert_diagonal(
    diagonal,
    SCRATCH,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """SCRATCH (2, SIZE, SIZE), which only this program touches: `diagonal` and its inverse."""
    i = tl.arange(0, SIZE)
    square = i[:, None] * SIZE + i[None, :]
    INVERSE = SCRATCH + SIZE * SIZE
    tl.store(SCRATCH + square, diagonal)
    if HALF < SIZE:
        tl.store(INVERSE + square, diagonal)
        tl.debug_barrier()
        invert_halves(INVERSE, HALF, COMPUTE)
    else:
        tl.debug_barrier()
        tl.store(INVERSE + square, invert_tile(tl.load(SCRATCH + square), SIZE))
        tl.debug_barrier()


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
    invert_diagonal(diagonal, SCRATCH, SIZE, HALF, PRECISION, COMPUTE)
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
