"""What both directions pass along: the tensors by name, the sizes, a map seen as a matrix."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from intrasense_fast.kernels._common.configs import architecture
from intrasense_fast.kernels._common.layout import memory_format
from intrasense_fast.kernels._common.precision import (
    compute_dtype,
    dot_precision,
    exact_precision,
    statistics_dtype,
)


class Mlp(NamedTuple):
    """The two layers of Eq. 11."""

    reduce_weight: Tensor  # (C_r, C)
    reduce_bias: Tensor  # (C_r,)
    expand_weight: Tensor  # (C, C_r)
    expand_bias: Tensor  # (C,)


class Outputs(NamedTuple):
    """What the operator returns; also their gradients."""

    reweighted: Tensor  # (B, C, H, W)
    rank_gap: Tensor  # (B,)
    distance: Tensor  # (B,)


class Saved(NamedTuple):
    """What the backward needs of the forward beside its inputs, in the statistics' dtype."""

    matrix: Tensor  # (B, R, R), M
    decoupled_gram: Tensor  # (B, R, R), S = M K
    trace: Tensor  # (B,), tr G
    slope: Tensor  # (B,), tr S / ||S||^2
    squeezed: Tensor  # (B, C), what the MLP takes
    hidden: Tensor  # (B, C_r)
    weight: Tensor  # (B, C), w
    mean: Tensor  # (B, R), m, if M m is squeezed and C <= N; else empty
    row_mean: Tensor  # (B, R), M 1 / N, if F M 1 / N is squeezed and N < C; else empty


class Case(NamedTuple):
    """The sizes of X (B, R, L), and how it is computed: asked once a call, for every step."""

    batch: int
    channels: int
    positions: int
    tall: bool  # C <= N: the rank axis is the channels
    rank: int
    long: int
    statistics: torch.dtype
    device: torch.device
    table: tuple[torch.dtype, str, str]  # dtype, architecture, precision: what configs.py asks
    over_the_map: dict[str, Any]  # how products with the map are computed
    exactly: dict[str, Any]  # how products of R x R matrices are computed

    @property
    def square(self) -> tuple[int, int, int]:
        """Strides of a (B, R, R) matrix."""
        return self.rank * self.rank, self.rank, 1

    def empty(self, *shape: int) -> Tensor:
        """Unfilled, in the statistics' dtype."""
        return torch.empty(shape, dtype=self.statistics, device=self.device)


def case_of(features: Tensor) -> Case:
    """The case of a map (B, C, H, W)."""
    batch, channels, height, width = features.shape
    positions = height * width
    dtype, device = features.dtype, features.device
    precision = dot_precision(dtype, device)
    compute = compute_dtype(dtype)
    return Case(
        batch=batch,
        channels=channels,
        positions=positions,
        tall=channels <= positions,
        rank=min(channels, positions),
        long=max(channels, positions),
        statistics=statistics_dtype(dtype),
        device=device,
        table=(dtype, architecture(device), precision),
        over_the_map={"PRECISION": precision, "COMPUTE": compute},
        exactly={"PRECISION": exact_precision(dtype, device), "COMPUTE": compute},
    )


class View(NamedTuple):
    """A map as X (B, R, L), and its strides."""

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
    if height * width >= channels:
        return View(maps, batch, channel, position)
    return View(maps, batch, position, channel)


def like(features: Tensor) -> Tensor:
    """An unfilled map of the same shape, dtype and memory format."""
    return torch.empty_like(features, memory_format=memory_format(features))
