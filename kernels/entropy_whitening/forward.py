"""Forward kernels of entropy_whitening, on rows (B, H * W, C): entropy, its statistics over the image, mask and whitening.

Channels-last: positions are rows, so that a tap of a window is one contiguous read of BLOCK_C channels. A whitening program
owns LANES strips of TILE_H x STRIP positions, side by side, and BLOCK_C channels: a tuple of tiles (LANES, BLOCK_C), so that a
thread holds whole strips of its channels. A strip is no larger than a window: all of its windows hold its middle, the pivot.
"""

import triton
import triton.language as tl


@triton.jit
def row_entropy(F, gate, inside, rows, C, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr):
    """Eq. 6: entropy of softmax(gate * F) over the channels, online, z = F - max: log sum e^z - sum e^z z / sum e^z.

    A NaN or an infinity anywhere in a row makes its entropy NaN, through e or e (z - max), whatever the maximum does with it.
    """
    column = tl.arange(0, BLOCK_C)
    top = tl.full(gate.shape, float("-inf"), COMPUTE)
    total = tl.zeros(gate.shape, COMPUTE)
    moment = tl.zeros(gate.shape, COMPUTE)
    for c in range(0, C, BLOCK_C):
        known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - c)[None, :]
        z = tl.load(F + c + (rows[:, None] + column[None, :]), mask=inside[:, None] & known, other=0.0).to(COMPUTE)
        z *= gate[:, None]
        best = tl.maximum(top, tl.max(tl.where(known, z, float("-inf")), 1))
        e = tl.where(known, tl.exp(z - best[:, None]), 0.0)
        # The first block has no past: -inf - best would be NaN for a row of -inf, and is no shift.
        shift = tl.where(top > float("-inf"), top - best, 0.0)
        past = tl.where(top > float("-inf"), tl.exp(shift), 0.0)
        moment = (moment + shift * total) * past + tl.sum(tl.where(known, e * (z - best[:, None]), 0.0), 1)
        total = total * past + tl.sum(e, 1)
        top = best
    return tl.log(total) - moment / total


