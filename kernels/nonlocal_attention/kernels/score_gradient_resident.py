"""Backward: attention_score_gradient with whole value rows in shared memory."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import (
    load_tile,
    part_of_image,
    store_tile,
)
from intrasense_fast.kernels.nonlocal_attention.kernels.score_gradient import score_slope


@triton.jit
def attention_score_gradient_resident(
    QUERY,
    KEY,
    VALUE,
    GRAD_ATTENDED,
    LSE,
    DELTA,
    GRAD_QUERY_PARTS,
    GRAD_KEY_PARTS,
    query_batch,
    query_row,
    key_batch,
    key_row,
    value_batch,
    value_row,
    N,
    D,
    C,
    key_splits,
    query_splits,
    tiles_per_split,
    rows_per_split,
    scale_log2,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """attention_score_gradient for values of at most BLOCK_V channels: whole rows of v and dy.

    Pointers, grid and ownership as there. A tile of v is read once and stays in shared memory; one
    loop over the queries, so that their loads are in flight across its tiles.
    """
    key_split, query_split, image = part_of_image(key_splits, query_splits)
    key = tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    HALF: tl.constexpr = BLOCK_V // 2
    # The tensor cores of sm_90 take 64 rows: dq is transposed where a tile has fewer queries.
    BY_DEPTH: tl.constexpr = BLOCK_M < 64
    column = tl.arange(0, HALF)
    # Known widths keep the offsets of a tile's rows out of registers.
    width = BLOCK_V if EVEN_C else C
    deep = BLOCK_D if EVEN_D else D
    depth_in = depth < D
    begin = query_split * rows_per_split
    end = tl.minimum(begin + rows_per_split, N)
    for step in range(0, tiles_per_split):
        tile = key_split * tiles_per_split + step
        first = tile.to(tl.int64) * BLOCK_N
        if first < N:
            key_in = key < N - tile * BLOCK_N
            k_tile = KEY + image * key_batch + first * key_row
            k = load_tile(k_tile, key, depth, key_row, key_in, depth_in, EVEN_D)
            v_tile = VALUE + image * value_batch + first * value_row
            v = load_tile(v_tile, key, column, value_row, key_in, column < C, EVEN_C)
            # One half at a time passes through registers.
            tl.debug_barrier()
            right_in = column < C - HALF
            v_right = load_tile(v_tile + HALF, key, column, value_row, key_in, right_in, EVEN_C)
            dk = tl.zeros([BLOCK_N, BLOCK_D], COMPUTE)
            q_tile = QUERY + image * query_batch + begin.to(tl.int64) * query_row
            position = image * N + begin
            dy_tile = GRAD_ATTENDED + position * width
            dq_tile = GRAD_QUERY_PARTS + ((image * key_splits + key_split) * N + begin) * deep
            lse_tile = LSE + position
            delta_tile = DELTA + position
            # Other threads stored elements of this dq for the keys before; within a tile of keys
            # none is touched twice.
            tl.debug_barrier()
            for offset in range(0, end - begin, BLOCK_M):
                row_in = row < end - begin - offset
                q = load_tile(q_tile, row, depth, query_row, row_in, depth_in, EVEN_D)
                dy = load_tile(dy_tile, row, column, width, row_in, column < C, EVEN_C)
                dy_right = load_tile(dy_tile + HALF, row, column, width, row_in, right_in, EVEN_C)
                lse = tl.load(lse_tile + row, mask=row_in, other=float("inf"))
                delta = tl.load(delta_tile + row, mask=row_in, other=0.0)
                if BY_DEPTH:
                    dq_offsets = row[None, :] * deep + depth[:, None]
                    dq_mask = row_in[None, :] & depth_in[:, None]
                else:
                    dq_offsets = row[:, None] * deep + depth[None, :]
                    dq_mask = row_in[:, None] & depth_in[None, :]
                before = tl.load(dq_tile + dq_offsets, mask=dq_mask & (step > 0), other=0.0)
                s = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=COMPUTE)
                dp = tl.dot(v, tl.trans(dy), input_precision=PRECISION, out_dtype=COMPUTE)
                dp = tl.dot(
                    v_right, tl.trans(dy_right), dp, input_precision=PRECISION, out_dtype=COMPUTE
                )
                ds = score_slope(s, dp, lse, delta, key_in, scale_log2).to(QUERY.dtype.element_ty)
                dk = tl.dot(ds, q, dk, input_precision=PRECISION, out_dtype=COMPUTE)
                if BY_DEPTH:
                    dq = tl.dot(tl.trans(k), ds, input_precision=PRECISION, out_dtype=COMPUTE)
                else:
                    dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION, out_dtype=COMPUTE)
                # As a plain sum it would become the product's accumulator, and take shared memory
                # in another layout.
                tl.store(dq_tile + dq_offsets, tl.fma(dq, 1.0, before), mask=dq_mask)
                q_tile += BLOCK_M * query_row
                dy_tile += BLOCK_M * width
                dq_tile += BLOCK_M * deep
                lse_tile += BLOCK_M
                delta_tile += BLOCK_M
            dk_tile = GRAD_KEY_PARTS + ((image * query_splits + query_split) * N + first) * deep
            store_tile(dk_tile, dk, key, depth, deep, key_in, depth_in, False)
