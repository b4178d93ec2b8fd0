"""Backward: attention_score_gradient for deep queries."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import (
    load_tile,
    load_transposed,
    operand,
    part_of_image,
)
from intrasense_fast.kernels.nonlocal_attention.kernels.score_gradient import (
    score_slope,
    value_product,
)


@triton.jit
def add_product(
    START, a, b, row, column, stride, mask, again, PRECISION: tl.constexpr, COMPUTE: tl.constexpr
):
    """Add a b to the tile (rows, columns) at START, or store it where this is not done `again`."""
    tile = START + (row[:, None] * stride + column[None, :])
    before = tl.load(tile, mask=mask & again, other=0.0)
    product = tl.dot(a, b, input_precision=PRECISION, out_dtype=COMPUTE)
    tl.store(tile, before + product, mask=mask)


@triton.jit
def attention_score_gradient_wide(
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
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    EVEN_C: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """attention_score_gradient for a depth whose dk and dq do not fit registers beside s and dp.

    Pointers, grid and ownership as there; dk, too, is added up in its buffer, in slices of BLOCK_S
    of the depth.
    """
    key_split, query_split, image = part_of_image(key_splits, query_splits)
    key = tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_S)
    begin = query_split * rows_per_split
    end = tl.minimum(begin + rows_per_split, N)
    for step in range(0, tiles_per_split):
        tile = key_split * tiles_per_split + step
        first = tile.to(tl.int64) * BLOCK_N
        if first < N:
            key_in = key < N - tile * BLOCK_N
            k_tile = KEY + image * key_batch + first * key_row
            v_tile = VALUE + image * value_batch + first * value_row
            q_tile = QUERY + image * query_batch + begin.to(tl.int64) * query_row
            dk_tile = GRAD_KEY_PARTS + ((image * query_splits + query_split) * N + first) * D
            for offset in range(0, end - begin, BLOCK_M):
                start = begin + offset
                row_in = row < N - start
                position = image * N + start
                s = tl.zeros([BLOCK_N, BLOCK_M], COMPUTE)
                for d in range(0, D, BLOCK_S):
                    depth_in = depth < D - d
                    k = load_tile(k_tile + d, key, depth, key_row, key_in, depth_in, False)
                    q = load_transposed(q_tile + d, row, depth, query_row, row_in, depth_in, False)
                    s = tl.dot(k, q, s, input_precision=PRECISION, out_dtype=COMPUTE)
                dp = value_product(
                    v_tile,
                    GRAD_ATTENDED + position * C,
                    value_row,
                    key,
                    row,
                    key_in,
                    row_in,
                    C,
                    BLOCK_M,
                    BLOCK_N,
                    BLOCK_K,
                    EVEN_C,
                    PRECISION,
                    COMPUTE,
                )
                lse = tl.load(LSE + position + row, mask=row_in, other=float("inf"))
                delta = tl.load(DELTA + position + row, mask=row_in, other=0.0)
                ds = score_slope(s, dp, lse, delta, key_in, scale_log2)
                ds = operand(ds, QUERY.dtype.element_ty, PRECISION)
                ds_rows = tl.trans(ds)
                dq_tile = GRAD_QUERY_PARTS + ((image * key_splits + key_split) * N + start) * D
                # Another thread may have stored an element of the partial sums before.
                tl.debug_barrier()
                for d in range(0, D, BLOCK_S):
                    depth_in = depth < D - d
                    q = load_tile(q_tile + d, row, depth, query_row, row_in, depth_in, False)
                    key_mask = key_in[:, None] & depth_in[None, :]
                    add_product(
                        dk_tile + d, ds, q, key, depth, D, key_mask, offset > 0, PRECISION, COMPUTE
                    )
                    k = load_tile(k_tile + d, key, depth, key_row, key_in, depth_in, False)
                    row_mask = row_in[:, None] & depth_in[None, :]
                    add_product(
                        dq_tile + d,
                        ds_rows,
                        k,
                        row,
                        depth,
                        D,
                        row_mask,
                        step > 0,
                        PRECISION,
                        COMPUTE,
                    )
                q_tile += BLOCK_M * query_row
