"""The score gradient with whole value rows resident in shared memory. Derivation and traffic: README.md."""

import triton
import triton.language as tl


@triton.jit
def attention_score_gradient_resident(
    Q, K, V, DO, LSE, DELTA, DQ, DK,
    q_batch, q_row, k_batch, k_row, v_batch, v_row,
    N, D, C, key_splits, query_splits, tiles_per_split, rows_per_split, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_C: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """attention_score_gradient for values of at most BLOCK_V channels: a tile of V is read once, DO in whole rows.

    Pointers, grid and ownership as there. One loop over the queries, so that their loads are in flight across its tiles.
    """
    pid = tl.program_id(0)
    key_split = pid % key_splits
    query_split = (pid // key_splits) % query_splits
    batch = (pid // (key_splits * query_splits)).to(tl.int64)
    key = tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    HALF: tl.constexpr = BLOCK_V // 2
    # The tensor cores of sm_90 take 64 rows: dQ is transposed where a tile has fewer queries.
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
            k_mask = key_in[:, None] if EVEN_D else key_in[:, None] & depth_in[None, :]
            k_tile = K + batch * k_batch + first * k_row
            k = tl.load(k_tile + (key[:, None] * k_row + depth[None, :]), mask=k_mask, other=0.0)
            v_tile = V + batch * v_batch + first * v_row
            v_offsets = key[:, None] * v_row + column[None, :]
            v_mask = key_in[:, None] if EVEN_C else key_in[:, None] & (column < C)[None, :]
            v = tl.load(v_tile + v_offsets, mask=v_mask, other=0.0)
            # One half at a time passes through registers.
            tl.debug_barrier()
            v_mask = key_in[:, None] if EVEN_C else key_in[:, None] & (column < C - HALF)[None, :]
            v_right = tl.load(v_tile + HALF + v_offsets, mask=v_mask, other=0.0)
            dk = tl.zeros([BLOCK_N, BLOCK_D], COMPUTE)
            q_tile = Q + batch * q_batch + begin.to(tl.int64) * q_row
            at = batch * N + begin
            do_tile = DO + at * width
            dq_tile = DQ + ((batch * key_splits + key_split) * N + begin) * deep
            lse_tile = LSE + at
            delta_tile = DELTA + at
            # Other threads stored elements of this dQ for the keys before; within a tile of keys none is touched twice.
            tl.debug_barrier()
            for offset in range(0, end - begin, BLOCK_M):
                row_in = row < end - begin - offset
                q_mask = row_in[:, None] if EVEN_D else row_in[:, None] & depth_in[None, :]
                q = tl.load(
                    q_tile + (row[:, None] * q_row + depth[None, :]), mask=q_mask, other=0.0
                )
                do_offsets = row[:, None] * width + column[None, :]
                do_mask = row_in[:, None] if EVEN_C else row_in[:, None] & (column < C)[None, :]
                do = tl.load(do_tile + do_offsets, mask=do_mask, other=0.0)
                do_mask = (
                    row_in[:, None] if EVEN_C else row_in[:, None] & (column < C - HALF)[None, :]
                )
                do_right = tl.load(do_tile + HALF + do_offsets, mask=do_mask, other=0.0)
                lse = tl.load(lse_tile + row, mask=row_in, other=float("inf"))
                delta = tl.load(delta_tile + row, mask=row_in, other=0.0)
                if BY_DEPTH:
                    dq_at = dq_tile + (row[None, :] * deep + depth[:, None])
                    dq_mask = row_in[None, :] & depth_in[:, None]
                else:
                    dq_at = dq_tile + (row[:, None] * deep + depth[None, :])
                    dq_mask = row_in[:, None] & depth_in[None, :]
                before = tl.load(dq_at, mask=dq_mask & (step > 0), other=0.0)
                s = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=COMPUTE)
                dp = tl.dot(v, tl.trans(do), input_precision=PRECISION, out_dtype=COMPUTE)
                dp = tl.dot(
                    v_right, tl.trans(do_right), dp, input_precision=PRECISION, out_dtype=COMPUTE
                )
                # 2^(0 - LSE) overflows where all scores are very negative: keys past the end must be 0 before the exponential.
                p = tl.exp2(tl.where(key_in[:, None], s * scale_log2, float("-inf")) - lse[None, :])
                ds = (p * (dp - delta[None, :])).to(Q.dtype.element_ty)
                dk = tl.dot(ds, q, dk, input_precision=PRECISION, out_dtype=COMPUTE)
                if BY_DEPTH:
                    dq = tl.dot(tl.trans(k), ds, input_precision=PRECISION, out_dtype=COMPUTE)
                else:
                    dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION, out_dtype=COMPUTE)
                # As a plain sum it would become the product's accumulator, and take shared memory in another layout.
                tl.store(dq_at, tl.fma(dq, 1.0, before), mask=dq_mask)
                q_tile += BLOCK_M * q_row
                do_tile += BLOCK_M * width
                dq_tile += BLOCK_M * deep
                lse_tile += BLOCK_M
                delta_tile += BLOCK_M
            dk_tile = DK + ((batch * query_splits + query_split) * N + first) * deep
            tl.store(
                dk_tile + (key[:, None] * deep + depth[None, :]),
                dk,
                mask=key_in[:, None] & depth_in[None, :],
            )
