"""Backward: the statistics' gradients folded in, the value gradient, and the sum of parts.

No atomics. The score gradient is in score_gradient.py.
"""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import (
    block_of_image,
    load_tile,
    load_transposed,
    operand,
    part_of_image,
    store_tile,
    tile_mask,
)


@triton.jit
def attention_prepare(
    GRAD_FEATURES,
    ATTENDED,
    GRAD_CHANNEL_MEAN,
    GRAD_CHANNEL_MAX,
    CHANNEL_ARGMAX,
    GRAD_ATTENDED,
    DELTA,
    grad_features_batch,
    grad_features_row,
    N,
    C,
    blocks,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    SAVED: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The gradient of ATTENDED, which is the residual's too, and DELTA.

    dy = df + dmean / C + dmax at the maximum; delta = rowsum(dy * y), from the saved y: output
    minus residual loses delta to rounding, and with it dq as soon as the keys have a mean.
    Pointers: GRAD_FEATURES (B, N, C), rows at a stride; ATTENDED, GRAD_ATTENDED (B, N, C);
    GRAD_CHANNEL_MEAN, GRAD_CHANNEL_MAX, CHANNEL_ARGMAX, DELTA (B, N). Without SAVED, ATTENDED is
    not read and DELTA is 0. Grid: (blocks * B,); a program owns BLOCK_M positions.
    """
    block, image = block_of_image(blocks)
    first = block.to(tl.int64) * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_C)
    row_in = row < N - block * BLOCK_M
    position = image * N + first + row
    dmean = tl.load(GRAD_CHANNEL_MEAN + position, mask=row_in, other=0.0).to(COMPUTE) / C
    dmax = tl.load(GRAD_CHANNEL_MAX + position, mask=row_in, other=0.0).to(COMPUTE)
    argmax = tl.load(CHANNEL_ARGMAX + position, mask=row_in, other=-1)
    df_tile = GRAD_FEATURES + image * grad_features_batch + first * grad_features_row
    dense = (image * N + first) * C
    delta = tl.zeros([BLOCK_M], COMPUTE)
    for start in range(0, C, BLOCK_C):
        mask = tile_mask(row_in, column < C - start, EVEN_C)
        df_offsets = row[:, None] * grad_features_row + column[None, :]
        df = tl.load(df_tile + start + df_offsets, mask=mask, other=0.0).to(COMPUTE)
        offsets = row[:, None] * C + column[None, :]
        at_maximum = column[None, :] + start == argmax[:, None]
        dy = df + dmean[:, None] + tl.where(at_maximum, dmax[:, None], 0.0)
        dy = dy.to(GRAD_ATTENDED.dtype.element_ty)
        tl.store(GRAD_ATTENDED + dense + start + offsets, dy, mask=mask)
        if SAVED:
            y = tl.load(ATTENDED + dense + start + offsets, mask=mask, other=0.0).to(COMPUTE)
            delta += tl.sum(tl.where(mask, dy.to(COMPUTE) * y, 0.0), 1)
    tl.store(DELTA + position, delta, mask=row_in)


@triton.jit
def attention_value_gradient(
    QUERY,
    KEY,
    GRAD_ATTENDED,
    LSE,
    GRAD_VALUE,
    query_batch,
    query_row,
    key_batch,
    key_row,
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
    EVEN_C: tl.constexpr,
    EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """dv = p^T dy with p^T = 2^(k q^T scale_log2 - lse), keys stationary.

    Pointers: QUERY, KEY (B, N, D), rows at a stride; GRAD_ATTENDED, GRAD_VALUE (B, N, C);
    LSE (B, N). Grid: (tiles * chunks * B,); a program owns BLOCK_N keys and one chunk of BLOCK_C
    channels.
    """
    tile, chunk, image = part_of_image(tiles, chunks)
    first = tile.to(tl.int64) * BLOCK_N
    key = tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_S)
    column = tl.arange(0, BLOCK_C)
    channels_left = C - chunk * BLOCK_C
    key_in = key < N - tile * BLOCK_N
    k_tile = KEY + image * key_batch + first * key_row
    if BLOCK_S == BLOCK_D:
        k = load_tile(k_tile, key, depth, key_row, key_in, depth < D, EVEN_D)
    q_tile = QUERY + image * query_batch
    dy_tile = GRAD_ATTENDED + image * N * C + chunk * BLOCK_C
    lse_tile = LSE + image * N
    dv = tl.zeros([BLOCK_N, BLOCK_C], COMPUTE)
    for start in range(0, N, BLOCK_M):
        row_in = row < N - start
        lse = tl.load(lse_tile + row, mask=row_in, other=float("inf"))
        if BLOCK_S == BLOCK_D:
            q = load_transposed(q_tile, row, depth, query_row, row_in, depth < D, EVEN_D)
            s = tl.dot(k, q, input_precision=PRECISION, out_dtype=COMPUTE)
        else:
            s = tl.zeros([BLOCK_N, BLOCK_M], COMPUTE)
            for d in range(0, D, BLOCK_S):
                k_part = load_tile(k_tile + d, key, depth, key_row, key_in, depth < D - d, False)
                q_part = load_transposed(
                    q_tile + d, row, depth, query_row, row_in, depth < D - d, False
                )
                s = tl.dot(k_part, q_part, s, input_precision=PRECISION, out_dtype=COMPUTE)
        p = tl.exp2(s * scale_log2 - lse[None, :])
        dy = load_tile(dy_tile, row, column, C, row_in, column < channels_left, EVEN_C)
        p = operand(p, GRAD_ATTENDED.dtype.element_ty, PRECISION)
        dv = tl.dot(p, dy, dv, input_precision=PRECISION, out_dtype=COMPUTE)
        q_tile += BLOCK_M * query_row
        dy_tile += BLOCK_M * C
        lse_tile += BLOCK_M
    dv_tile = GRAD_VALUE + (image * N + first) * C + chunk * BLOCK_C
    store_tile(dv_tile, dv, key, column, C, key_in, column < channels_left, EVEN_C)


@triton.jit
def attention_reduce(
    GRAD_QUERY_PARTS,
    GRAD_KEY_PARTS,
    GRAD_QUERY,
    GRAD_KEY,
    size,
    key_splits,
    query_splits,
    blocks,
    scale,
    BLOCK: tl.constexpr,
):
    """Gradients of query and key: scale * the sums over the splits, in fixed order.

    Pointers: GRAD_QUERY_PARTS (B, key_splits, N, D), GRAD_KEY_PARTS (B, query_splits, N, D) in
    COMPUTE; GRAD_QUERY, GRAD_KEY (B, N, D); size = N D. Grid: (blocks * B,); a program owns BLOCK
    elements of one image's gradients.
    """
    block, image = block_of_image(blocks)
    index = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sum_parts(
        GRAD_QUERY_PARTS + image * key_splits * size,
        GRAD_QUERY + image * size,
        index,
        size,
        key_splits,
        scale,
    )
    sum_parts(
        GRAD_KEY_PARTS + image * query_splits * size,
        GRAD_KEY + image * size,
        index,
        size,
        query_splits,
        scale,
    )


@triton.jit
def sum_parts(PARTS, SUM, index, size, parts, scale):
    """SUM = scale * the sum of `parts` vectors of `size`, in their order, at `index`."""
    mask = index < size
    part = PARTS + index
    total = tl.load(part, mask=mask, other=0.0)
    for _ in range(1, parts):
        part += size
        total += tl.load(part, mask=mask, other=0.0)
    tl.store(SUM + index, (total * scale).to(SUM.dtype.element_ty), mask=mask)
