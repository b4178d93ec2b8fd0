"""Entropy of each position's channels and its statistics over the image, on rows (B, H * W, C). No atomics."""

import triton
import triton.language as tl


@triton.jit
def row_entropy(
    F, gate, inside, rows, C, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, COMPUTE: tl.constexpr
):
    """Eq. 6: entropy of softmax(gate * F) over the channels, online, z = F - max: log sum e^z - sum e^z z / sum e^z.

    A NaN or an infinity anywhere in a row makes its entropy NaN, through e or e (z - max), whatever the maximum does with it.
    """
    column = tl.arange(0, BLOCK_C)
    top = tl.full(gate.shape, float("-inf"), COMPUTE)
    total = tl.zeros(gate.shape, COMPUTE)
    moment = tl.zeros(gate.shape, COMPUTE)
    for c in range(0, C, BLOCK_C):
        known = (column < BLOCK_C)[None, :] if EVEN_C else (column < C - c)[None, :]
        z = tl.load(
            F + c + (rows[:, None] + column[None, :]), mask=inside[:, None] & known, other=0.0
        ).to(COMPUTE)
        z *= gate[:, None]
        best = tl.maximum(top, tl.max(tl.where(known, z, float("-inf")), 1))
        e = tl.where(known, tl.exp(z - best[:, None]), 0.0)
        # The first block has no past: -inf - best would be NaN for a row of -inf, and is no shift.
        shift = tl.where(top > float("-inf"), top - best, 0.0)
        past = tl.where(top > float("-inf"), tl.exp(shift), 0.0)
        moment = (moment + shift * total) * past + tl.sum(
            tl.where(known, e * (z - best[:, None]), 0.0), 1
        )
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
    entropy = row_entropy(
        F + image * f_batch + start * C, gate, inside, row * C, C, BLOCK_C, EVEN_C, COMPUTE
    )
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
            high = tl.maximum(
                high, tl.load(base + parts + there, mask=there < blocks, other=float("-inf"))
            )
        shift = tl.min(low, 0) + tl.sum(nan, 0)
        unit = tl.max(high, 0) - shift
        least: tl.constexpr = 1e-3
    tl.store(STAT + image * 2, tl.where(unit > least, shift, float("nan")))
    tl.store(STAT + image * 2 + 1, unit)
