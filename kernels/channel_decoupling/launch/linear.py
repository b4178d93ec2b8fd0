"""Linear algebra of any size: the inverse of M's matrices, and the layers of the MLP."""

from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels._common.precision import compute_dtype, exact_precision
from intrasense_fast.kernels.channel_decoupling import configs
from intrasense_fast.kernels.channel_decoupling.kernels.inverse import (
    invert_panel,
    invert_small,
    invert_update,
)
from intrasense_fast.kernels.channel_decoupling.kernels.vectors import (
    decoupling_matvec,
    decoupling_outer,
)


def inverse(shifted: Tensor, out: Tensor) -> Tensor:
    """Inverse of symmetric positive definite (B, R, R), NaN for one that is NaN.

    One launch for R <= 64, two a block of 64 above. Both arguments are overwritten; the one that is
    returned holds the inverse.
    """
    batch, rank, _ = shifted.shape
    compute = compute_dtype(shifted.dtype)
    if rank <= configs.SMALL:
        size = configs.power_of_two(rank)
        launch(
            invert_small,
            (batch,),
            shifted,
            out,
            rank,
            SIZE=size,
            COMPUTE=compute,
            **configs.VECTORS,
        )
        return out
    size = configs.BLOCK
    blocks = cdiv(rank, size)
    panel = shifted.new_empty(batch, rank, size)
    scratch = shifted.new_empty(batch, blocks, 2, size, size)
    precision = exact_precision(shifted.dtype, shifted.device)
    options = {
        "SIZE": size,
        "BLOCK_K": configs.matrix_config(rank, precision).blocks["BLOCK_K"],
        "PRECISION": precision,
        "COMPUTE": compute,
        **configs.BLOCKWISE,
    }
    for step in range(blocks):
        sizes = (rank, step, blocks)
        launch(invert_panel, (blocks * batch,), shifted, panel, scratch, *sizes, **options)
        launch(invert_update, (blocks * blocks * batch,), shifted, panel, out, *sizes, **options)
        shifted, out = out, shifted
    return shifted


def matvec(
    matrix: Tensor,
    strides: tuple[int, int, int],
    parts: Tensor,
    out: Tensor,
    *,
    scale: float = 1.0,
    vector: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    epilogue: str = "none",
) -> Tensor:
    """out (B, rows) = f(matrix v), v = scale times the sum of `parts` (B, parts, columns).

    strides: those of batch, row and column of `matrix`; vector (B, columns): where v is wanted;
    bias (rows,) for "relu" and "sigmoid"; gate (B, rows) for "relu_gradient".
    """
    batch, count, columns = parts.shape
    rows = out.shape[1]
    blocks = cdiv(rows, 16)
    launch(
        decoupling_matvec,
        (blocks * batch,),
        *(matrix, parts),
        out if bias is None else bias,
        out if gate is None else gate,
        out,
        out if vector is None else vector,
        *strides,
        *(rows, columns, count, blocks, scale),
        EPILOGUE=epilogue,
        WITH_VECTOR=vector is not None,
        BLOCK_R=16,
        BLOCK_C=128,
        COMPUTE=compute_dtype(parts.dtype),
        **configs.VECTORS,
    )
    return out


def linear_gradient(
    grad_parts: Tensor, layer_input: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Fills grad_weight (rows, columns) and grad_bias (rows,) of one layer.

    grad_parts: (B, parts, rows), of its output; layer_input: (B, columns).
    """
    rows, columns = grad_weight.shape
    batch, parts, _ = grad_parts.shape
    blocks = cdiv(columns, 128)
    launch(
        decoupling_outer,
        (cdiv(rows, 16) * blocks,),
        *(grad_parts, layer_input, grad_weight, grad_bias),
        *(batch, rows, columns, parts, blocks),
        BLOCK_R=16,
        BLOCK_C=128,
        COMPUTE=compute_dtype(grad_parts.dtype),
        **configs.VECTORS,
    )