@triton.jit
def entropy_map(
    F, GATE, ENT, PART, f_batch, N, C, blocks, parts,
    SCORE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Entropy of BLOCK_P positions, and what their image's statistics need of them: mean and centred second moment if SCORE,
    else minimum and maximum (NaN if any is).

    Pointers: F (B, N, C); GATE, ENT (B, N); PART (2, parts), parts = B * blocks. Grid: (parts,).
    """
    pid = tl.program_id(0)
    block = pid % blocks
    image = (pid // blocks).to(tl.int64)
    row = tl.arange(0, BLOCK_P)
    inside = row < N - block * BLOCK_P
    start = block.to(tl.int64) * BLOCK_P
    gate = tl.load(GATE + image * N + start + row, mask=inside, other=0.0)
    entropy = row_entropy(F + image * f_batch + start * C, gate, inside, row * C, C, BLOCK_C, EVEN_C, COMPUTE)
    tl.store(ENT + image * N + start + row, entropy, mask=inside)
    if SCORE:
        count = tl.minimum(N - block * BLOCK_P, BLOCK_P).to(COMPUTE)
        first = tl.sum(tl.where(inside, entropy, 0.0), 0) / count
        centred = tl.where(inside, entropy - first, 0.0)
        second = tl.sum(centred * centred, 0)
    else:
        # A sum carries the NaN that minimum and maximum drop.
        nan = tl.sum(tl.where(inside, entropy - entropy, 0.0), 0)
        first = tl.min(tl.where(inside, entropy, float("inf")), 0) + nan
        second = tl.max(tl.where(inside, entropy, float("-inf")), 0) + nan
    tl.store(PART + pid, first)
    tl.store(PART + parts + pid, second)


@triton.jit
def entropy_statistics(PART, STAT, N, blocks, parts, SCORE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
                       COMPUTE: tl.constexpr):  # fmt: skip
    """STAT = (shift, unit) of an image: mean and deviation if SCORE, else minimum and span; shift NaN if the unit is tiny.

    Pointers: PART (2, parts); STAT (B, 2). Grid: (B,). The blocks' moments are merged by Chan's formula, always in one order.
    """
    image = tl.program_id(0)
    slot = tl.arange(0, BLOCK)
    base = PART + image * blocks
    if SCORE:
        total = tl.zeros([BLOCK], COMPUTE)
        for start in range(0, blocks, BLOCK):
            there = start + slot
            held = tl.minimum(tl.maximum(N - there * BLOCK_P, 0), BLOCK_P).to(COMPUTE)
            total += held * tl.load(base + there, mask=there < blocks, other=0.0)
        shift = tl.sum(total, 0) / N
        total = tl.zeros([BLOCK], COMPUTE)
        for start in range(0, blocks, BLOCK):
            there = start + slot
            held = tl.minimum(tl.maximum(N - there * BLOCK_P, 0), BLOCK_P).to(COMPUTE)
            apart = tl.load(base + there, mask=there < blocks, other=0.0) - shift
            total += tl.where(there < blocks, held * apart * apart, 0.0)
            total += tl.load(base + parts + there, mask=there < blocks, other=0.0)
        unit = tl.sqrt(tl.sum(total, 0) / N)
        least: tl.constexpr = 1e-4
    else:
        low = tl.full([BLOCK], float("inf"), COMPUTE)
        high = tl.full([BLOCK], float("-inf"), COMPUTE)
        nan = tl.zeros([BLOCK], COMPUTE)
        for start in range(0, blocks, BLOCK):
            there = start + slot
            a = tl.load(base + there, mask=there < blocks, other=float("inf"))
            nan += tl.where(there < blocks, a - a, 0.0)
            low = tl.minimum(low, a)
            high = tl.maximum(high, tl.load(base + parts + there, mask=there < blocks, other=float("-inf")))
        shift = tl.min(low, 0) + tl.sum(nan, 0)
        unit = tl.max(high, 0) - shift
        least: tl.constexpr = 1e-3
    tl.store(STAT + image * 2, tl.where(unit > least, shift, float("nan")))
    tl.store(STAT + image * 2 + 1, unit)


@triton.jit
def tile_of(pid, W, tiles_x, tiles, chunks, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """What a program owns: its first row and that row's first position (int64), its columns (TILE_W,), its chunk and image."""
    tile = pid % tiles
    top = (tile // tiles_x) * TILE_H
    x = (tile % tiles_x) * TILE_W + tl.arange(0, TILE_W)
    return top, top.to(tl.int64) * W, x, (pid // tiles) % chunks, (pid // (tiles * chunks)).to(tl.int64)


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
def strips_of(pid, W, tiles_x, tiles, chunks, TILE_H: tl.constexpr, STRIP: tl.constexpr, LANES: tl.constexpr):
    """As tile_of, for LANES strips of TILE_H x STRIP positions side by side: the columns are each strip's first."""
    top, origin, lane, chunk, image = tile_of(pid, W, tiles_x, tiles, chunks, TILE_H, LANES)
    return top, origin, lane * STRIP, chunk, image


@triton.jit
def home_of(top, x, H, W, TILE_H: tl.constexpr, STRIP: tl.constexpr):
    """A position that every window of a strip holds, strips being no larger than windows: the middle, or the map's last."""
    return (tl.minimum((TILE_H - 1) // 2, H - 1 - top)) * W + tl.minimum(x + (STRIP - 1) // 2, W - 1)


@triton.jit
def apart(F, GATE, pivot, home, start, x, column, known, W, C, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr):
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
        d = apart(F, GATE, pivot, home, start, x + (STRIP - 2 - i - R), column, known, W, C, EVEN_C, COMPUTE)
        firsts = (firsts[0] + d,) + firsts
        seconds = (seconds[0] + d * d,) + seconds
    if STRIP > 1:
        right = apart(F, GATE, pivot, home, start, x + (R + 1), column, known, W, C, EVEN_C, COMPUTE)
        square = right * right
        wholes, squares = (firsts[0], firsts[1] + right), (seconds[0], seconds[1] + square)
        for i in tl.static_range(2, STRIP):
            d = apart(F, GATE, pivot, home, start, x + (R + i), column, known, W, C, EVEN_C, COMPUTE)
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
        more = row_sums(F, GATE, pivot, home, (row - top) * W, x, column, known, W, C, R, STRIP, EVEN_C, COMPUTE)
        sums = added(sums, more, both)
    last = sums
    for i in tl.static_range(TILE_H - 1):
        start = TILE_H - 2 - i - R
        if top + start >= 0:
            more = row_sums(F, GATE, pivot, home, start * W, x, column, known, W, C, R, STRIP, EVEN_C, COMPUTE)
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
        more = row_sums(F, GATE, pivot, home, row * W, x, column, known, W, C, R, STRIP, EVEN_C, COMPUTE)
        lower = added(lower, more, 2 * STRIP)
    return lower


@triton.jit
def normal(first, second, y, x, H, W, EPS: tl.constexpr, R: tl.constexpr, COMPUTE: tl.constexpr):
    """Mean less pivot, and 1 / sigma, from a window's sums; y is a number."""
    share = ((1.0 / inside_count(x, W, R, COMPUTE)) * (1.0 / inside_count(y, H, R, COMPUTE)))[:, None]
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
    tl.store(OUT + (at[:, None] * C + column[None, :]), out.to(OUT.dtype.element_ty), mask=inside[:, None] & known)


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
    top, origin, x, chunk, image = strips_of(tl.program_id(0), W, tiles_x, tiles, chunks, TILE_H, STRIP, LANES)
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    first = image * H * W + origin
    F += image * f_batch + origin * C + chunk * BLOCK_C
    OUT += first * C + chunk * BLOCK_C
    GATE += first
    home = home_of(top, x, H, W, TILE_H, STRIP)
    pivot = attended(F, GATE, home, x >= 0, column, known, C, COMPUTE)
    if NORMALIZE:
        upper = upper_sums(F, GATE, pivot, home, top, x, column, known, H, W, C, R, TILE_H, STRIP, EVEN_C, COMPUTE)
        limit = tl.load(STAT + image * 2 + 1) * threshold
    else:
        upper = zeros(2 * TILE_H * STRIP, LANES, BLOCK_C, COMPUTE)
    lower = zeros(2 * STRIP, LANES, BLOCK_C, COMPUTE)
    for i in tl.static_range(TILE_H):
        if NORMALIZE and i > 0:
            lower = lower_sums(lower, F, GATE, pivot, home, top, R + i, x, column, known, H, W, C, R, STRIP, EVEN_C, COMPUTE)
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
    top, origin, x, _, image = strips_of(tl.program_id(0), W, tiles_x, tiles, 1, TILE_H, STRIP, LANES)
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
        upper = upper_sums(F, GATE, pivot, home, top, here, column, known, H, W, C, R, TILE_H, STRIP, EVEN_C, COMPUTE)
        lower = zeros(2 * STRIP, LANES, BLOCK_C, COMPUTE)
        for i in tl.static_range(TILE_H):
            if i > 0:
                lower = lower_sums(
                    lower, F, GATE, pivot, home, top, R + i, here, column, known, H, W, C, R, STRIP, EVEN_C, COMPUTE
                )
            for j in tl.static_range(STRIP):
                write_whitened(
                    F, GATE, OUT, (lows >> (i * STRIP + j)) & 1 != 0, pivot,
                    upper[2 * STRIP * i + j] + lower[j], upper[2 * STRIP * i + STRIP + j] + lower[STRIP + j],
                    top, i, here + j, column, known, H, W, C, EPS, R, COMPUTE,
                )  # fmt: skip
        F += BLOCK_C
        OUT += BLOCK_C
