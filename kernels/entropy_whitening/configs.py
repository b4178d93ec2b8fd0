"""Tile sizes of the whitening kernels: every entry compiles without a spill, sm_80 to sm_90.

A row slice of BLOCK_C channels is at least 64 bytes; a program holds a tile of positions and
channels in registers three to five times (centre, two sums, the gradient), so its elements, not the
architecture, set the size.
"""

from typing import NamedTuple

import torch
from triton import cdiv

from intrasense_fast.kernels._common.configs import KernelConfig
from intrasense_fast.kernels._common.tuned import tunable

# Positions a program of the per-position maps owns.
MAP_BLOCK = 256
# Partial statistics a reduction reads at once.
PARTIALS = 256
# Up to this window the backward recomputes the moments of a window (k^4 taps); above, it stores
# them (2 k^2).
WIDEST_RECOMPUTED = 3


def _channels(channels: int, most: int) -> int:
    """Channels of a tile: the largest power of two that divides them, from 32 on; else padded."""
    divisor = min(most, channels & -channels)
    return divisor if divisor >= 32 else min(most, max(16, 1 << (channels - 1).bit_length()))


@tunable
def entropy_config(channels: int) -> KernelConfig:
    """Tiles of channel_entropy: 4096 elements, up to 256 of them channels; half if padded."""
    block = _channels(channels, 256)
    even = channels % block == 0
    positions = min(64, (4096 if even else 2048) // block)
    return KernelConfig({"BLOCK_P": positions, "BLOCK_C": block, "EVEN_C": even}, 4, 1)


@tunable
def gate_config(taps: int) -> KernelConfig:
    """Tiles of gate_gradient: up to 64 taps of a statistic by 32 positions, 8 elements a thread.

    Latency is what it costs.
    """
    rows = min(64, 1 << (taps - 1).bit_length())
    return KernelConfig({"BLOCK": 32, "TAPS": rows}, 8, 1)


def _whitening(channels: int, dtype: torch.dtype, rows: int) -> KernelConfig:
    """A row of a tile is one 16-byte access a thread of 4 warps; half of it for padded channels."""
    block = _channels(channels, 256 // dtype.itemsize)
    even = channels % block == 0
    blocks = {
        "TILE_H": rows if even else 2,
        "TILE_W": (2048 if even else 1024) // dtype.itemsize // block,
        "BLOCK_C": block,
    }
    return KernelConfig(blocks | {"EVEN_C": even}, 4, 1)


@tunable
def whiten_config(channels: int, radius: int, width: int) -> KernelConfig:
    """Tiles of whiten, entropy_whiten and whiten_moments: 4 channels a thread.

    A strip is no larger than a window. A thread keeps two sums an element of a strip: 16 positions
    by 4 channels are 128 registers. A program has as many strips as 4 warps hold, fewer where they
    would lie beside the map.
    """
    block = _channels(channels, 64)
    even = channels % block == 0
    side = min(4 if even else 2, 2 * radius + 1)
    lanes = min(512 // block, 1 << (-(-width // side) - 1).bit_length())
    blocks = {"TILE_H": side, "STRIP": side, "LANES": lanes, "BLOCK_C": block, "EVEN_C": even}
    return KernelConfig(blocks, max(1, lanes * block // 128), 1)


@tunable
def gather_config(channels: int, dtype: torch.dtype, stored: bool) -> KernelConfig:
    """Tiles of whiten_gather: two numbers an element, and a window's moments if recomputed."""
    return _whitening(channels, dtype, 6 if stored else 4)


class Tiling(NamedTuple):
    """Tiles across a map, tiles of a map, and chunks of its channels."""

    across: int
    tiles: int
    chunks: int


def tiling_of(config: KernelConfig, channels: int, height: int, width: int) -> Tiling:
    blocks = config.blocks
    columns = blocks["TILE_W"] if "TILE_W" in blocks else blocks["STRIP"] * blocks["LANES"]
    across = cdiv(width, columns)
    tiles = across * cdiv(height, blocks["TILE_H"])
    return Tiling(across, tiles, cdiv(channels, blocks["BLOCK_C"]))


def radius_of(window: int, height: int, width: int) -> int:
    """Half the window, cut where it reaches over the whole map from everywhere."""
    return min(window // 2, max(height, width) - 1)
