"""What benchmarks.tune tries: for each kernel the shapes, and the configurations of a shape. All are for bfloat16 on sm_90."""

from collections.abc import Callable, Iterable
from itertools import product

from intrasense_fast.kernels._common.configs import SHARED_LIMIT, KernelConfig

Shape = tuple[int, ...]
# The model's strides at 256 and 512 pixels: B, N, d, C; B, C, H, W; B, C, H, W, window.
ATTENTION = ((4, 4096, 64, 512), (4, 256, 128, 1024), (1, 4096, 32, 256))
DECOUPLING = ((4, 512, 64, 64), (4, 1024, 16, 16), (4, 2048, 8, 8))
WHITENING = ((4, 512, 64, 64, 7), (4, 512, 64, 64, 3), (4, 1024, 16, 16, 7))


def _power_of_two(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def _held(rows: int, columns: int, warps: int) -> bool:
    """An accumulator of 64 to 128 registers a thread: enough work for a barrier, and room for the rest."""
    return 64 <= rows * columns // (32 * warps) <= 128


def _depth(depth: int) -> dict[str, int | bool]:
    block = _power_of_two(depth)
    slice_ = block if block <= 128 else 64
    return {"BLOCK_D": block, "BLOCK_S": slice_, "EVEN_D": slice_ == depth}


def attention_forward(shape: Shape) -> Iterable[KernelConfig]:
    _, _, depth, channels = shape
    for m, n, c, warps, stages in product((64, 128), (32, 64, 128), (128, 256, 512), (4, 8), (2, 3)):
        blocks = _depth(depth)
        shared = stages * n * (c + blocks["BLOCK_S"]) * 2 + m * blocks["BLOCK_S"] * 2
        if c <= channels and _held(m, c, warps) and shared < SHARED_LIMIT["sm_90"] and (n > 32 or stages > 2):
            tiles = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_C": c, "SLICES": max(1, min(4, c // 128)), "EVEN_C": True}
            yield KernelConfig(blocks | tiles, warps, stages)


def attention_value_gradient(shape: Shape) -> Iterable[KernelConfig]:
    _, _, depth, channels = shape
    for n, m, c, warps, stages in product((64, 128), (32, 64, 128), (128, 256, 512), (4, 8), (2, 3)):
        blocks = _depth(depth)
        shared = stages * m * (c + blocks["BLOCK_S"]) * 2 + n * blocks["BLOCK_S"] * 2
        if c <= channels and _held(n, c, warps) and shared < SHARED_LIMIT["sm_90"] and (m > 32 or stages > 2):
            tiles = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_C": c, "EVEN_C": True}
            yield KernelConfig(blocks | tiles, warps, stages)


def decoupling_gram(shape: Shape) -> Iterable[KernelConfig]:
    for r, columns, warps, stages in product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)):
        if r * r // (32 * warps) <= 128 and stages * 2 * r * columns * 2 < SHARED_LIMIT["sm_90"]:
            yield KernelConfig(
                {"BLOCK_R": min(r, _power_of_two(min(shape[1], shape[2] * shape[3]))), "BLOCK_L": columns}, warps, stages
            )


def decoupling_matrix(shape: Shape) -> Iterable[KernelConfig]:
    for k, warps, stages in product((32, 64), (4, 8), (1, 2, 3, 4)):
        yield KernelConfig({"BLOCK": 64, "BLOCK_K": k}, warps, stages)


def decoupling_apply(shape: Shape) -> Iterable[KernelConfig]:
    side = _power_of_two(min(shape[1], shape[2] * shape[3]))
    for r, columns, k, warps, stages in product((64, 128), (64, 128, 256), (32, 64), (4, 8), (2, 3, 4)):
        shared = stages * k * (r + columns) * 2
        if 32 <= r * columns // (32 * warps) <= 128 and shared < SHARED_LIMIT["sm_90"] and r <= side:
            yield KernelConfig({"BLOCK_R": r, "BLOCK_L": columns, "BLOCK_K": min(k, side)}, warps, stages)


def whitening(shape: Shape) -> Iterable[KernelConfig]:
    for rows, columns, channels, warps in product((2, 4, 8), (4, 8, 16), (32, 64, 128), (1, 2, 4)):
        if 4 <= columns * channels // (32 * warps) <= 16 and rows * columns * channels // (32 * warps) <= 64:
            blocks = {"TILE_H": rows, "TILE_W": columns, "BLOCK_C": channels, "EVEN_C": True}
            yield KernelConfig(blocks, warps, 1)


CANDIDATES: dict[str, tuple[tuple[Shape, ...], Callable[[Shape], Iterable[KernelConfig]]]] = {
    "attention_forward": (ATTENTION, attention_forward),
    "attention_value_gradient": (ATTENTION, attention_value_gradient),
    "decoupling_gram": (DECOUPLING[:2], decoupling_gram),
    "decoupling_matrix": (DECOUPLING[:2], decoupling_matrix),
    "decoupling_apply": (DECOUPLING[:2], decoupling_apply),
    "whiten": (WHITENING, whitening),
    "whiten_gather": (WHITENING, whitening),
}
