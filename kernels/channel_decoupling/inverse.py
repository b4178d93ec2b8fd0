"""Inverse of symmetric positive definite matrices by Gauss-Jordan without pivoting, in blocks. See README.md.

The blocks are eliminated by columns: the error E of the inverse M then has the form (something) M, so that E f is as small as
M f for the directions f which M is there to suppress. By rows it is f^T E that is small, and M f may lose all its digits.
"""

import triton
import triton.language as tl


@triton.jit
def invert_tile(a, SCRATCH, SIZE: tl.constexpr):
    """Inverse of a symmetric positive definite tile in registers, four columns a step.

    SCRATCH: (2, 8, SIZE), which only this program touches. A step's rows and columns reach every thread through it: one barrier
    for four columns, where reductions take three barriers for one.
    """
    i = tl.arange(0, SIZE)
    for step in range(0, SIZE // 4):
        p = 4 * step
        pivot = i // 4 == step
        # The next step writes elsewhere, so one barrier a step is enough.
        rows = SCRATCH + step % 2 * 8 * SIZE
        columns = rows + 4 * SIZE
        tl.store(rows + ((i[:, None] - p) * SIZE + i[None, :]), a, mask=pivot[:, None])
        tl.store(columns + (i[:, None] * 4 + (i[None, :] - p)), a, mask=pivot[None, :])
        tl.debug_barrier()
        # The pivot block is L U, and c = columns (L U)^-1, which row by row solves c L U = columns.
        at = rows + p
        u00, u01, u02, u03 = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
        at += SIZE
        l10, u11, u12, u13 = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
        at += SIZE
        l20, l21, u22, u23 = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
        at += SIZE
        l30, l31, l32, u33 = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
        l10, l20, l30 = l10 / u00, l20 / u00, l30 / u00
        u11, u12, u13 = u11 - l10 * u01, u12 - l10 * u02, u13 - l10 * u03
        l21, l31 = (l21 - l20 * u01) / u11, (l31 - l30 * u01) / u11
        u22, u23 = u22 - l20 * u02 - l21 * u12, u23 - l20 * u03 - l21 * u13
        l32 = (l32 - l30 * u02 - l31 * u12) / u22
        u33 = u33 - l30 * u03 - l31 * u13 - l32 * u23
        # The pivot's own rows are those of -1: they become 0 + (L U)^-1 rows.
        c0 = tl.where(pivot, tl.where(i == p, -1.0, 0.0), tl.load(columns + i * 4)) / u00
        c1 = tl.where(pivot, tl.where(i == p + 1, -1.0, 0.0), tl.load(columns + i * 4 + 1))
        c2 = tl.where(pivot, tl.where(i == p + 2, -1.0, 0.0), tl.load(columns + i * 4 + 2))
        c3 = tl.where(pivot, tl.where(i == p + 3, -1.0, 0.0), tl.load(columns + i * 4 + 3))
        c1 = (c1 - c0 * u01) / u11
        c2 = (c2 - c0 * u02 - c1 * u12) / u22
        c3 = (c3 - c0 * u03 - c1 * u13 - c2 * u23) / u33
        c2 = c2 - c3 * l32
        c1 = c1 - c2 * l21 - c3 * l31
        c0 = c0 - c1 * l10 - c2 * l20 - c3 * l30
        # In the pivot's own columns rows are those of 1: they become 0 - c.
        r0 = tl.where(pivot, tl.where(i == p, 1.0, 0.0), tl.load(rows + i))
        r1 = tl.where(pivot, tl.where(i == p + 1, 1.0, 0.0), tl.load(rows + SIZE + i))
        r2 = tl.where(pivot, tl.where(i == p + 2, 1.0, 0.0), tl.load(rows + 2 * SIZE + i))
        r3 = tl.where(pivot, tl.where(i == p + 3, 1.0, 0.0), tl.load(rows + 3 * SIZE + i))
        a = tl.where(pivot[:, None] | pivot[None, :], 0.0, a)
        a = a - c0[:, None] * r0[None, :] - c1[:, None] * r1[None, :] - c2[:, None] * r2[None, :] - c3[:, None] * r3[None, :]
    return a


@triton.jit
def invert_small(A, OUT, SCRATCH, R, SIZE: tl.constexpr, COMPUTE: tl.constexpr):
    """OUT = A^-1 for R <= SIZE.

    Pointers: A, OUT (B, R, R); SCRATCH (B, 2, 8, SIZE). Grid: (B,); a program owns a matrix.
    """
    base = tl.program_id(0).to(tl.int64) * R * R
    i = tl.arange(0, SIZE)
    at = base + (i[:, None] * R + i[None, :])
    inside = (i < R)[:, None] & (i < R)[None, :]
    a = tl.load(A + at, mask=inside, other=0.0)
    # Beyond the edge the identity: it stays there.
    a = tl.where(inside, a, tl.where(i[:, None] == i[None, :], 1.0, 0.0))
    a = invert_tile(a, SCRATCH + tl.program_id(0).to(tl.int64) * 16 * SIZE, SIZE)
    tl.store(OUT + at, a, mask=inside)


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
    diagonal = tl.load(matrix + step * SIZE * R + (i[:, None] * R + i[None, :]), mask=inside, other=0.0)
    diagonal = tl.where(inside, diagonal, tl.where(i[:, None] == i[None, :], 1.0, 0.0))
    scratch = SCRATCH + pid.to(tl.int64) * 2 * SIZE * SIZE
    inverse = invert_tile(diagonal, scratch + SIZE * SIZE, SIZE)
    panel = PANEL + batch * R * SIZE + block * SIZE * SIZE
    if block == step:
        tl.store(panel + square, inverse, mask=i_in[:, None])
    else:
        # The products go in slices, or they spill; so factors go through memory that only this program touches.
        k = tl.arange(0, BLOCK_K)
        left = i[:, None] * SIZE + k[None, :]
        right = k[:, None] * SIZE + i[None, :]
        rows = matrix + block * SIZE * R
        tl.store(scratch + square, inverse)
        tl.debug_barrier()
        acc = tl.zeros([SIZE, SIZE], COMPUTE)
        for start in range(0, SIZE, BLOCK_K):
            k_in = k < R - step * SIZE - start
            a = tl.load(rows + start + (i[:, None] * R + k[None, :]), mask=i_in[:, None] & k_in[None, :], other=0.0)
            acc = tl.dot(a, tl.load(scratch + start * SIZE + right), acc, input_precision=PRECISION, out_dtype=COMPUTE)
        # One step of refinement: the next blocks are small differences, which the rounding of an explicit inverse would spoil.
        tl.store(panel + square, acc, mask=i_in[:, None])
        tl.debug_barrier()
        rest = tl.load(rows + (i[:, None] * R + i[None, :]), mask=i_in[:, None] & p_in[None, :], other=0.0)
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
            acc = tl.dot(lacking, tl.load(scratch + start * SIZE + right), acc, input_precision=PRECISION, out_dtype=COMPUTE)
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
        tl.store(OUT + at, tl.load(panel + (i[:, None] * SIZE + i[None, :]), mask=inside, other=0.0), mask=inside)
    else:
        acc = tl.load(A + at, mask=inside, other=0.0)
        acc = tl.where(bi == step, 0.0, acc)
        k = tl.arange(0, BLOCK_K)
        for start in range(0, SIZE, BLOCK_K):
            k_in = k < R - step * SIZE - start
            left = tl.load(panel + start + (i[:, None] * SIZE + k[None, :]), mask=i_in[:, None], other=0.0)
            right = tl.load(
                A + matrix + (step * SIZE + start) * R + (k[:, None] * R + i[None, :]),
                mask=k_in[:, None] & j_in[None, :], other=0.0,
            )  # fmt: skip
            acc = tl.dot(-left, right, acc, input_precision=PRECISION, out_dtype=COMPUTE)
        tl.store(OUT + at, acc, mask=inside)
