"""What both directions of channel_decoupling share: the view of a map, splits, the inverse, small products. See README.md."""

from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.configs import architecture
from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels._common.layout import memory_format
from intrasense_fast.kernels._common.precision import compute_dtype
from intrasense_fast.kernels.channel_decoupling import configs
from intrasense_fast.kernels.channel_decoupling.inverse import (
    invert_panel,
    invert_small,
    invert_update,
)
from intrasense_fast.kernels.channel_decoupling.vectors import decoupling_matvec, decoupling_outer

# Programs a product over the long axis aims at, an image; its parts are at most MAX_SPLITS matrices.
PROGRAMS = 64
MAX_SPLITS = 8


class View(NamedTuple):
    """A feature map as X (B, R, L): R the smaller of channels and positions, L the other."""

    tensor: Tensor
    batch: int
    rank: int
    long: int

    @property
    def strides(self) -> tuple[int, int, int]:
        return self.batch, self.rank, self.long


def view(maps: Tensor) -> View:
    """`maps` (B, C, H, W) with one stride for all positions; a copy where it has none."""
    _, channels, height, width = maps.shape
    if height > 1 and width > 1 and maps.stride(2) != width * maps.stride(3):
        maps = maps.contiguous(memory_format=memory_format(maps))
    batch, channel, row, column = maps.stride()
    position = row if width == 1 else column
    return View(
        maps, batch, *((channel, position) if height * width >= channels else (position, channel))
    )


def like(features: Tensor) -> Tensor:
    """An unfilled map of the same shape, dtype and memory format."""
    return torch.empty_like(features, memory_format=memory_format(features))


def matrix_precision(dtype: torch.dtype, device: torch.device) -> str:
    """R x R products are as accurate as float32, whatever torch's matmul precision."""
    return "ieee" if dtype == torch.float64 or architecture(device).startswith("gfx") else "tf32x3"


def splits(pairs: int, rank: int, long: int, block: int) -> tuple[int, int]:
    """(splits, positions each) of a product over the long axis: its parts are at most half a feature map.

    Never by batch: an image's bits do not depend on it.
    """
    wanted = min(
        MAX_SPLITS, cdiv(PROGRAMS, pairs), cdiv(long, 4 * block), max(1, long // (2 * rank))
    )
    share = cdiv(cdiv(long, wanted), block) * block
    return cdiv(long, share), share


def sizes(features: Tensor) -> tuple[bool, int, int]:
    """(C <= N, R, L)."""
    _, channels, height, width = features.shape
    return height * width >= channels, min(channels, height * width), max(channels, height * width)


def inverse(matrix: Tensor) -> Tensor:
    """Inverse of symmetric positive definite (B, R, R), NaN for one that is NaN; `matrix` is overwritten.

    One launch for R <= 64, two a block of 64 above.
    """
    batch, rank, _ = matrix.shape
    compute, precision = compute_dtype(matrix.dtype), matrix_precision(matrix.dtype, matrix.device)
    out = torch.empty_like(matrix)
    if rank <= configs.SMALL:
        size = configs.power_of_two(rank)
        launch(
            invert_small,
            (batch,),
            matrix,
            out,
            rank,
            SIZE=size,
            COMPUTE=compute,
            num_warps=4,
            num_stages=1,
        )
        return out
    size = configs.BLOCK
    blocks = cdiv(rank, size)
    panel, scratch = (
        matrix.new_empty(batch, rank, size),
        matrix.new_empty(batch, blocks, 2, size, size),
    )
    options = dict(
        SIZE=size,
        BLOCK_K=configs.matrix_config(rank, precision).blocks["BLOCK_K"],
        PRECISION=precision,
        COMPUTE=compute,
    )
    for step in range(blocks):
        launch(
            invert_panel, (blocks * batch,), matrix, panel, scratch, rank, step, blocks, **options, num_warps=8, num_stages=1
        )  # fmt: skip
        launch(
            invert_update, (blocks * blocks * batch,), matrix, panel, out, rank, step, blocks,
            **options, num_warps=8, num_stages=1,
        )  # fmt: skip
        matrix, out = out, matrix
    return matrix


def matvec(
    matrix: Tensor, strides: tuple[int, int, int], vector: Tensor, rows: int, *, scale: float = 1.0,
    bias: Tensor | None = None, gate: Tensor | None = None, kept: Tensor | None = None, epilogue: str = "none",
) -> Tensor:  # fmt: skip
    """(B, rows): f(matrix v), v = scale times the sum of the parts of `vector` (B, parts, columns), written to `kept` too.

    strides: those of batch, row and column of `matrix`; bias (rows,) for "relu" and "sigmoid"; gate (B, rows) for
    "relu_gradient".
    """
    batch, parts, columns = vector.shape
    out = vector.new_empty(batch, rows)
    blocks = cdiv(rows, 16)
    launch(
        decoupling_matvec, (blocks * batch,),
        matrix, vector, out if bias is None else bias, out if gate is None else gate, out, out if kept is None else kept,
        *strides, rows, columns, parts, blocks, scale,
        EPILOGUE=epilogue, WITH_KEPT=kept is not None, BLOCK_R=16, BLOCK_C=128, COMPUTE=compute_dtype(vector.dtype),
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return out


def linear_gradient(
    grad: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `weight` (rows, columns) and `bias` (rows,) from grad (B, parts, rows) and inputs (B, columns)."""
    rows, columns = weight.shape
    batch, parts, _ = grad.shape
    grad_weight, grad_bias = weight.new_empty(weight.shape), bias.new_empty(bias.shape)
    blocks = cdiv(columns, 128)
    launch(
        decoupling_outer, (cdiv(rows, 16) * blocks,),
        grad, inputs, grad_weight, grad_bias, batch, rows, columns, parts, blocks,
        BLOCK_R=16, BLOCK_C=128, COMPUTE=compute_dtype(grad.dtype), num_warps=4, num_stages=1,
    )  # fmt: skip
    return grad_weight, grad_bias
