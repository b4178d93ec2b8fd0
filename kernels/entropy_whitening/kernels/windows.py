"""The tiles of the whitening kernels and the sums over windows, on rows (B, H * W, C).

Channels-last: positions are rows, so that a tap of a window is one contiguous read of BLOCK_C
channels. A whitening program owns LANES strips of TILE_H x STRIP positions, side by side, and
BLOCK_C channels: a tuple of tiles (LANES, BLOCK_C), so that a thread holds whole strips of its
channels. A strip is no larger than a window: all of its windows hold its middle, the pivot.

What goes together is passed together, as tuples: maps = (FEATURES, GATE), at the tile's first
position; size = (H, W, C); strips = (pivot, home, x, column, known), x each strip's first column.
"""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import part_of_image


@triton.jit
def tile_of(W, tiles_x, tiles, chunks, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """What a program owns: its first row and that row's first position (int64), its columns
    (TILE_W,), its chunk and image.
    """
    tile, chunk, image = part_of_image(tiles, chunks)
    top = (tile // tiles_x) * TILE_H
    x = (tile % tiles_x) * TILE_W + tl.arange(0, TILE_W)
    return top, top.to(tl.int64) * W, x, chunk, image


@triton.jit
def strips_of(
    W, tiles_x, tiles, chunks, TILE_H: tl.constexpr, STRIP: tl.constexpr, LANES: tl.constexpr
):
    """As tile_of, for LANES strips side by side: the columns are each strip's first."""
    top, origin, lane, chunk, image = tile_of(W, tiles_x, tiles, chunks, TILE_H, LANES)
    return top, origin, lane * STRIP, chunk, image


@triton.jit
def columns_inside(x, y, H, W):
    """Which columns of row y lie in the image, to the right: none if the row does not, below."""
    return x < tl.where(y < H, W, 0)


@triton.jit
def inside_count(at, size, R: tl.constexpr, COMPUTE: tl.constexpr):
    """How many of at - R ... at + R lie in 0 ... size - 1; at least 1, also for a lane outside."""
    return tl.maximum(tl.minimum(at + R, size - 1) - tl.maximum(at - R, 0) + 1, 1).to(COMPUTE)


@triton.jit
def attended(maps, position, position_in, column, known, C, COMPUTE: tl.constexpr):
    """x = GATE * FEATURES (Eq. 5) at the positions: (positions, channels); 0 outside."""
    FEATURES, GATE = maps
    gate = tl.load(GATE + position, mask=position_in, other=0.0)
    offsets = position[:, None] * C + column[None, :]
    f = tl.load(FEATURES + offsets, mask=position_in[:, None] & known, other=0.0)
    return f.to(COMPUTE) * gate[:, None]


@triton.jit
def home_of(top, x, size, TILE_H: tl.constexpr, STRIP: tl.constexpr):
    """A position that every window of a strip holds, strips being no larger than windows.

    The middle of the strip, or the map's last.
    """
    H, W, _ = size
    row = tl.minimum((TILE_H - 1) // 2, H - 1 - top)
    return row * W + tl.minimum(x + (STRIP - 1) // 2, W - 1)


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, COMPUTE: tl.constexpr):
    """COUNT tiles of zeros."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros([ROWS, COLUMNS], COMPUTE),)
    return tiles


@triton.jit
def added(a, b, COUNT: tl.constexpr):
    """Sums of two tuples."""
    sums = ()
    for i in tl.static_range(COUNT):
        sums = sums + (a[i] + b[i],)
    return sums


@triton.jit
def apart(maps, strips, start, dx, size, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr):
    """x - pivot at columns x + dx of the row that starts at `start`.

    Outside the row it is the pivot's own, 0, by its address.
    """
    FEATURES, GATE = maps
    pivot, home, x, column, known = strips
    _, W, C = size
    x = x + dx
    position = tl.where((x >= 0) & (x < W), start + x, home)
    address = FEATURES + (position[:, None] * C + column[None, :])
    f = tl.load(address) if EVEN_C else tl.load(address, mask=known, other=0.0)
    return f.to(COMPUTE) * tl.load(GATE + position)[:, None] - pivot


@triton.jit
def row_sums(
    maps,
    strips,
    start,
    size,
    R: tl.constexpr,
    STRIP: tl.constexpr,
    EVEN_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums of d = attended - pivot, then of d^2, over the row's part of a strip's windows.

    2 STRIP tiles. What all windows hold is summed once; what lies left of it from the right on,
    what lies right of it from the left on.
    """
    first = tl.zeros(strips[0].shape, COMPUTE)
    second = tl.zeros(strips[0].shape, COMPUTE)
    for dx in tl.range(STRIP - 1 - R, R + 1, loop_unroll_factor=2 * R + 2 - STRIP if R <= 3 else 4):
        d = apart(maps, strips, start, dx, size, EVEN_C, COMPUTE)
        first += d
        second += d * d
    firsts, seconds = (first,), (second,)
    for i in tl.static_range(STRIP - 1):
        d = apart(maps, strips, start, STRIP - 2 - i - R, size, EVEN_C, COMPUTE)
        firsts = (firsts[0] + d,) + firsts
        seconds = (seconds[0] + d * d,) + seconds
    if STRIP > 1:
        right = apart(maps, strips, start, R + 1, size, EVEN_C, COMPUTE)
        square = right * right
        wholes, squares = (firsts[0], firsts[1] + right), (seconds[0], seconds[1] + square)
        for i in tl.static_range(2, STRIP):
            d = apart(maps, strips, start, R + i, size, EVEN_C, COMPUTE)
            right += d
            square += d * d
            wholes = wholes + (firsts[i] + right,)
            squares = squares + (seconds[i] + square,)
        firsts, seconds = wholes, squares
    return firsts + seconds


@triton.jit
def upper_sums(
    maps,
    strips,
    top,
    size,
    R: tl.constexpr,
    TILE_H: tl.constexpr,
    STRIP: tl.constexpr,
    EVEN_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The same over the rows of the windows down to top + R: TILE_H times 2 STRIP tiles.

    Rows add up as the columns of a row do. Only a window's own values enter its sums, and the pivot
    is one of them: a NaN stays in the windows that hold it, and at most a factor of their number is
    lost to cancellation.
    """
    H, W, _ = size
    both: tl.constexpr = 2 * STRIP
    sums = zeros(both, strips[0].shape[0], strips[0].shape[1], COMPUTE)
    for row in range(tl.maximum(top + TILE_H - 1 - R, 0), tl.minimum(top + R + 1, H)):
        more = row_sums(maps, strips, (row - top) * W, size, R, STRIP, EVEN_C, COMPUTE)
        sums = added(sums, more, both)
    last = sums
    for i in tl.static_range(TILE_H - 1):
        start = TILE_H - 2 - i - R
        if top + start >= 0:
            more = row_sums(maps, strips, start * W, size, R, STRIP, EVEN_C, COMPUTE)
            last = added(last, more, both)
        sums = last + sums
    return sums


@triton.jit
def lower_sums(
    lower,
    maps,
    strips,
    top,
    row,
    size,
    R: tl.constexpr,
    STRIP: tl.constexpr,
    EVEN_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """What windows hold below: `lower`, and row top + row.

    A window is whole, and written, before the next row is read.
    """
    H, W, _ = size
    if top + row < H:
        more = row_sums(maps, strips, row * W, size, R, STRIP, EVEN_C, COMPUTE)
        lower = added(lower, more, 2 * STRIP)
    return lower


@triton.jit
def mean_and_rstd(
    first, second, y, x, H, W, EPS: tl.constexpr, R: tl.constexpr, COMPUTE: tl.constexpr
):
    """Mean less pivot, and 1 / sigma, from a window's sums; y is a number."""
    columns, rows = inside_count(x, W, R, COMPUTE), inside_count(y, H, R, COMPUTE)
    share = ((1.0 / columns) * (1.0 / rows))[:, None]
    mean = first * share
    variance = second * share - mean * mean
    # maximum() would turn a NaN into 0.
    return mean, tl.rsqrt(tl.where(variance < 0, 0.0, variance) + EPS)
