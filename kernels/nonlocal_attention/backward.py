"""Backward kernels of nonlocal_attention, without atomics. Derivation and traffic: README.md."""

import triton
import triton.language as tl

from intrasense_fast.kernels.nonlocal_attention.forward import operand


@triton.jit
def attention_prepare(
    G, A, GMEAN, GMAX, ARG, DO, DELTA, g_batch, g_row, N, C, blocks,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, SAVED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The gradient of A V (and of the residual), DO = G + GMEAN / C + GMAX at the maximum, and DELTA = rowsum(DO * A V).

    A V is the saved one: output minus residual loses DELTA to rounding, and with it dQ as soon as the keys have a mean.
    Pointers: G (B, N, C), rows at a stride; A, DO (B, N, C); GMEAN, GMAX, ARG, DELTA (B, N). Without SAVED,
    A is not read and DELTA is 0. Grid: (blocks * B,); a program owns BLOCK_M positions.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    batch = (pid // blocks).to(tl.int64)
    first = block.to(tl.int64) * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_C)
    row_in = row < N - block * BLOCK_M
    at = batch * N + first + row
    share = tl.load(GMEAN + at, mask=row_in, other=0.0).to(COMPUTE) / C
    g_max = tl.load(GMAX + at, mask=row_in, other=0.0).to(COMPUTE)
    arg = tl.load(ARG + at, mask=row_in, other=-1)
    g_base = G + batch * g_batch + first * g_row
    dense = (batch * N + first) * C
    delta = tl.zeros([BLOCK_M], COMPUTE)
    for start in range(0, C, BLOCK_C):
        mask = row_in[:, None] if EVEN_C else row_in[:, None] & (column < C - start)[None, :]
        g = tl.load(
            g_base + start + (row[:, None] * g_row + column[None, :]), mask=mask, other=0.0
        ).to(COMPUTE)
        offsets = row[:, None] * C + column[None, :]
        do = (
            g
            + share[:, None]
            + tl.where(column[None, :] + start == arg[:, None], g_max[:, None], 0.0)
        )
        do = do.to(DO.dtype.element_ty)
        tl.store(DO + dense + start + offsets, do, mask=mask)
        if SAVED:
            a = tl.load(A + dense + start + offsets, mask=mask, other=0.0).to(COMPUTE)
            delta += tl.sum(tl.where(mask, do.to(COMPUTE) * a, 0.0), 1)
    tl.store(DELTA + at, delta, mask=row_in)


@triton.jit
def attention_value_gradient(
    Q, K, DO, LSE, DV, q_batch, q_row, k_batch, k_row, N, D, C, tiles, chunks, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    EVEN_C: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """dV = P^T DO with P^T = 2^(K Q^T scale_log2 - LSE), keys stationary.

    Pointers: Q, K (B, N, D), rows at a stride; DO, DV (B, N, C); LSE (B, N). Grid: (tiles * chunks * B,); a program owns
    BLOCK_N keys and one chunk of BLOCK_C channels.
    """
    pid = tl.program_id(0)
    tile = pid % tiles
    chunk = (pid // tiles) % chunks
    batch = (pid // (tiles * chunks)).to(tl.int64)
    first = tile.to(tl.int64) * BLOCK_N
    key = tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_S)
    column = tl.arange(0, BLOCK_C)
    left = C - chunk * BLOCK_C
    key_in = key < N - tile * BLOCK_N
    k_tile = K + batch * k_batch + first * k_row
    if BLOCK_S == BLOCK_D:
        k_mask = key_in[:, None] if EVEN_D else key_in[:, None] & (depth < D)[None, :]
        k = tl.load(k_tile + (key[:, None] * k_row + depth[None, :]), mask=k_mask, other=0.0)
    q_base = Q + batch * q_batch
    do_base = DO + batch * N * C + chunk * BLOCK_C
    lse_base = LSE + batch * N
    q_offsets = row[None, :] * q_row + depth[:, None]
    do_offsets = row[:, None] * C + column[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_C], COMPUTE)
    for start in range(0, N, BLOCK_M):
        row_in = row < N - start
        lse = tl.load(lse_base + row, mask=row_in, other=float("inf"))
        if BLOCK_S == BLOCK_D:
            q_mask = row_in[None, :] if EVEN_D else row_in[None, :] & (depth < D)[:, None]
            q = tl.load(q_base + q_offsets, mask=q_mask, other=0.0)
            s = tl.dot(k, q, input_precision=PRECISION, out_dtype=COMPUTE)
        else:
            s = tl.zeros([BLOCK_N, BLOCK_M], COMPUTE)
            for d in range(0, D, BLOCK_S):
                k_mask = key_in[:, None] & (depth < D - d)[None, :]
                k_part = tl.load(
                    k_tile + d + (key[:, None] * k_row + depth[None, :]), mask=k_mask, other=0.0
                )
                q_mask = row_in[None, :] & (depth < D - d)[:, None]
                q_part = tl.load(q_base + d + q_offsets, mask=q_mask, other=0.0)
                s = tl.dot(k_part, q_part, s, input_precision=PRECISION, out_dtype=COMPUTE)
        p = tl.exp2(s * scale_log2 - lse[None, :])
        do_mask = row_in[:, None] if EVEN_C else row_in[:, None] & (column < left)[None, :]
        do = tl.load(do_base + do_offsets, mask=do_mask, other=0.0)
        acc = tl.dot(
            operand(p, DO.dtype.element_ty, PRECISION),
            do,
            acc,
            input_precision=PRECISION,
            out_dtype=COMPUTE,
        )
        q_base += BLOCK_M * q_row
        do_base += BLOCK_M * C
        lse_base += BLOCK_M
    mask = key_in[:, None] if EVEN_C else key_in[:, None] & (column < left)[None, :]
    dv_tile = DV + (batch * N + first) * C + chunk * BLOCK_C
    tl.store(dv_tile + (key[:, None] * C + column[None, :]), acc.to(DV.dtype.element_ty), mask=mask)


@triton.jit
def attention_score_gradient(
    Q, K, V, DO, LSE, DELTA, DQ, DK,
    q_batch, q_row, k_batch, k_row, v_batch, v_row,
    N, D, C, key_splits, query_splits, tiles_per_split, rows_per_split, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_C: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """dS = P * (dO V^T - DELTA), then dK = dS^T Q and dQ = dS K, as partial sums and without the scale.

    Pointers: Q, K (B, N, D), V (B, N, C), rows at a stride; DO (B, N, C); LSE, DELTA (B, N); DQ (B, key_splits, N, D) and
    DK (B, query_splits, N, D) in COMPUTE. Grid: (key_splits * query_splits * B,); a program owns tiles_per_split tiles of
    BLOCK_N keys against rows_per_split queries: it alone touches its part of DQ, tile after tile, and stores a DK tile once.
    """
    pid = tl.program_id(0)
    key_split = pid % key_splits
    query_split = (pid // key_splits) % query_splits
    batch = (pid // (key_splits * query_splits)).to(tl.int64)
    key = tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    inner = tl.arange(0, BLOCK_K)
    depth_in = depth < D
    begin = query_split * rows_per_split
    end = tl.minimum(begin + rows_per_split, N)
    dq_offsets = row[:, None] * D + depth[None, :]
    for step in range(0, tiles_per_split):
        tile = key_split * tiles_per_split + step
        first = tile.to(tl.int64) * BLOCK_N
        if first < N:
            key_in = key < N - tile * BLOCK_N
            k_mask = key_in[:, None] if EVEN_D else key_in[:, None] & depth_in[None, :]
            k_offsets = key[:, None] * k_row + depth[None, :]
            k = tl.load(K + batch * k_batch + first * k_row + k_offsets, mask=k_mask, other=0.0)
            v_tile = V + batch * v_batch + first * v_row
            q_tile = Q + batch * q_batch + begin.to(tl.int64) * q_row
            dk = tl.zeros([BLOCK_N, BLOCK_D], COMPUTE)
            for offset in range(0, end - begin, BLOCK_M):
                start = begin + offset
                row_in = row < N - start
                at = batch * N + start
                dp = tl.zeros([BLOCK_N, BLOCK_M], COMPUTE)
                for c in range(0, C, BLOCK_K):
                    v_mask = (
                        key_in[:, None] if EVEN_C else key_in[:, None] & (inner < C - c)[None, :]
                    )
                    do_mask = (
                        row_in[None, :] if EVEN_C else row_in[None, :] & (inner < C - c)[:, None]
                    )
                    v = tl.load(
                        v_tile + c + (key[:, None] * v_row + inner[None, :]), mask=v_mask, other=0.0
                    )
                    do = tl.load(
                        DO + at * C + c + (row[None, :] * C + inner[:, None]),
                        mask=do_mask,
                        other=0.0,
                    )
                    dp = tl.dot(v, do, dp, input_precision=PRECISION, out_dtype=COMPUTE)
                q_mask = row_in[:, None] if EVEN_D else row_in[:, None] & depth_in[None, :]
                q = tl.load(
                    q_tile + (row[:, None] * q_row + depth[None, :]), mask=q_mask, other=0.0
                )
                lse = tl.load(LSE + at + row, mask=row_in, other=float("inf"))
                delta = tl.load(DELTA + at + row, mask=row_in, other=0.0)
                s = (
                    tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=COMPUTE)
                    * scale_log2
                )
                # 2^(0 - LSE) overflows where all scores are very negative: keys past the end must be 0 before the exponential.
                p = tl.exp2(tl.where(key_in[:, None], s, float("-inf")) - lse[None, :])
                ds = operand(p * (dp - delta[None, :]), Q.dtype.element_ty, PRECISION)
                dk = tl.dot(ds, q, dk, input_precision=PRECISION, out_dtype=COMPUTE)
                dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION, out_dtype=COMPUTE)
                dq_tile = DQ + ((batch * key_splits + key_split) * N + start) * D + dq_offsets
                dq_mask = row_in[:, None] & depth_in[None, :]
                # Another thread may have stored this element for the tile of keys before.
                tl.debug_barrier()
                before = tl.load(dq_tile, mask=dq_mask & (step > 0), other=0.0)
                tl.store(dq_tile, before + dq, mask=dq_mask)
                q_tile += BLOCK_M * q_row
            dk_tile = DK + ((batch * query_splits + query_split) * N + first) * D
            tl.store(
                dk_tile + (key[:, None] * D + depth[None, :]),
                dk,
                mask=key_in[:, None] & depth_in[None, :],
            )


@triton.jit
def attention_score_gradient_wide(
    Q, K, V, DO, LSE, DELTA, DQ, DK,
    q_batch, q_row, k_batch, k_row, v_batch, v_row,
    N, D, C, key_splits, query_splits, tiles_per_split, rows_per_split, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
    EVEN_C: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """attention_score_gradient for a depth whose dK and dQ do not fit registers beside S and dP.

    Pointers, grid and ownership as there; dK, too, is added up in its buffer, in slices of BLOCK_S of the depth.
    """
    pid = tl.program_id(0)
    key_split = pid % key_splits
    query_split = (pid // key_splits) % query_splits
    batch = (pid // (key_splits * query_splits)).to(tl.int64)
    key = tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_S)
    inner = tl.arange(0, BLOCK_K)
    begin = query_split * rows_per_split
    end = tl.minimum(begin + rows_per_split, N)
    for step in range(0, tiles_per_split):
        tile = key_split * tiles_per_split + step
        first = tile.to(tl.int64) * BLOCK_N
        if first < N:
            key_in = key < N - tile * BLOCK_N
            k_tile = K + batch * k_batch + first * k_row
            v_tile = V + batch * v_batch + first * v_row
            q_tile = Q + batch * q_batch + begin.to(tl.int64) * q_row
            dk_tile = DK + ((batch * query_splits + query_split) * N + first) * D
            for offset in range(0, end - begin, BLOCK_M):
                start = begin + offset
                row_in = row < N - start
                at = batch * N + start
                s = tl.zeros([BLOCK_N, BLOCK_M], COMPUTE)
                for d in range(0, D, BLOCK_S):
                    depth_in = depth < D - d
                    k_mask = key_in[:, None] & depth_in[None, :]
                    k = tl.load(
                        k_tile + d + (key[:, None] * k_row + depth[None, :]), mask=k_mask, other=0.0
                    )
                    q_mask = row_in[None, :] & depth_in[:, None]
                    q = tl.load(
                        q_tile + d + (row[None, :] * q_row + depth[:, None]), mask=q_mask, other=0.0
                    )
                    s = tl.dot(k, q, s, input_precision=PRECISION, out_dtype=COMPUTE)
                dp = tl.zeros([BLOCK_N, BLOCK_M], COMPUTE)
                for c in range(0, C, BLOCK_K):
                    v_mask = (
                        key_in[:, None] if EVEN_C else key_in[:, None] & (inner < C - c)[None, :]
                    )
                    do_mask = (
                        row_in[None, :] if EVEN_C else row_in[None, :] & (inner < C - c)[:, None]
                    )
                    v = tl.load(
                        v_tile + c + (key[:, None] * v_row + inner[None, :]), mask=v_mask, other=0.0
                    )
                    do = tl.load(
                        DO + at * C + c + (row[None, :] * C + inner[:, None]),
                        mask=do_mask,
                        other=0.0,
                    )
                    dp = tl.dot(v, do, dp, input_precision=PRECISION, out_dtype=COMPUTE)
                lse = tl.load(LSE + at + row, mask=row_in, other=float("inf"))
                delta = tl.load(DELTA + at + row, mask=row_in, other=0.0)
                # 2^(0 - LSE) overflows where all scores are very negative: keys past the end must be 0 before the exponential.
                p = tl.exp2(tl.where(key_in[:, None], s * scale_log2, float("-inf")) - lse[None, :])
                ds = operand(p * (dp - delta[None, :]), Q.dtype.element_ty, PRECISION)
                ds_rows = tl.trans(ds)
                # Another thread may have stored an element of the partial sums before.
                tl.debug_barrier()
                for d in range(0, D, BLOCK_S):
                    depth_in = depth < D - d
                    mask = row_in[:, None] & depth_in[None, :]
                    q = tl.load(
                        q_tile + d + (row[:, None] * q_row + depth[None, :]), mask=mask, other=0.0
                    )
                    part = dk_tile + d + (key[:, None] * D + depth[None, :])
                    mask = key_in[:, None] & depth_in[None, :]
                    before = tl.load(part, mask=mask & (offset > 0), other=0.0)
                    tl.store(
                        part,
                        before + tl.dot(ds, q, input_precision=PRECISION, out_dtype=COMPUTE),
                        mask=mask,
                    )
                    k = tl.load(
                        k_tile + d + (key[:, None] * k_row + depth[None, :]), mask=mask, other=0.0
                    )
                    part = (
                        DQ
                        + ((batch * key_splits + key_split) * N + start) * D
                        + d
                        + (row[:, None] * D + depth[None, :])
                    )
                    mask = row_in[:, None] & depth_in[None, :]
                    before = tl.load(part, mask=mask & (step > 0), other=0.0)
                    tl.store(
                        part,
                        before + tl.dot(ds_rows, k, input_precision=PRECISION, out_dtype=COMPUTE),
                        mask=mask,
                    )
                q_tile += BLOCK_M * q_row


@triton.jit
def attention_reduce(
    DQ_PARTS, DK_PARTS, DQ, DK, size, key_splits, query_splits, blocks, scale, BLOCK: tl.constexpr
):
    """dQ = scale * sum over key splits, dK = scale * sum over query splits, in fixed order.

    Pointers: DQ_PARTS (B, key_splits, N, D), DK_PARTS (B, query_splits, N, D) in COMPUTE; DQ, DK (B, N, D); size = N D.
    Grid: (blocks * B,); a program owns BLOCK elements of one image's dQ and dK.
    """
    pid = tl.program_id(0)
    batch = (pid // blocks).to(tl.int64)
    index = (pid % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    part = DQ_PARTS + batch * key_splits * size + index
    total = tl.load(part, mask=mask, other=0.0)
    for _ in range(1, key_splits):
        part += size
        total += tl.load(part, mask=mask, other=0.0)
    tl.store(DQ + batch * size + index, (total * scale).to(DQ.dtype.element_ty), mask=mask)
    part = DK_PARTS + batch * query_splits * size + index
    total = tl.load(part, mask=mask, other=0.0)
    for _ in range(1, query_splits):
        part += size
        total += tl.load(part, mask=mask, other=0.0)
    tl.store(DK + batch * size + index, (total * scale).to(DK.dtype.element_ty), mask=mask)
