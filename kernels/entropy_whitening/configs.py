"""Tile sizes of the whitening kernels: every entry compiles without a spill on sm_80, sm_86 and sm_90.

A row slice of BLOCK_C channels is at least 64 bytes; a program holds a tile of positions and channels in registers three to
five times (centre, two sums, the gradient), so its elements, not the architecture, set the size.
"""

import torch

from intrasense_fast.kernels._common.configs import KernelConfig

# Positions a program of the per-position maps owns.
MAP_BLOCK = 256
# Partial statistics a reduction reads at once.
PARTIALS = 256
# Up to this window the backward recomputes the moments of a window (k^4 taps); above, it stores them (2 k^2).
WIDEST_RECOMPUTED = 3


def _channels(channels: int, most: int) -> int:
    return min(most, max(16, 1 << (channels - 1).bit_length()))


def entropy_config(channels: int) -> KernelConfig:
    """Tiles of entropy_map: 4096 elements, as many of them along the channels as there are, up to 256."""
    block = _channels(channels, 256)
    return KernelConfig({"BLOCK_P": min(64, 4096 // block), "BLOCK_C": block, "EVEN_C": channels % block == 0}, 4, 1)


def whiten_config(channels: int, dtype: torch.dtype) -> KernelConfig:
    """Tiles of whiten, entropy_whiten and whiten_moments."""
    block = _channels(channels, 64 if dtype.itemsize == 2 else 32)
    return KernelConfig({"TILE_H": 8, "TILE_W": 8, "BLOCK_C": block, "EVEN_C": channels % block == 0}, 4, 1)


def gradient_config(channels: int, dtype: torch.dtype) -> KernelConfig:
    """Tiles of whiten_gradient and whiten_gather."""
    block = _channels(channels, 64 if dtype.itemsize == 2 else 32)
    return KernelConfig({"TILE_H": 4, "TILE_W": 8, "BLOCK_C": block, "EVEN_C": channels % block == 0}, 4, 1)
