"""Forward: attention with the residual (Eq. 2-3) and the channel statistics of Eq. 4."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import (
    load_tile,
    load_transposed,
    operand,
    part_of_image,
    tile_mask,
)


@triton.jit
def halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Split (ROWS, COLUMNS) into its left and right half, in registers."""
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def leads(challenger, highest):
    """Whether a maximum gives way to a later one: only to a higher one, or to the first NaN."""
    return (challenger > highest) | ((challenger != challenger) & (highest == highest))


@triton.jit
def finish_slice(
    y,
    statistics,
    tiles,
    strides,
    rows,
    start,
    channels_left,
    WIDTH: tl.constexpr,
    EVEN_C: tl.constexpr,
    SAVE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Columns [start, start + WIDTH) of a tile: store Y and F = Y + X, fold F into the statistics.

    statistics: (sum, maximum, its column) of the columns before. tiles: pointers (X, F, Y), row to
    row at `strides`. rows: (index, whether it exists).
    """
    total, highest, argmax = statistics
    X, F, Y = tiles
    x_row, f_row, y_row = strides
    row, row_in = rows
    # Without the barrier ptxas hoists the next slice's loads and spills.
    tl.debug_barrier()
    column = start + tl.arange(0, WIDTH)
    column_in = column < channels_left
    mask = tile_mask(row_in, column_in, EVEN_C)
    f = y
    if SAVE:
        y_tile = Y + (row[:, None] * y_row + column[None, :])
        tl.store(y_tile, y.to(Y.dtype.element_ty), mask=mask)
    f += tl.load(X + (row[:, None] * x_row + column[None, :]), mask=mask, other=0.0).to(COMPUTE)
    tl.store(F + (row[:, None] * f_row + column[None, :]), f.to(F.dtype.element_ty), mask=mask)
    total += tl.sum(f if EVEN_C else tl.where(column_in[None, :], f, 0.0), 1)
    shown = f if EVEN_C else tl.where(column_in[None, :], f, float("-inf"))
    best = tl.max(shown, 1)
    best_column = tl.min(tl.where(shown == best[:, None], column[None, :], 2147483647), 1)
    # tl.max drops NaN, torch.max returns the first one.
    first_nan = tl.min(tl.where(shown != shown, column[None, :], 2147483647), 1)
    best = tl.where(first_nan < 2147483647, float("nan"), best)
    best_column = tl.where(first_nan < 2147483647, first_nan, best_column)
    better = leads(best, highest)
    return total, tl.where(better, best, highest), tl.where(better, best_column, argmax)


@triton.jit
def finish(
    y,
    statistics,
    tiles,
    strides,
    rows,
    start,
    channels_left,
    SLICES: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN_C: tl.constexpr,
    SAVE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """finish_slice on SLICES slices of a tile, from the left to the right."""
    if SLICES == 1:
        statistics = finish_slice(
            y, statistics, tiles, strides, rows, start, channels_left, WIDTH, EVEN_C, SAVE, COMPUTE
        )
    else:
        COUNT: tl.constexpr = SLICES // 2
        HALF: tl.constexpr = WIDTH // 2
        left, right = halves(y, y.shape[0], WIDTH)
        statistics = finish(
            left,
            statistics,
            tiles,
            strides,
            rows,
            start,
            channels_left,
            COUNT,
            HALF,
            EVEN_C,
            SAVE,
            COMPUTE,
        )
        statistics = finish(
            right,
            statistics,
            tiles,
            strides,
            rows,
            start + HALF,
            channels_left,
            COUNT,
            HALF,
            EVEN_C,
            SAVE,
            COMPUTE,
        )
    return statistics


@triton.jit
def attention_forward(
    Q,
    K,
    V,
    X,
    F,
    Y,
    LSE,
    MEAN,
    MAX,
    ARGMAX,
    q_batch,
    q_row,
    k_batch,
    k_row,
    v_batch,
    v_row,
    x_batch,
    x_row,
    N,
    D,
    C,
    tiles,
    chunks,
    scale_log2,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SLICES: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_D: tl.constexpr,
    SAVE: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """F = softmax(Q K^T scale) V + X, an online softmax in base 2 (Eq. 2-3), and F's statistics.

    Pointers: Q, K (B, N, D); V, X (B, N, C), rows at a stride; F, Y (B, N, C) dense, Y = F - X,
    written if SAVE; LSE (B, N), log2 of the sum of 2^(score scale_log2); MEAN, MAX, ARGMAX
    (B, chunks, N): of this chunk of channels, MEAN their sum unless WHOLE.
    Grid: (tiles * chunks * B,); a program owns BLOCK_M queries and one chunk of BLOCK_C channels.
    BLOCK_S = BLOCK_D keeps the queries in registers; BLOCK_S < BLOCK_D reads queries and keys in
    slices of the depth, from L1.
    """
    tile, chunk, image = part_of_image(tiles, chunks)
    first = tile.to(tl.int64) * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    key = tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_S)
    column = tl.arange(0, BLOCK_C)
    channels_left = C - chunk * BLOCK_C
    row_in = row < N - tile * BLOCK_M
    q_tile = Q + image * q_batch + first * q_row
    if BLOCK_S == BLOCK_D:
        q = load_tile(q_tile, row, depth, q_row, row_in, depth < D, EVEN_D)
    k_tile = K + image * k_batch
    v_tile = V + image * v_batch + chunk * BLOCK_C
    m = tl.full([BLOCK_M], float("-inf"), COMPUTE)
    weight = tl.zeros([BLOCK_M], COMPUTE)
    y = tl.zeros([BLOCK_M, BLOCK_C], COMPUTE)
    for start in range(0, N, BLOCK_N):
        key_in = key < N - start
        if BLOCK_S == BLOCK_D:
            k = load_transposed(k_tile, key, depth, k_row, key_in, depth < D, EVEN_D)
            s = tl.dot(q, k, input_precision=PRECISION, out_dtype=COMPUTE)
        else:
            s = tl.zeros([BLOCK_M, BLOCK_N], COMPUTE)
            for d in range(0, D, BLOCK_S):
                q_part = load_tile(q_tile + d, row, depth, q_row, row_in, depth < D - d, False)
                k_part = load_transposed(
                    k_tile + d, key, depth, k_row, key_in, depth < D - d, False
                )
                s = tl.dot(q_part, k_part, s, input_precision=PRECISION, out_dtype=COMPUTE)
        s = tl.where(key_in[None, :], s * scale_log2, float("-inf"))
        higher = tl.maximum(m, tl.max(s, 1))
        # A row whose scores are all -inf so far must not become NaN before it meets a finite one.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - shift[:, None])
        alpha = tl.exp2(m - shift)
        weight = weight * alpha + tl.sum(p, 1)
        y = y * alpha[:, None]
        v = load_tile(v_tile, key, column, v_row, key_in, column < channels_left, EVEN_C)
        p = operand(p, V.dtype.element_ty, PRECISION)
        y = tl.dot(p, v, y, input_precision=PRECISION, out_dtype=COMPUTE)
        m = higher
        k_tile += BLOCK_N * k_row
        v_tile += BLOCK_N * v_row
    if chunk == 0:
        tl.store(LSE + image * N + first + row, m + tl.log2(weight), mask=row_in)

    y = y * (1.0 / weight)[:, None]
    x_tile = X + image * x_batch + first * x_row + chunk * BLOCK_C
    f_tile = F + (image * N + first) * C + chunk * BLOCK_C
    y_tile = Y + (image * N + first) * C + chunk * BLOCK_C
    total = tl.zeros([BLOCK_M], COMPUTE)
    highest = tl.full([BLOCK_M], float("-inf"), COMPUTE)
    argmax = tl.zeros([BLOCK_M], tl.int32)
    total, highest, argmax = finish(
        y,
        (total, highest, argmax),
        (x_tile, f_tile, y_tile),
        (x_row, C, C),
        (row, row_in),
        0,
        channels_left,
        SLICES,
        BLOCK_C,
        EVEN_C,
        SAVE,
        COMPUTE,
    )
    position = (image * chunks + chunk) * N + first + row
    tl.store(MEAN + position, total / C if WHOLE else total, mask=row_in)
    tl.store(MAX + position, highest, mask=row_in)
    tl.store(ARGMAX + position, argmax + chunk * BLOCK_C, mask=row_in)


@triton.jit
def merge_statistics(
    SUM_PARTS,
    MAX_PARTS,
    ARGMAX_PARTS,
    MEAN,
    MAX,
    ARGMAX,
    N,
    C,
    chunks,
    rows,
    BLOCK: tl.constexpr,
):
    """Reduce the statistics of the chunks, in order, so that the lowest channel wins a tie.

    Pointers: SUM_PARTS, MAX_PARTS, ARGMAX_PARTS (B, chunks, N); MEAN, MAX, ARGMAX (B, N).
    Grid: (ceil(B N / BLOCK),); a program owns BLOCK positions.
    """
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    position_in = position < rows
    part = (position // N) * chunks * N + position % N
    total = tl.load(SUM_PARTS + part, mask=position_in, other=0.0)
    highest = tl.load(MAX_PARTS + part, mask=position_in, other=0.0)
    argmax = tl.load(ARGMAX_PARTS + part, mask=position_in, other=0)
    for _ in range(1, chunks):
        part += N
        total += tl.load(SUM_PARTS + part, mask=position_in, other=0.0)
        best = tl.load(MAX_PARTS + part, mask=position_in, other=0.0)
        best_column = tl.load(ARGMAX_PARTS + part, mask=position_in, other=0)
        better = leads(best, highest)
        highest = tl.where(better, best, highest)
        argmax = tl.where(better, best_column, argmax)
    tl.store(MEAN + position, total / C, mask=position_in)
    tl.store(MAX + position, highest, mask=position_in)
    tl.store(ARGMAX + position, argmax, mask=position_in)
