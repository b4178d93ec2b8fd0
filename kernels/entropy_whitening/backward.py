"""Backward kernels of entropy_whitening, on rows (B, H * W, C). No atomics: a program gathers what its positions receive.

With g = mask * dOut, s = 1 / sigma, mu and n of a window, position j receives from every masked window o that holds it
    -(g s)_o / n_o - (F_j - mu_o) (g s (F_o - mu_o) s^2)_o / n_o,    and g s from its own, or dOut where it is not masked.
"""

import triton
import triton.language as tl

from intrasense_fast.kernels.entropy_whitening.forward import tile_of, window_count, window_moments


@triton.jit
def whiten_gradient(
    F, GATE, MASK, DOUT, DF, DGATE, f_batch, d_batch, H, W, C, tiles_x, tiles, chunks,
    EPS: tl.constexpr, R: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Narrow windows: one launch, which recomputes the moments of every window that holds a position (k^4 taps).

    Pointers: F, DOUT, DF (B, H W, C); GATE, MASK (B, H W); DGATE (B, chunks, H W), the sum of dF_att F over a chunk's channels.
    Grid: (tiles * chunks * B,).
    """
    origin, at, y, x, chunk, image = tile_of(tl.program_id(0), W, tiles_x, tiles, chunks, TILE_H, TILE_W)
    inside = (y < H) & (x < W)
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    first = image * H * W + origin
    F += image * f_batch + origin * C + chunk * BLOCK_C
    DOUT += image * d_batch + origin * C + chunk * BLOCK_C
    here = at[:, None] * C + column[None, :]
    mask = inside[:, None] & known
    gate = tl.load(GATE + first + at, mask=inside, other=0.0)
    raw = tl.load(F + here, mask=mask, other=0.0).to(COMPUTE)
    value = raw * gate[:, None]
    low = tl.load(MASK + first + at, mask=inside, other=0) != 0
    grad = tl.load(DOUT + here, mask=mask & (low == 0)[:, None], other=0.0).to(COMPUTE)
    for dy in range(-R, R + 1):
        for dx in range(-R, R + 1):
            ok = inside & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
            there = at + dy * W + dx
            ok = ok & (tl.load(MASK + first + there, mask=ok, other=0) != 0)
            shown = ok[:, None] & known
            gate_o = tl.load(GATE + first + there, mask=ok, other=0.0)
            at_o = there[:, None] * C + column[None, :]
            centre = tl.load(F + at_o, mask=shown, other=0.0).to(COMPUTE) * gate_o[:, None]
            shift, variance = window_moments(
                F, GATE + first, centre, there, y + dy, x + dx, ok, column, known, H, W, C, R, COMPUTE
            )
            s = 1.0 / tl.sqrt(variance + EPS)
            d = tl.load(DOUT + at_o, mask=shown, other=0.0).to(COMPUTE) * s
            n = window_count(y + dy, x + dx, H, W, R, COMPUTE)[:, None]
            sent = (d - (value - centre - shift) * (d * shift * s * s)) / n
            if (dy == 0) and (dx == 0):
                sent -= d
            grad -= tl.where(ok[:, None], sent, 0.0)
    tl.store(DF + first * C + chunk * BLOCK_C + here, (grad * gate[:, None]).to(DF.dtype.element_ty), mask=mask)
    partial = DGATE + (image * chunks + chunk) * H * W + origin
    tl.store(partial + at, tl.sum(tl.where(mask, grad * raw, 0.0), 1), mask=inside)


@triton.jit
def whiten_moments(
    F, GATE, MASK, SHIFT, INVERSE, f_batch, H, W, C, tiles_x, tiles, chunks,
    EPS: tl.constexpr, R: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Wide windows, first of two launches: mean less centre, and 1 / sigma, of the masked positions' windows.

    Pointers: F, SHIFT, INVERSE (B, H W, C); GATE, MASK (B, H W). What is not masked stays unwritten. Grid: (tiles * chunks * B,).
    """
    origin, at, y, x, chunk, image = tile_of(tl.program_id(0), W, tiles_x, tiles, chunks, TILE_H, TILE_W)
    inside = (y < H) & (x < W)
    first = image * H * W + origin
    inside = inside & (tl.load(MASK + first + at, mask=inside, other=0) != 0)
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    F += image * f_batch + origin * C + chunk * BLOCK_C
    here = at[:, None] * C + column[None, :]
    mask = inside[:, None] & known
    gate = tl.load(GATE + first + at, mask=inside, other=0.0)
    centre = tl.load(F + here, mask=mask, other=0.0).to(COMPUTE) * gate[:, None]
    shift, variance = window_moments(F, GATE + first, centre, at, y, x, inside, column, known, H, W, C, R, COMPUTE)
    base = first * C + chunk * BLOCK_C
    tl.store(SHIFT + base + here, shift.to(SHIFT.dtype.element_ty), mask=mask)
    tl.store(INVERSE + base + here, (1.0 / tl.sqrt(variance + EPS)).to(INVERSE.dtype.element_ty), mask=mask)


@triton.jit
def whiten_gather(
    F, GATE, MASK, DOUT, SHIFT, INVERSE, DF, DGATE, f_batch, d_batch, H, W, C, tiles_x, tiles, chunks,
    R: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Wide windows, second of two launches. Pointers as in whiten_gradient and whiten_moments. Grid: (tiles * chunks * B,)."""
    origin, at, y, x, chunk, image = tile_of(tl.program_id(0), W, tiles_x, tiles, chunks, TILE_H, TILE_W)
    inside = (y < H) & (x < W)
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    first = image * H * W + origin
    base = first * C + chunk * BLOCK_C
    F += image * f_batch + origin * C + chunk * BLOCK_C
    DOUT += image * d_batch + origin * C + chunk * BLOCK_C
    here = at[:, None] * C + column[None, :]
    mask = inside[:, None] & known
    gate = tl.load(GATE + first + at, mask=inside, other=0.0)
    raw = tl.load(F + here, mask=mask, other=0.0).to(COMPUTE)
    value = raw * gate[:, None]
    low = tl.load(MASK + first + at, mask=inside, other=0) != 0
    grad = tl.load(DOUT + here, mask=mask, other=0.0).to(COMPUTE)
    grad *= tl.load(INVERSE + base + here, mask=mask & low[:, None], other=1.0).to(COMPUTE)
    for dy in range(-R, R + 1):
        for dx in range(-R, R + 1):
            ok = inside & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
            there = at + dy * W + dx
            ok = ok & (tl.load(MASK + first + there, mask=ok, other=0) != 0)
            shown = ok[:, None] & known
            gate_o = tl.load(GATE + first + there, mask=ok, other=0.0)
            at_o = there[:, None] * C + column[None, :]
            centre = tl.load(F + at_o, mask=shown, other=0.0).to(COMPUTE) * gate_o[:, None]
            shift = tl.load(SHIFT + base + at_o, mask=shown, other=0.0).to(COMPUTE)
            s = tl.load(INVERSE + base + at_o, mask=shown, other=0.0).to(COMPUTE)
            n = window_count(y + dy, x + dx, H, W, R, COMPUTE)[:, None]
            d = tl.load(DOUT + at_o, mask=shown, other=0.0).to(COMPUTE) * s / n
            grad -= tl.where(ok[:, None], d - (value - centre - shift) * (d * shift * s * s), 0.0)
    tl.store(DF + base + here, (grad * gate[:, None]).to(DF.dtype.element_ty), mask=mask)
    partial = DGATE + (image * chunks + chunk) * H * W + origin
    tl.store(partial + at, tl.sum(tl.where(mask, grad * raw, 0.0), 1), mask=inside)


@triton.jit
def gate_logit_gradient(GATE, DGATE, DLOGIT, plane, blocks, chunks, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
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
def gate_statistics_gradient(
    DLOGIT, WEIGHT, DMEAN, DMAX, H, W, plane, blocks, R: tl.constexpr, BLOCK: tl.constexpr, COMPUTE: tl.constexpr
):
    """DMEAN and DMAX: DLOGIT correlated with the mirrored weights. Pointers as in gate_map. Grid: (blocks * B,)."""
    pid = tl.program_id(0)
    image = (pid // blocks).to(tl.int64) * plane
    at = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < plane
    y, x = at // W, at % W
    side: tl.constexpr = 2 * R + 1
    mean = tl.zeros([BLOCK], COMPUTE)
    top = tl.zeros([BLOCK], COMPUTE)
    for dy in range(-R, R + 1):
        for dx in range(-R, R + 1):
            ok = inside & (y - dy >= 0) & (y - dy < H) & (x - dx >= 0) & (x - dx < W)
            sent = tl.load(DLOGIT + image + at - dy * W - dx, mask=ok, other=0.0)
            tap = WEIGHT + (dy + R) * side + dx + R
            mean += sent * tl.load(tap).to(COMPUTE)
            top += sent * tl.load(tap + side * side).to(COMPUTE)
    tl.store(DMEAN + image + at, mean.to(DMEAN.dtype.element_ty), mask=inside)
    tl.store(DMAX + image + at, top.to(DMAX.dtype.element_ty), mask=inside)


@triton.jit
def gate_weight_gradient(
    DLOGIT, MEAN, MAX, DWEIGHT, DBIAS, H, W, plane, batch, R: tl.constexpr, BLOCK: tl.constexpr, COMPUTE: tl.constexpr
):
    """One tap of DWEIGHT for both statistics, summed over the batch in one order; the last program sums DBIAS.

    Pointers: DLOGIT, MEAN, MAX (B, H, W); DWEIGHT (2, 2 R + 1, 2 R + 1); DBIAS (1,). Grid: ((2 R + 1)^2 + 1,).
    """
    tap = tl.program_id(0)
    side: tl.constexpr = 2 * R + 1
    taps: tl.constexpr = side * side
    dy, dx = tap // side - R, tap % side - R
    mean = tl.zeros([BLOCK], COMPUTE)
    top = tl.zeros([BLOCK], COMPUTE)
    for _ in range(0, batch):
        for start in range(0, plane, BLOCK):
            at = start + tl.arange(0, BLOCK)
            y, x = at // W, at % W
            d = tl.load(DLOGIT + at, mask=at < plane, other=0.0)
            if tap == taps:
                mean += d
            else:
                ok = (at < plane) & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
                there = at + dy * W + dx
                mean += d * tl.load(MEAN + there, mask=ok, other=0.0).to(COMPUTE)
                top += d * tl.load(MAX + there, mask=ok, other=0.0).to(COMPUTE)
        DLOGIT += plane
        MEAN += plane
        MAX += plane
    if tap == taps:
        tl.store(DBIAS, tl.sum(mean, 0).to(DBIAS.dtype.element_ty))
    else:
        tl.store(DWEIGHT + tap, tl.sum(mean, 0).to(DWEIGHT.dtype.element_ty))
        tl.store(DWEIGHT + taps + tap, tl.sum(top, 0).to(DWEIGHT.dtype.element_ty))
