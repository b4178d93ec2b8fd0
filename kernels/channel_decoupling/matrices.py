"""The R x R chain of both directions: loss terms from M alone, the gradient of Gh, operands of the products. See README.md."""

import triton
import triton.language as tl


@triton.jit
def product(
    LEFT, RIGHT, diagonal, i, j, R,
    COMPLEMENT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Rows i, columns j of LEFT RIGHT, or of LEFT (I - RIGHT), whose diagonal is given, if COMPLEMENT; both (R, R)."""
    acc = tl.zeros([BLOCK, BLOCK], COMPUTE)
    k = tl.arange(0, BLOCK_K)
    for start in range(0, R, BLOCK_K):
        k_in = k < R - start
        left = tl.load(
            LEFT + start + (i[:, None] * R + k[None, :]),
            mask=(i < R)[:, None] & k_in[None, :],
            other=0.0,
        )
        right = tl.load(
            RIGHT + start * R + (k[:, None] * R + j[None, :]),
            mask=k_in[:, None] & (j < R)[None, :],
            other=0.0,
        )
        if COMPLEMENT:
            right = tl.where((k + start)[:, None] == j[None, :], diagonal[None, :], -right)
        acc = tl.dot(left, right, acc, input_precision=PRECISION, out_dtype=COMPUTE)
    return acc


@triton.jit
def decoupling_terms(
    M, GH, S, K, PART, R, blocks, ridge,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """K = I - M rounded to the map's dtype, S = M K, and the sums that Eq. 9 needs of a tile.

    K's diagonal is that of M GH / ridge, the same number: 1 - M would leave it few digits where the ridge is large.
    Pointers: M, GH, S (B, R, R); K (B, R, R), the map's dtype; PART (B, 4, blocks * blocks): tr S, ||S||^2, <K - S, Gh>,
    ||Gh||^2. Grid: (blocks * blocks * B,); a program owns a tile.
    """
    pid = tl.program_id(0)
    bj = pid % blocks
    bi = (pid // blocks) % blocks
    batch = (pid // (blocks * blocks)).to(tl.int64)
    i = bi * BLOCK + tl.arange(0, BLOCK)
    j = bj * BLOCK + tl.arange(0, BLOCK)
    inside = (i < R)[:, None] & (j < R)[None, :]
    matrix = batch * R * R
    at = matrix + (i[:, None] * R + j[None, :])
    k = tl.arange(0, BLOCK_K)
    diagonal = tl.zeros([BLOCK], COMPUTE)
    for start in range(0, R, BLOCK_K):
        row = matrix + start + (j[:, None] * R + k[None, :])
        known = (j < R)[:, None] & (k < R - start)[None, :]
        diagonal += tl.sum(
            tl.load(M + row, mask=known, other=0.0) * tl.load(GH + row, mask=known, other=0.0), 1
        )
    diagonal = diagonal / ridge
    s = product(M + matrix, M + matrix, diagonal, i, j, R, True, BLOCK, BLOCK_K, PRECISION, COMPUTE)
    same = i[:, None] == j[None, :]
    shared = tl.where(same, diagonal[None, :], -tl.load(M + at, mask=inside, other=0.0))
    gh = tl.load(GH + at, mask=inside, other=0.0)
    tl.store(S + at, s, mask=inside)
    tl.store(K + at, shared.to(K.dtype.element_ty), mask=inside)
    tiles = blocks * blocks
    out = PART + batch * 4 * tiles + bi * blocks + bj
    tl.store(out, tl.sum(tl.sum(tl.where(same & inside, s, 0.0), 1), 0))
    tl.store(out + tiles, tl.sum(tl.sum(s * s, 1), 0))
    tl.store(out + 2 * tiles, tl.sum(tl.sum((shared - s) * gh, 1), 0))
    tl.store(out + 3 * tiles, tl.sum(tl.sum(gh * gh, 1), 0))


@triton.jit
def decoupling_finish(
    PART, TOTAL, M, GAP, DISTANCE, SLOPE, ROWSUM, R, tiles, blocks, scale,
    WITH_ROWSUM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_T: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """rank_gap and distance of Eq. 9, SLOPE = tr S / ||S||^2 for the backward, and if WITH_ROWSUM scale M 1.

    Pointers: PART (B, 4, tiles); TOTAL, GAP, DISTANCE, SLOPE (B,); M (B, R, R); ROWSUM (B, R). Grid: (blocks * B,); a program
    owns BLOCK rows of M, the first one of an image also its terms.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    batch = (pid // blocks).to(tl.int64)
    if WITH_ROWSUM:
        i = block * BLOCK + tl.arange(0, BLOCK)
        j = tl.arange(0, BLOCK)
        acc = tl.zeros([BLOCK, BLOCK], COMPUTE)
        for start in range(0, R, BLOCK):
            inside = (i < R)[:, None] & (j < R - start)[None, :]
            acc += tl.load(
                M + batch * R * R + start + (i[:, None] * R + j[None, :]), mask=inside, other=0.0
            )
        tl.store(ROWSUM + batch * R + i, tl.sum(acc, 1) * scale, mask=i < R)
    if block == 0:
        t = tl.arange(0, BLOCK_T)
        trace = tl.zeros([BLOCK_T], COMPUTE)
        energy = tl.zeros([BLOCK_T], COMPUTE)
        distance = tl.zeros([BLOCK_T], COMPUTE)
        square = tl.zeros([BLOCK_T], COMPUTE)
        for start in range(0, tiles, BLOCK_T):
            at = PART + batch * 4 * tiles + start + t
            inside = t < tiles - start
            trace += tl.load(at, mask=inside, other=0.0)
            energy += tl.load(at + tiles, mask=inside, other=0.0)
            distance += tl.load(at + 2 * tiles, mask=inside, other=0.0)
            square += tl.load(at + 3 * tiles, mask=inside, other=0.0)
        # A zero map has S = Gh = 0: its divisions are guarded, not their results.
        zero = tl.load(TOTAL + batch) == 0
        kept = tl.sum(trace, 0)
        slope = kept / tl.where(zero, 1.0, tl.sum(energy, 0))
        rank = R / tl.where(zero, 1.0, tl.sum(square, 0))
        tl.store(GAP + batch, tl.where(zero, 0.0, rank - slope * kept / R))
        tl.store(DISTANCE + batch, tl.sum(distance, 0) / R)
        tl.store(SLOPE + batch, slope)


@triton.jit
def decoupling_matrix_gradient(
    S, M, P, GGAP, GDISTANCE, SLOPE, DS, MEAN, MBAR, PART, R, blocks, ridge,
    WITH_SQUEEZE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """MBAR = P + du (ridge / R) (I + 2 K) + (a I + b S) (I - 2 M), a = -2 dg slope / R, b = 2 dg slope^2 / R.

    If WITH_SQUEEZE also sym(DS MEAN^T).
    Pointers: S, M, P, MBAR (B, R, R); GGAP (dg), GDISTANCE (du), SLOPE (B,); DS, MEAN (B, R); PART (B, blocks * blocks), of
    <MBAR, S>. Grid: (blocks * blocks * B,); a program owns a tile.
    """
    pid = tl.program_id(0)
    bj = pid % blocks
    bi = (pid // blocks) % blocks
    batch = (pid // (blocks * blocks)).to(tl.int64)
    i = bi * BLOCK + tl.arange(0, BLOCK)
    j = bj * BLOCK + tl.arange(0, BLOCK)
    inside = (i < R)[:, None] & (j < R)[None, :]
    matrix = batch * R * R
    at = matrix + (i[:, None] * R + j[None, :])
    twice = 2.0 * product(
        S + matrix, M + matrix, None, i, j, R, False, BLOCK, BLOCK_K, PRECISION, COMPUTE
    )
    identity = tl.where(i[:, None] == j[None, :], 1.0, 0.0)
    m = tl.load(M + at, mask=inside, other=0.0)
    s = tl.load(S + at, mask=inside, other=0.0)
    slope = tl.load(SLOPE + batch)
    a = -2.0 * tl.load(GGAP + batch) * slope / R
    du = tl.load(GDISTANCE + batch) * ridge / R
    value = tl.load(P + at, mask=inside, other=0.0) + du * (3.0 * identity - 2.0 * m)
    value += a * (identity - 2.0 * m) - a * slope * (s - twice)
    if WITH_SQUEEZE:
        ds_i = tl.load(DS + batch * R + i, mask=i < R, other=0.0)
        ds_j = tl.load(DS + batch * R + j, mask=j < R, other=0.0)
        mean_i = tl.load(MEAN + batch * R + i, mask=i < R, other=0.0)
        mean_j = tl.load(MEAN + batch * R + j, mask=j < R, other=0.0)
        value += 0.5 * (ds_i[:, None] * mean_j[None, :] + mean_i[:, None] * ds_j[None, :])
    tl.store(MBAR + at, value, mask=inside)
    tl.store(PART + batch * blocks * blocks + bi * blocks + bj, tl.sum(tl.sum(value * s, 1), 0))


@triton.jit
def decoupling_product(
    LEFT, RIGHT, OUT, R, blocks,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """OUT = LEFT RIGHT, all (B, R, R). Grid: (blocks * blocks * B,); a program owns a tile."""
    pid = tl.program_id(0)
    bj = pid % blocks
    bi = (pid // blocks) % blocks
    batch = (pid // (blocks * blocks)).to(tl.int64)
    i = bi * BLOCK + tl.arange(0, BLOCK)
    j = bj * BLOCK + tl.arange(0, BLOCK)
    matrix = batch * R * R
    acc = product(
        LEFT + matrix, RIGHT + matrix, None, i, j, R, False, BLOCK, BLOCK_K, PRECISION, COMPUTE
    )
    tl.store(
        OUT + matrix + (i[:, None] * R + j[None, :]), acc, mask=(i < R)[:, None] & (j < R)[None, :]
    )


@triton.jit
def decoupling_gram_gradient(
    M, MM, PART, TOTAL, GBAR, LARGEST, R, blocks, ridge,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """GBAR = 2 (R / t) (Ghbar - I <Ghbar, Gh> / R) with Ghbar = -M Mbar M / ridge, hence <Ghbar, Gh> = -<Mbar, S>.

    Pointers: M, GBAR (B, R, R); MM (B, R, R), Mbar M; PART (B, blocks * blocks), of <Mbar, S>; TOTAL (B,), t; LARGEST
    (B, blocks * blocks), the largest |GBAR| of a tile. Grid: (blocks * blocks * B,); a program owns a tile, 0 for a zero map.
    """
    pid = tl.program_id(0)
    bj = pid % blocks
    bi = (pid // blocks) % blocks
    batch = (pid // (blocks * blocks)).to(tl.int64)
    i = bi * BLOCK + tl.arange(0, BLOCK)
    j = bj * BLOCK + tl.arange(0, BLOCK)
    inside = (i < R)[:, None] & (j < R)[None, :]
    matrix = batch * R * R
    tiles = blocks * blocks
    t = tl.arange(0, BLOCK_T)
    parts = tl.zeros([BLOCK_T], COMPUTE)
    for start in range(0, tiles, BLOCK_T):
        parts += tl.load(PART + batch * tiles + start + t, mask=t < tiles - start, other=0.0)
    inner = tl.sum(parts, 0)
    acc = product(M + matrix, MM + matrix, None, i, j, R, False, BLOCK, BLOCK_K, PRECISION, COMPUTE)
    value = tl.where(i[:, None] == j[None, :], inner / R, 0.0) - acc / ridge
    trace = tl.load(TOTAL + batch)
    value = tl.where(trace == 0, 0.0, 2.0 * R * value / tl.where(trace == 0, 1.0, trace))
    value = tl.where(inside, value, 0.0)
    tl.store(GBAR + matrix + (i[:, None] * R + j[None, :]), value, mask=inside)
    tl.store(LARGEST + batch * tiles + bi * blocks + bj, tl.max(tl.max(tl.abs(value), 1), 0))


@triton.jit
def decoupling_operands(
    M, W, GBAR, LARGEST, K, HIGH, LOW, UNIT, R, tiles, blocks,
    TALL: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_T: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """What decoupling_feature_gradient multiplies with, in the map's dtype: K = M - I, times W[j] if TALL, and
    GBAR / UNIT = HIGH (+ LOW if SPLIT) with UNIT a power of two near the largest |GBAR|, so that float16 can hold both halves.

    Pointers: M, GBAR (B, R, R); W (B, R), read if TALL; LARGEST (B, tiles); K, HIGH, LOW (B, R, R), the map's dtype; UNIT (B,).
    Grid: (blocks * blocks * B,); a program owns a tile.
    """
    pid = tl.program_id(0)
    bj = pid % blocks
    bi = (pid // blocks) % blocks
    batch = (pid // (blocks * blocks)).to(tl.int64)
    i = bi * BLOCK + tl.arange(0, BLOCK)
    j = bj * BLOCK + tl.arange(0, BLOCK)
    inside = (i < R)[:, None] & (j < R)[None, :]
    at = batch * R * R + (i[:, None] * R + j[None, :])
    t = tl.arange(0, BLOCK_T)
    largest = tl.zeros([BLOCK_T], COMPUTE)
    for start in range(0, tiles, BLOCK_T):
        largest = tl.maximum(
            largest, tl.load(LARGEST + batch * tiles + start + t, mask=t < tiles - start, other=0.0)
        )
    top = tl.max(largest, 0)
    # Within 2^+-60, so that dividing a sum by it neither over- nor underflows.
    unit = tl.exp2(
        tl.minimum(tl.maximum(tl.floor(tl.log2(tl.where(top > 0, top, 1.0))), -60.0), 60.0)
    )
    negative = tl.load(M + at, mask=inside, other=0.0) - tl.where(
        i[:, None] == j[None, :], 1.0, 0.0
    )
    if TALL:
        negative = negative * tl.load(W + batch * R + j, mask=j < R, other=0.0)[None, :]
    tl.store(K + at, negative.to(K.dtype.element_ty), mask=inside)
    gbar = tl.load(GBAR + at, mask=inside, other=0.0) / unit
    high = gbar.to(HIGH.dtype.element_ty)
    tl.store(HIGH + at, high, mask=inside)
    if SPLIT:
        tl.store(LOW + at, (gbar - high.to(COMPUTE)).to(LOW.dtype.element_ty), mask=inside)
    if bi == 0 and bj == 0:
        tl.store(UNIT + batch, unit)
