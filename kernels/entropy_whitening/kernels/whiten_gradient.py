"""Backward of the whitening, on rows (B, H * W, C). No atomics: a program gathers what it receives.

With g = MASK * GRAD_WHITENED, rstd = 1 / sigma, y = (x_o - mean_o) rstd and n of a window, position
j receives from every masked window o that holds it

    -(g rstd / n)_o (1 + y_o ((x_j - x_o) rstd_o + y_o)),

and g rstd from its own, or GRAD_WHITENED where it is not masked. Programs own what those of the
forward own: k taps a row, then the row's sums go to every tile whose windows hold that row.
"""

import triton
import triton.language as tl

from intrasense_fast.kernels.entropy_whitening.kernels.windows import (
    attended,
    columns_inside,
    home_of,
    inside_count,
    lower_sums,
    mean_and_rstd,
    strips_of,
    tile_of,
    upper_sums,
    zeros,
)


@triton.jit
def whiten_moments(
    FEATURES,
    GATE,
    MASK,
    NORMALISED,
    RSTD,
    features_batch,
    H,
    W,
    C,
    tiles_x,
    tiles,
    chunks,
    EPS: tl.constexpr,
    R: tl.constexpr,
    TILE_H: tl.constexpr,
    STRIP: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Wide windows, first of two launches: NORMALISED and RSTD of the masked positions.

    What is not masked stays unwritten.
    Pointers: FEATURES, NORMALISED, RSTD (B, H W, C); GATE, MASK (B, H W).
    Grid: (tiles * chunks * B,); a program owns LANES strips and a chunk of BLOCK_C channels.
    """
    top, origin, x, chunk, image = strips_of(W, tiles_x, tiles, chunks, TILE_H, STRIP, LANES)
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    first = image * H * W + origin
    FEATURES += image * features_batch + origin * C + chunk * BLOCK_C
    GATE += first
    base = first * C + chunk * BLOCK_C
    maps, size = (FEATURES, GATE), (H, W, C)
    home = home_of(top, x, size, TILE_H, STRIP)
    pivot = attended(maps, home, x >= 0, column, known, C, COMPUTE)
    strips = (pivot, home, x, column, known)
    upper = upper_sums(maps, strips, top, size, R, TILE_H, STRIP, EVEN_C, COMPUTE)
    lower = zeros(2 * STRIP, LANES, BLOCK_C, COMPUTE)
    for i in tl.static_range(TILE_H):
        if i > 0:
            lower = lower_sums(lower, maps, strips, top, R + i, size, R, STRIP, EVEN_C, COMPUTE)
        for j in tl.static_range(STRIP):
            position = i * W + x + j
            masked = columns_inside(x + j, top + i, H, W)
            masked = masked & (tl.load(MASK + first + position, mask=masked, other=0) != 0)
            centre = attended(maps, position, masked, column, known, C, COMPUTE)
            sum_first = upper[2 * STRIP * i + j] + lower[j]
            sum_second = upper[2 * STRIP * i + STRIP + j] + lower[STRIP + j]
            mean, rstd = mean_and_rstd(sum_first, sum_second, top + i, x + j, H, W, EPS, R, COMPUTE)
            offsets = position[:, None] * C + column[None, :]
            y = (centre - pivot - mean) * rstd
            tl.store(NORMALISED + base + offsets, y, mask=masked[:, None] & known)
            tl.store(RSTD + base + offsets, rstd, mask=masked[:, None] & known)


@triton.jit
def finite(x):
    """x, or 0 where it is NaN or infinite: a factor whose partner is then NaN by itself, or 0."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def tap_moments(
    maps,
    centre,
    start,
    row,
    x,
    inside,
    column,
    known,
    size,
    EPS: tl.constexpr,
    R: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """y and rstd of the windows at `row`, which starts at `start`, and columns x, tap by tap.

    The centre is the pivot.
    """
    H, W, C = size
    first = tl.zeros(centre.shape, COMPUTE)
    second = tl.zeros(centre.shape, COMPUTE)
    for tap_row in range(tl.maximum(row - R, 0), tl.minimum(row + R + 1, H)):
        for dx in range(-R, R + 1):
            tap_in = inside & (x + dx >= 0) & (x + dx < W)
            tap = start + (tap_row - row) * W + x + dx
            d = attended(maps, tap, tap_in, column, known, C, COMPUTE)
            d = tl.where(tap_in[:, None], d - centre, 0.0)
            first += d
            second += d * d
    share = (1.0 / (inside_count(x, W, R, COMPUTE) * inside_count(row, H, R, COMPUTE)))[:, None]
    mean = first * share
    variance = second * share - mean * mean
    # maximum() would turn a NaN into 0.
    rstd = tl.rsqrt(tl.where(variance < 0, 0.0, variance) + EPS)
    return -mean * rstd, rstd


@triton.jit
def row_sent(
    maps,
    MASK,
    GRAD_WHITENED,
    NORMALISED,
    RSTD,
    pivot,
    start,
    row,
    x,
    column,
    known,
    size,
    EPS: tl.constexpr,
    R: tl.constexpr,
    STORED: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """What the masked windows at `row`, columns x - R ... x + R, send to a position of column x.

    That is total + slope (x_j - pivot). Also g rstd of the window at x itself.
    """
    H, W, C = size
    total = tl.zeros(pivot.shape, COMPUTE)
    slope = tl.zeros(pivot.shape, COMPUTE)
    own = tl.zeros(pivot.shape, COMPUTE)
    for dx in range(-R, R + 1):
        position = start + x + dx
        masked = (x < W) & (x + dx >= 0) & (x + dx < W)
        masked = masked & (tl.load(MASK + position, mask=masked, other=0) != 0)
        centre = attended(maps, position, masked, column, known, C, COMPUTE)
        offsets = position[:, None] * C + column[None, :]
        shown = masked[:, None] & known
        if STORED:
            y = tl.load(NORMALISED + offsets, mask=shown, other=0.0)
            rstd = tl.load(RSTD + offsets, mask=shown, other=0.0)
        else:
            y, rstd = tap_moments(
                maps, centre, start, row, x + dx, masked, column, known, size, EPS, R, COMPUTE
            )
        g = tl.load(GRAD_WHITENED + offsets, mask=shown, other=0.0).to(COMPUTE) * rstd
        if dx == 0:
            own = g
        share = g * (1.0 / inside_count(x + dx, W, R, COMPUTE))[:, None]
        total += share * (1.0 + y * ((pivot - centre) * rstd + y))
        slope += share * y * rstd
    rows = 1.0 / inside_count(row, H, R, COMPUTE)
    return total * rows, slope * rows, own


@triton.jit
def whiten_gather(
    FEATURES,
    GATE,
    MASK,
    GRAD_WHITENED,
    NORMALISED,
    RSTD,
    GRAD_FEATURES,
    GRAD_GATE_PARTS,
    features_batch,
    grad_whitened_batch,
    H,
    W,
    C,
    tiles_x,
    tiles,
    chunks,
    EPS: tl.constexpr,
    R: tl.constexpr,
    STORED: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradients of FEATURES and, a chunk of channels at a time, of the gate.

    STORED: NORMALISED and RSTD come from whiten_moments; else they are recomputed tap by tap, for
    narrow windows, in this one launch.
    Pointers: FEATURES, GRAD_WHITENED, NORMALISED, RSTD, GRAD_FEATURES (B, H W, C); GATE, MASK
    (B, H W); GRAD_GATE_PARTS (B, chunks, H W).
    Grid: (tiles * chunks * B,); a program owns TILE_H x TILE_W positions and a chunk of channels.
    """
    top, origin, x, chunk, image = tile_of(W, tiles_x, tiles, chunks, TILE_H, TILE_W)
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    first = image * H * W + origin
    base = first * C + chunk * BLOCK_C
    FEATURES += image * features_batch + origin * C + chunk * BLOCK_C
    GRAD_WHITENED += image * grad_whitened_batch + origin * C + chunk * BLOCK_C
    GATE += first
    MASK += first
    NORMALISED += base
    RSTD += base
    maps, size = (FEATURES, GATE), (H, W, C)
    grads, values = (), ()
    for i in tl.static_range(TILE_H):
        position = i * W + x
        inside = columns_inside(x, top + i, H, W)
        unmasked = inside & (tl.load(MASK + position, mask=inside, other=1) == 0)
        offsets = position[:, None] * C + column[None, :]
        grad = tl.load(GRAD_WHITENED + offsets, mask=unmasked[:, None] & known, other=0.0).to(
            COMPUTE
        )
        grads = grads + (grad,)
        values = values + (finite(attended(maps, position, inside, column, known, C, COMPUTE)),)
    for row in range(tl.maximum(top - R, 0), tl.minimum(top + TILE_H + R, H)):
        start = (row - top) * W
        pivot = finite(attended(maps, start + x, x < W, column, known, C, COMPUTE))
        total, slope, own = row_sent(
            maps,
            MASK,
            GRAD_WHITENED,
            NORMALISED,
            RSTD,
            pivot,
            start,
            row,
            x,
            column,
            known,
            size,
            EPS,
            R,
            STORED,
            COMPUTE,
        )
        merged = ()
        for i in tl.static_range(TILE_H):
            grad = grads[i]
            if (row >= top + i - R) & (row <= top + i + R):
                grad -= total + slope * (values[i] - pivot)
            if row == top + i:
                grad += own
            merged = merged + (grad,)
        grads = merged
    GRAD_FEATURES += base
    GRAD_GATE_PARTS += (image * chunks + chunk) * H * W + origin
    for i in tl.static_range(TILE_H):
        position = i * W + x
        inside = columns_inside(x, top + i, H, W)
        offsets = position[:, None] * C + column[None, :]
        shown = inside[:, None] & known
        gate = tl.load(GATE + position, mask=inside, other=0.0)
        f = tl.load(FEATURES + offsets, mask=shown, other=0.0).to(COMPUTE)
        df = (grads[i] * gate[:, None]).to(GRAD_FEATURES.dtype.element_ty)
        tl.store(GRAD_FEATURES + offsets, df, mask=shown)
        tl.store(GRAD_GATE_PARTS + position, tl.sum(grads[i] * f, 1), mask=inside)
