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
    place,
    start,
    WIDTH: tl.constexpr,
    EVEN_C: tl.constexpr,
    SAVE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Columns [start, start + WIDTH) of a tile: store y and f = y + x, fold f into the statistics.

    statistics: (sum, maximum, its column) of the columns before. place: the tile's pointers
    (RESIDUAL, FEATURES, ATTENDED), strides from row to row (of the residual, of the other two),
    (rows, whether they exist), and the channels left.
    """
    total, highest, argmax = statistics
    tiles, strides, rows, channels_left = place
    RESIDUAL, FEATURES, ATTENDED = tiles
    residual_row, features_row = strides
    row, row_in = rows
    # Without the barrier ptxas hoists the next slice's loads and spills.
    tl.debug_barrier()
    column = start + tl.arange(0, WIDTH)
    column_in = column < channels_left
    mask = tile_mask(row_in, column_in, EVEN_C)
    f = y
    if SAVE:
        y_tile = ATTENDED + (row[:, None] * features_row + column[None, :])
        tl.store(y_tile, y.to(ATTENDED.dtype.element_ty), mask=mask)
    x = tl.load(RESIDUAL + (row[:, None] * residual_row + column[None, :]), mask=mask, other=0.0)
    f += x.to(COMPUTE)
    f_tile = FEATURES + (row[:, None] * features_row + column[None, :])
    tl.store(f_tile, f.to(FEATURES.dtype.element_ty), mask=mask)
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
def finish_pair(
    y,
    statistics,
    place,
    start,
    WIDTH: tl.constexpr,
    EVEN_C: tl.constexpr,
    SAVE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """finish_slice on the left and then the right half of WIDTH columns."""
    HALF: tl.constexpr = WIDTH // 2
    MIDDLE: tl.constexpr = start + HALF
    left, right = halves(y, y.shape[0], WIDTH)
    statistics = finish_slice(left, statistics, place, start, HALF, EVEN_C, SAVE, COMPUTE)
    return finish_slice(right, statistics, place, MIDDLE, HALF, EVEN_C, SAVE, COMPUTE)


@triton.jit
def finish(
    y,
    statistics,
    place,
    SLICES: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN_C: tl.constexpr,
    SAVE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """finish_slice on the 1, 2 or 4 slices of a tile of WIDTH columns, from left to right."""
    if SLICES == 1:
        statistics = finish_slice(y, statistics, place, 0, WIDTH, EVEN_C, SAVE, COMPUTE)
    elif SLICES == 2:
        statistics = finish_pair(y, statistics, place, 0, WIDTH, EVEN_C, SAVE, COMPUTE)
    else:
        HALF: tl.constexpr = WIDTH // 2
        left, right = halves(y, y.shape[0], WIDTH)
        statistics = finish_pair(left, statistics, place, 0, HALF, EVEN_C, SAVE, COMPUTE)
        statistics = finish_pair(right, statistics, place, HALF, HALF, EVEN_C, SAVE, COMPUTE)
    return statistics


@triton.jit
def attention_forward(
    QUERY,
    KEY,
    VALUE,
    RESIDUAL,
    FEATURES,
    ATTENDED,
    LSE,
    CHANNEL_MEAN,
    CHANNEL_MAX,
    CHANNEL_ARGMAX,
    query_batch,
    query_row,
    key_batch,
    key_row,
    value_batch,
    value_row,
    residual_batch,
    residual_row,
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
    """f = softmax(q k^T scale) v + x, an online softmax in base 2 (Eq. 2-3), and f's statistics.

    Pointers: QUERY, KEY (B, N, D); VALUE, RESIDUAL (B, N, C), rows at a stride; FEATURES, ATTENDED
    (B, N, C) dense, y = f - x, written if SAVE; LSE (B, N), log2 of the sum of
    2^(score scale_log2); CHANNEL_MEAN, CHANNEL_MAX, CHANNEL_ARGMAX (B, chunks, N): of this chunk of
    channels, the mean a sum unless WHOLE.
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
    q_tile = QUERY + image * query_batch + first * query_row
    if BLOCK_S == BLOCK_D:
        q = load_tile(q_tile, row, depth, query_row, row_in, depth < D, EVEN_D)
    k_tile = KEY + image * key_batch
    v_tile = VALUE + image * value_batch + chunk * BLOCK_C
    m = tl.full([BLOCK_M], float("-inf"), COMPUTE)
    weight = tl.zeros([BLOCK_M], COMPUTE)
    y = tl.zeros([BLOCK_M, BLOCK_C], COMPUTE)
    for start in range(0, N, BLOCK_N):
        key_in = key < N - start
        if BLOCK_S == BLOCK_D:
            k = load_transposed(k_tile, key, depth, key_row, key_in, depth < D, EVEN_D)
            s = tl.dot(q, k, input_precision=PRECISION, out_dtype=COMPUTE)
        else:
            s = tl.zeros([BLOCK_M, BLOCK_N], COMPUTE)
            for d in range(0, D, BLOCK_S):
                q_part = load_tile(q_tile + d, row, depth, query_row, row_in, depth < D - d, False)
                k_part = load_transposed(
                    k_tile + d, key, depth, key_row, key_in, depth < D - d, False
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
        v = load_tile(v_tile, key, column, value_row, key_in, column < channels_left, EVEN_C)
        p = operand(p, VALUE.dtype.element_ty, PRECISION)
        y = tl.dot(p, v, y, input_precision=PRECISION, out_dtype=COMPUTE)
        m = higher
        k_tile += BLOCK_N * key_row
        v_tile += BLOCK_N * value_row
    if chunk == 0:
        tl.store(LSE + image * N + first + row, m + tl.log2(weight), mask=row_in)

    y = y * (1.0 / weight)[:, None]
    x_tile = RESIDUAL + image * residual_batch + first * residual_row + chunk * BLOCK_C
    f_tile = FEATURES + (image * N + first) * C + chunk * BLOCK_C
    y_tile = ATTENDED + (image * N + first) * C + chunk * BLOCK_C
    total = tl.zeros([BLOCK_M], COMPUTE)
    highest = tl.full([BLOCK_M], float("-inf"), COMPUTE)
    argmax = tl.zeros([BLOCK_M], tl.int32)
    slices = (x_tile, f_tile, y_tile)
    place = (slices, (residual_row, C), (row, row_in), channels_left)
    statistics = (total, highest, argmax)
    total, highest, argmax = finish(y, statistics, place, SLICES, BLOCK_C, EVEN_C, SAVE, COMPUTE)
    position = (image * chunks + chunk) * N + first + row
    tl.store(CHANNEL_MEAN + position, total / C if WHOLE else total, mask=row_in)
    tl.store(CHANNEL_MAX + position, highest, mask=row_in)
    tl.store(CHANNEL_ARGMAX + position, argmax + chunk * BLOCK_C, mask=row_in)


@triton.jit
def merge_statistics(
    CHANNEL_SUM_PARTS,
    CHANNEL_MAX_PARTS,
    CHANNEL_ARGMAX_PARTS,
    CHANNEL_MEAN,
    CHANNEL_MAX,
    CHANNEL_ARGMAX,
    N,
    C,
    chunks,
    rows,
    BLOCK: tl.constexpr,
):
    """Reduce the statistics of the chunks, in order, so that the lowest channel wins a tie.

    Pointers: CHANNEL_SUM_PARTS, CHANNEL_MAX_PARTS, CHANNEL_ARGMAX_PARTS (B, chunks, N);
    CHANNEL_MEAN, CHANNEL_MAX, CHANNEL_ARGMAX (B, N).
    Grid: (ceil(B N / BLOCK),); a program owns BLOCK positions.
    """
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    position_in = position < rows
    part = (position // N) * chunks * N + position % N
    total = tl.load(CHANNEL_SUM_PARTS + part, mask=position_in, other=0.0)
    highest = tl.load(CHANNEL_MAX_PARTS + part, mask=position_in, other=0.0)
    argmax = tl.load(CHANNEL_ARGMAX_PARTS + part, mask=position_in, other=0)
    for _ in range(1, chunks):
        part += N
        total += tl.load(CHANNEL_SUM_PARTS + part, mask=position_in, other=0.0)
        best = tl.load(CHANNEL_MAX_PARTS + part, mask=position_in, other=0.0)
        best_column = tl.load(CHANNEL_ARGMAX_PARTS + part, mask=position_in, other=0)
        better = leads(best, highest)
        highest = tl.where(better, best, highest)
        argmax = tl.where(better, best_column, argmax)
    tl.store(CHANNEL_MEAN + position, total / C, mask=position_in)
    tl.store(CHANNEL_MAX + position, highest, mask=position_in)
    tl.store(CHANNEL_ARGMAX + position, argmax, mask=position_in)
