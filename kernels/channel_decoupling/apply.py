"""The products that touch the feature map: output, its weights' gradient where N < C, and the map's gradient. See README.md.

A map is seen as X (R, L): R the smaller of channels and positions, L the other. TALL: R is the channels (C <= N). Matrices are
symmetric, so M F (C <= N) and F M' (N < C) are one formula: OUT[i, l] = sum_k M[i, k] X[k, l].
"""

import triton
import triton.language as tl


@triton.jit
def multiply(
    acc, MATRIX, X, x_rank, x_long, i_in, l_in, R,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """acc + MATRIX X for BLOCK_R rows of the matrix and BLOCK_L columns of the map; both pointers at the tile's start."""
    i = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    column = tl.arange(0, BLOCK_L)
    for start in range(0, R, BLOCK_K):
        k_in = k < R - start
        matrix = tl.load(
            MATRIX + start + (i[:, None] * R + k[None, :]),
            mask=i_in[:, None] & k_in[None, :],
            other=0.0,
        )
        x = tl.load(
            X + (k[:, None] * x_rank + column[None, :] * x_long),
            mask=k_in[:, None] & l_in[None, :],
            other=0.0,
        )
        acc = tl.dot(matrix, x, acc, input_precision=PRECISION, out_dtype=COMPUTE)
        X += BLOCK_K * x_rank
    return acc


@triton.jit
def decoupling_apply(
    X, K, W, OUT, x_batch, x_rank, x_long, o_batch, o_rank, o_long, R, L, tiles_r, tiles_l,
    TALL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """OUT = w (X - K X) (Eq. 12), the subtraction in COMPUTE.

    Pointers: X, OUT (B, R, L), any strides; K (B, R, R), X's dtype; W (B, R if TALL else L).
    Grid: (tiles_r * tiles_l * B,); a program owns a tile of OUT.
    """
    pid = tl.program_id(0)
    tr = pid % tiles_r
    tile = (pid // tiles_r) % tiles_l
    batch = (pid // (tiles_r * tiles_l)).to(tl.int64)
    i = tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_L)
    i_in = i < R - tr * BLOCK_R
    l_in = column < L - tile * BLOCK_L
    panel = X + batch * x_batch + tile.to(tl.int64) * BLOCK_L * x_long
    matrix = K + batch * R * R + tr.to(tl.int64) * BLOCK_R * R
    acc = tl.zeros([BLOCK_R, BLOCK_L], COMPUTE)
    acc = multiply(
        acc,
        matrix,
        panel,
        x_rank,
        x_long,
        i_in,
        l_in,
        R,
        BLOCK_R,
        BLOCK_L,
        BLOCK_K,
        PRECISION,
        COMPUTE,
    )
    inside = i_in[:, None] & l_in[None, :]
    rows = panel + tr.to(tl.int64) * BLOCK_R * x_rank
    x = tl.load(rows + (i[:, None] * x_rank + column[None, :] * x_long), mask=inside, other=0.0).to(
        COMPUTE
    )
    if TALL:
        w = tl.load(W + batch * R + tr * BLOCK_R + i, mask=i_in, other=0.0)[:, None]
    else:
        w = tl.load(W + batch * L + tile * BLOCK_L + column, mask=l_in, other=0.0)[None, :]
    out = (
        OUT
        + batch * o_batch
        + tr.to(tl.int64) * BLOCK_R * o_rank
        + tile.to(tl.int64) * BLOCK_L * o_long
    )
    out += i[:, None] * o_rank + column[None, :] * o_long
    tl.store(out, (w * (x - acc)).to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def decoupling_weight_gradient(
    X, D, M, W, DPRE, x_batch, x_rank, x_long, d_batch, d_rank, d_long, R, L, tiles_r, tiles_l,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """N < C: the gradient before the sigmoid, w (1 - w) sum over positions of dOut (F M'), a part for each tile of positions.

    M enters unrounded and X widened: the gradients of the MLP are float32.
    Pointers: X, D (B, R, L), any strides; M (B, R, R); W (B, L); DPRE (B, tiles_r, L).
    Grid: (tiles_r * tiles_l * B,); a program owns a tile of the map.
    """
    pid = tl.program_id(0)
    tr = pid % tiles_r
    tile = (pid // tiles_r) % tiles_l
    batch = (pid // (tiles_r * tiles_l)).to(tl.int64)
    i = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    column = tl.arange(0, BLOCK_L)
    i_in = i < R - tr * BLOCK_R
    l_in = column < L - tile * BLOCK_L
    panel = X + batch * x_batch + tile.to(tl.int64) * BLOCK_L * x_long
    matrix = M + batch * R * R + tr.to(tl.int64) * BLOCK_R * R
    acc = tl.zeros([BLOCK_R, BLOCK_L], COMPUTE)
    for start in range(0, R, BLOCK_K):
        k_in = k < R - start
        m = tl.load(
            matrix + start + (i[:, None] * R + k[None, :]),
            mask=i_in[:, None] & k_in[None, :],
            other=0.0,
        )
        x = tl.load(
            panel + (k[:, None] * x_rank + column[None, :] * x_long),
            mask=k_in[:, None] & l_in[None, :],
            other=0.0,
        )
        acc = tl.dot(m, x.to(COMPUTE), acc, input_precision=PRECISION, out_dtype=COMPUTE)
        panel += BLOCK_K * x_rank
    rows = (
        D
        + batch * d_batch
        + tile.to(tl.int64) * BLOCK_L * d_long
        + tr.to(tl.int64) * BLOCK_R * d_rank
    )
    inside = i_in[:, None] & l_in[None, :]
    d = tl.load(rows + (i[:, None] * d_rank + column[None, :] * d_long), mask=inside, other=0.0).to(
        COMPUTE
    )
    w = tl.load(W + batch * L + tile * BLOCK_L + column, mask=l_in, other=0.0)
    out = DPRE + (batch * tiles_r + tr) * L + tile * BLOCK_L + column
    tl.store(out, tl.sum(acc * d, 0) * w * (1.0 - w), mask=l_in)


@triton.jit
def decoupling_feature_gradient(
    X, D, K, HIGH, LOW, UNIT, W, SHORT, LONG, OUT,
    x_batch, x_rank, x_long, d_batch, d_rank, d_long, o_batch, o_rank, o_long, R, L, tiles_r, tiles_l, shift,
    TALL: tl.constexpr, OUTER: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The map's gradient: A^T dOut + 2 Gbar F + the squeeze's (C <= N), or diag(w) dOut M' + 2 F Gbar + the squeeze's (N < C).

    Both are w D + (K-part) + UNIT (HIGH + LOW) X + squeeze with K = M - I; K holds w already if TALL. The squeeze sends
    shift SHORT[i] if TALL, shift LONG[l] if not, times SHORT[i] if OUTER.
    Pointers: X, D, OUT (B, R, L), any strides; K, HIGH, LOW (B, R, R), X's dtype; UNIT (B,); W (B, R if TALL else L);
    SHORT (B, R); LONG (B, L). Grid: (tiles_r * tiles_l * B,); a program owns a tile of OUT.
    """
    pid = tl.program_id(0)
    tr = pid % tiles_r
    tile = (pid // tiles_r) % tiles_l
    batch = (pid // (tiles_r * tiles_l)).to(tl.int64)
    i = tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_L)
    i_in = i < R - tr * BLOCK_R
    l_in = column < L - tile * BLOCK_L
    x_panel = X + batch * x_batch + tile.to(tl.int64) * BLOCK_L * x_long
    d_panel = D + batch * d_batch + tile.to(tl.int64) * BLOCK_L * d_long
    matrix = batch * R * R + tr.to(tl.int64) * BLOCK_R * R
    acc = tl.zeros([BLOCK_R, BLOCK_L], COMPUTE)
    acc = multiply(
        acc,
        K + matrix,
        d_panel,
        d_rank,
        d_long,
        i_in,
        l_in,
        R,
        BLOCK_R,
        BLOCK_L,
        BLOCK_K,
        PRECISION,
        COMPUTE,
    )
    unit = tl.load(UNIT + batch)
    if TALL:
        acc = acc / unit
        w = tl.load(W + batch * R + tr * BLOCK_R + i, mask=i_in, other=0.0)[:, None]
    else:
        w = tl.load(W + batch * L + tile * BLOCK_L + column, mask=l_in, other=0.0)[None, :]
        acc = acc * (w / unit)
    acc = multiply(
        acc,
        HIGH + matrix,
        x_panel,
        x_rank,
        x_long,
        i_in,
        l_in,
        R,
        BLOCK_R,
        BLOCK_L,
        BLOCK_K,
        PRECISION,
        COMPUTE,
    )
    if SPLIT:
        acc = multiply(
            acc,
            LOW + matrix,
            x_panel,
            x_rank,
            x_long,
            i_in,
            l_in,
            R,
            BLOCK_R,
            BLOCK_L,
            BLOCK_K,
            PRECISION,
            COMPUTE,
        )
    inside = i_in[:, None] & l_in[None, :]
    rows = d_panel + tr.to(tl.int64) * BLOCK_R * d_rank
    d = tl.load(rows + (i[:, None] * d_rank + column[None, :] * d_long), mask=inside, other=0.0).to(
        COMPUTE
    )
    out = acc * unit + w * d
    if TALL:
        out += shift * tl.load(SHORT + batch * R + tr * BLOCK_R + i, mask=i_in, other=0.0)[:, None]
    else:
        rise = (
            shift
            * tl.load(LONG + batch * L + tile * BLOCK_L + column, mask=l_in, other=0.0)[None, :]
        )
        if OUTER:
            rise = (
                rise * tl.load(SHORT + batch * R + tr * BLOCK_R + i, mask=i_in, other=0.0)[:, None]
            )
        out += rise
    to = (
        OUT
        + batch * o_batch
        + tr.to(tl.int64) * BLOCK_R * o_rank
        + tile.to(tl.int64) * BLOCK_L * o_long
    )
    tl.store(
        to + (i[:, None] * o_rank + column[None, :] * o_long),
        out.to(OUT.dtype.element_ty),
        mask=inside,
    )
