"""Small matrix-vector products: the squeeze, the MLP of Eq. 11 and its gradients."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import block_of_image


@triton.jit
def decoupling_matvec(
    MATRIX,
    VECTOR_PARTS,
    BIAS,
    GATE,
    OUT,
    VECTOR,
    matrix_batch,
    matrix_row,
    matrix_column,
    ROWS,
    COLUMNS,
    parts,
    blocks,
    scale,
    EPILOGUE: tl.constexpr,
    WITH_VECTOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """OUT = f(MATRIX v), v = scale times the sum of VECTOR_PARTS, left in VECTOR if WITH_VECTOR.

    EPILOGUE: "none"; "relu" and "sigmoid" of the product plus BIAS; "relu_gradient", the product
    where GATE > 0.
    Pointers: MATRIX (B, ROWS, COLUMNS), any strides (matrix_batch = 0: one for all); VECTOR_PARTS
    (B, parts, COLUMNS); BIAS (ROWS,); GATE, OUT (B, ROWS); VECTOR (B, COLUMNS).
    Grid: (blocks * B,); a program owns BLOCK_R rows.
    """
    block, batch = block_of_image(blocks)
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    row_in = row < ROWS
    column = tl.arange(0, BLOCK_C)
    base = MATRIX + batch * matrix_batch
    products = tl.zeros([BLOCK_R, BLOCK_C], COMPUTE)
    for start in range(0, COLUMNS, BLOCK_C):
        column_in = column < COLUMNS - start
        vector = tl.zeros([BLOCK_C], COMPUTE)
        for part in range(0, parts):
            vector += tl.load(
                VECTOR_PARTS + (batch * parts + part) * COLUMNS + start + column,
                mask=column_in,
                other=0.0,
            )
        vector = vector * scale
        if WITH_VECTOR and block == 0:
            tl.store(VECTOR + batch * COLUMNS + start + column, vector, mask=column_in)
        element = row.to(tl.int64)[:, None] * matrix_row + column[None, :] * matrix_column
        mask = row_in[:, None] & column_in[None, :]
        matrix = tl.load(base + element, mask=mask, other=0.0)
        products += matrix.to(COMPUTE) * vector[None, :]
        base += BLOCK_C * matrix_column
    out = tl.sum(products, 1)
    if EPILOGUE == "relu" or EPILOGUE == "sigmoid":
        out += tl.load(BIAS + row, mask=row_in, other=0.0).to(COMPUTE)
    if EPILOGUE == "relu":
        out = tl.where(out < 0, 0.0, out)
    elif EPILOGUE == "sigmoid":
        out = 1.0 / (1.0 + tl.exp(-out))
    elif EPILOGUE == "relu_gradient":
        gate = tl.load(GATE + batch * ROWS + row, mask=row_in, other=0.0)
        out = tl.where(gate > 0, out, 0.0)
    tl.store(OUT + batch * ROWS + row, out, mask=row_in)


@triton.jit
def decoupling_outer(
    GRAD_PARTS,
    INPUT,
    GRAD_WEIGHT,
    GRAD_BIAS,
    BATCH,
    ROWS,
    COLUMNS,
    parts,
    blocks,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradients of a linear layer: GRAD_WEIGHT = sum over images of u INPUT^T, GRAD_BIAS of u.

    u is the sum of GRAD_PARTS.
    Pointers: GRAD_PARTS (BATCH, parts, ROWS); INPUT (BATCH, COLUMNS); GRAD_WEIGHT (ROWS, COLUMNS);
    GRAD_BIAS (ROWS,). Grid: (ceil(ROWS / BLOCK_R) * blocks,); a program owns a tile.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    row = (pid // blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = block * BLOCK_C + tl.arange(0, BLOCK_C)
    grad_weight = tl.zeros([BLOCK_R, BLOCK_C], COMPUTE)
    grad_bias = tl.zeros([BLOCK_R], COMPUTE)
    for image in range(0, BATCH):
        u = tl.zeros([BLOCK_R], COMPUTE)
        for part in range(0, parts):
            part_of_u = GRAD_PARTS + (image * parts + part) * ROWS
            u += tl.load(part_of_u + row, mask=row < ROWS, other=0.0)
        layer_input = tl.load(INPUT + image * COLUMNS + column, mask=column < COLUMNS, other=0.0)
        grad_weight += u[:, None] * layer_input[None, :]
        grad_bias += u
    mask = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    tl.store(
        GRAD_WEIGHT + (row.to(tl.int64)[:, None] * COLUMNS + column[None, :]),
        grad_weight.to(GRAD_WEIGHT.dtype.element_ty),
        mask=mask,
    )
    if block == 0:
        tl.store(GRAD_BIAS + row, grad_bias.to(GRAD_BIAS.dtype.element_ty), mask=row < ROWS)
