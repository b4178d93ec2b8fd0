"""Products over the long axis: the Gram matrix with the squeeze, and in the backward the matrix gradient. See README.md.

A map is seen as X (R, L): R the smaller of channels and positions ("rank" axis), L the other ("long" axis). TALL: the rank
axis is the channels (C <= N).
"""

import triton
import triton.language as tl


@triton.jit
def triangle(index):
    """(row, column) of the `index`-th tile of a lower triangle, counted row by row."""
    row = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) / 2.0).to(tl.int32)
    row = tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    return row, index - row * (row + 1) // 2


@triton.jit
def gram_tile(
    X, PART, TRACE, x_rank, x_long, ti, tj, begin, end, R,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Tile (ti, tj) of X X^T over begin ... end of the long axis. X points at `begin`, PART and TRACE at the part."""
    i = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_L)
    i_in = i < R - ti * BLOCK_R
    j_in = i < R - tj * BLOCK_R
    a_tile = X + ti.to(tl.int64) * BLOCK_R * x_rank
    b_tile = X + tj.to(tl.int64) * BLOCK_R * x_rank
    acc = tl.zeros([BLOCK_R, BLOCK_R], COMPUTE)
    for start in range(begin, end, BLOCK_L):
        k_in = k < end - start
        a = tl.load(
            a_tile + (i[:, None] * x_rank + k[None, :] * x_long),
            mask=i_in[:, None] & k_in[None, :],
            other=0.0,
        )
        b = tl.load(
            b_tile + (k[:, None] * x_long + i[None, :] * x_rank),
            mask=k_in[:, None] & j_in[None, :],
            other=0.0,
        )
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=COMPUTE)
        a_tile += BLOCK_L * x_long
        b_tile += BLOCK_L * x_long
    out = PART + ti.to(tl.int64) * BLOCK_R * R + tj * BLOCK_R
    tl.store(out + (i[:, None] * R + i[None, :]), acc, mask=i_in[:, None] & j_in[None, :])
    if ti == tj:
        # The diagonal is read back: its sum over the accumulator, masked, does not compile for sm_100.
        tl.debug_barrier()
        tl.store(TRACE + ti, tl.sum(tl.load(out + i * (R + 1), mask=i_in, other=0.0), 0))


@triton.jit
def squeeze_tile(
    X, SUM, x_rank, x_long, tile, begin, end, R,
    TALL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Sums of BLOCK_R rows of X: over begin ... end if TALL, else over the rows, for each l. X at `begin`, SUM at l = 0."""
    i = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_L)
    i_in = i < R - tile * BLOCK_R
    X += tile.to(tl.int64) * BLOCK_R * x_rank
    total = tl.zeros([BLOCK_R, BLOCK_L], COMPUTE)
    for start in range(begin, end, BLOCK_L):
        k_in = k < end - start
        x = tl.load(
            X + (i[:, None] * x_rank + k[None, :] * x_long),
            mask=i_in[:, None] & k_in[None, :],
            other=0.0,
        ).to(COMPUTE)
        if TALL:
            total += x
        else:
            tl.store(SUM + start + k, tl.sum(x, 0), mask=k_in)
        X += BLOCK_L * x_long
    if TALL:
        tl.store(SUM + tile * BLOCK_R + i, tl.sum(total, 1), mask=i_in)


