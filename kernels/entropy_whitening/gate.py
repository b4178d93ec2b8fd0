"""The spatial gate of entropy_whitening (Eq. 4) and its gradients: maps of one number a position. No atomics."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), which never overflows and keeps NaN."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def gate_map(
    MEAN,
    MAX,
    WEIGHT,
    BIAS,
    GATE,
    H,
    W,
    plane,
    blocks,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
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
            logit += tl.load(MEAN + image + there, mask=ok, other=0.0).to(COMPUTE) * tl.load(
                tap
            ).to(COMPUTE)
            logit += tl.load(MAX + image + there, mask=ok, other=0.0).to(COMPUTE) * tl.load(
                tap + side * side
            ).to(COMPUTE)
    tl.store(GATE + image + at, sigmoid(logit), mask=inside)


@triton.jit
def gate_logit_gradient(
    GATE, DGATE, DLOGIT, plane, blocks, chunks, BLOCK: tl.constexpr, COMPUTE: tl.constexpr
):
    """DLOGIT = GATE (1 - GATE) sum over chunks of DGATE, in one order.

    Pointers: GATE, DLOGIT (B, plane); DGATE (B, chunks, plane). Grid: (blocks * B,).
    """
    pid = tl.program_id(0)
    image = (pid // blocks).to(tl.int64)
    at = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < plane
    gate = tl.load(GATE + image * plane + at, mask=inside, other=0.0)
    total = tl.zeros([BLOCK], COMPUTE)
    source = DGATE + image * chunks * plane
    for _ in range(0, chunks):
        total += tl.load(source + at, mask=inside, other=0.0)
        source += plane
    tl.store(DLOGIT + image * plane + at, total * gate * (1.0 - gate), mask=inside)


@triton.jit
def gate_gradient(
    DLOGIT, MEAN, MAX, WEIGHT, DMEAN, DMAX, PART, H, W, plane, blocks, programs,
    R: tl.constexpr, BLOCK: tl.constexpr, TAPS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """DMEAN and DMAX: DLOGIT correlated with the mirrored weights; PART: what these positions add to the weights and the bias.

    TAPS taps at once, as the rows of a tile: every load is independent, and a tile is reduced once along each side.
    Pointers: DLOGIT, MEAN, MAX, DMEAN, DMAX (B, H, W); WEIGHT (2, 2 R + 1, 2 R + 1); PART (2 (2 R + 1)^2 + 1, programs).
    Grid: (programs,) = (blocks * B,).
    """
    pid = tl.program_id(0)
    image = (pid // blocks).to(tl.int64) * plane
    at = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < plane
    # No tap of a position past the end lies inside, to whichever side.
    y, x = tl.where(inside, at // W, -4 * R - H)[None, :], (at % W)[None, :]
    side: tl.constexpr = 2 * R + 1
    mine = tl.load(DLOGIT + image + at, mask=inside, other=0.0)
    mean = tl.zeros([BLOCK], COMPUTE)
    top = tl.zeros([BLOCK], COMPUTE)
    for first in range(0, side * side, TAPS):
        tap = first + tl.arange(0, TAPS)
        known = tap < side * side
        dy, dx = (tap // side - R)[:, None], (tap % side - R)[:, None]
        there = image + at[None, :] + (dy * W + dx)
        seen = known[:, None] & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
        means = tl.load(MEAN + there, mask=seen, other=0.0).to(COMPUTE)
        tops = tl.load(MAX + there, mask=seen, other=0.0).to(COMPUTE)
        part = PART + pid + tap.to(tl.int64) * programs
        tl.store(part, tl.sum(mine[None, :] * means, 1), mask=known)
        tl.store(part + side * side * programs, tl.sum(mine[None, :] * tops, 1), mask=known)
        ok = known[:, None] & (y - dy >= 0) & (y - dy < H) & (x - dx >= 0) & (x - dx < W)
        sent = tl.load(DLOGIT + (image + at[None, :] - (dy * W + dx)), mask=ok, other=0.0)
        mean += tl.sum(sent * tl.load(WEIGHT + tap, mask=known, other=0.0).to(COMPUTE)[:, None], 0)
        top += tl.sum(
            sent * tl.load(WEIGHT + side * side + tap, mask=known, other=0.0).to(COMPUTE)[:, None],
            0,
        )
    tl.store(PART + pid + 2 * side * side * programs, tl.sum(mine, 0))
    tl.store(DMEAN + image + at, mean.to(DMEAN.dtype.element_ty), mask=inside)
    tl.store(DMAX + image + at, top.to(DMAX.dtype.element_ty), mask=inside)


@triton.jit
def gate_weight_gradient(
    PART, DWEIGHT, DBIAS, programs, taps, BLOCK: tl.constexpr, COMPUTE: tl.constexpr
):
    """Sums of PART (taps + 1, programs) in one order: DWEIGHT (taps,) and, of the last row, DBIAS (1,). Grid: (taps + 1,)."""
    row = tl.program_id(0)
    slot = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], COMPUTE)
    PART += row.to(tl.int64) * programs
    for start in range(0, programs, BLOCK):
        total += tl.load(PART + start + slot, mask=slot < programs - start, other=0.0)
    if row == taps:
        tl.store(DBIAS, tl.sum(total, 0).to(DBIAS.dtype.element_ty))
    else:
        tl.store(DWEIGHT + row, tl.sum(total, 0).to(DWEIGHT.dtype.element_ty))
