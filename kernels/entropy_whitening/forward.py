"""Forward kernels of entropy_whitening, on rows (B, H * W, C): entropy, its statistics over the image, mask and whitening.

Channels-last: positions are rows, so that a tap of a window is one contiguous read of BLOCK_C channels. A whitening program
owns TILE_H x TILE_W positions and BLOCK_C channels, as a tuple of TILE_H tiles (TILE_W, BLOCK_C), and walks down the rows that
its windows see: k taps a row, then the row's moments go to every tile whose windows hold it.
"""

import triton
import triton.language as tl

from intrasense_fast.kernels.entropy_whitening.gate import sigmoid


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
def row_moments(F, GATE, start, x, column, known, W, C, R: tl.constexpr, COMPUTE: tl.constexpr):
    """Mean, and centred second moment, of gate * F over x - R ... x + R of the row that starts at `start`.

    The centre is the pivot: it is one of the values, so at most a factor of their number is lost to cancellation.
    """
    pivot = attended(F, GATE, start + x, x < W, column, known, C, COMPUTE)
    first = tl.zeros(pivot.shape, COMPUTE)
    second = tl.zeros(pivot.shape, COMPUTE)
    for dx in tl.range(-R, R + 1, loop_unroll_factor=2 * R + 1 if R <= 3 else 5):
        ok = (x < W) & (x + dx >= 0) & (x + dx < W)
        v = attended(F, GATE, start + x + dx, ok, column, known, C, COMPUTE)
        v = tl.where(ok[:, None], v - pivot, 0.0)
        first += v
        second += v * v
    shift = first * (1.0 / inside_count(x, W, R, COMPUTE))[:, None]
    second -= first * shift
    # maximum() would turn a NaN into 0.
    return pivot + shift, tl.where(second < 0, 0.0, second)


@triton.jit
def window_moments(
    F, GATE, top, x, column, known, H, W, C, R: tl.constexpr, TILE_H: tl.constexpr, COMPUTE: tl.constexpr
):  # fmt: skip
    """Means and biased variances of gate * F over the windows at rows top ... top + TILE_H - 1: two tuples of tiles.

    Rows are merged by Chan's formula: nothing cancels, and a NaN stays in the windows that hold it.
    """
    means = zeros(TILE_H, x.shape[0], column.shape[0], COMPUTE)
    seconds = zeros(TILE_H, x.shape[0], column.shape[0], COMPUTE)
    width = inside_count(x, W, R, COMPUTE)[:, None]
    for row in range(tl.maximum(top - R, 0), tl.minimum(top + TILE_H + R, H)):
        row_mean, row_second = row_moments(F, GATE, (row - top) * W, x, column, known, W, C, R, COMPUTE)
        merged_means, merged_seconds = (), ()
        for i in tl.static_range(TILE_H):
            mean, second = means[i], seconds[i]
            if (row >= top + i - R) & (row <= top + i + R):
                # Rows that the window already holds; none: the weight is 0 and the mean becomes the row's.
                held = (row - tl.maximum(top + i - R, 0)).to(COMPUTE)
                apart = row_mean - mean
                mean += apart * (1.0 / (held + 1.0))
                second += row_second + (width * (held / (held + 1.0)) * apart) * apart
            merged_means = merged_means + (mean,)
            merged_seconds = merged_seconds + (second,)
        means, seconds = merged_means, merged_seconds
    variances = ()
    for i in tl.static_range(TILE_H):
        variances = variances + (seconds[i] * (1.0 / (width * inside_count(top + i, H, R, COMPUTE))),)
    return means, variances


@triton.jit
def write_whitened(
    F, GATE, OUT, low, mean, variance, at, inside, column, known, C, EPS: tl.constexpr, COMPUTE: tl.constexpr
):  # fmt: skip
    """Eq. 7 for one row of a tile."""
    centre = attended(F, GATE, at, inside, column, known, C, COMPUTE)
    out = tl.where(low[:, None], (centre - mean) / tl.sqrt(variance + EPS), centre)
    here = at[:, None] * C + column[None, :]
    tl.store(OUT + here, out.to(OUT.dtype.element_ty), mask=inside[:, None] & known)


@triton.jit
def whiten(
    F, GATE, ENT, STAT, OUT, MASK, f_batch, H, W, C, tiles_x, tiles, chunks, threshold,
    SCALE: tl.constexpr, EPS: tl.constexpr, R: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Mask from the entropy and its image's statistics, and Eq. 7. SCALE: "score", "relative", or "off" for the gate alone.

    Pointers: F, OUT (B, H W, C); GATE, ENT (B, H W); STAT (B, 2); MASK (B, H W), bytes. Grid: (tiles * chunks * B,).
    """
    top, origin, x, chunk, image = tile_of(tl.program_id(0), W, tiles_x, tiles, chunks, TILE_H, TILE_W)
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    first = image * H * W + origin
    F += image * f_batch + origin * C + chunk * BLOCK_C
    OUT += first * C + chunk * BLOCK_C
    means, variances = window_moments(F, GATE + first, top, x, column, known, H, W, C, R, TILE_H, COMPUTE)
    for i in tl.static_range(TILE_H):
        inside = columns_inside(x, top + i, H, W)
        at = i * W + x
        if SCALE == "off":
            low = x < 0
        else:
            entropy = tl.load(ENT + first + at, mask=inside, other=0.0)
            entropy = (entropy - tl.load(STAT + image * 2)) / tl.load(STAT + image * 2 + 1)
            if SCALE == "score":
                entropy = sigmoid(entropy)
            low = entropy < threshold
        if chunk == 0:
            tl.store(MASK + first + at, low.to(tl.uint8), mask=inside)
        write_whitened(F, GATE + first, OUT, low, means[i], variances[i], at, inside, column, known, C, EPS, COMPUTE)


@triton.jit
def entropy_whiten(
    F, GATE, OUT, MASK, f_batch, H, W, C, tiles_x, tiles, threshold, unit,
    EPS: tl.constexpr, R: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Entropy, mask and Eq. 7 in one launch, for scales that need nothing of other positions: Ent / unit < threshold.

    Pointers as in whiten. Grid: (tiles * B,); a program owns every channel of its positions.
    """
    top, origin, x, _, image = tile_of(tl.program_id(0), W, tiles_x, tiles, 1, TILE_H, TILE_W)
    column = tl.arange(0, BLOCK_C)
    first = image * H * W + origin
    F += image * f_batch + origin * C
    OUT += first * C
    lows = ()
    for i in tl.static_range(TILE_H):
        inside = columns_inside(x, top + i, H, W)
        at = i * W + x
        gate = tl.load(GATE + first + at, mask=inside, other=0.0)
        low = row_entropy(F, gate, inside, at * C, C, BLOCK_C, EVEN_C, COMPUTE) / unit < threshold
        tl.store(MASK + first + at, low.to(tl.uint8), mask=inside)
        lows = lows + (low,)
    for c in range(0, C, BLOCK_C):
        known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - c)[None, :]
        means, variances = window_moments(F, GATE + first, top, x, column, known, H, W, C, R, TILE_H, COMPUTE)
        for i in tl.static_range(TILE_H):
            inside = columns_inside(x, top + i, H, W)
            write_whitened(
                F, GATE + first, OUT, lows[i], means[i], variances[i], i * W + x, inside, column, known, C, EPS, COMPUTE
            )
        F += BLOCK_C
        OUT += BLOCK_C
