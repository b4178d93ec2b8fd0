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
    DF,
    Y,
    DMEAN,
    DMAX,
    ARGMAX,
    DY,
    DELTA,
    df_batch,
    df_row,
    N,
    C,
    blocks,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    SAVED: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The gradient of Y (and of X): DY = DF + DMEAN / C + DMAX at the maximum, and DELTA.

    DELTA = rowsum(DY * Y), from the saved Y: output minus residual loses DELTA to rounding, and
    with it DQ as soon as the keys have a mean.
    Pointers: DF (B, N, C), rows at a stride; Y, DY (B, N, C); DMEAN, DMAX, ARGMAX, DELTA (B, N).
    Without SAVED, Y is not read and DELTA is 0. Grid: (blocks * B,); a program owns BLOCK_M
    positions.
    """
    block, image = block_of_image(blocks)
    first = block.to(tl.int64) * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_C)
    row_in = row < N - block * BLOCK_M
    position = image * N + first + row
    dmean = tl.load(DMEAN + position, mask=row_in, other=0.0).to(COMPUTE) / C
    dmax = tl.load(DMAX + position, mask=row_in, other=0.0).to(COMPUTE)
    argmax = tl.load(ARGMAX + position, mask=row_in, other=-1)
    df_tile = DF + image * df_batch + first * df_row
    dense = (image * N + first) * C
    delta = tl.zeros([BLOCK_M], COMPUTE)
    for start in range(0, C, BLOCK_C):
        mask = tile_mask(row_in, column < C - start, EVEN_C)
        df_offsets = row[:, None] * df_row + column[None, :]
        df = tl.load(df_tile + start + df_offsets, mask=mask, other=0.0).to(COMPUTE)
        offsets = row[:, None] * C + column[None, :]
        at_maximum = column[None, :] + start == argmax[:, None]
        dy = df + dmean[:, None] + tl.where(at_maximum, dmax[:, None], 0.0)
        dy = dy.to(DY.dtype.element_ty)
        tl.store(DY + dense + start + offsets, dy, mask=mask)
        if SAVED:
            y = tl.load(Y + dense + start + offsets, mask=mask, other=0.0).to(COMPUTE)
            delta += tl.sum(tl.where(mask, dy.to(COMPUTE) * y, 0.0), 1)
    tl.store(DELTA + position, delta, mask=row_in)


@triton.jit
def attention_value_gradient(
    Q,
    K,
    DY,
    LSE,
    DV,
    q_batch,
    q_row,
    k_batch,
    k_row,
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
    """DV = P^T DY with P^T = 2^(K Q^T scale_log2 - LSE), keys stationary.

    Pointers: Q, K (B, N, D), rows at a stride; DY, DV (B, N, C); LSE (B, N).
    Grid: (tiles * chunks * B,); a program owns BLOCK_N keys and one chunk of BLOCK_C channels.
    """
    tile, chunk, image = part_of_image(tiles, chunks)
    first = tile.to(tl.int64) * BLOCK_N
    key = tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_S)
    column = tl.arange(0, BLOCK_C)
    channels_left = C - chunk * BLOCK_C
    key_in = key < N - tile * BLOCK_N
    k_tile = K + image * k_batch + first * k_row
    if BLOCK_S == BLOCK_D:
        k = load_tile(k_tile, key, depth, k_row, key_in, depth < D, EVEN_D)
    q_tile = Q + image * q_batch
    dy_tile = DY + image * N * C + chunk * BLOCK_C
    lse_tile = LSE + image * N
    dv = tl.zeros([BLOCK_N, BLOCK_C], COMPUTE)
    for start in range(0, N, BLOCK_M):
        row_in = row < N - start
        lse = tl.load(lse_tile + row, mask=row_in, other=float("inf"))
        if BLOCK_S == BLOCK_D:
            q = load_transposed(q_tile, row, depth, q_row, row_in, depth < D, EVEN_D)
            s = tl.dot(k, q, input_precision=PRECISION, out_dtype=COMPUTE)
        else:
            s = tl.zeros([BLOCK_N, BLOCK_M], COMPUTE)
            for d in range(0, D, BLOCK_S):
                k_part = load_tile(k_tile + d, key, depth, k_row, key_in, depth < D - d, False)
                q_part = load_transposed(
                    q_tile + d, row, depth, q_row, row_in, depth < D - d, False
                )
                s = tl.dot(k_part, q_part, s, input_precision=PRECISION, out_dtype=COMPUTE)
        p = tl.exp2(s * scale_log2 - lse[None, :])
        dy = load_tile(dy_tile, row, column, C, row_in, column < channels_left, EVEN_C)
        p = operand(p, DY.dtype.element_ty, PRECISION)
        dv = tl.dot(p, dy, dv, input_precision=PRECISION, out_dtype=COMPUTE)
        q_tile += BLOCK_M * q_row
        dy_tile += BLOCK_M * C
        lse_tile += BLOCK_M
    dv_tile = DV + (image * N + first) * C + chunk * BLOCK_C
    store_tile(dv_tile, dv, key, column, C, key_in, column < channels_left, EVEN_C)


@triton.jit
def attention_reduce(
    DQ_PARTS,
    DK_PARTS,
    DQ,
    DK,
    size,
    key_splits,
    query_splits,
    blocks,
    scale,
    BLOCK: tl.constexpr,
):
    """DQ = scale * sum over key splits, DK = scale * sum over query splits, in fixed order.

    Pointers: DQ_PARTS (B, key_splits, N, D), DK_PARTS (B, query_splits, N, D) in COMPUTE;
    DQ, DK (B, N, D); size = N D. Grid: (blocks * B,); a program owns BLOCK elements of one image's
    DQ and DK.
    """
    block, image = block_of_image(blocks)
    index = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sum_parts(
        DQ_PARTS + image * key_splits * size, DQ + image * size, index, size, key_splits, scale
    )
    sum_parts(
        DK_PARTS + image * query_splits * size, DK + image * size, index, size, query_splits, scale
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
