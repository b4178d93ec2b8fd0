"""Entropy of each position's channels (Eq. 6) and its statistics over the image. No atomics."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import block_of_image


@triton.jit
def row_entropy(
    FEATURES,
    gate,
    row_in,
    rows,
    C,
    BLOCK_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Eq. 6: entropy of softmax(x) over the channels, x = gate * FEATURES, online.

    With z = x - max x: log sum e^z - sum e^z z / sum e^z. A NaN or an infinity anywhere in a row
    makes its entropy NaN, through e or e (x - max), whatever the maximum does with it.
    """
    column = tl.arange(0, BLOCK_C)
    highest = tl.full(gate.shape, float("-inf"), COMPUTE)
    total = tl.zeros(gate.shape, COMPUTE)
    moment = tl.zeros(gate.shape, COMPUTE)
    for c in range(0, C, BLOCK_C):
        known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - c)[None, :]
        offsets = rows[:, None] + column[None, :]
        x = tl.load(FEATURES + c + offsets, mask=row_in[:, None] & known, other=0.0).to(COMPUTE)
        x *= gate[:, None]
        best = tl.maximum(highest, tl.max(tl.where(known, x, float("-inf")), 1))
        e = tl.where(known, tl.exp(x - best[:, None]), 0.0)
        # The first block has no past: -inf - best would be NaN for a row of -inf, and is no shift.
        shift = tl.where(highest > float("-inf"), highest - best, 0.0)
        past = tl.where(highest > float("-inf"), tl.exp(shift), 0.0)
        moment = (moment + shift * total) * past
        moment += tl.sum(tl.where(known, e * (x - best[:, None]), 0.0), 1)
        total = total * past + tl.sum(e, 1)
        highest = best
    return tl.log(total) - moment / total


@triton.jit
def channel_entropy(
    FEATURES,
    GATE,
    ENTROPY,
    PARTS,
    features_batch,
    N,
    C,
    blocks,
    parts,
    SCORE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Entropy of BLOCK_P positions, and what their image's statistics need of them.

    That is mean and centred second moment if SCORE, else minimum and maximum (NaN if any is).
    Pointers: FEATURES (B, N, C); GATE, ENTROPY (B, N); PARTS (2, parts), parts = B * blocks.
    Grid: (parts,); a program owns BLOCK_P positions.
    """
    pid = tl.program_id(0)
    block, image = block_of_image(blocks)
    row = tl.arange(0, BLOCK_P)
    row_in = row < N - block * BLOCK_P
    start = block.to(tl.int64) * BLOCK_P
    gate = tl.load(GATE + image * N + start + row, mask=row_in, other=0.0)
    f_tile = FEATURES + image * features_batch + start * C
    entropy = row_entropy(f_tile, gate, row_in, row * C, C, BLOCK_C, EVEN_C, COMPUTE)
    tl.store(ENTROPY + image * N + start + row, entropy, mask=row_in)
    if SCORE:
        count = tl.minimum(N - block * BLOCK_P, BLOCK_P).to(COMPUTE)
        first = tl.sum(tl.where(row_in, entropy, 0.0), 0) / count
        centred = tl.where(row_in, entropy - first, 0.0)
        second = tl.sum(centred * centred, 0)
    else:
        # A sum carries the NaN that minimum and maximum drop.
        nan = tl.sum(tl.where(row_in, entropy - entropy, 0.0), 0)
        first = tl.min(tl.where(row_in, entropy, float("inf")), 0) + nan
        second = tl.max(tl.where(row_in, entropy, float("-inf")), 0) + nan
    tl.store(PARTS + pid, first)
    tl.store(PARTS + parts + pid, second)


@triton.jit
def entropy_statistics(
    PARTS,
    STATISTICS,
    N,
    blocks,
    parts,
    SCORE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """STATISTICS = (shift, unit) of an image; shift is NaN if the unit is tiny.

    Mean and deviation if SCORE, else minimum and span. The blocks' moments are merged by Chan's
    formula, always in one order.
    Pointers: PARTS (2, parts); STATISTICS (B, 2). Grid: (B,); a program owns an image.
    """
    image = tl.program_id(0)
    slot = tl.arange(0, BLOCK)
    first = PARTS + image * blocks
    if SCORE:
        total = tl.zeros([BLOCK], COMPUTE)
        for start in range(0, blocks, BLOCK):
            block = start + slot
            held = tl.minimum(tl.maximum(N - block * BLOCK_P, 0), BLOCK_P).to(COMPUTE)
            total += held * tl.load(first + block, mask=block < blocks, other=0.0)
        shift = tl.sum(total, 0) / N
        total = tl.zeros([BLOCK], COMPUTE)
        for start in range(0, blocks, BLOCK):
            block = start + slot
            held = tl.minimum(tl.maximum(N - block * BLOCK_P, 0), BLOCK_P).to(COMPUTE)
            apart = tl.load(first + block, mask=block < blocks, other=0.0) - shift
            total += tl.where(block < blocks, held * apart * apart, 0.0)
            total += tl.load(first + parts + block, mask=block < blocks, other=0.0)
        unit = tl.sqrt(tl.sum(total, 0) / N)
        least: tl.constexpr = 1e-4
    else:
        low = tl.full([BLOCK], float("inf"), COMPUTE)
        high = tl.full([BLOCK], float("-inf"), COMPUTE)
        nan = tl.zeros([BLOCK], COMPUTE)
        for start in range(0, blocks, BLOCK):
            block = start + slot
            block_low = tl.load(first + block, mask=block < blocks, other=float("inf"))
            nan += tl.where(block < blocks, block_low - block_low, 0.0)
            low = tl.minimum(low, block_low)
            block_high = tl.load(first + parts + block, mask=block < blocks, other=float("-inf"))
            high = tl.maximum(high, block_high)
        shift = tl.min(low, 0) + tl.sum(nan, 0)
        unit = tl.max(high, 0) - shift
        least: tl.constexpr = 1e-3
    tl.store(STATISTICS + image * 2, tl.where(unit > least, shift, float("nan")))
    tl.store(STATISTICS + image * 2 + 1, unit)
