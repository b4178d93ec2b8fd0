"""Tile sizes by rank, dtype and architecture, and splits: every entry compiles without a spill.

A float32 product keeps its inner size at 32 or less a step, an `ieee` one at 16. Maps whose sides
are no multiples of 16 load element by element, which takes registers: their tiles are smaller.
"""

from typing import Any

import torch

from intrasense_fast.kernels._common.configs import KernelConfig, rows_of
from intrasense_fast.kernels._common.tuned import tunable

# 16-bit maps with aligned sides, by rank: (BLOCK_R at most, BLOCK_L, warps, stages)
GRAM = {
    "sm_90": {None: (64, 128, 4, 3)},
    "sm_80": {64: (64, 64, 4, 3), None: (128, 64, 8, 3)},
    "sm_86": {64: (64, 64, 4, 3), None: (128, 64, 8, 2)},
}
# The same: (BLOCK_R at most, BLOCK_L, BLOCK_K, warps, stages)
APPLY = {
    "sm_90": {64: (64, 128, 64, 8, 3), None: (128, 128, 64, 8, 3)},
    "sm_80": {64: (64, 128, 64, 8, 3), None: (128, 128, 64, 8, 3)},
    "sm_86": {64: (64, 128, 64, 8, 2), None: (128, 128, 64, 8, 2)},
}
# Without products of a warp group: their operands in registers take more of them.
WARP_PRODUCTS = ("sm_80", "sm_86", "sm_89", "sm_120")

# Rows and columns of a block of the R x R kernels and of the blocked inverse.
BLOCK = 64
# Rank above which a block is inverted in two halves: quicker, and no less accurate. Below, one
# block is most of the matrix, and Cholesky's error smaller.
HALVES = 128
# How kernels without a table are compiled: those that own rows or a block of a matrix, and the
# others.
BLOCKWISE: dict[str, Any] = {"num_warps": 8, "num_stages": 1}
VECTORS: dict[str, Any] = {"num_warps": 4, "num_stages": 1}
# Tiles of the MLP's layers, and hidden units a step where their gradient is made in parts.
LAYER: dict[str, Any] = {"BLOCK_R": 16, "BLOCK_C": 128}
BLOCK_H = 32

# Programs a product over the long axis aims at, an image; its parts are at most MAX_SPLITS
# matrices.
PROGRAMS = 64
MAX_SPLITS = 8


def power_of_two(size: int, least: int = 16) -> int:
    """The next power of two; tl.dot takes no side below 16."""
    return max(least, 1 << (size - 1).bit_length())


def _row(table: dict, architecture: str, rank: int) -> tuple:
    rows = rows_of(table, architecture)
    return next(row for widest, row in rows.items() if widest is None or rank <= widest)


def splits(pairs: int, rank: int, long: int, block: int) -> tuple[int, int]:
    """(splits, positions each) of a product over the long axis.

    Its parts are at most half a feature map. Never by batch: an image's bits do not depend on it.
    """
    wanted = min(
        MAX_SPLITS,
        _ceil(PROGRAMS, pairs),
        _ceil(long, 4 * block),
        max(1, long // (2 * rank)),
    )
    share = _ceil(_ceil(long, wanted), block) * block
    return _ceil(long, share), share


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


def even(rank: int, long: int) -> bool:
    """Whether rows of the map and of the matrices start aligned: tiles load in wide pieces."""
    return rank % 16 == 0 and long % 16 == 0


def _gram_row(
    rank: int, long: int, dtype: torch.dtype, architecture: str, precision: str
) -> tuple[int, int, int, int]:
    if architecture.startswith("gfx") or (precision == "ieee" and dtype.itemsize > 2):
        return (64, 16 if dtype.itemsize > 2 else 32, 8, 1)
    if not even(rank, long):
        return (64, 64 if dtype.itemsize == 2 else 32, 8, 1)
    return _row(GRAM, architecture, rank) if dtype.itemsize == 2 else (64, 32, 4, 2)


@tunable
def gram_config(
    rank: int, long: int, dtype: torch.dtype, architecture: str, precision: str
) -> KernelConfig:
    """Tiles of decoupling_gram: BLOCK_R x BLOCK_R, BLOCK_L of the long axis a step."""
    block_r, block_l, warps, stages = _gram_row(rank, long, dtype, architecture, precision)
    return KernelConfig(
        {"BLOCK_R": min(block_r, power_of_two(rank)), "BLOCK_L": block_l}, warps, stages
    )


@tunable
def pull_config(
    rank: int, long: int, tall: bool, dtype: torch.dtype, architecture: str, precision: str
) -> KernelConfig:
    """Tiles of decoupling_pull: decoupling_gram's on more warps.

    N < C makes one operand in registers.
    """
    block_r, block_l, _, stages = _gram_row(rank, long, dtype, architecture, precision)
    if not tall and not even(rank, long):
        block_l = min(block_l, 32)
    if not tall and architecture in WARP_PRODUCTS:
        block_r = 64
    return KernelConfig(
        {"BLOCK_R": min(block_r, power_of_two(rank)), "BLOCK_L": block_l}, 8, stages
    )


@tunable
def apply_config(
    rank: int, long: int, dtype: torch.dtype, architecture: str, precision: str
) -> KernelConfig:
    """Tiles of decoupling_apply and decoupling_feature_gradient.

    BLOCK_R x BLOCK_L of the map, BLOCK_K of the rank a step.
    """
    if architecture.startswith("gfx") or (precision == "ieee" and dtype.itemsize > 2):
        block_r, block_l, block_k, warps, stages = (64, 64, 16 if dtype.itemsize > 2 else 32, 8, 1)
    elif not even(rank, long):
        block_r, block_l, block_k, warps, stages = (64, 64, 32, 8, 1)
    elif dtype.itemsize == 2:
        block_r, block_l, block_k, warps, stages = _row(APPLY, architecture, rank)
    else:
        block_r, block_l, block_k, warps, stages = (64, 64, 32, 4, 2)
    side = power_of_two(rank)
    blocks = {"BLOCK_R": min(block_r, side), "BLOCK_L": block_l, "BLOCK_K": min(block_k, side)}
    return KernelConfig(blocks, warps, stages)


@tunable
def weight_gradient_config(rank: int, precision: str) -> KernelConfig:
    """Tiles of decoupling_weight_gradient, whose operands are float32 whatever the map is."""
    side = power_of_two(rank)
    block_k, stages = (16, 1) if precision == "ieee" else (32, 2)
    return KernelConfig(
        {"BLOCK_R": min(64, side), "BLOCK_L": 64, "BLOCK_K": min(block_k, side)}, 8, stages
    )


@tunable
def matrix_config(rank: int, precision: str) -> KernelConfig:
    """Tiles of the R x R products, BLOCK x BLOCK, BLOCK_K a step.

    Four warps wait least, but spill where loads are narrow.
    """
    if precision == "ieee":
        block_k, warps, stages = 16, 8, 1
    elif rank % 16 == 0:
        block_k, warps, stages = 32, 4, 3
    else:
        block_k, warps, stages = 32, 8, 1
    return KernelConfig({"BLOCK": BLOCK, "BLOCK_K": block_k}, warps, stages)


def inverse_tiles(rank: int, precision: str) -> dict[str, Any]:
    """SIZE of a block of the inverse, HALF of what is inverted at once, BLOCK_K a step."""
    size = min(BLOCK, power_of_two(rank))
    half = size // 2 if rank > HALVES else size
    block_k = min(32, size) if precision != "ieee" and rank % 16 == 0 else 16
    return {"SIZE": size, "HALF": half, "BLOCK_K": block_k}
