"""Inverse of symmetric positive definite matrices by Gauss-Jordan without pivoting, in blocks. See README.md.

The blocks are eliminated by columns: the error E of the inverse M then has the form (something) M, so that E f is as small as
M f for the directions f which M is there to suppress. By rows it is f^T E that is small, and M f may lose all its digits.
"""

import triton
import triton.language as tl


@triton.jit
def invert_tile(a, SIZE: tl.constexpr):
    """Inverse of a symmetric positive definite tile in registers, one column a step."""
    i = tl.arange(0, SIZE)
    for p in range(0, SIZE):
        on_row = (i == p)[:, None]
        on_column = (i == p)[None, :]
        row = tl.sum(tl.where(on_row, a, 0.0), 0)
        column = tl.sum(tl.where(on_column, a, 0.0), 1)
        pivot = tl.sum(tl.where(i == p, row, 0.0), 0)
        scaled = tl.where(i == p, 1.0, row) / pivot
        a = tl.where(
            on_row, scaled[None, :], tl.where(on_column, 0.0, a) - column[:, None] * scaled[None, :]
        )
    return a


@triton.jit
def invert_small(A, OUT, R, SIZE: tl.constexpr, COMPUTE: tl.constexpr):
    """OUT = A^-1 for R <= SIZE.

    Pointers: A, OUT (B, R, R). Grid: (B,); a program owns a matrix.
    """
    base = tl.program_id(0).to(tl.int64) * R * R
    i = tl.arange(0, SIZE)
    at = base + (i[:, None] * R + i[None, :])
    inside = (i < R)[:, None] & (i < R)[None, :]
    a = tl.load(A + at, mask=inside, other=0.0)
    # Beyond the edge the identity: it stays there.
    a = tl.where(inside, a, tl.where(i[:, None] == i[None, :], 1.0, 0.0))
    tl.store(OUT + at, invert_tile(a, SIZE), mask=inside)


@triton.jit
def invert_panel(
    A, PANEL, SCRATCH, R, step, blocks,
    SIZE: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """First launch of a block step p: PANEL[i] = A[i, p] A[p, p]^-1, and the inverse itself for i = p.

    Pointers: A (B, R, R); PANEL (B, R, SIZE); SCRATCH (B, blocks, 2, SIZE, SIZE). Grid: (blocks * B,); every program inverts
    the diagonal block itself and owns one block of the panel.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    batch = (pid // blocks).to(tl.int64)
    i = tl.arange(0, SIZE)
    i_in = i < R - block * SIZE
    p_in = i < R - step * SIZE
    matrix = A + batch * R * R + step * SIZE
    square = i[:, None] * SIZE + i[None, :]
    inside = p_in[:, None] & p_in[None, :]
    diagonal = tl.load(
        matrix + step * SIZE * R + (i[:, None] * R + i[None, :]), mask=inside, other=0.0
    )
    diagonal = tl.where(inside, diagonal, tl.where(i[:, None] == i[None, :], 1.0, 0.0))
    inverse = invert_tile(diagonal, SIZE)
    panel = PANEL + batch * R * SIZE + block * SIZE * SIZE
    if block == step:
        tl.store(panel + square, inverse, mask=i_in[:, None])
    else:
        # The products go in slices, or they spill; so factors go through memory that only this program touches.
        k = tl.arange(0, BLOCK_K)
        left = i[:, None] * SIZE + k[None, :]
        right = k[:, None] * SIZE + i[None, :]
        rows = matrix + block * SIZE * R
        scratch = SCRATCH + pid.to(tl.int64) * 2 * SIZE * SIZE
        tl.store(scratch + square, inverse)
        tl.debug_barrier()
        acc = tl.zeros([SIZE, SIZE], COMPUTE)
        for start in range(0, SIZE, BLOCK_K):
            k_in = k < R - step * SIZE - start
            a = tl.load(
                rows + start + (i[:, None] * R + k[None, :]),
                mask=i_in[:, None] & k_in[None, :],
                other=0.0,
            )
            acc = tl.dot(
                a,
                tl.load(scratch + start * SIZE + right),
                acc,
                input_precision=PRECISION,
                out_dtype=COMPUTE,
            )
        # One step of refinement: the next blocks are small differences, which the rounding of an explicit inverse would spoil.
        tl.store(panel + square, acc, mask=i_in[:, None])
        tl.debug_barrier()
        rest = tl.load(
            rows + (i[:, None] * R + i[None, :]), mask=i_in[:, None] & p_in[None, :], other=0.0
        )
        for start in range(0, SIZE, BLOCK_K):
            k_in = k < R - step * SIZE - start
            found = tl.load(panel + start + left, mask=i_in[:, None], other=0.0)
            pivot = tl.load(
                matrix + (step * SIZE + start) * R + (k[:, None] * R + i[None, :]),
                mask=k_in[:, None] & p_in[None, :], other=0.0,
            )  # fmt: skip
            rest = tl.dot(-found, pivot, rest, input_precision=PRECISION, out_dtype=COMPUTE)
        tl.store(scratch + SIZE * SIZE + square, rest)
        tl.debug_barrier()
        for start in range(0, SIZE, BLOCK_K):
            lacking = tl.load(scratch + SIZE * SIZE + start + left)
            acc = tl.dot(
                lacking,
                tl.load(scratch + start * SIZE + right),
                acc,
                input_precision=PRECISION,
                out_dtype=COMPUTE,
            )
        tl.debug_barrier()
        tl.store(panel + square, acc, mask=i_in[:, None])


@triton.jit
def invert_update(
    A, PANEL, OUT, R, step, blocks,
    SIZE: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Second launch of a block step p: OUT[i, j] = A[i, j] - PANEL[i] A[p, j]; column p is the panel, row p -PANEL[p] A[p, j].

    Pointers: A, OUT (B, R, R); PANEL (B, R, SIZE). Grid: (blocks * blocks * B,); a program owns a block.
    """
    pid = tl.program_id(0)
    bj = pid % blocks
    bi = (pid // blocks) % blocks
    batch = (pid // (blocks * blocks)).to(tl.int64)
    i = tl.arange(0, SIZE)
    i_in = i < R - bi * SIZE
    j_in = i < R - bj * SIZE
    inside = i_in[:, None] & j_in[None, :]
    matrix = batch * R * R + bj * SIZE
    panel = PANEL + batch * R * SIZE + bi * SIZE * SIZE
    at = matrix + bi * SIZE * R + (i[:, None] * R + i[None, :])
    if bj == step:
        tl.store(
            OUT + at,
            tl.load(panel + (i[:, None] * SIZE + i[None, :]), mask=inside, other=0.0),
            mask=inside,
        )
    else:
        acc = tl.load(A + at, mask=inside, other=0.0)
        acc = tl.where(bi == step, 0.0, acc)
        k = tl.arange(0, BLOCK_K)
        for start in range(0, SIZE, BLOCK_K):
            k_in = k < R - step * SIZE - start
            left = tl.load(
                panel + start + (i[:, None] * SIZE + k[None, :]), mask=i_in[:, None], other=0.0
            )
            right = tl.load(
                A + matrix + (step * SIZE + start) * R + (k[:, None] * R + i[None, :]),
                mask=k_in[:, None] & j_in[None, :], other=0.0,
            )  # fmt: skip
            acc = tl.dot(-left, right, acc, input_precision=PRECISION, out_dtype=COMPUTE)
        tl.store(OUT + at, acc, mask=inside)
