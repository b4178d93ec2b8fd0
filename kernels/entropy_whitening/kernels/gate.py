"""The spatial gate (Eq. 4) and its gradients: maps of one number a position. No atomics."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import block_of_image


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), which never overflows and keeps NaN."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def gate_map(
    CHANNEL_MEAN,
    CHANNEL_MAX,
    GATE_WEIGHT,
    GATE_BIAS,
    GATE,
    H,
    W,
    N,
    blocks,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Eq. 4: GATE = sigmoid(conv([CHANNEL_MEAN, CHANNEL_MAX])) with zero padding.

    Pointers: CHANNEL_MEAN, CHANNEL_MAX, GATE (B, H, W); GATE_WEIGHT (2, 2 R + 1, 2 R + 1);
    GATE_BIAS (1,). N = H W. Grid: (blocks * B,); a program owns BLOCK positions.
    """
    block, image = block_of_image(blocks)
    image = image * N
    position = block * BLOCK + tl.arange(0, BLOCK)
    position_in = position < N
    y, x = position // W, position % W
    side: tl.constexpr = 2 * R + 1
    logit = tl.zeros([BLOCK], COMPUTE) + tl.load(GATE_BIAS).to(COMPUTE)
    for dy in range(-R, R + 1):
        for dx in range(-R, R + 1):
            tap_in = position_in & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
            there = position + dy * W + dx
            tap = GATE_WEIGHT + (dy + R) * side + dx + R
            mean = tl.load(CHANNEL_MEAN + image + there, mask=tap_in, other=0.0).to(COMPUTE)
            logit += mean * tl.load(tap).to(COMPUTE)
            highest = tl.load(CHANNEL_MAX + image + there, mask=tap_in, other=0.0).to(COMPUTE)
            logit += highest * tl.load(tap + side * side).to(COMPUTE)
    tl.store(GATE + image + position, sigmoid(logit), mask=position_in)


@triton.jit
def gate_logit_gradient(
    GATE, GRAD_GATE_PARTS, GRAD_LOGIT, N, blocks, chunks, BLOCK: tl.constexpr, COMPUTE: tl.constexpr
):
    """GRAD_LOGIT = GATE (1 - GATE) sum over chunks of GRAD_GATE_PARTS, in one order.

    Pointers: GATE, GRAD_LOGIT (B, N); GRAD_GATE_PARTS (B, chunks, N).
    Grid: (blocks * B,); a program owns BLOCK positions.
    """
    block, image = block_of_image(blocks)
    position = block * BLOCK + tl.arange(0, BLOCK)
    position_in = position < N
    gate = tl.load(GATE + image * N + position, mask=position_in, other=0.0)
    dgate = tl.zeros([BLOCK], COMPUTE)
    part = GRAD_GATE_PARTS + image * chunks * N
    for _ in range(0, chunks):
        dgate += tl.load(part + position, mask=position_in, other=0.0)
        part += N
    tl.store(GRAD_LOGIT + image * N + position, dgate * gate * (1.0 - gate), mask=position_in)


