"""Backward kernels of the whitening, on rows (B, H * W, C). No atomics: a program gathers what its positions receive.

With g = mask * dOut, s = 1 / sigma, y = (F_o - mu_o) s and n of a window, position j receives from every masked window o that
holds it   -(g s / n)_o (1 + y_o ((F_j - F_o) s_o + y_o)),   and g s from its own, or dOut where it is not masked.
Programs own what those of the forward own: k taps a row, then the row's sums go to every tile whose windows hold that row.
"""

import triton
import triton.language as tl

from intrasense_fast.kernels.entropy_whitening.forward import (
    attended,
    columns_inside,
    home_of,
    inside_count,
    lower_sums,
    normal,
    strips_of,
    tile_of,
    upper_sums,
    zeros,
)


@triton.jit
def whiten_moments(
    F, GATE, MASK, Y, INVERSE, f_batch, H, W, C, tiles_x, tiles, chunks,
    EPS: tl.constexpr, R: tl.constexpr, TILE_H: tl.constexpr, STRIP: tl.constexpr, LANES: tl.constexpr,
    BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Wide windows, first of two launches: y and s of the masked positions. What is not masked stays unwritten.

    Pointers: F, Y, INVERSE (B, H W, C); GATE, MASK (B, H W). Grid: (tiles * chunks * B,).
    """
    top, origin, x, chunk, image = strips_of(
        tl.program_id(0), W, tiles_x, tiles, chunks, TILE_H, STRIP, LANES
    )
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    first = image * H * W + origin
    F += image * f_batch + origin * C + chunk * BLOCK_C
    GATE += first
    base = first * C + chunk * BLOCK_C
    home = home_of(top, x, H, W, TILE_H, STRIP)
    pivot = attended(F, GATE, home, x >= 0, column, known, C, COMPUTE)
    upper = upper_sums(
        F, GATE, pivot, home, top, x, column, known, H, W, C, R, TILE_H, STRIP, EVEN_C, COMPUTE
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
            at = i * W + x + j
            low = columns_inside(x + j, top + i, H, W)
            low = low & (tl.load(MASK + first + at, mask=low, other=0) != 0)
            centre = attended(F, GATE, at, low, column, known, C, COMPUTE)
            total, square = (
                upper[2 * STRIP * i + j] + lower[j],
                upper[2 * STRIP * i + STRIP + j] + lower[STRIP + j],
            )
            shift, s = normal(total, square, top + i, x + j, H, W, EPS, R, COMPUTE)
            here = at[:, None] * C + column[None, :]
            tl.store(Y + base + here, (centre - pivot - shift) * s, mask=low[:, None] & known)
            tl.store(INVERSE + base + here, s, mask=low[:, None] & known)


@triton.jit
def finite(x):
    """x, or 0 where it is NaN or infinite: a factor whose partner is then NaN by itself, or 0."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def tap_moments(
    F, GATE, centre, start, row, x, inside, column, known, H, W, C,
    EPS: tl.constexpr, R: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """y and s of the windows at `row` (which starts at `start`) and columns x, tap by tap; the centre is the pivot."""
    first = tl.zeros(centre.shape, COMPUTE)
    second = tl.zeros(centre.shape, COMPUTE)
    for near in range(tl.maximum(row - R, 0), tl.minimum(row + R + 1, H)):
        for dx in range(-R, R + 1):
            ok = inside & (x + dx >= 0) & (x + dx < W)
            v = attended(F, GATE, start + (near - row) * W + x + dx, ok, column, known, C, COMPUTE)
            v = tl.where(ok[:, None], v - centre, 0.0)
            first += v
            second += v * v
    share = (1.0 / (inside_count(x, W, R, COMPUTE) * inside_count(row, H, R, COMPUTE)))[:, None]
    shift = first * share
    variance = second * share - shift * shift
    # maximum() would turn a NaN into 0.
    s = tl.rsqrt(tl.where(variance < 0, 0.0, variance) + EPS)
    return -shift * s, s


@triton.jit
def row_sent(
    F, GATE, MASK, DOUT, Y, INVERSE, pivot, start, row, x, column, known, H, W, C,
    EPS: tl.constexpr, R: tl.constexpr, STORED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """What the masked windows at `row`, columns x - R ... x + R, send to a position of column x: total + slope (F_j - pivot).

    Also g s of the window at x itself.
    """
    total = tl.zeros(pivot.shape, COMPUTE)
    slope = tl.zeros(pivot.shape, COMPUTE)
    own = tl.zeros(pivot.shape, COMPUTE)
    for dx in range(-R, R + 1):
        at = start + x + dx
        ok = (x < W) & (x + dx >= 0) & (x + dx < W)
        ok = ok & (tl.load(MASK + at, mask=ok, other=0) != 0)
        centre = attended(F, GATE, at, ok, column, known, C, COMPUTE)
        there = at[:, None] * C + column[None, :]
        shown = ok[:, None] & known
        if STORED:
            y = tl.load(Y + there, mask=shown, other=0.0)
            s = tl.load(INVERSE + there, mask=shown, other=0.0)
        else:
            y, s = tap_moments(
                F, GATE, centre, start, row, x + dx, ok, column, known, H, W, C, EPS, R, COMPUTE
            )
        g = tl.load(DOUT + there, mask=shown, other=0.0).to(COMPUTE) * s
        if dx == 0:
            own = g
        share = g * (1.0 / inside_count(x + dx, W, R, COMPUTE))[:, None]
        total += share * (1.0 + y * ((pivot - centre) * s + y))
        slope += share * y * s
    rows = 1.0 / inside_count(row, H, R, COMPUTE)
    return total * rows, slope * rows, own


@triton.jit
def whiten_gather(
    F, GATE, MASK, DOUT, Y, INVERSE, DF, DGATE, f_batch, d_batch, H, W, C, tiles_x, tiles, chunks,
    EPS: tl.constexpr, R: tl.constexpr, STORED: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Gradients of F and, a chunk of channels at a time, of the gate.

    STORED: y and s come from whiten_moments; else they are recomputed tap by tap, for narrow windows, in this one launch.
    Pointers: F, DOUT, Y, INVERSE, DF (B, H W, C); GATE, MASK (B, H W); DGATE (B, chunks, H W). Grid: (tiles * chunks * B,).
    """
    top, origin, x, chunk, image = tile_of(
        tl.program_id(0), W, tiles_x, tiles, chunks, TILE_H, TILE_W
    )
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    first = image * H * W + origin
    base = first * C + chunk * BLOCK_C
    F += image * f_batch + origin * C + chunk * BLOCK_C
    DOUT += image * d_batch + origin * C + chunk * BLOCK_C
    GATE += first
    MASK += first
    Y += base
    INVERSE += base
    grads, values = (), ()
    for i in tl.static_range(TILE_H):
        at = i * W + x
        inside = columns_inside(x, top + i, H, W)
        unmasked = inside & (tl.load(MASK + at, mask=inside, other=1) == 0)
        here = at[:, None] * C + column[None, :]
        grads = grads + (
            tl.load(DOUT + here, mask=unmasked[:, None] & known, other=0.0).to(COMPUTE),
        )
        values = values + (finite(attended(F, GATE, at, inside, column, known, C, COMPUTE)),)
    for row in range(tl.maximum(top - R, 0), tl.minimum(top + TILE_H + R, H)):
        start = (row - top) * W
        pivot = finite(attended(F, GATE, start + x, x < W, column, known, C, COMPUTE))
        total, slope, own = row_sent(
            F,
            GATE,
            MASK,
            DOUT,
            Y,
            INVERSE,
            pivot,
            start,
            row,
            x,
            column,
            known,
            H,
            W,
            C,
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
    DF += base
    DGATE += (image * chunks + chunk) * H * W + origin
    for i in tl.static_range(TILE_H):
        at = i * W + x
        inside = columns_inside(x, top + i, H, W)
        here = at[:, None] * C + column[None, :]
        gate = tl.load(GATE + at, mask=inside, other=0.0)
        raw = tl.load(F + here, mask=inside[:, None] & known, other=0.0).to(COMPUTE)
        tl.store(
            DF + here,
            (grads[i] * gate[:, None]).to(DF.dtype.element_ty),
            mask=inside[:, None] & known,
        )
        tl.store(DGATE + at, tl.sum(grads[i] * raw, 1), mask=inside)
