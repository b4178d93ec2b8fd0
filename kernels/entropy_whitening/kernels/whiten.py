"""Forward: the mask (Eq. 6) and the whitening (Eq. 7), on rows (B, H * W, C)."""

import triton
import triton.language as tl

from intrasense_fast.kernels.entropy_whitening.kernels.entropy import row_entropy
from intrasense_fast.kernels.entropy_whitening.kernels.windows import (
    attended,
    columns_inside,
    home_of,
    lower_sums,
    mean_and_rstd,
    strips_of,
    upper_sums,
    zeros,
)


@triton.jit
def write_whitened(
    WHITENED,
    maps,
    strips,
    masked,
    first,
    second,
    top,
    i,
    j,
    size,
    EPS: tl.constexpr,
    R: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Eq. 7 at row i and column j of every strip, from the sums of their windows."""
    pivot, _, x, column, known = strips
    H, W, C = size
    x = x + j
    inside = columns_inside(x, top + i, H, W)
    position = i * W + x
    centre = attended(maps, position, inside, column, known, C, COMPUTE)
    mean, rstd = mean_and_rstd(first, second, top + i, x, H, W, EPS, R, COMPUTE)
    out = tl.where(masked[:, None], (centre - pivot - mean) * rstd, centre)
    address = WHITENED + (position[:, None] * C + column[None, :])
    tl.store(address, out.to(WHITENED.dtype.element_ty), mask=inside[:, None] & known)


@triton.jit
def whiten(
    FEATURES,
    GATE,
    ENTROPY,
    STATISTICS,
    WHITENED,
    MASK,
    features_batch,
    H,
    W,
    C,
    tiles_x,
    tiles,
    chunks,
    limit,
    NORMALIZE: tl.constexpr,
    EPS: tl.constexpr,
    R: tl.constexpr,
    TILE_H: tl.constexpr,
    STRIP: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Mask, (ENTROPY - shift) / unit < limit by the image's STATISTICS, and Eq. 7.

    NORMALIZE: else the gate alone.
    Pointers: FEATURES, WHITENED (B, H W, C); GATE, ENTROPY (B, H W); STATISTICS (B, 2);
    MASK (B, H W), bytes.
    Grid: (tiles * chunks * B,); a program owns LANES strips and a chunk of BLOCK_C channels.
    """
    top, origin, x, chunk, image = strips_of(W, tiles_x, tiles, chunks, TILE_H, STRIP, LANES)
    column = tl.arange(0, BLOCK_C)
    known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - chunk * BLOCK_C)[None, :]
    first = image * H * W + origin
    FEATURES += image * features_batch + origin * C + chunk * BLOCK_C
    WHITENED += first * C + chunk * BLOCK_C
    GATE += first
    maps, size = (FEATURES, GATE), (H, W, C)
    home = home_of(top, x, size, TILE_H, STRIP)
    pivot = attended(maps, home, x >= 0, column, known, C, COMPUTE)
    strips = (pivot, home, x, column, known)
    if NORMALIZE:
        upper = upper_sums(maps, strips, top, size, R, TILE_H, STRIP, EVEN_C, COMPUTE)
        bound = tl.load(STATISTICS + image * 2 + 1) * limit
    else:
        upper = zeros(2 * TILE_H * STRIP, LANES, BLOCK_C, COMPUTE)
    lower = zeros(2 * STRIP, LANES, BLOCK_C, COMPUTE)
    for i in tl.static_range(TILE_H):
        if NORMALIZE and i > 0:
            lower = lower_sums(lower, maps, strips, top, R + i, size, R, STRIP, EVEN_C, COMPUTE)
        for j in tl.static_range(STRIP):
            inside = columns_inside(x + j, top + i, H, W)
            position = first + i * W + x + j
            if NORMALIZE:
                entropy = tl.load(ENTROPY + position, mask=inside, other=0.0)
                masked = entropy - tl.load(STATISTICS + image * 2) < bound
            else:
                masked = x < 0
            if chunk == 0:
                tl.store(MASK + position, masked.to(tl.uint8), mask=inside)
            sum_first = upper[2 * STRIP * i + j] + lower[j]
            sum_second = upper[2 * STRIP * i + STRIP + j] + lower[STRIP + j]
            write_whitened(
                WHITENED,
                maps,
                strips,
                masked,
                sum_first,
                sum_second,
                top,
                i,
                j,
                size,
                EPS,
                R,
                COMPUTE,
            )


@triton.jit
def entropy_whiten(
    FEATURES,
    GATE,
    WHITENED,
    MASK,
    features_batch,
    H,
    W,
    C,
    tiles_x,
    tiles,
    threshold,
    unit,
    EPS: tl.constexpr,
    R: tl.constexpr,
    TILE_H: tl.constexpr,
    STRIP: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Entropy, mask and Eq. 7 in one launch, for scales that need nothing of other positions.

    The mask is entropy / unit < threshold. Pointers as in whiten. Grid: (tiles * B,); a program
    owns every channel of its positions, at most 31 a strip.
    """
    top, origin, x, _, image = strips_of(W, tiles_x, tiles, 1, TILE_H, STRIP, LANES)
    column = tl.arange(0, BLOCK_C)
    first = image * H * W + origin
    FEATURES += image * features_batch + origin * C
    WHITENED += first * C
    GATE += first
    size = (H, W, C)
    # A bit a position of the strip: a loop of one body cannot fill a tuple.
    mask_bits = tl.zeros([LANES], tl.int32)
    for strip_position in range(TILE_H * STRIP):
        i, j = strip_position // STRIP, strip_position % STRIP
        inside = columns_inside(x + j, top + i, H, W)
        position = i * W + x + j
        gate = tl.load(GATE + position, mask=inside, other=0.0)
        entropy = row_entropy(FEATURES, gate, inside, position * C, C, BLOCK_C, EVEN_C, COMPUTE)
        masked = entropy / unit < threshold
        tl.store(MASK + first + position, masked.to(tl.uint8), mask=inside)
        mask_bits |= masked.to(tl.int32) << strip_position
    for c in range(0, C, BLOCK_C):
        # c // C is 0; without it the addresses of a whole tile are computed before the loop and
        # held in registers.
        x_now = x + c // C
        maps = (FEATURES, GATE)
        home = home_of(top, x_now, size, TILE_H, STRIP)
        known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - c)[None, :]
        pivot = attended(maps, home, x_now >= 0, column, known, C, COMPUTE)
        strips = (pivot, home, x_now, column, known)
        upper = upper_sums(maps, strips, top, size, R, TILE_H, STRIP, EVEN_C, COMPUTE)
        lower = zeros(2 * STRIP, LANES, BLOCK_C, COMPUTE)
        for i in tl.static_range(TILE_H):
            if i > 0:
                lower = lower_sums(lower, maps, strips, top, R + i, size, R, STRIP, EVEN_C, COMPUTE)
            for j in tl.static_range(STRIP):
                masked = (mask_bits >> (i * STRIP + j)) & 1 != 0
                sum_first = upper[2 * STRIP * i + j] + lower[j]
                sum_second = upper[2 * STRIP * i + STRIP + j] + lower[STRIP + j]
                write_whitened(
                    WHITENED,
                    maps,
                    strips,
                    masked,
                    sum_first,
                    sum_second,
                    top,
                    i,
                    j,
                    size,
                    EPS,
                    R,
                    COMPUTE,
                )
        FEATURES += BLOCK_C
        WHITENED += BLOCK_C