@triton.jit
def gate_gradient(
    GRAD_LOGIT,
    CHANNEL_MEAN,
    CHANNEL_MAX,
    GATE_WEIGHT,
    GRAD_CHANNEL_MEAN,
    GRAD_CHANNEL_MAX,
    GRAD_GATE_WEIGHT_PARTS,
    H,
    W,
    N,
    blocks,
    programs,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    TAPS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """GRAD_LOGIT correlated with the mirrored weights; and what these positions add to the weights.

    TAPS taps at once, as the rows of a tile: every load is independent, and a tile is reduced once
    along each side. The last row of GRAD_GATE_WEIGHT_PARTS is the bias's.
    Pointers: GRAD_LOGIT, CHANNEL_MEAN, CHANNEL_MAX, GRAD_CHANNEL_MEAN, GRAD_CHANNEL_MAX (B, H, W);
    GATE_WEIGHT (2, 2 R + 1, 2 R + 1); GRAD_GATE_WEIGHT_PARTS (2 (2 R + 1)^2 + 1, programs).
    N = H W. Grid: (programs,) = (blocks * B,); a program owns BLOCK positions.
    """
    pid = tl.program_id(0)
    image = (pid // blocks).to(tl.int64) * N
    position = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    position_in = position < N
    # No tap of a position past the end lies inside, to whichever side.
    y = tl.where(position_in, position // W, -4 * R - H)[None, :]
    x = (position % W)[None, :]
    side: tl.constexpr = 2 * R + 1
    dlogit = tl.load(GRAD_LOGIT + image + position, mask=position_in, other=0.0)
    dmean = tl.zeros([BLOCK], COMPUTE)
    dmax = tl.zeros([BLOCK], COMPUTE)
    for first in range(0, side * side, TAPS):
        tap = first + tl.arange(0, TAPS)
        tap_in = tap < side * side
        dy, dx = (tap // side - R)[:, None], (tap % side - R)[:, None]
        there = image + position[None, :] + (dy * W + dx)
        seen = tap_in[:, None] & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
        mean = tl.load(CHANNEL_MEAN + there, mask=seen, other=0.0).to(COMPUTE)
        highest = tl.load(CHANNEL_MAX + there, mask=seen, other=0.0).to(COMPUTE)
        part = GRAD_GATE_WEIGHT_PARTS + pid + tap.to(tl.int64) * programs
        tl.store(part, tl.sum(dlogit[None, :] * mean, 1), mask=tap_in)
        part_max = part + side * side * programs
        tl.store(part_max, tl.sum(dlogit[None, :] * highest, 1), mask=tap_in)
        sends = tap_in[:, None] & (y - dy >= 0) & (y - dy < H) & (x - dx >= 0) & (x - dx < W)
        back = image + position[None, :] - (dy * W + dx)
        sent = tl.load(GRAD_LOGIT + back, mask=sends, other=0.0)
        weight = tl.load(GATE_WEIGHT + tap, mask=tap_in, other=0.0).to(COMPUTE)
        dmean += tl.sum(sent * weight[:, None], 0)
        weight = tl.load(GATE_WEIGHT + side * side + tap, mask=tap_in, other=0.0).to(COMPUTE)
        dmax += tl.sum(sent * weight[:, None], 0)
    tl.store(GRAD_GATE_WEIGHT_PARTS + pid + 2 * side * side * programs, tl.sum(dlogit, 0))
    tl.store(
        GRAD_CHANNEL_MEAN + image + position,
        dmean.to(GRAD_CHANNEL_MEAN.dtype.element_ty),
        mask=position_in,
    )
    tl.store(
        GRAD_CHANNEL_MAX + image + position,
        dmax.to(GRAD_CHANNEL_MAX.dtype.element_ty),
        mask=position_in,
    )


@triton.jit
def gate_weight_gradient(
    GRAD_GATE_WEIGHT_PARTS,
    GRAD_GATE_WEIGHT,
    GRAD_GATE_BIAS,
    programs,
    taps,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums of GRAD_GATE_WEIGHT_PARTS over the programs in one order.

    Pointers: GRAD_GATE_WEIGHT_PARTS (taps + 1, programs); GRAD_GATE_WEIGHT (taps,) and, of the last
    row, GRAD_GATE_BIAS (1,). Grid: (taps + 1,); a program owns a row.
    """
    row = tl.program_id(0)
    slot = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], COMPUTE)
    GRAD_GATE_WEIGHT_PARTS += row.to(tl.int64) * programs
    for start in range(0, programs, BLOCK):
        total += tl.load(
            GRAD_GATE_WEIGHT_PARTS + start + slot, mask=slot < programs - start, other=0.0
        )
    if row == taps:
        tl.store(GRAD_GATE_BIAS, tl.sum(total, 0).to(GRAD_GATE_BIAS.dtype.element_ty))
    else:
        tl.store(GRAD_GATE_WEIGHT + row, tl.sum(total, 0).to(GRAD_GATE_WEIGHT.dtype.element_ty))
