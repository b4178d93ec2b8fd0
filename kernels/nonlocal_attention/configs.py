"""Tile sizes of the attention kernels by width, depth, dtype and architecture.

Every entry compiles without a spill. Depth slices (BLOCK_S below BLOCK_D) are re-read from L1, so
that a deep query costs no registers; a float32 product keeps its inner size at 32 or less a step.
Rows that do not start at multiples of 16 elements load element by element, which takes registers:
their 16-bit tiles are those of float32. On sm_80 and sm_86 registers admit one or two programs on a
multiprocessor; a product has as many stages, up to three, as cost no program (C = 2048 on sm_86:
two, in 99 KiB).
"""

import math

import torch
from triton import cdiv

from intrasense_fast.kernels._common.configs import KernelConfig, rows_of
from intrasense_fast.kernels._common.tuned import tunable

# Programs the score gradient aims at: two a multiprocessor of the largest GPUs.
PROGRAMS = 256
# Partial sums of dQ and of dK each: at most 2 * 16 B N d floats of workspace, whatever N.
MAX_SPLITS = 16

# (widest C served, BLOCK_M, BLOCK_N, BLOCK_C, warps, stages, SLICES,
#  deepest BLOCK_D kept in registers)
AMPERE = (
    (64, 64, 64, 64, 4, 3, 1, 16),
    (128, 64, 64, 128, 8, 3, 1, 16),
    (256, 64, 64, 256, 8, 3, 2, 32),
    (512, 64, 64, 256, 8, 3, 2, 64),
)
FORWARD = {
    "sm_90": (
        (64, 128, 64, 64, 4, 3, 1, 16),
        (256, 64, 128, 128, 4, 3, 1, 32),
        (512, 64, 64, 256, 4, 2, 2, 64),
        (512, 128, 64, 256, 8, 2, 2, 64),
        (1024, 64, 64, 512, 8, 2, 4, 128),
        (None, 64, 32, 512, 8, 2, 4, 256),
    ),
    "sm_80": (*AMPERE, (None, 64, 32, 256, 8, 3, 2, 256)),
    "sm_86": (*AMPERE, (None, 64, 32, 256, 8, 2, 2, 256)),
    "gfx942": ((128, 64, 32, 128, 4, 1, 1, 32), (None, 64, 32, 256, 8, 1, 2, 64)),
}
# (widest C served, BLOCK_M, BLOCK_N, BLOCK_C, warps, stages, deepest BLOCK_D kept in registers)
VALUE_GRADIENT = {
    "sm_90": (
        (64, 64, 128, 64, 4, 3, 16),
        (256, 128, 64, 128, 4, 3, 32),
        (512, 64, 128, 256, 8, 3, 64),
        (None, 32, 64, 512, 8, 2, 256),
    ),
    "sm_80": (
        (64, 64, 64, 64, 4, 3, 16),
        (128, 64, 64, 128, 4, 3, 16),
        (256, 32, 64, 256, 8, 3, 32),
        (512, 32, 64, 256, 8, 3, 64),
        (1024, 32, 64, 256, 8, 3, 128),
        (None, 16, 32, 512, 8, 2, 256),
    ),
    "gfx942": ((128, 32, 64, 128, 4, 1, 32), (None, 32, 64, 256, 8, 1, 64)),
}
# (deepest BLOCK_D served, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_S or None for DK in registers,
#  warps, stages)
SCORE_GRADIENT = {
    "sm_90": (
        (16, 64, 128, 64, None, 8, 2),
        (32, 64, 128, 64, None, 8, 3),
        (64, 64, 128, 64, 32, 8, 3),
        (128, 32, 64, 128, 64, 4, 3),
        (None, 32, 64, 128, 64, 4, 3),
    ),
    "sm_80": (
        (16, 64, 64, 64, None, 4, 3),
        (32, 64, 64, 64, None, 8, 3),
        (64, 32, 64, 64, None, 8, 3),
        (None, 64, 64, 64, 64, 8, 3),
    ),
    # Scores of 64 x 128 in tensor memory pass through more registers than a thread has.
    "sm_100": ((64, 64, 64, 64, None, 8, 3), (None, 64, 64, 64, 64, 8, 3)),
    "gfx942": ((None, 32, 32, 32, 32, 4, 1),),
}
# Where whole value rows fit shared memory beside two tiles of DY:
# (widest C, deepest BLOCK_D, BLOCK_M, BLOCK_N, warps, stages)
SCORE_GRADIENT_RESIDENT = {
    "sm_90": (
        (128, 16, 64, 128, 8, 3),
        (256, 32, 64, 128, 8, 2),
        (512, 64, 32, 128, 8, 2),
    ),
}
# A slice of the depth where the queries do not stay in registers.
DEPTH_SLICE = {2: 64, 4: 32, 8: 32}


def _power_of_two(size: int, least: int = 16) -> int:
    return max(least, 1 << (size - 1).bit_length())


def _row(table: dict, architecture: str, size: int, depth: int = 0) -> tuple:
    """The first row that serves `size` and, where several of one size follow, BLOCK_D `depth`."""
    rows = [row for row in rows_of(table, architecture) if row[0] is None or size <= row[0]]
    rows = [row for row in rows if row[0] == rows[0][0]]
    return next((row for row in rows if depth <= row[-1]), rows[-1])[1:]


