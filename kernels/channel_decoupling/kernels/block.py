"""Inverse of one block of a symmetric positive definite matrix by one program."""

import triton
import triton.language as tl


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
def invert_diagonal(
    diagonal,
    SCRATCH,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
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
