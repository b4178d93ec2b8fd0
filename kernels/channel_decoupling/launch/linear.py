"""Products of a matrix and a vector, and the gradients of the MLP's layers."""

from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels._common.precision import compute_dtype
from intrasense_fast.kernels.channel_decoupling import configs
from intrasense_fast.kernels.channel_decoupling.kernels.vectors import (
    decoupling_matvec,
    decoupling_mlp_gradient,
)
from intrasense_fast.kernels.channel_decoupling.launch.case import Mlp, Saved


def matvec(
    matrix: Tensor,
    strides: tuple[int, int, int],
    vector: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """out (B, rows) = matrix vector; with `bias` (rows,) the ReLU of its sum with the product.

    strides: those of batch, row and column of `matrix`; vector (B, columns).
    """
    batch, columns = vector.shape
    rows = out.shape[1]
    blocks = cdiv(rows, configs.LAYER["BLOCK_R"])
    launch(
        decoupling_matvec,
        (blocks * batch,),
        *(matrix, vector, out if bias is None else bias, out),
        *strides,
        *(rows, columns, blocks),
        EPILOGUE="none" if bias is None else "relu",
        COMPUTE=compute_dtype(vector.dtype),
        **configs.LAYER,
        **configs.VECTORS,
    )
    return out


def mlp_gradient(
    mlp: Mlp,
    saved: Saved,
    grad_logit: Tensor,
    hidden_parts: Tensor,
    grad_mlp: Mlp | None,
    grad_squeezed: Tensor | None,
) -> None:
    """Fills the gradients of both layers and ds, each where it is given.

    grad_logit: (B, parts, C), before the sigmoid; hidden_parts: (B, parts, C_r), of the ReLU
    layer's output; grad_squeezed: (B, C).
    """
    batch, logit_parts, channels = grad_logit.shape
    reduced = mlp.reduce_weight.shape[0]
    block_r, block_c = configs.LAYER["BLOCK_R"], configs.LAYER["BLOCK_C"]
    reduce_blocks, expand_blocks = cdiv(channels, block_c), cdiv(reduced, block_c)
    reduce_tiles = 0 if grad_mlp is None else cdiv(reduced, block_r) * reduce_blocks
    expand_tiles = 0 if grad_mlp is None else cdiv(channels, block_r) * expand_blocks
    squeeze_blocks = 0 if grad_squeezed is None else reduce_blocks
    launch(
        decoupling_mlp_gradient,
        (reduce_tiles + expand_tiles + squeeze_blocks * batch,),
        *(grad_logit, hidden_parts, saved.squeezed, saved.hidden),
        mlp.reduce_weight.contiguous(),
        *(mlp if grad_mlp is None else grad_mlp),
        grad_logit if grad_squeezed is None else grad_squeezed,
        *(batch, channels, reduced, logit_parts, hidden_parts.shape[1]),
        *(reduce_tiles, reduce_blocks, expand_tiles, expand_blocks, squeeze_blocks),
        COMPUTE=compute_dtype(grad_logit.dtype),
        **configs.LAYER,
        **configs.VECTORS,
    )
