"""Forward kernels of nonlocal_attention. Derivation and traffic: README.md."""

import triton
import triton.language as tl


@triton.jit
def operand(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """x as an operand of a product in DTYPE. For TF32 it is rounded to nearest: the tensor cores would cut it off."""
    x = x.to(DTYPE)
    if PRECISION == "tf32":
        rounded = ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
        # The bits of a NaN may overflow.
        x = tl.where(x == x, rounded, x)
    return x


@triton.jit
def halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Split (ROWS, COLUMNS) into its left and right half, in registers."""
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def finish_slice(
    acc, total, top, arg, R, F, A, r_row, f_row, a_row, row, row_in, start, left,
    WIDTH: tl.constexpr, EVEN_C: tl.constexpr, SAVE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Columns [start, start + WIDTH) of a tile: store A V and F = A V + residual, fold F into (sum, maximum, its column)."""
    # Without the barrier ptxas hoists the next slice's loads and spills.
    tl.debug_barrier()
    column = start + tl.arange(0, WIDTH)
    column_in = column < left
    mask = row_in[:, None] if EVEN_C else row_in[:, None] & column_in[None, :]
    out = acc
    if SAVE:
        tl.store(
            A + (row[:, None] * a_row + column[None, :]), out.to(A.dtype.element_ty), mask=mask
        )
    out += tl.load(R + (row[:, None] * r_row + column[None, :]), mask=mask, other=0.0).to(COMPUTE)
    tl.store(F + (row[:, None] * f_row + column[None, :]), out.to(F.dtype.element_ty), mask=mask)
    total += tl.sum(out if EVEN_C else tl.where(column_in[None, :], out, 0.0), 1)
    shown = out if EVEN_C else tl.where(column_in[None, :], out, float("-inf"))
    best = tl.max(shown, 1)
    at = tl.min(tl.where(shown == best[:, None], column[None, :], 2147483647), 1)
    # tl.max drops NaN, torch.max returns the first one.
    first_nan = tl.min(tl.where(shown != shown, column[None, :], 2147483647), 1)
    best = tl.where(first_nan < 2147483647, float("nan"), best)
    at = tl.where(first_nan < 2147483647, first_nan, at)
    better = (best > top) | ((best != best) & (top == top))
    return total, tl.where(better, best, top), tl.where(better, at, arg)


@triton.jit
def attention_forward(
    Q, K, V, R, F, A, LSE, SUM, MAX, ARG,
    q_batch, q_row, k_batch, k_row, v_batch, v_row, r_batch, r_row,
    N, D, C, tiles, chunks, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    SLICES: tl.constexpr, EVEN_C: tl.constexpr, EVEN_D: tl.constexpr, SAVE: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """F = softmax(Q K^T scale) V + R with an online softmax in base 2 (Eq. 2-3), and the channel statistics of F.

    Pointers: Q, K (B, N, D); V, R (B, N, C), rows at a stride; F, A (B, N, C) dense, A = F - R, written if SAVE; LSE (B, N),
    log2 of the sum of 2^(score scale_log2); SUM, MAX, ARG (B, chunks, N): of this chunk of channels, SUM over C if WHOLE.
    Grid: (tiles * chunks * B,); a program owns BLOCK_M queries and one chunk of BLOCK_C channels. BLOCK_S = BLOCK_D keeps the
    queries in registers; BLOCK_S < BLOCK_D reads queries and keys in slices of the depth, from L1.
    """
    pid = tl.program_id(0)
    tile = pid % tiles
    chunk = (pid // tiles) % chunks
    batch = (pid // (tiles * chunks)).to(tl.int64)
    first = tile.to(tl.int64) * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    key = tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_S)
    column = tl.arange(0, BLOCK_C)
    left = C - chunk * BLOCK_C
    row_in = row < N - tile * BLOCK_M
    q_tile = Q + batch * q_batch + first * q_row
    if BLOCK_S == BLOCK_D:
        q_mask = row_in[:, None] if EVEN_D else row_in[:, None] & (depth < D)[None, :]
        q = tl.load(q_tile + (row[:, None] * q_row + depth[None, :]), mask=q_mask, other=0.0)
    k_base = K + batch * k_batch
    v_base = V + batch * v_batch + chunk * BLOCK_C
    k_offsets = key[None, :] * k_row + depth[:, None]
    v_offsets = key[:, None] * v_row + column[None, :]
    m = tl.full([BLOCK_M], float("-inf"), COMPUTE)
    weight = tl.zeros([BLOCK_M], COMPUTE)
    acc = tl.zeros([BLOCK_M, BLOCK_C], COMPUTE)
    for start in range(0, N, BLOCK_N):
        key_in = key < N - start
        if BLOCK_S == BLOCK_D:
            k_mask = key_in[None, :] if EVEN_D else key_in[None, :] & (depth < D)[:, None]
            k = tl.load(k_base + k_offsets, mask=k_mask, other=0.0)
            s = tl.dot(q, k, input_precision=PRECISION, out_dtype=COMPUTE)
        else:
            s = tl.zeros([BLOCK_M, BLOCK_N], COMPUTE)
            for d in range(0, D, BLOCK_S):
                q_mask = row_in[:, None] & (depth < D - d)[None, :]
                q_part = tl.load(
                    q_tile + d + (row[:, None] * q_row + depth[None, :]), mask=q_mask, other=0.0
                )
                k_mask = key_in[None, :] & (depth < D - d)[:, None]
                k_part = tl.load(k_base + d + k_offsets, mask=k_mask, other=0.0)
                s = tl.dot(q_part, k_part, s, input_precision=PRECISION, out_dtype=COMPUTE)
        s = tl.where(key_in[None, :], s * scale_log2, float("-inf"))
        higher = tl.maximum(m, tl.max(s, 1))
        # A row whose scores are all -inf so far must not become NaN before it meets a finite one.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - shift[:, None])
        alpha = tl.exp2(m - shift)
        weight = weight * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v_mask = key_in[:, None] if EVEN_C else key_in[:, None] & (column < left)[None, :]
        v = tl.load(v_base + v_offsets, mask=v_mask, other=0.0)
        acc = tl.dot(
            operand(p, V.dtype.element_ty, PRECISION),
            v,
            acc,
            input_precision=PRECISION,
            out_dtype=COMPUTE,
        )
        m = higher
        k_base += BLOCK_N * k_row
        v_base += BLOCK_N * v_row
    if chunk == 0:
        tl.store(LSE + batch * N + first + row, m + tl.log2(weight), mask=row_in)

    acc = acc * (1.0 / weight)[:, None]
    r_tile = R + batch * r_batch + first * r_row + chunk * BLOCK_C
    f_tile = F + (batch * N + first) * C + chunk * BLOCK_C
    a_tile = A + (batch * N + first) * C + chunk * BLOCK_C
    total = tl.zeros([BLOCK_M], COMPUTE)
    top = tl.full([BLOCK_M], float("-inf"), COMPUTE)
    arg = tl.zeros([BLOCK_M], tl.int32)
    if SLICES == 1:
        total, top, arg = finish_slice(
            acc, total, top, arg, r_tile, f_tile, a_tile, r_row, C, C, row, row_in, 0, left, BLOCK_C, EVEN_C, SAVE, COMPUTE
        )  # fmt: skip
    else:
        HALF: tl.constexpr = BLOCK_C // 2
        a, b = halves(acc, BLOCK_M, BLOCK_C)
        if SLICES == 2:
            total, top, arg = finish_slice(
                a, total, top, arg, r_tile, f_tile, a_tile, r_row, C, C, row, row_in, 0, left, HALF, EVEN_C, SAVE, COMPUTE
            )  # fmt: skip
            total, top, arg = finish_slice(
                b, total, top, arg, r_tile, f_tile, a_tile, r_row, C, C, row, row_in, HALF, left, HALF, EVEN_C, SAVE, COMPUTE
            )  # fmt: skip
        else:
            QUARTER: tl.constexpr = BLOCK_C // 4
            c, d = halves(a, BLOCK_M, HALF)
            total, top, arg = finish_slice(
                c, total, top, arg, r_tile, f_tile, a_tile, r_row, C, C, row, row_in, 0, left, QUARTER, EVEN_C, SAVE, COMPUTE
            )  # fmt: skip
            total, top, arg = finish_slice(
                d, total, top, arg, r_tile, f_tile, a_tile, r_row, C, C, row, row_in, QUARTER, left, QUARTER, EVEN_C, SAVE,
                COMPUTE,
            )  # fmt: skip
            e, g = halves(b, BLOCK_M, HALF)
            total, top, arg = finish_slice(
                e, total, top, arg, r_tile, f_tile, a_tile, r_row, C, C, row, row_in, HALF, left, QUARTER, EVEN_C, SAVE, COMPUTE
            )  # fmt: skip
            total, top, arg = finish_slice(
                g, total, top, arg, r_tile, f_tile, a_tile, r_row, C, C, row, row_in, HALF + QUARTER, left, QUARTER, EVEN_C,
                SAVE, COMPUTE,
            )  # fmt: skip
    at = (batch * chunks + chunk) * N + first + row
    tl.store(SUM + at, total / C if WHOLE else total, mask=row_in)
    tl.store(MAX + at, top, mask=row_in)
    tl.store(ARG + at, arg + chunk * BLOCK_C, mask=row_in)


@triton.jit
def merge_statistics(SUM, MAX, ARG, MEAN, TOP, AT, N, C, chunks, rows, BLOCK: tl.constexpr):
    """Reduce the statistics of the chunks, in order, so that the lowest channel wins a tie.

    Pointers: SUM, MAX, ARG (B, chunks, N); MEAN, TOP, AT (B, N). Grid: (ceil(B N / BLOCK),); a program owns BLOCK positions.
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < rows
    part = (index // N) * chunks * N + index % N
    total = tl.load(SUM + part, mask=inside, other=0.0)
    top = tl.load(MAX + part, mask=inside, other=0.0)
    at = tl.load(ARG + part, mask=inside, other=0)
    for _ in range(1, chunks):
        part += N
        total += tl.load(SUM + part, mask=inside, other=0.0)
        best = tl.load(MAX + part, mask=inside, other=0.0)
        where = tl.load(ARG + part, mask=inside, other=0)
        better = (best > top) | ((best != best) & (top == top))
        top = tl.where(better, best, top)
        at = tl.where(better, where, at)
    tl.store(MEAN + index, total / C, mask=inside)
    tl.store(TOP + index, top, mask=inside)
    tl.store(AT + index, at, mask=inside)