def _depth_blocks(depth: int, deepest: int, itemsize: int, slice_: int) -> dict[str, int | bool]:
    block = _power_of_two(depth)
    kept = block <= deepest
    return {
        "BLOCK_D": block,
        "BLOCK_S": block if kept else min(slice_, block // 2),
        "EVEN_D": kept and block == depth,
    }


def _inner(dtype: torch.dtype, precision: str, aligned: bool) -> int:
    """Inner size of a step where 16-bit tables do not apply; ieee products spill at 32."""
    return 16 if dtype.itemsize >= 4 and (precision == "ieee" or not aligned) else 32


def _plain(
    depth: int, channels: int, dtype: torch.dtype, precision: str, aligned: bool
) -> tuple[int, dict[str, int | bool]]:
    """(BLOCK_C, blocks of the depth) of float32, and of 16-bit rows that are not aligned."""
    inner = _inner(dtype, precision, aligned)
    widest = 128 if aligned or dtype.itemsize == 2 else 64
    return min(widest, _power_of_two(channels)), _depth_blocks(depth, inner, dtype.itemsize, inner)


def _resident(
    depth: int, channels: int, architecture: str
) -> tuple[int, int, int, int, int] | None:
    """(BLOCK_M, BLOCK_N, BLOCK_V, warps, stages) where whole value rows fit, padded by a third."""
    block_d, block_v = _power_of_two(depth), _power_of_two(channels, 64)
    if block_d > 16 and depth % 16:
        # Partial sums of such rows are stored element by element and spill.
        return None
    for widest, deepest, block_m, block_n, warps, stages in SCORE_GRADIENT_RESIDENT.get(
        architecture, ()
    ):
        if channels <= widest and block_d <= deepest and 3 * block_v <= 4 * channels:
            return block_m, block_n, block_v, warps, stages
    return None


@tunable
def forward_config(
    depth: int,
    channels: int,
    dtype: torch.dtype,
    architecture: str,
    precision: str,
    aligned: bool = True,
) -> KernelConfig:
    """Tiles of attention_forward; BLOCK_C channels a program."""
    if dtype.itemsize >= 4 or not aligned:
        block_m, block_n, warps, stages, slices = 64, 32, 8, 1, 1
        block_c, blocks = _plain(depth, channels, dtype, precision, aligned)
    else:
        block_m, block_n, block_c, warps, stages, slices, deepest = _row(
            FORWARD, architecture, channels, _power_of_two(depth)
        )
        block_c = min(block_c, _power_of_two(channels))
        slices = min(slices, max(1, block_c // 128))
        blocks = _depth_blocks(depth, deepest, dtype.itemsize, DEPTH_SLICE[dtype.itemsize])
    blocks |= {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_C": block_c,
        "SLICES": slices,
        "EVEN_C": channels % block_c == 0,
    }
    return KernelConfig(blocks, warps, stages)


@tunable
def value_gradient_config(
    depth: int,
    channels: int,
    dtype: torch.dtype,
    architecture: str,
    precision: str,
    aligned: bool = True,
) -> KernelConfig:
    """Tiles of attention_value_gradient; BLOCK_N keys and BLOCK_C channels a program."""
    if dtype.itemsize >= 4 or not aligned:
        block_m, block_n, warps, stages = 32, 64, 8, 1
        block_c, blocks = _plain(depth, channels, dtype, precision, aligned)
    else:
        block_m, block_n, block_c, warps, stages, deepest = _row(
            VALUE_GRADIENT, architecture, channels
        )
        block_c = min(block_c, _power_of_two(channels))
        blocks = _depth_blocks(depth, deepest, dtype.itemsize, DEPTH_SLICE[dtype.itemsize])
    blocks |= {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_C": block_c,
        "EVEN_C": channels % block_c == 0,
    }
    return KernelConfig(blocks, warps, stages)


@tunable
def score_gradient_config(
    depth: int,
    channels: int,
    dtype: torch.dtype,
    architecture: str,
    precision: str,
    aligned: bool = True,
) -> KernelConfig:
    """Tiles of attention_score_gradient; with BLOCK_S of its wide form, with BLOCK_V resident."""
    block_d = _power_of_two(depth)
    if dtype.itemsize == 2 and aligned and (resident := _resident(depth, channels, architecture)):
        block_m, block_n, block_v, warps, stages = resident
        blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_V": block_v, "BLOCK_D": block_d}
        return KernelConfig(
            blocks | {"EVEN_C": block_v == channels, "EVEN_D": block_d == depth}, warps, stages
        )
    if dtype.itemsize >= 4 or not aligned:
        wide = _inner(dtype, precision, aligned)
        ieee = dtype.itemsize >= 4 and precision == "ieee"
        block_m, block_n, block_k, warps, stages = (
            (32, 64, 32, 8, 1) if ieee else (32, 32, wide, 4, 1)
        )
    else:
        block_m, block_n, block_k, wide, warps, stages = _row(SCORE_GRADIENT, architecture, block_d)
    blocks = {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "EVEN_C": channels % block_k == 0,
    }
    if wide is None:
        blocks |= {"BLOCK_D": block_d, "EVEN_D": block_d == depth}
    else:
        blocks |= {"BLOCK_S": min(wide, block_d)}
    return KernelConfig(blocks, warps, stages)


def splits(batch: int, row_tiles: int, key_tiles: int) -> tuple[int, int, int, int]:
    """How the score gradient is divided: key splits, tiles of keys each; the same of queries.

    Enough programs for a large GPU at any batch, and partial sums bounded whatever N.
    """
    wanted = math.isqrt(max(1, cdiv(PROGRAMS, max(1, batch))) - 1) + 1
    keys = min(key_tiles, MAX_SPLITS, wanted)
    tiles = cdiv(key_tiles, keys)
    queries = min(row_tiles, MAX_SPLITS, cdiv(PROGRAMS, max(1, batch) * keys))
    rows = cdiv(row_tiles, queries)
    return cdiv(key_tiles, tiles), tiles, cdiv(row_tiles, rows), rows
