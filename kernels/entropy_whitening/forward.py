"""Mask and whitening of entropy_whitening, on rows (B, H * W, C), and the sums over windows that the backward needs as well.

Channels-last: positions are rows, so that a tap of a window is one contiguous read of BLOCK_C channels. A whitening program
owns LANES strips of TILE_H x STRIP positions, side by side, and BLOCK_C channels: a tuple of tiles (LANES, BLOCK_C), so that a
thread holds whole strips of its channels. A strip is no larger than a window: all of its windows hold its middle, the pivot.
"""

import triton
import triton.language as tl

from intrasense_fast.kernels.entropy_whitening.entropy import row_entropy


@triton.jit
def tile_of(pid, W, tiles_x, tiles, chunks, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """What a program owns: its first row and that row's first position (int64), its columns (TILE_W,), its chunk and image."""
    tile = pid % tiles
    top = (tile // tiles_x) * TILE_H
    x = (tile % tiles_x) * TILE_W + tl.arange(0, TILE_W)
    return (
        top,
        top.to(tl.int64) * W,
        x,
        (pid // tiles) % chunks,
        (pid // (tiles * chunks)).to(tl.int64),
    )


@triton.jit
def columns_inside(x, y, H, W):
    """Which columns of row y lie in the image, to the right: none if the row does not, below."""
    return x < tl.where(y < H, W, 0)


@triton.jit
def inside_count(at, size, R: tl.constexpr, COMPUTE: tl.constexpr):
    """How many of at - R ... at + R lie in 0 ... size - 1; at least 1, also for a lane outside."""
    return tl.maximum(tl.minimum(at + R, size - 1) - tl.maximum(at - R, 0) + 1, 1).to(COMPUTE)


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, COMPUTE: tl.constexpr):
    """COUNT tiles of zeros."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros([ROWS, COLUMNS], COMPUTE),)
    return tiles


@triton.jit
def attended(F, GATE, at, inside, column, known, C, COMPUTE: tl.constexpr):
    """gate * F (Eq. 5) at the positions `at`: (positions, channels); 0 outside."""
    gate = tl.load(GATE + at, mask=inside, other=0.0)
    f = tl.load(F + (at[:, None] * C + column[None, :]), mask=inside[:, None] & known, other=0.0)
    return f.to(COMPUTE) * gate[:, None]


@triton.jit
def strips_of(
    pid, W, tiles_x, tiles, chunks, TILE_H: tl.constexpr, STRIP: tl.constexpr, LANES: tl.constexpr
):
    """As tile_of, for LANES strips of TILE_H x STRIP positions side by side: the columns are each strip's first."""
    top, origin, lane, chunk, image = tile_of(pid, W, tiles_x, tiles, chunks, TILE_H, LANES)
    return top, origin, lane * STRIP, chunk, image


@triton.jit
def home_of(top, x, H, W, TILE_H: tl.constexpr, STRIP: tl.constexpr):
    """A position that every window of a strip holds, strips being no larger than windows: the middle, or the map's last."""
    return (tl.minimum((TILE_H - 1) // 2, H - 1 - top)) * W + tl.minimum(
        x + (STRIP - 1) // 2, W - 1
    )


@triton.jit
def apart(
    F, GATE, pivot, home, start, x, column, known, W, C, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr
):
    """gate * F - pivot at columns x of the row that starts at `start`. Outside it is the pivot's own, 0, by its address."""
    at = tl.where((x >= 0) & (x < W), start + x, home)
    here = F + (at[:, None] * C + column[None, :])
    f = tl.load(here) if EVEN_C else tl.load(here, mask=known, other=0.0)
    return f.to(COMPUTE) * tl.load(GATE + at)[:, None] - pivot


@triton.jit
def added(a, b, COUNT: tl.constexpr):
    """Sums of two tuples."""
    sums = ()
    for i in tl.static_range(COUNT):
        sums = sums + (a[i] + b[i],)
    return sums


@triton.jit
def row_sums(
    F, GATE, pivot, home, start, x, column, known, W, C,
    R: tl.constexpr, STRIP: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Sums of d = gate * F - pivot, then of d^2, over the row's part of a strip's windows: 2 STRIP tiles.

    What all of them hold is summed once; what lies left of it from the right on, what lies right of it from the left on.
    """
    first = tl.zeros(pivot.shape, COMPUTE)
    second = tl.zeros(pivot.shape, COMPUTE)
    for dx in tl.range(STRIP - 1 - R, R + 1, loop_unroll_factor=2 * R + 2 - STRIP if R <= 3 else 4):
        d = apart(F, GATE, pivot, home, start, x + dx, column, known, W, C, EVEN_C, COMPUTE)
        first += d
        second += d * d
    firsts, seconds = (first,), (second,)
    for i in tl.static_range(STRIP - 1):
        d = apart(
            F,
            GATE,
            pivot,
            home,
            start,
            x + (STRIP - 2 - i - R),
            column,
            known,
            W,
            C,
            EVEN_C,
            COMPUTE,
        )
        firsts = (firsts[0] + d,) + firsts
        seconds = (seconds[0] + d * d,) + seconds
    if STRIP > 1:
        right = apart(
            F, GATE, pivot, home, start, x + (R + 1), column, known, W, C, EVEN_C, COMPUTE
        )
        square = right * right
        wholes, squares = (firsts[0], firsts[1] + right), (seconds[0], seconds[1] + square)
        for i in tl.static_range(2, STRIP):
            d = apart(
                F, GATE, pivot, home, start, x + (R + i), column, known, W, C, EVEN_C, COMPUTE
            )
            right += d
            square += d * d
            wholes = wholes + (firsts[i] + right,)
            squares = squares + (seconds[i] + square,)
        firsts, seconds = wholes, squares
    return firsts + seconds


@triton.jit
def upper_sums(
    F, GATE, pivot, home, top, x, column, known, H, W, C,
    R: tl.constexpr, TILE_H: tl.constexpr, STRIP: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The same over the rows of the windows down to top + R: TILE_H times 2 STRIP tiles.

    Rows add up as the columns of a row do. Only a window's own values enter its sums, and the pivot is one of them: a NaN
    stays in the windows that hold it, and at most a factor of their number is lost to cancellation.
    """
    both: tl.constexpr = 2 * STRIP
    sums = zeros(both, x.shape[0], column.shape[0], COMPUTE)
    for row in range(tl.maximum(top + TILE_H - 1 - R, 0), tl.minimum(top + R + 1, H)):
        more = row_sums(
            F, GATE, pivot, home, (row - top) * W, x, column, known, W, C, R, STRIP, EVEN_C, COMPUTE
        )
        sums = added(sums, more, both)
    last = sums
    for i in tl.static_range(TILE_H - 1):
        start = TILE_H - 2 - i - R
        if top + start >= 0:
            more = row_sums(
                F, GATE, pivot, home, start * W, x, column, known, W, C, R, STRIP, EVEN_C, COMPUTE
            )
            last = added(last, more, both)
        sums = last + sums
    return sums


@triton.jit
def lower_sums(
    lower, F, GATE, pivot, home, top, row, x, column, known, H, W, C,
    R: tl.constexpr, STRIP: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """What windows hold below: `lower`, and row top + row. A window is whole, and written, before the next row is read."""
    if top + row < H:
        more = row_sums(
            F, GATE, pivot, home, row * W, x, column, known, W, C, R, STRIP, EVEN_C, COMPUTE
        )
        lower = added(lower, more, 2 * STRIP)
    return lower


@triton.jit
def normal(first, second, y, x, H, W, EPS: tl.constexpr, R: tl.constexpr, COMPUTE: tl.constexpr):
    """Mean less pivot, and 1 / sigma, from a window's sums; y is a number."""
    share = ((1.0 / inside_count(x, W, R, COMPUTE)) * (1.0 / inside_count(y, H, R, COMPUTE)))[
        :, None
    ]
    shift = first * share
    variance = second * share - shift * shift
    # maximum() would turn a NaN into 0.
    return shift, tl.rsqrt(tl.where(variance < 0, 0.0, variance) + EPS)


@triton.jit
def write_whitened(
    F, GATE, OUT, low, pivot, first, second, top, i, x, column, known, H, W, C,
    EPS: tl.constexpr, R: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Eq. 7 at columns x of a tile's row i."""
    inside = columns_inside(x, top + i, H, W)
    at = i * W + x
    centre = attended(F, GATE, at, inside, column, known, C, COMPUTE)
    shift, scale = normal(first, second, top + i, x, H, W, EPS, R, COMPUTE)
    out = tl.where(low[:, None], (centre - pivot - shift) * scale, centre)
    tl.store(
        OUT + (at[:, None] * C + column[None, :]),
        out.to(OUT.dtype.element_ty),
        mask=inside[:, None] & known,
    )


@triton.jit
def whiten(
    F, GATE, ENT, STAT, OUT, MASK, f_batch, H, W, C, tiles_x, tiles, chunks, threshold,
    NORMALIZE: tl.constexpr, EPS: tl.constexpr, R: tl.constexpr,
    TILE_H: tl.constexpr, STRIP: tl.constexpr, LANES: tl.constexpr,
    BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Mask, (Ent - shift) / unit < threshold by the image's statistics, and Eq. 7. NORMALIZE: else the gate alone.

    Pointers: F, OUT (B, H W, C); GATE, ENT (B, H W); STAT (B, 2); MASK (B, H W), bytes. Grid: (tiles * chunks * B,).
    """
    top, origin, x, chunk, image = strips_of(
        tl.program_id(0), W, tiles_x, tiles, chunks, TILE_H, STRIP, LANES
    )
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    first = image * H * W + origin
    F += image * f_batch + origin * C + chunk * BLOCK_C
    OUT += first * C + chunk * BLOCK_C
    GATE += first
    home = home_of(top, x, H, W, TILE_H, STRIP)
    pivot = attended(F, GATE, home, x >= 0, column, known, C, COMPUTE)
    if NORMALIZE:
        upper = upper_sums(
            F, GATE, pivot, home, top, x, column, known, H, W, C, R, TILE_H, STRIP, EVEN_C, COMPUTE
        )
        limit = tl.load(STAT + image * 2 + 1) * threshold
    else:
        upper = zeros(2 * TILE_H * STRIP, LANES, BLOCK_C, COMPUTE)
    lower = zeros(2 * STRIP, LANES, BLOCK_C, COMPUTE)
    for i in tl.static_range(TILE_H):
        if NORMALIZE and i > 0:
            lower = lower_sums(
                lower,
                F,
                GATE,
                pivot,
                home,
                top,
                R + i,
                x,
                column,
                known,
                H,
                W,
                C,
                R,
                STRIP,
                EVEN_C,
                COMPUTE,
            )
        for j in tl.static_range(STRIP):
            inside = columns_inside(x + j, top + i, H, W)
            at = first + i * W + x + j
            if NORMALIZE:
                low = tl.load(ENT + at, mask=inside, other=0.0) - tl.load(STAT + image * 2) < limit
            else:
                low = x < 0
            if chunk == 0:
                tl.store(MASK + at, low.to(tl.uint8), mask=inside)
            write_whitened(
                F, GATE, OUT, low, pivot,
                upper[2 * STRIP * i + j] + lower[j], upper[2 * STRIP * i + STRIP + j] + lower[STRIP + j],
                top, i, x + j, column, known, H, W, C, EPS, R, COMPUTE,
            )  # fmt: skip


@triton.jit
def entropy_whiten(
    F, GATE, OUT, MASK, f_batch, H, W, C, tiles_x, tiles, threshold, unit,
    EPS: tl.constexpr, R: tl.constexpr, TILE_H: tl.constexpr, STRIP: tl.constexpr, LANES: tl.constexpr,
    BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Entropy, mask and Eq. 7 in one launch, for scales that need nothing of other positions: Ent / unit < threshold.

    Pointers as in whiten. Grid: (tiles * B,); a program owns every channel of its positions, at most 31 a strip.
    """
    top, origin, x, _, image = strips_of(
        tl.program_id(0), W, tiles_x, tiles, 1, TILE_H, STRIP, LANES
    )
    column = tl.arange(0, BLOCK_C)
    first = image * H * W + origin
    F += image * f_batch + origin * C
    OUT += first * C
    GATE += first
    # A bit a position of the strip: a loop of one body cannot fill a tuple.
    lows = tl.zeros([LANES], tl.int32)
    for position in range(TILE_H * STRIP):
        i, j = position // STRIP, position % STRIP
        inside = columns_inside(x + j, top + i, H, W)
        at = i * W + x + j
        gate = tl.load(GATE + at, mask=inside, other=0.0)
        low = row_entropy(F, gate, inside, at * C, C, BLOCK_C, EVEN_C, COMPUTE) / unit < threshold
        tl.store(MASK + first + at, low.to(tl.uint8), mask=inside)
        lows |= low.to(tl.int32) << position
    for c in range(0, C, BLOCK_C):
        # c // C is 0; without it the addresses of a whole tile are computed before the loop and held in registers.
        here = x + c // C
        home = home_of(top, here, H, W, TILE_H, STRIP)
        known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - c)[None, :]
        pivot = attended(F, GATE, home, here >= 0, column, known, C, COMPUTE)
        upper = upper_sums(
            F,
            GATE,
            pivot,
            home,
            top,
            here,
            column,
            known,
            H,
            W,
            C,
            R,
            TILE_H,
            STRIP,
            EVEN_C,
            COMPUTE,
        )
        lower = zeros(2 * STRIP, LANES, BLOCK_C, COMPUTE)
        for i in tl.static_range(TILE_H):
            if i > 0:
                lower = lower_sums(
                    lower,
                    F,
                    GATE,
                    pivot,
                    home,
                    top,
                    R + i,
                    here,
                    column,
                    known,
                    H,
                    W,
                    C,
                    R,
                    STRIP,
                    EVEN_C,
                    COMPUTE,
                )
            for j in tl.static_range(STRIP):
                write_whitened(
                    F, GATE, OUT, (lows >> (i * STRIP + j)) & 1 != 0, pivot,
                    upper[2 * STRIP * i + j] + lower[j], upper[2 * STRIP * i + STRIP + j] + lower[STRIP + j],
                    top, i, here + j, column, known, H, W, C, EPS, R, COMPUTE,
                )  # fmt: skip
        F += BLOCK_C
        OUT += BLOCK_C
