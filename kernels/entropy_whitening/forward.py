"""Forward kernels of entropy_whitening, on rows (B, H * W, C): gate, entropy, its statistics over the image, whitening.

Channels-last: positions are rows, so that a tap of a window is one contiguous read of BLOCK_C channels.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), which never overflows and keeps NaN."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def gate_map(MEAN, MAX, WEIGHT, BIAS, GATE, H, W, plane, blocks, R: tl.constexpr, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """Eq. 4: GATE = sigmoid(conv([MEAN, MAX])) with zero padding.

    Pointers: MEAN, MAX, GATE (B, H, W); WEIGHT (2, 2 R + 1, 2 R + 1); BIAS (1,). Grid: (blocks * B,).
    """
    pid = tl.program_id(0)
    image = (pid // blocks).to(tl.int64) * plane
    at = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < plane
    y, x = at // W, at % W
    side: tl.constexpr = 2 * R + 1
    logit = tl.zeros([BLOCK], COMPUTE) + tl.load(BIAS).to(COMPUTE)
    for dy in range(-R, R + 1):
        for dx in range(-R, R + 1):
            ok = inside & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
            there = at + dy * W + dx
            tap = WEIGHT + (dy + R) * side + dx + R
            logit += tl.load(MEAN + image + there, mask=ok, other=0.0).to(COMPUTE) * tl.load(tap).to(COMPUTE)
            logit += tl.load(MAX + image + there, mask=ok, other=0.0).to(COMPUTE) * tl.load(tap + side * side).to(COMPUTE)
    tl.store(GATE + image + at, sigmoid(logit), mask=inside)


@triton.jit
def row_entropy(F, gate, inside, rows, C, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr):
    """Eq. 6: entropy of softmax(gate * F) over the channels, in one online sweep: log sum e^z - sum e^z z / sum e^z, z = F - max.

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
    """STAT = (shift, unit) of an image: mean and deviation if SCORE, else minimum and span; shift NaN where the unit is too small.

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
    """What a program owns: its tile's first position (int64), the positions' offsets from it, y and x; its chunk and image."""
    tile = pid % tiles
    top, left = (tile // tiles_x) * TILE_H, (tile % tiles_x) * TILE_W
    p = tl.arange(0, TILE_H * TILE_W)
    origin = top.to(tl.int64) * W + left
    return origin, (p // TILE_W) * W + p % TILE_W, top + p // TILE_W, left + p % TILE_W, (pid // tiles) % chunks, (
        pid // (tiles * chunks)
    ).to(tl.int64)  # fmt: skip


@triton.jit
def window_count(y, x, H, W, R: tl.constexpr, COMPUTE: tl.constexpr):
    """How many positions of the window at (y, x) lie inside the image; at least 1, also for a lane outside."""
    rows = tl.minimum(y + R, H - 1) - tl.maximum(y - R, 0) + 1
    columns = tl.minimum(x + R, W - 1) - tl.maximum(x - R, 0) + 1
    return tl.maximum(rows * columns, 1).to(COMPUTE)


@triton.jit
def window_moments(F, GATE, centre, at, y, x, inside, column, known, H, W, C, R: tl.constexpr, COMPUTE: tl.constexpr):
    """Mean less the centre, and biased variance, of gate * F over the window at (y, x).

    The centre is the pivot: it lies in the window, so var >= (mean - centre)^2 / (n - 1) and at most a factor n is lost.
    """
    first = tl.zeros(centre.shape, COMPUTE)
    second = tl.zeros(centre.shape, COMPUTE)
    for dy in range(-R, R + 1):
        for dx in range(-R, R + 1):
            ok = inside & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
            there = at + dy * W + dx
            gate = tl.load(GATE + there, mask=ok, other=0.0)
            v = tl.load(F + (there[:, None] * C + column[None, :]), mask=ok[:, None] & known, other=0.0).to(COMPUTE)
            v = tl.where(ok[:, None], v * gate[:, None] - centre, 0.0)
            first += v
            second += v * v
    n = window_count(y, x, H, W, R, COMPUTE)[:, None]
    shift = first / n
    variance = second / n - shift * shift
    # maximum() would turn a NaN into 0.
    return shift, tl.where(variance < 0, 0.0, variance)


@triton.jit
def write_whitened(
    F, GATE, OUT, low, at, y, x, inside, column, known, H, W, C, EPS: tl.constexpr, R: tl.constexpr, COMPUTE: tl.constexpr
):
    """Eq. 7 for a tile of positions and channels: F, GATE and OUT point at its first position and channel."""
    here = at[:, None] * C + column[None, :]
    mask = inside[:, None] & known
    gate = tl.load(GATE + at, mask=inside, other=0.0)
    centre = tl.load(F + here, mask=mask, other=0.0).to(COMPUTE) * gate[:, None]
    shift, variance = window_moments(F, GATE, centre, at, y, x, inside, column, known, H, W, C, R, COMPUTE)
    out = tl.where(low[:, None], -shift / tl.sqrt(variance + EPS), centre)
    tl.store(OUT + here, out.to(OUT.dtype.element_ty), mask=mask)


@triton.jit
def whiten(
    F, GATE, ENT, STAT, OUT, MASK, f_batch, H, W, C, tiles_x, tiles, chunks, threshold,
    SCALE: tl.constexpr, EPS: tl.constexpr, R: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Mask from the entropy and its image's statistics, and Eq. 7. SCALE: "score", "relative", or "off" for the gate alone.

    Pointers: F, OUT (B, H W, C); GATE, ENT (B, H W); STAT (B, 2); MASK (B, H W), bytes. Grid: (tiles * chunks * B,).
    """
    origin, at, y, x, chunk, image = tile_of(tl.program_id(0), W, tiles_x, tiles, chunks, TILE_H, TILE_W)
    inside = (y < H) & (x < W)
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    first = image * H * W + origin
    if SCALE == "off":
        low = inside & (y < 0)
    else:
        entropy = tl.load(ENT + first + at, mask=inside, other=0.0)
        entropy = (entropy - tl.load(STAT + image * 2)) / tl.load(STAT + image * 2 + 1)
        if SCALE == "score":
            entropy = sigmoid(entropy)
        low = inside & (entropy < threshold)
    if chunk == 0:
        tl.store(MASK + first + at, low.to(tl.uint8), mask=inside)
    write_whitened(
        F + image * f_batch + origin * C + chunk * BLOCK_C, GATE + first, OUT + first * C + chunk * BLOCK_C, low,
        at, y, x, inside, column, known, H, W, C, EPS, R, COMPUTE,
    )  # fmt: skip


@triton.jit
def entropy_whiten(
    F, GATE, OUT, MASK, f_batch, H, W, C, tiles_x, tiles, threshold, unit,
    EPS: tl.constexpr, R: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Entropy, mask and Eq. 7 in one launch, for scales that need nothing of other positions: Ent / unit < threshold.

    Pointers as in whiten. Grid: (tiles * B,); a program owns every channel of its positions.
    """
    origin, at, y, x, _, image = tile_of(tl.program_id(0), W, tiles_x, tiles, 1, TILE_H, TILE_W)
    inside = (y < H) & (x < W)
    column = tl.arange(0, BLOCK_C)
    first = image * H * W + origin
    features = F + image * f_batch + origin * C
    gate = tl.load(GATE + first + at, mask=inside, other=0.0)
    low = row_entropy(features, gate, inside, at * C, C, BLOCK_C, EVEN_C, COMPUTE) / unit < threshold
    tl.store(MASK + first + at, low.to(tl.uint8), mask=inside)
    for c in range(0, C, BLOCK_C):
        known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - c)[None, :]
        write_whitened(
            features + c, GATE + first, OUT + first * C + c, low,
            at, y, x, inside, column, known, H, W, C, EPS, R, COMPUTE,
        )  # fmt: skip