@triton.jit
def decoupling_gram(
    X, PART, TRACE, SUM, x_batch, x_rank, x_long, R, L, pairs, tiles, splits, share,
    TALL: tl.constexpr, WITH_SUM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """PART[i, j] = sum over a share of the long axis of X[i, l] X[j, l], for tiles with i >= j (Eq. 8).

    Pointers: X (B, R, L), any strides; PART (B, splits, R, R), lower tiles; TRACE (B, splits, tiles), of the diagonal tiles;
    SUM, if WITH_SUM, what the squeeze averages: TALL (B, splits, R), else (B, tiles, L).
    Grid: ((pairs + tiles if WITH_SUM else pairs) * splits * B,), pairs = tiles (tiles + 1) / 2; a program owns a tile of one
    split's part, or the sums of its rows: the product's own tiles must not be summed (`overwritten` in _proof/aot.py).
    """
    pid = tl.program_id(0)
    programs = pairs + tiles if WITH_SUM else pairs
    index = pid % programs
    split = (pid // programs) % splits
    batch = (pid // (programs * splits)).to(tl.int64)
    begin = split * share
    end = tl.minimum(L, begin + share)
    X += batch * x_batch + split.to(tl.int64) * share * x_long
    part = batch * splits + split
    if index < pairs:
        ti, tj = triangle(index)
        gram_tile(
            X, PART + part * R * R, TRACE + part * tiles, x_rank, x_long, ti, tj, begin, end, R,
            BLOCK_R, BLOCK_L, PRECISION, COMPUTE,
        )  # fmt: skip
    elif WITH_SUM:
        tile = index - pairs
        SUM += part * R if TALL else (batch * tiles + tile) * L
        squeeze_tile(X, SUM, x_rank, x_long, tile, begin, end, R, TALL, BLOCK_R, BLOCK_L, COMPUTE)


@triton.jit
def decoupling_normalise(
    PART, TRACE, GH, A, TOTAL, R, tiles, splits, blocks, ridge,
    BLOCK: tl.constexpr, BLOCK_T: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """t = tr G, Gh = (R / t) G and A = I + Gh / ridge, whose inverse is M. A zero map has Gh = 0, one that is not finite NaN.

    Pointers: PART, TRACE as decoupling_gram leaves them (`tiles` tiles a side); GH, A (B, R, R); TOTAL (B,), t.
    Grid: (blocks * blocks * B,); a program owns a tile of BLOCK x BLOCK.
    """
    pid = tl.program_id(0)
    bj = pid % blocks
    bi = (pid // blocks) % blocks
    batch = (pid // (blocks * blocks)).to(tl.int64)
    shares = tl.zeros([BLOCK_T], COMPUTE)
    t = tl.arange(0, BLOCK_T)
    for start in range(0, splits * tiles, BLOCK_T):
        shares += tl.load(
            TRACE + batch * splits * tiles + start + t, mask=start + t < splits * tiles, other=0.0
        )
    trace = tl.sum(shares, 0)
    i = (bi * BLOCK + tl.arange(0, BLOCK))[:, None]
    j = (bj * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (i < R) & (j < R)
    # Only the lower triangle was computed; both halves read it, so that the matrix is exactly symmetric.
    at = PART + batch * splits * R * R + (tl.maximum(i, j) * R + tl.minimum(i, j))
    gram = tl.zeros([BLOCK, BLOCK], COMPUTE)
    for _ in range(0, splits):
        gram += tl.load(at, mask=inside, other=0.0)
        at += R * R
    gh = gram / tl.where(trace == 0, 1.0, trace) * R
    # A trace that is not finite must spoil the whole image, also entries that an infinite trace would make 0.
    gh = tl.where(tl.abs(trace) < float("inf"), gh, float("nan"))
    out = batch * R * R + (i * R + j)
    tl.store(GH + out, gh, mask=inside)
    tl.store(A + out, tl.where(i == j, 1.0, 0.0) + gh / ridge, mask=inside)
    if bi == 0 and bj == 0:
        tl.store(TOTAL + batch, trace)


@triton.jit
def decoupling_pull(
    X, D, W, DS, PART, DOT, x_batch, x_rank, x_long, d_batch, d_rank, d_long, R, L, tiles, splits, share,
    TALL: tl.constexpr, WITH_DOT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """What dOut says about the matrix, before it is made symmetric, over a share of the long axis.

    TALL: PART[i, j] = sum_l D[i, l] X[j, l]. Else PART[i, j] = sum_l W[l] X[i, l] D[j, l], and if WITH_DOT
    DOT[i] = sum_l X[i, l] DS[l].
    Pointers: X, D (B, R, L), any strides; W, DS (B, L), not read if TALL; PART (B, splits, R, R); DOT (B, splits, R).
    Grid: (tiles * tiles * splits * B,); a program owns a tile of one split's part.
    """
    pid = tl.program_id(0)
    tj = pid % tiles
    ti = (pid // tiles) % tiles
    split = (pid // (tiles * tiles)) % splits
    batch = (pid // (tiles * tiles * splits)).to(tl.int64)
    i = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_L)
    i_in = i < R - ti * BLOCK_R
    j_in = i < R - tj * BLOCK_R
    first = split.to(tl.int64) * share
    x_tile = X + batch * x_batch + first * x_long
    d_tile = D + batch * d_batch + first * d_long
    acc = tl.zeros([BLOCK_R, BLOCK_R], COMPUTE)
    total = tl.zeros([BLOCK_R], COMPUTE)
    if TALL:
        x_tile += tj.to(tl.int64) * BLOCK_R * x_rank
        d_tile += ti.to(tl.int64) * BLOCK_R * d_rank
    else:
        x_tile += ti.to(tl.int64) * BLOCK_R * x_rank
        d_tile += tj.to(tl.int64) * BLOCK_R * d_rank
    for start in range(split * share, tl.minimum(L, (split + 1) * share), BLOCK_L):
        k_in = k < L - start
        if TALL:
            d = tl.load(
                d_tile + (i[:, None] * d_rank + k[None, :] * d_long),
                mask=i_in[:, None] & k_in[None, :],
                other=0.0,
            )
            x = tl.load(
                x_tile + (k[:, None] * x_long + i[None, :] * x_rank),
                mask=k_in[:, None] & j_in[None, :],
                other=0.0,
            )
            acc = tl.dot(d, x, acc, input_precision=PRECISION, out_dtype=COMPUTE)
        else:
            x = tl.load(
                x_tile + (i[:, None] * x_rank + k[None, :] * x_long),
                mask=i_in[:, None] & k_in[None, :],
                other=0.0,
            )
            d = tl.load(
                d_tile + (k[:, None] * d_long + i[None, :] * d_rank),
                mask=k_in[:, None] & j_in[None, :],
                other=0.0,
            )
            w = tl.load(W + batch * L + start + k, mask=k_in, other=0.0)
            weighted = x.to(COMPUTE) * w[None, :]
            high = weighted.to(X.dtype.element_ty)
            acc = tl.dot(high, d, acc, input_precision=PRECISION, out_dtype=COMPUTE)
            if X.dtype.element_ty.primitive_bitwidth == 16:
                # The weighted map rounded to 16 bits would be the largest error of the backward: its rest goes in too.
                low = (weighted - high.to(COMPUTE)).to(X.dtype.element_ty)
                acc = tl.dot(low, d, acc, input_precision=PRECISION, out_dtype=COMPUTE)
            if WITH_DOT and tj == 0:
                ds = tl.load(DS + batch * L + start + k, mask=k_in, other=0.0)
                total += tl.sum(x.to(COMPUTE) * ds[None, :], 1)
        x_tile += BLOCK_L * x_long
        d_tile += BLOCK_L * d_long
    part = batch * splits + split
    out = PART + part * R * R + ti.to(tl.int64) * BLOCK_R * R + tj * BLOCK_R
    tl.store(out + (i[:, None] * R + i[None, :]), acc, mask=i_in[:, None] & j_in[None, :])
    if WITH_DOT and tj == 0:
        tl.store(DOT + part * R + ti * BLOCK_R + i, total, mask=i_in)


@triton.jit
def decoupling_symmetrise(
    PART, DOT, M, W, P, DPRE, R, splits, blocks, half,
    TALL: tl.constexpr, WITH_DOT: tl.constexpr, BLOCK: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """P = sym(diag(w) dA) and the gradient before the sigmoid, dw w (1 - w) with dw = rowsum(dA M), if TALL.

    Else P = sym(PART), with the squeeze's share half (DOT[i] + DOT[j]) if WITH_DOT.
    Pointers: PART (B, splits, R, R) and DOT (B, splits, R) from decoupling_pull; M, P (B, R, R); W, DPRE (B, R).
    Grid: (blocks * B,); a program owns BLOCK rows.
    """
    pid = tl.program_id(0)
    bi = pid % blocks
    batch = (pid // blocks).to(tl.int64)
    i = bi * BLOCK + tl.arange(0, BLOCK)
    i_in = i < R
    matrix = batch * R * R
    part = PART + batch * splits * R * R
    dw = tl.zeros([BLOCK], COMPUTE)
    dot_i = tl.zeros([BLOCK], COMPUTE)
    if TALL:
        w_i = tl.load(W + batch * R + i, mask=i_in, other=0.0)
    if WITH_DOT:
        for split in range(0, splits):
            dot_i += tl.load(DOT + (batch * splits + split) * R + i, mask=i_in, other=0.0)
    for bj in range(0, blocks):
        j = bj * BLOCK + tl.arange(0, BLOCK)
        j_in = j < R
        inside = i_in[:, None] & j_in[None, :]
        there = i[:, None] * R + j[None, :]
        a = tl.zeros([BLOCK, BLOCK], COMPUTE)
        mirrored = tl.zeros([BLOCK, BLOCK], COMPUTE)
        for split in range(0, splits):
            a += tl.load(part + split * R * R + there, mask=inside, other=0.0)
            mirrored += tl.load(
                part + split * R * R + (j[None, :] * R + i[:, None]), mask=inside, other=0.0
            )
        if TALL:
            w_j = tl.load(W + batch * R + j, mask=j_in, other=0.0)
            p = 0.5 * (w_i[:, None] * a + w_j[None, :] * mirrored)
            dw += tl.sum(a * tl.load(M + matrix + there, mask=inside, other=0.0), 1)
        else:
            p = 0.5 * (a + mirrored)
        if WITH_DOT:
            dot_j = tl.zeros([BLOCK], COMPUTE)
            for split in range(0, splits):
                dot_j += tl.load(DOT + (batch * splits + split) * R + j, mask=j_in, other=0.0)
            p += half * (dot_i[:, None] + dot_j[None, :])
        tl.store(P + matrix + there, p, mask=inside)
    if TALL:
        tl.store(DPRE + batch * R + i, dw * w_i * (1.0 - w_i), mask=i_in)
