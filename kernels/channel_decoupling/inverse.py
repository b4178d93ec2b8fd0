"""Inverse of symmetric positive definite matrices by Gauss-Jordan without pivoting, in blocks. See README.md."""

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
        a = tl.where(on_row, scaled[None, :], tl.where(on_column, 0.0, a) - column[:, None] * scaled[None, :])
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
    """First launch of a block step p: PANEL[j] = A[p, p]^-1 A[p, j], and the inverse itself for j = p.

    Pointers: A (B, R, R); PANEL (B, SIZE, R); SCRATCH (B, blocks, 2, SIZE, SIZE). Grid: (blocks * B,); every program inverts the
    diagonal block itself and owns one block of the panel.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    batch = (pid // blocks).to(tl.int64)
    i = tl.arange(0, SIZE)
    i_in = i < R - step * SIZE
    j_in = i < R - block * SIZE
    rows = A + batch * R * R + step * SIZE * R
    inside = i_in[:, None] & i_in[None, :]
    diagonal = tl.load(rows + step * SIZE + (i[:, None] * R + i[None, :]), mask=inside, other=0.0)
    diagonal = tl.where(inside, diagonal, tl.where(i[:, None] == i[None, :], 1.0, 0.0))
    inverse = invert_tile(diagonal, SIZE)
    panel = PANEL + batch * SIZE * R + block * SIZE + (i[:, None] * R + i[None, :])
    if block == step:
        tl.store(panel, inverse, mask=i_in[:, None] & j_in[None, :])
    else:
        # The products go in slices, or they spill; so factors go through memory that only this program touches.
        k = tl.arange(0, BLOCK_K)
        wide = i[:, None] * R + i[None, :]
        scratch = SCRATCH + pid.to(tl.int64) * 2 * SIZE * SIZE
        left = scratch + (i[:, None] * SIZE + k[None, :])
        here = i_in[:, None] & j_in[None, :]
        tl.store(scratch + (i[:, None] * SIZE + i[None, :]), inverse)
        tl.debug_barrier()
        acc = tl.zeros([SIZE, SIZE], COMPUTE)
        for start in range(0, SIZE, BLOCK_K):
            k_in = k < R - step * SIZE - start
            right = tl.load(
                rows + start * R + block * SIZE + (k[:, None] * R + i[None, :]), mask=k_in[:, None] & j_in[None, :], other=0.0
            )
            acc = tl.dot(tl.load(left + start), right, acc, input_precision=PRECISION, out_dtype=COMPUTE)
        # One step of refinement: the next blocks are small differences, which the rounding of an explicit inverse would spoil.
        tl.store(panel, acc, mask=here)
        tl.debug_barrier()
        rest = tl.load(rows + block * SIZE + wide, mask=here, other=0.0)
        for start in range(0, SIZE, BLOCK_K):
            k_in = k < R - step * SIZE - start
            pivot = tl.load(
                rows + step * SIZE + start + (i[:, None] * R + k[None, :]), mask=i_in[:, None] & k_in[None, :], other=0.0
            )
            right = tl.load(
                PANEL + batch * SIZE * R + start * R + block * SIZE + (k[:, None] * R + i[None, :]),
                mask=k_in[:, None] & j_in[None, :], other=0.0,
            )  # fmt: skip
            rest = tl.dot(-pivot, right, rest, input_precision=PRECISION, out_dtype=COMPUTE)
        tl.store(scratch + SIZE * SIZE + (i[:, None] * SIZE + i[None, :]), rest)
        tl.debug_barrier()
        for start in range(0, SIZE, BLOCK_K):
            right = tl.load(scratch + (SIZE + start) * SIZE + (k[:, None] * SIZE + i[None, :]))
            acc = tl.dot(tl.load(left + start), right, acc, input_precision=PRECISION, out_dtype=COMPUTE)
        tl.debug_barrier()
        tl.store(panel, acc, mask=here)


@triton.jit
def invert_update(
    A, PANEL, OUT, R, step, blocks,
    SIZE: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Second launch of a block step p: OUT[i, j] = A[i, j] - A[i, p] PANEL[j]; row p is the panel, column p -A[i, p] PANEL[p].

    Pointers: A, OUT (B, R, R); PANEL (B, SIZE, R). Grid: (blocks * blocks * B,); a program owns a block.
    """
    pid = tl.program_id(0)
    bj = pid % blocks
    bi = (pid // blocks) % blocks
    batch = (pid // (blocks * blocks)).to(tl.int64)
    i = tl.arange(0, SIZE)
    i_in = i < R - bi * SIZE
    j_in = i < R - bj * SIZE
    rows = batch * R * R + bi.to(tl.int64) * SIZE * R
    panel_base = PANEL + batch * SIZE * R + bj * SIZE
    at = rows + bj * SIZE + (i[:, None] * R + i[None, :])
    inside = i_in[:, None] & j_in[None, :]
    if bi == step:
        tl.store(OUT + at, tl.load(panel_base + (i[:, None] * R + i[None, :]), mask=inside, other=0.0), mask=inside)
    else:
        acc = tl.load(A + at, mask=inside, other=0.0)
        acc = tl.where(bj == step, 0.0, acc)
        k = tl.arange(0, BLOCK_K)
        for start in range(0, SIZE, BLOCK_K):
            k_in = k < R - step * SIZE - start
            column = tl.load(
                A + rows + step * SIZE + start + (i[:, None] * R + k[None, :]), mask=i_in[:, None] & k_in[None, :], other=0.0
            )
            panel = tl.load(
                panel_base + start * R + (k[:, None] * R + i[None, :]), mask=k_in[:, None] & j_in[None, :], other=0.0
            )
            acc = tl.dot(-column, panel, acc, input_precision=PRECISION, out_dtype=COMPUTE)
        tl.store(OUT + at, acc, mask=inside)
