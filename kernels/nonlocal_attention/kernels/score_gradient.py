"""Backward: the gradient of the scores, and of queries and keys through it, as partial sums.

The contract of three kernels, which differ in what stays in registers and shared memory: this one,
score_gradient_wide.py and score_gradient_resident.py.
"""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import (
    load_tile,
    load_transposed,
    operand,
    part_of_image,
    store_tile,
)


@triton.jit
def value_product(
    v_tile,
    dy_tile,
    value_row,
    key,
    row,
    key_in,
    row_in,
    C,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_C: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """dp^T = v dy^T of a tile (keys, queries), BLOCK_K channels at a time."""
    channel = tl.arange(0, BLOCK_K)
    dp = tl.zeros([BLOCK_N, BLOCK_M], COMPUTE)
    for c in range(0, C, BLOCK_K):
        v = load_tile(v_tile + c, key, channel, value_row, key_in, channel < C - c, EVEN_C)
        dy = load_transposed(dy_tile + c, row, channel, C, row_in, channel < C - c, EVEN_C)
        dp = tl.dot(v, dy, dp, input_precision=PRECISION, out_dtype=COMPUTE)
    return dp


@triton.jit
def score_slope(s, dp, lse, delta, key_in, scale_log2):
    """ds = p (dp - delta), p = 2^(s scale_log2 - lse), of a tile (keys, queries)."""
    # 2^(0 - lse) overflows where all scores are very negative: keys past the end must be 0 before.
    p = tl.exp2(tl.where(key_in[:, None], s * scale_log2, float("-inf")) - lse[None, :])
    return p * (dp - delta[None, :])


@triton.jit
def attention_score_gradient(
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
    BLOCK_D: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """ds = p (dy v^T - delta), then dk = ds^T q and dq = ds k, partial sums without the scale.

    Pointers: QUERY, KEY (B, N, D), VALUE (B, N, C), rows at a stride; GRAD_ATTENDED (B, N, C);
    LSE, DELTA (B, N); GRAD_QUERY_PARTS (B, key_splits, N, D) and GRAD_KEY_PARTS
    (B, query_splits, N, D) in COMPUTE.
    Grid: (key_splits * query_splits * B,); a program owns tiles_per_split tiles of BLOCK_N keys
    against rows_per_split queries: it alone touches its part of dq, tile after tile, and stores a
    tile of dk once.
    """
    key_split, query_split, image = part_of_image(key_splits, query_splits)
    key = tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    depth_in = depth < D
    begin = query_split * rows_per_split
    end = tl.minimum(begin + rows_per_split, N)
    dq_offsets = row[:, None] * D + depth[None, :]
    for step in range(0, tiles_per_split):
        tile = key_split * tiles_per_split + step
        first = tile.to(tl.int64) * BLOCK_N
        if first < N:
            key_in = key < N - tile * BLOCK_N
            k_tile = KEY + image * key_batch + first * key_row
            k = load_tile(k_tile, key, depth, key_row, key_in, depth_in, EVEN_D)
            v_tile = VALUE + image * value_batch + first * value_row
            q_tile = QUERY + image * query_batch + begin.to(tl.int64) * query_row
            dk = tl.zeros([BLOCK_N, BLOCK_D], COMPUTE)
            for offset in range(0, end - begin, BLOCK_M):
                start = begin + offset
                row_in = row < N - start
                position = image * N + start
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
                q = load_tile(q_tile, row, depth, query_row, row_in, depth_in, EVEN_D)
                lse = tl.load(LSE + position + row, mask=row_in, other=float("inf"))
                delta = tl.load(DELTA + position + row, mask=row_in, other=0.0)
                s = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=COMPUTE)
                ds = score_slope(s, dp, lse, delta, key_in, scale_log2)
                ds = operand(ds, QUERY.dtype.element_ty, PRECISION)
                dk = tl.dot(ds, q, dk, input_precision=PRECISION, out_dtype=COMPUTE)
                dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION, out_dtype=COMPUTE)
                dq_tile = (
                    GRAD_QUERY_PARTS
                    + ((image * key_splits + key_split) * N + start) * D
                    + dq_offsets
                )
                dq_mask = row_in[:, None] & depth_in[None, :]
                # Another thread may have stored this element for the tile of keys before.
                tl.debug_barrier()
                before = tl.load(dq_tile, mask=dq_mask & (step > 0), other=0.0)
                tl.store(dq_tile, before + dq, mask=dq_mask)
                q_tile += BLOCK_M * query_row
            dk_tile = GRAD_KEY_PARTS + ((image * query_splits + query_split) * N + first) * D
            store_tile(dk_tile, dk, key, depth, D, key_in, depth_in, False)
