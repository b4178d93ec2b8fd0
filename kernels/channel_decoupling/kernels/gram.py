"""The Gram matrix over the long axis, with the squeeze (Eq. 8 and 10)."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import load_strided, part_of_image
from intrasense_fast.kernels.channel_decoupling.kernels.inverse import (
    invert_diagonal,
    store_panel,
)
from intrasense_fast.kernels.channel_decoupling.kernels.vectors import layer


@triton.jit
def triangle(index):
    """(row, column) of the `index`-th tile of a lower triangle, counted row by row."""
    row = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) / 2.0).to(tl.int32)
    row = tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    return row, index - row * (row + 1) // 2


@triton.jit
def gram_tile(
    X,
    PART,
    TRACE,
    x_rank,
    x_long,
    ti,
    tj,
    begin,
    end,
    R,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Tile (ti, tj) of X X^T over begin ... end of the long axis.

    X points at `begin`, PART and TRACE at the part.
    """
    i = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_L)
    i_in = i < R - ti * BLOCK_R
    j_in = i < R - tj * BLOCK_R
    a_tile = X + ti.to(tl.int64) * BLOCK_R * x_rank
    b_tile = X + tj.to(tl.int64) * BLOCK_R * x_rank
    gram = tl.zeros([BLOCK_R, BLOCK_R], COMPUTE)
    for start in range(begin, end, BLOCK_L):
        k_in = k < end - start
        a = load_strided(a_tile, i, k, x_rank, x_long, i_in, k_in)
        b = load_strided(b_tile, k, i, x_long, x_rank, k_in, j_in)
        gram = tl.dot(a, b, gram, input_precision=PRECISION, out_dtype=COMPUTE)
        a_tile += BLOCK_L * x_long
        b_tile += BLOCK_L * x_long
    out = PART + ti.to(tl.int64) * BLOCK_R * R + tj * BLOCK_R
    tl.store(out + (i[:, None] * R + i[None, :]), gram, mask=i_in[:, None] & j_in[None, :])
    if ti == tj:
        # The diagonal is read back: its sum over the accumulator, masked, does not compile for
        # sm_100.
        tl.debug_barrier()
        tl.store(TRACE + ti, tl.sum(tl.load(out + i * (R + 1), mask=i_in, other=0.0), 0))


