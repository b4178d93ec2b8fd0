"""Small matrix-vector products: the squeeze, the layers of Eq. 11 and their gradients."""

import triton
import triton.language as tl

from intrasense_fast.kernels._common.device import block_of_image


@triton.jit
def sum_of_parts(PARTS, parts, width, i, i_in, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """Entries i (BLOCK of them) of the sum over PARTS (parts, width)."""
    BLOCK_P: tl.constexpr = 8
    p = tl.arange(0, BLOCK_P)
    total = tl.zeros([BLOCK_P, BLOCK], COMPUTE)
    for start in range(0, parts, BLOCK_P):
        mask = (p < parts - start)[:, None] & i_in[None, :]
        element = (p + start)[:, None] * width + i[None, :]
        total += tl.load(PARTS + element, mask=mask, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def layer(
    MATRIX,
    VECTOR_PARTS,
    BIAS,
    OUT,
    VECTOR,
    matrix_row,
    matrix_column,
    ROWS,
    COLUMNS,
    parts,
    block,
    scale,
    EPILOGUE: tl.constexpr,
    WITH_VECTOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Rows `block` BLOCK_R ... of f(MATRIX v), v = scale times the sum of VECTOR_PARTS.

    EPILOGUE: "none"; "relu" and "sigmoid" of the product plus BIAS. WITH_VECTOR: the first block
    leaves v in VECTOR. Pointers are those of one image: MATRIX (ROWS, COLUMNS), any strides;
    VECTOR_PARTS (parts, COLUMNS); BIAS, OUT (ROWS,); VECTOR (COLUMNS,).
    """
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    row_in = row < ROWS
    column = tl.arange(0, BLOCK_C)
    products = tl.zeros([BLOCK_R, BLOCK_C], COMPUTE)
    for start in range(0, COLUMNS, BLOCK_C):
        column_in = column < COLUMNS - start
        vector = sum_of_parts(
            VECTOR_PARTS + start, parts, COLUMNS, column, column_in, BLOCK_C, COMPUTE
        )
        vector = vector * scale
        if WITH_VECTOR and block == 0:
            tl.store(VECTOR + start + column, vector, mask=column_in)
        element = row.to(tl.int64)[:, None] * matrix_row + column[None, :] * matrix_column
        mask = row_in[:, None] & column_in[None, :]
        matrix = tl.load(MATRIX + element, mask=mask, other=0.0)
        products += matrix.to(COMPUTE) * vector[None, :]
        MATRIX += BLOCK_C * matrix_column
    out = tl.sum(products, 1)
    if EPILOGUE != "none":
        out += tl.load(BIAS + row, mask=row_in, other=0.0).to(COMPUTE)
    if EPILOGUE == "relu":
        out = tl.where(out < 0, 0.0, out)
    elif EPILOGUE == "sigmoid":
        out = 1.0 / (1.0 + tl.exp(-out))
    tl.store(OUT + row, out, mask=row_in)


@triton.jit
def decoupling_matvec(
    MATRIX,
    VECTOR,
    BIAS,
    OUT,
    matrix_batch,
    matrix_row,
    matrix_column,
    ROWS,
    COLUMNS,
    blocks,
    EPILOGUE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """OUT = MATRIX VECTOR, or its ReLU with BIAS added (EPILOGUE "relu").

    Pointers: MATRIX (B, ROWS, COLUMNS), any strides (matrix_batch = 0: one for all); VECTOR
    (B, COLUMNS); BIAS (ROWS,); OUT (B, ROWS). Grid: (blocks * B,); a program owns BLOCK_R rows.
    """
    block, batch = block_of_image(blocks)
    layer(
        MATRIX + batch * matrix_batch,
        VECTOR + batch * COLUMNS,
        BIAS,
        OUT + batch * ROWS,
        OUT,
        matrix_row,
        matrix_column,
        ROWS,
        COLUMNS,
        1,
        block,
        1.0,
        EPILOGUE,
        False,
        BLOCK_R,
        BLOCK_C,
        COMPUTE,
    )


@triton.jit
def store_hidden_part(
    EXPAND_WEIGHT,
    PART,
    grad_logit,
    row,
    row_in,
    HIDDEN,
    BLOCK_H: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """PART = W_2^T grad_logit over the channels `row` alone.

    It is their share of the hidden layer's gradient before its ReLU. EXPAND_WEIGHT (W_2)
    (C, HIDDEN), contiguous; PART (HIDDEN,).
    """
    h = tl.arange(0, BLOCK_H)
    for start in range(0, HIDDEN, BLOCK_H):
        h_in = h < HIDDEN - start
        element = row.to(tl.int64)[:, None] * HIDDEN + (h + start)[None, :]
        mask = row_in[:, None] & h_in[None, :]
        weight = tl.load(EXPAND_WEIGHT + element, mask=mask, other=0.0).to(COMPUTE)
        tl.store(PART + start + h, tl.sum(weight * grad_logit[:, None], 0), mask=h_in)


@triton.jit
def outer_tile(
    GRAD_PARTS,
    GATE,
    INPUT,
    GRAD_WEIGHT,
    GRAD_BIAS,
    BATCH,
    ROWS,
    COLUMNS,
    parts,
    tile,
    blocks,
    GATED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """A tile of a linear layer's gradients: GRAD_WEIGHT = sum over images of u INPUT^T.

    GRAD_BIAS = sum of u; u is the sum of GRAD_PARTS (BATCH, parts, ROWS), if GATED where
    GATE (BATCH, ROWS) > 0. INPUT (BATCH, COLUMNS). `blocks` tiles a row.
    """
    block = tile % blocks
    row = (tile // blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = block * BLOCK_C + tl.arange(0, BLOCK_C)
    row_in = row < ROWS
    grad_weight = tl.zeros([BLOCK_R, BLOCK_C], COMPUTE)
    grad_bias = tl.zeros([BLOCK_R], COMPUTE)
    for image in range(0, BATCH):
        u = sum_of_parts(
            GRAD_PARTS + image * parts * ROWS, parts, ROWS, row, row_in, BLOCK_R, COMPUTE
        )
        if GATED:
            gate = tl.load(GATE + image * ROWS + row, mask=row_in, other=0.0)
            u = tl.where(gate > 0, u, 0.0)
        layer_input = tl.load(INPUT + image * COLUMNS + column, mask=column < COLUMNS, other=0.0)
        grad_weight += u[:, None] * layer_input[None, :]
        grad_bias += u
    mask = row_in[:, None] & (column < COLUMNS)[None, :]
    tl.store(
        GRAD_WEIGHT + (row.to(tl.int64)[:, None] * COLUMNS + column[None, :]),
        grad_weight.to(GRAD_WEIGHT.dtype.element_ty),
        mask=mask,
    )
    if block == 0:
        tl.store(GRAD_BIAS + row, grad_bias.to(GRAD_BIAS.dtype.element_ty), mask=row_in)


@triton.jit
def decoupling_mlp_gradient(
    GRAD_LOGIT,
    HIDDEN_PARTS,
    SQUEEZED,
    HIDDEN,
    REDUCE_WEIGHT,
    GRAD_REDUCE_WEIGHT,
    GRAD_REDUCE_BIAS,
    GRAD_EXPAND_WEIGHT,
    GRAD_EXPAND_BIAS,
    GRAD_SQUEEZED,
    BATCH,
    C,
    C_R,
    logit_parts,
    hidden_parts,
    reduce_tiles,
    reduce_blocks,
    expand_tiles,
    expand_blocks,
    squeeze_blocks,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The gradients of both layers of Eq. 11, and ds = W_1^T (gradient of the hidden layer).

    The hidden layer's gradient is the sum of HIDDEN_PARTS where HIDDEN > 0.
    Pointers: GRAD_LOGIT (BATCH, logit_parts, C); HIDDEN_PARTS (BATCH, hidden_parts, C_R); SQUEEZED,
    GRAD_SQUEEZED (ds) (BATCH, C); HIDDEN (BATCH, C_R); REDUCE_WEIGHT (W_1) and its gradient
    (C_R, C), EXPAND's (C, C_R), contiguous; GRAD_REDUCE_BIAS (C_R,), GRAD_EXPAND_BIAS (C,).
    Grid: (reduce_tiles + expand_tiles + squeeze_blocks * BATCH,); a program owns a tile of a
    layer's gradients or BLOCK_C of ds. Of what is not wanted there are none.
    """
    pid = tl.program_id(0)
    if pid < reduce_tiles:
        outer_tile(
            HIDDEN_PARTS,
            HIDDEN,
            SQUEEZED,
            GRAD_REDUCE_WEIGHT,
            GRAD_REDUCE_BIAS,
            BATCH,
            C_R,
            C,
            hidden_parts,
            pid,
            reduce_blocks,
            True,
            BLOCK_R,
            BLOCK_C,
            COMPUTE,
        )
    elif pid < reduce_tiles + expand_tiles:
        outer_tile(
            GRAD_LOGIT,
            HIDDEN,
            HIDDEN,
            GRAD_EXPAND_WEIGHT,
            GRAD_EXPAND_BIAS,
            BATCH,
            C,
            C_R,
            logit_parts,
            pid - reduce_tiles,
            expand_blocks,
            False,
            BLOCK_R,
            BLOCK_C,
            COMPUTE,
        )
    else:
        index = pid - reduce_tiles - expand_tiles
        batch = (index // squeeze_blocks).to(tl.int64)
        column = (index % squeeze_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
        row = tl.arange(0, BLOCK_R)
        products = tl.zeros([BLOCK_R, BLOCK_C], COMPUTE)
        for start in range(0, C_R, BLOCK_R):
            row_in = row < C_R - start
            part = HIDDEN_PARTS + batch * hidden_parts * C_R + start
            grad_hidden = sum_of_parts(part, hidden_parts, C_R, row, row_in, BLOCK_R, COMPUTE)
            hidden = tl.load(HIDDEN + batch * C_R + start + row, mask=row_in, other=0.0)
            grad_hidden = tl.where(hidden > 0, grad_hidden, 0.0)
            element = (row + start).to(tl.int64)[:, None] * C + column[None, :]
            mask = row_in[:, None] & (column < C)[None, :]
            weight = tl.load(REDUCE_WEIGHT + element, mask=mask, other=0.0)
            products += weight.to(COMPUTE) * grad_hidden[:, None]
        tl.store(GRAD_SQUEEZED + batch * C + column, tl.sum(products, 0), mask=column < C)
