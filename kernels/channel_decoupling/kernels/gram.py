"""The Gram matrix over the long axis, with the squeeze (Eq. 8 and 10)."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import load_strided, part_of_image


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
