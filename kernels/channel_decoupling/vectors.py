"""Small matrix-vector products: the squeeze, the MLP of Eq. 11 and its gradients. See README.md."""

import triton
import triton.language as tl


@triton.jit
def decoupling_matvec(
    MATRIX, VECTOR, BIAS, GATE, OUT, KEPT, m_batch, m_row, m_column, ROWS, COLUMNS, parts, blocks, scale,
    EPILOGUE: tl.constexpr, WITH_KEPT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """OUT = f(MATRIX v), v = scale times the sum of VECTOR's parts, also written to KEPT if WITH_KEPT.

    EPILOGUE: "none"; "relu" and "sigmoid" of the product plus BIAS; "relu_gradient", the product where GATE > 0.
    Pointers: MATRIX (B, ROWS, COLUMNS), any strides (m_batch = 0: one for all); VECTOR (B, parts, COLUMNS); BIAS (ROWS,);
    GATE, OUT (B, ROWS); KEPT (B, COLUMNS). Grid: (blocks * B,); a program owns BLOCK_R rows.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    batch = (pid // blocks).to(tl.int64)
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    row_in = row < ROWS
    column = tl.arange(0, BLOCK_C)
    base = MATRIX + batch * m_batch
    acc = tl.zeros([BLOCK_R, BLOCK_C], COMPUTE)
    for start in range(0, COLUMNS, BLOCK_C):
        column_in = column < COLUMNS - start
        v = tl.zeros([BLOCK_C], COMPUTE)
        for part in range(0, parts):
            v += tl.load(
                VECTOR + (batch * parts + part) * COLUMNS + start + column,
                mask=column_in,
                other=0.0,
            )
        v = v * scale
        if WITH_KEPT and block == 0:
            tl.store(KEPT + batch * COLUMNS + start + column, v, mask=column_in)
        at = base + (row.to(tl.int64)[:, None] * m_row + column[None, :] * m_column)
        acc += (
            tl.load(at, mask=row_in[:, None] & column_in[None, :], other=0.0).to(COMPUTE)
            * v[None, :]
        )
        base += BLOCK_C * m_column
    out = tl.sum(acc, 1)
    if EPILOGUE == "relu" or EPILOGUE == "sigmoid":
        out += tl.load(BIAS + row, mask=row_in, other=0.0).to(COMPUTE)
    if EPILOGUE == "relu":
        out = tl.where(out < 0, 0.0, out)
    elif EPILOGUE == "sigmoid":
        out = 1.0 / (1.0 + tl.exp(-out))
    elif EPILOGUE == "relu_gradient":
        out = tl.where(tl.load(GATE + batch * ROWS + row, mask=row_in, other=0.0) > 0, out, 0.0)
    tl.store(OUT + batch * ROWS + row, out, mask=row_in)


@triton.jit
def decoupling_outer(
    U, V, OUT, BIAS, BATCH, ROWS, COLUMNS, parts, blocks,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Gradients of a linear layer: OUT = sum over images of u V^T, BIAS = sum of u, u the sum of U's parts.

    Pointers: U (BATCH, parts, ROWS); V (BATCH, COLUMNS); OUT (ROWS, COLUMNS); BIAS (ROWS,).
    Grid: (ceil(ROWS / BLOCK_R) * blocks,); a program owns a tile.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    row = (pid // blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = block * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_R, BLOCK_C], COMPUTE)
    total = tl.zeros([BLOCK_R], COMPUTE)
    for image in range(0, BATCH):
        u = tl.zeros([BLOCK_R], COMPUTE)
        for part in range(0, parts):
            u += tl.load(U + (image * parts + part) * ROWS + row, mask=row < ROWS, other=0.0)
        v = tl.load(V + image * COLUMNS + column, mask=column < COLUMNS, other=0.0)
        acc += u[:, None] * v[None, :]
        total += u
    inside = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    tl.store(
        OUT + (row.to(tl.int64)[:, None] * COLUMNS + column[None, :]),
        acc.to(OUT.dtype.element_ty),
        mask=inside,
    )
    if block == 0:
        tl.store(BIAS + row, total.to(BIAS.dtype.element_ty), mask=row < ROWS)
