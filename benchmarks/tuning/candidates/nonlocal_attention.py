"""What the tuner tries for nonlocal_attention, in bfloat16: shapes are (B, N, d, C)."""

from collections.abc import Callable, Iterable
from itertools import product

import torch
from torch import Tensor

from benchmarks.tuning.subject import Shape, Subject, shared_limit
from intrasense_fast.kernels._common.configs import KernelConfig

# The model's strides at 256 and 512 pixels.
SHAPES = ((4, 4096, 64, 512), (4, 1024, 64, 512), (4, 256, 128, 1024), (1, 4096, 32, 256))


def _tensors(shape: Shape) -> tuple[Tensor, ...]:
    batch, positions, depth, channels = shape
    q, k, v = (
        torch.randn(batch, positions, 2 * depth + channels, device="cuda")
        .bfloat16()
        .split([depth, depth, channels], -1)
    )
    return (
        q,
        k,
        v,
        *(torch.randn(batch, positions, channels, device="cuda").bfloat16() for _ in range(2)),
    )


def start_forward(shape: Shape) -> Callable[[], object]:
    from intrasense_fast.kernels.nonlocal_attention import launch

    q, k, v, x, _ = _tensors(shape)
    return lambda: launch.forward(q, k, v, x, True)


def start_value_gradient(shape: Shape) -> Callable[[], object]:
    from intrasense_fast.kernels.nonlocal_attention import launch

    q, k, v, x, do = _tensors(shape)
    lse = launch.forward(q, k, v, x, False)[4]
    return lambda: launch.value_gradient(q, k, do, lse)


def start_score_gradient(shape: Shape) -> Callable[[], object]:
    from intrasense_fast.kernels.nonlocal_attention import launch

    q, k, v, x, do = _tensors(shape)
    lse = launch.forward(q, k, v, x, False)[4]
    delta = torch.randn_like(lse)
    return lambda: launch.score_gradient(q, k, v, do, lse, delta)


def _depth(depth: int) -> dict[str, int | bool]:
    block = max(16, 1 << (depth - 1).bit_length())
    kept = min(block, 128)
    slice_ = block if kept == block else 64
    return {"BLOCK_D": block, "BLOCK_S": slice_, "EVEN_D": slice_ == depth}


def _tiles(shape: Shape, outer: str, inner: str) -> Iterable[KernelConfig]:
    """Tiles whose accumulator (outer, C) takes 64 to 128 registers a thread.

    Their shared memory may fit.
    """
    _, _, depth, channels = shape
    limit = shared_limit()
    for big, small, columns, warps, stages in product(
        (64, 128), (64, 128), (128, 256, 512), (4, 8), (2, 3)
    ):
        blocks = _depth(depth)
        shared = stages * small * (columns + blocks["BLOCK_S"]) * 2 + big * blocks["BLOCK_S"] * 2
        if columns <= channels and 64 <= big * columns // (32 * warps) <= 128 and shared < limit:
            tiles = {
                outer: big,
                inner: small,
                "BLOCK_C": columns,
                "EVEN_C": channels % columns == 0,
            }
            yield KernelConfig(blocks | tiles, warps, stages)


def forward_tiles(shape: Shape) -> Iterable[KernelConfig]:
    for config in _tiles(shape, "BLOCK_M", "BLOCK_N"):
        slices = max(1, min(4, config.blocks["BLOCK_C"] // 128))
        yield KernelConfig(config.blocks | {"SLICES": slices}, config.num_warps, config.num_stages)


def value_gradient_tiles(shape: Shape) -> Iterable[KernelConfig]:
    return _tiles(shape, "BLOCK_N", "BLOCK_M")


def score_gradient_tiles(shape: Shape) -> Iterable[KernelConfig]:
    """The resident form where whole rows of values fit, and the wide one."""
    _, _, depth, channels = shape
    blocks = {"BLOCK_D": max(16, 1 << (depth - 1).bit_length())}
    width = max(64, 1 << (channels - 1).bit_length())
    for m, n, warps, stages in product((16, 32, 64), (64, 128), (4, 8), (2, 3)):
        shared = 2 * (n + stages * m) * (width + blocks["BLOCK_D"])
        if width <= 512 and depth <= 64 and shared < shared_limit():
            even = {"EVEN_C": width == channels, "EVEN_D": blocks["BLOCK_D"] == depth}
            yield KernelConfig(
                {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_V": width, **blocks, **even}, warps, stages
            )
    for m, n, k, slice_, warps, stages in product(
        (16, 32, 64), (16, 32, 64, 128), (64, 128), (64,), (4, 8), (3,)
    ):
        if 8 <= m * n // (32 * warps) <= 32 and (channels > 512 or (m, k) == (64, 64)):
            tiles = {
                "BLOCK_M": m,
                "BLOCK_N": n,
                "BLOCK_K": k,
                "BLOCK_S": min(slice_, blocks["BLOCK_D"]),
            }
            yield KernelConfig(tiles | {"EVEN_C": channels % k == 0}, warps, stages)


SUBJECTS = {
    "score_gradient": Subject(
        "score_gradient_config",
        (*SHAPES, (4, 64, 256, 2048)),
        score_gradient_tiles,
        start_score_gradient,
    ),
    "forward": Subject("forward_config", SHAPES, forward_tiles, start_forward),
    "value_gradient": Subject(
        "value_gradient_config", SHAPES, value_gradient_tiles, start_value_gradient
    ),
}