@triton.jit
def squeeze_tile(
    X,
    SUMS,
    x_rank,
    x_long,
    tile,
    begin,
    end,
    R,
    TALL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums of BLOCK_R rows of X: over begin ... end if TALL, else over the rows, for each l.

    X points at `begin`, SUMS at l = 0.
    """
    i = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_L)
    i_in = i < R - tile * BLOCK_R
    X += tile.to(tl.int64) * BLOCK_R * x_rank
    total = tl.zeros([BLOCK_R, BLOCK_L], COMPUTE)
    for start in range(begin, end, BLOCK_L):
        k_in = k < end - start
        x = load_strided(X, i, k, x_rank, x_long, i_in, k_in).to(COMPUTE)
        if TALL:
            total += x
        else:
            tl.store(SUMS + start + k, tl.sum(x, 0), mask=k_in)
        X += BLOCK_L * x_long
    if TALL:
        tl.store(SUMS + tile * BLOCK_R + i, tl.sum(total, 1), mask=i_in)


@triton.jit
def decoupling_gram(
    X,
    GRAM_PARTS,
    TRACE_PARTS,
    SUMS,
    x_batch,
    x_rank,
    x_long,
    R,
    L,
    pairs,
    tiles,
    splits,
    share,
    TALL: tl.constexpr,
    WITH_SUM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """GRAM_PARTS[i, j] = sum over a share of the long axis of X[i, l] X[j, l], i >= j (Eq. 8).

    Pointers: X (B, R, L), any strides; GRAM_PARTS (B, splits, R, R), lower tiles; TRACE_PARTS
    (B, splits, tiles), of the diagonal tiles; SUMS, if WITH_SUM, what the squeeze averages: TALL
    (B, splits, R), else (B, tiles, L).
    Grid: ((pairs + tiles if WITH_SUM else pairs) * splits * B,), pairs = tiles (tiles + 1) / 2; a
    program owns a tile of one split's part, or the sums of its rows: were the product's own tiles
    summed as well, Triton 3.6 would give them one buffer too few and overwrite them.
    """
    programs = pairs + tiles if WITH_SUM else pairs
    index, split, batch = part_of_image(programs, splits)
    begin = split * share
    end = tl.minimum(L, begin + share)
    X += batch * x_batch + split.to(tl.int64) * share * x_long
    part = batch * splits + split
    if index < pairs:
        ti, tj = triangle(index)
        gram_tile(
            X,
            GRAM_PARTS + part * R * R,
            TRACE_PARTS + part * tiles,
            x_rank,
            x_long,
            ti,
            tj,
            begin,
            end,
            R,
            BLOCK_R,
            BLOCK_L,
            PRECISION,
            COMPUTE,
        )
    elif WITH_SUM:
        tile = index - pairs
        SUMS += part * R if TALL else (batch * tiles + tile) * L
        squeeze_tile(X, SUMS, x_rank, x_long, tile, begin, end, R, TALL, BLOCK_R, BLOCK_L, COMPUTE)


@triton.jit
def trace_of(TRACE_PARTS, parts, BLOCK_T: tl.constexpr, COMPUTE: tl.constexpr):
    """tr G of an image whose `parts` begin at TRACE_PARTS."""
    traces = tl.zeros([BLOCK_T], COMPUTE)
    t = tl.arange(0, BLOCK_T)
    for start in range(0, parts, BLOCK_T):
        traces += tl.load(TRACE_PARTS + start + t, mask=start + t < parts, other=0.0)
    return tl.sum(traces, 0)


@triton.jit
def gram_block(GRAM_PARTS, trace, bi, bj, R, splits, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """Tile (bi, bj) of Gh = (R / t) G; NaN where the trace is not finite.

    GRAM_PARTS (splits, R, R) of one image, lower triangles: both halves read them, so that the
    matrix is exactly symmetric.
    """
    i = (bi * BLOCK + tl.arange(0, BLOCK))[:, None]
    j = (bj * BLOCK + tl.arange(0, BLOCK))[None, :]
    part = GRAM_PARTS + (tl.maximum(i, j) * R + tl.minimum(i, j))
    unscaled = tl.zeros([BLOCK, BLOCK], COMPUTE)
    for _ in range(0, splits):
        unscaled += tl.load(part, mask=(i < R) & (j < R), other=0.0)
        part += R * R
    gram = unscaled / tl.where(trace == 0, 1.0, trace) * R
    # A trace that is not finite must spoil the whole image, also entries that an infinite trace
    # would make 0.
    return tl.where(tl.abs(trace) < float("inf"), gram, float("nan"))


@triton.jit
def decoupling_normalise(
    GRAM_PARTS,
    TRACE_PARTS,
    SUMS,
    REDUCE_WEIGHT,
    REDUCE_BIAS,
    GRAM,
    SHIFTED,
    PANEL,
    SCRATCH,
    TRACE,
    SQUEEZED,
    HIDDEN,
    R,
    C,
    C_R,
    traces,
    splits,
    sum_parts,
    blocks,
    images,
    ridge,
    scale,
    ALONE: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """t = tr G, Gh = (R / t) G, and what the inverse M of I + Gh / ridge starts from.

    That is the matrix itself and the first panel of its inverse (invert_step); if ALONE, the one
    block there is, SHIFTED becomes M. Beside them the ReLU layer. A zero map has Gh = 0, one that
    is not finite NaN.
    Pointers: GRAM_PARTS, TRACE_PARTS (images, traces) as decoupling_gram leaves them; GRAM (Gh),
    SHIFTED (images, R, R); PANEL (images, R, SIZE); SCRATCH (images, blocks, 2, SIZE, SIZE);
    TRACE (images,), t. SUMS (images, sum_parts, C), scale times whose sum is SQUEEZED (images, C);
    REDUCE_WEIGHT (W_1) (C_R, C), REDUCE_BIAS (C_R,), contiguous; HIDDEN (images, C_R).
    Grid: (blocks * blocks * images + n * images,), n blocks of the layer, 0 where what it takes is
    not known yet; a program owns a block of the matrices, the first column first, or BLOCK_R rows
    of the layer.
    """
    pid = tl.program_id(0)
    bi = pid % blocks
    image = (pid // blocks) % images
    bj = pid // (blocks * images)
    batch = image.to(tl.int64)
    if bj < blocks:
        trace = trace_of(TRACE_PARTS + batch * traces, traces, BLOCK_T, COMPUTE)
        parts = GRAM_PARTS + batch * splits * R * R
        gram = gram_block(parts, trace, bi, bj, R, splits, SIZE, COMPUTE)
        i = tl.arange(0, SIZE)
        on_diagonal = i[:, None] == i[None, :]
        i_in = i < R - bi * SIZE
        j_in = i < R - bj * SIZE
        mask = i_in[:, None] & j_in[None, :]
        own = batch * R * R + bi * SIZE * R + bj * SIZE
        element = own + (i[:, None] * R + i[None, :])
        tl.store(GRAM + element, gram, mask=mask)
        shifted = tl.where(on_diagonal & (bi == bj), 1.0, 0.0) + gram / ridge
        scratch = SCRATCH + (batch * blocks + bi) * 2 * SIZE * SIZE
        if ALONE:
            invert_diagonal(shifted, scratch, SIZE, HALF, PRECISION, COMPUTE)
            inverse = tl.load(scratch + SIZE * SIZE + (i[:, None] * SIZE + i[None, :]))
            tl.store(SHIFTED + element, inverse, mask=mask)
        else:
            tl.store(SHIFTED + element, shifted, mask=mask)
            if bj == 0:
                diagonal = shifted
                if bi != 0:
                    gram = gram_block(parts, trace, 0, 0, R, splits, SIZE, COMPUTE)
                    diagonal = tl.where(on_diagonal, 1.0, 0.0) + gram / ridge
                store_panel(
                    SHIFTED + own,
                    diagonal,
                    bi == 0,
                    PANEL + batch * R * SIZE + bi * SIZE * SIZE,
                    scratch,
                    R,
                    R - bi * SIZE,
                    R,
                    SIZE,
                    HALF,
                    BLOCK_K,
                    PRECISION,
                    COMPUTE,
                )
        if bi == 0 and bj == 0:
            tl.store(TRACE + batch, trace)
    else:
        index = pid - blocks * blocks * images
        batch = (index % images).to(tl.int64)
        layer(
            REDUCE_WEIGHT,
            SUMS + batch * sum_parts * C,
            REDUCE_BIAS,
            HIDDEN + batch * C_R,
            SQUEEZED + batch * C,
            C,
            1,
            C_R,
            C,
            sum_parts,
            index // images,
            scale,
            "relu",
            True,
            BLOCK_R,
            BLOCK_C,
            COMPUTE,
        )
