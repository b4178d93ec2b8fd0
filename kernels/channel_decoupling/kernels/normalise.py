"""The normalised Gram matrix, where its inverse starts, and the ReLU layer beside it."""

import triton
import triton.language as tl

from intrasense_fast.kernels.channel_decoupling.kernels.block import invert_diagonal
from intrasense_fast.kernels.channel_decoupling.kernels.inverse import store_panel
from intrasense_fast.kernels.channel_decoupling.kernels.vectors import layer


@triton.jit
def trace_of(TRACE_PARTS, parts, BLOCK_T: tl.constexpr, COMPUTE: tl.constexpr):
    """tr G of an image whose `parts` begin at TRACE_PARTS."""
    traces = tl.zeros([BLOCK_T], COMPUTE)
    t = tl.arange(0, BLOCK_T)
    for start in range(0, parts, BLOCK_T):
        traces += tl.load(TRACE_PARTS + start + t, mask=start + t < parts, other=0.0)
    return tl.sum(traces, 0)


@triton.jit
def gram_block(GRAM_PARTS, trace, bi, bj, R, splits, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """Tile (bi, bj) of Gh = (R / t) G; NaN where the trace is not finite.

    GRAM_PARTS (splits, R, R) of one image, lower triangles: both halves read them, so that the
    matrix is exactly symmetric.
    """
    i = (bi * BLOCK + tl.arange(0, BLOCK))[:, None]
    j = (bj * BLOCK + tl.arange(0, BLOCK))[None, :]
    part = GRAM_PARTS + (tl.maximum(i, j) * R + tl.minimum(i, j))
    unscaled = tl.zeros([BLOCK, BLOCK], COMPUTE)
    for _ in range(0, splits):
        unscaled += tl.load(part, mask=(i < R) & (j < R), other=0.0)
        part += R * R
    gram = unscaled / tl.where(trace == 0, 1.0, trace) * R
    # A trace that is not finite must spoil the whole image, also entries that an infinite trace
    # would make 0.
    return tl.where(tl.abs(trace) < float("inf"), gram, float("nan"))


@triton.jit
def decoupling_normalise(
    GRAM_PARTS,
    TRACE_PARTS,
    SUMS,
    REDUCE_WEIGHT,
    REDUCE_BIAS,
    GRAM,
    SHIFTED,
    PANEL,
    SCRATCH,
    TRACE,
    SQUEEZED,
    HIDDEN,
    R,
    C,
    C_R,
    traces,
    splits,
    sum_parts,
    blocks,
    images,
    ridge,
    scale,
    ALONE: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """t = tr G, Gh = (R / t) G, and what the inverse M of I + Gh / ridge starts from.

    That is the matrix itself and the first panel of its inverse (invert_step); if ALONE, the one
    block there is, SHIFTED becomes M. Beside them the ReLU layer. A zero map has Gh = 0, one that
    is not finite NaN.
    Pointers: GRAM_PARTS, TRACE_PARTS (images, traces) as decoupling_gram leaves them; GRAM (Gh),
    SHIFTED (images, R, R); PANEL (images, R, SIZE); SCRATCH (images, blocks, 2, SIZE, SIZE);
    TRACE (images,), t. SUMS (images, sum_parts, C), scale times whose sum is SQUEEZED (images, C);
    REDUCE_WEIGHT (W_1) (C_R, C), REDUCE_BIAS (C_R,), contiguous; HIDDEN (images, C_R).
    Grid: (blocks * blocks * images + n * images,), n blocks of the layer, 0 where what it takes is
    not known yet; a program owns a block of the matrices, the first column first, or BLOCK_R rows
    of the layer.
    """
    pid = tl.program_id(0)
    bi = pid % blocks
    image = (pid // blocks) % images
    bj = pid // (blocks * images)
    batch = image.to(tl.int64)
    if bj < blocks:
        trace = trace_of(TRACE_PARTS + batch * traces, traces, BLOCK_T, COMPUTE)
        parts = GRAM_PARTS + batch * splits * R * R
        gram = gram_block(parts, trace, bi, bj, R, splits, SIZE, COMPUTE)
        i = tl.arange(0, SIZE)
        on_diagonal = i[:, None] == i[None, :]
        i_in = i < R - bi * SIZE
        j_in = i < R - bj * SIZE
        mask = i_in[:, None] & j_in[None, :]
        own = batch * R * R + bi * SIZE * R + bj * SIZE
        element = own + (i[:, None] * R + i[None, :])
        tl.store(GRAM + element, gram, mask=mask)
        shifted = tl.where(on_diagonal & (bi == bj), 1.0, 0.0) + gram / ridge
        scratch = SCRATCH + (batch * blocks + bi) * 2 * SIZE * SIZE
        if ALONE:
            invert_diagonal(shifted, scratch, SIZE, HALF, COMPUTE)
            inverse = tl.load(scratch + SIZE * SIZE + (i[:, None] * SIZE + i[None, :]))
            tl.store(SHIFTED + element, inverse, mask=mask)
        else:
            tl.store(SHIFTED + element, shifted, mask=mask)
            if bj == 0:
                diagonal = shifted
                if bi != 0:
                    gram = gram_block(parts, trace, 0, 0, R, splits, SIZE, COMPUTE)
                    diagonal = tl.where(on_diagonal, 1.0, 0.0) + gram / ridge
                store_panel(
                    SHIFTED + own,
                    diagonal,
                    bi == 0,
                    PANEL + batch * R * SIZE + bi * SIZE * SIZE,
                    scratch,
                    R,
                    R - bi * SIZE,
                    R,
                    SIZE,
                    HALF,
                    BLOCK_K,
                    PRECISION,
                    COMPUTE,
                )
        if bi == 0 and bj == 0:
            tl.store(TRACE + batch, trace)
    else:
        index = pid - blocks * blocks * images
        batch = (index % images).to(tl.int64)
        layer(
            REDUCE_WEIGHT,
            SUMS + batch * sum_parts * C,
            REDUCE_BIAS,
            HIDDEN + batch * C_R,
            SQUEEZED + batch * C,
            C,
            1,
            C_R,
            C,
            sum_parts,
            index // images,
            scale,
            "relu",
            True,
            BLOCK_R,
            BLOCK_C,
            COMPUTE,
        )
