"""What the tuner tries for channel_decoupling, in bfloat16: shapes are (B, C, H, W)."""

from collections.abc import Callable, Iterable
from itertools import product

import torch

from benchmarks.tuning.subject import Shape, Subject, shared_limit
from intrasense_fast.kernels._common.configs import KernelConfig
from intrasense_fast.kernels.channel_decoupling.configs import power_of_two

# The model's strides at 512 and 256 pixels: C <= N, and N < C.
SHAPES = ((4, 512, 64, 64), (4, 1024, 16, 16))


def _start(backward: bool) -> Callable[[Shape], Callable[[], object]]:
    def start(shape: Shape) -> Callable[[], object]:
        from intrasense_fast.kernels.channel_decoupling import launch

        channels, reduced = shape[1], max(1, shape[1] // 16)
        x, d = (
            torch.randn(*shape, device="cuda")
            .bfloat16()
            .contiguous(memory_format=torch.channels_last)
            for _ in range(2)
        )
        draw = lambda *size: torch.randn(*size, device="cuda") / 8
        mlp = launch.Mlp(
            draw(reduced, channels), draw(reduced), draw(channels, reduced), draw(channels)
        )
        if not backward:
            return lambda: launch.forward(x, mlp, 10.0, False)
        outputs, saved = launch.forward(x, mlp, 10.0, False)
        ones = torch.ones_like(outputs.rank_gap)
        grads = launch.Outputs(d, ones, ones)
        return lambda: launch.backward(x, mlp, saved, grads, 10.0, False, True, True)

    return start


def _side(shape: Shape) -> int:
    return power_of_two(min(shape[1], shape[2] * shape[3]))


def gram_tiles(shape: Shape) -> Iterable[KernelConfig]:
    for r, columns, warps, stages in product((64, 128), (64, 128), (4, 8), (3, 4)):
        if (
            r * r // (32 * warps) <= 128
            and stages * 4 * r * columns < shared_limit()
            and r <= _side(shape)
        ):
            yield KernelConfig({"BLOCK_R": r, "BLOCK_L": columns}, warps, stages)


def matrix_tiles(shape: Shape) -> Iterable[KernelConfig]:
    for block, k, warps, stages in product((32, 64), (16, 32, 64), (4, 8), (2, 3, 4)):
        if block == 64 or warps == 4:
            yield KernelConfig({"BLOCK": block, "BLOCK_K": k}, warps, stages)


def apply_tiles(shape: Shape) -> Iterable[KernelConfig]:
    for r, columns, k, warps, stages in product((64, 128), (128, 256), (32, 64), (4, 8), (3, 4)):
        registers, shared = r * columns // (32 * warps), 2 * stages * k * (r + columns)
        if 32 <= registers <= 128 and shared < shared_limit() and r <= _side(shape):
            yield KernelConfig({"BLOCK_R": r, "BLOCK_L": columns, "BLOCK_K": k}, warps, stages)


SUBJECTS = {
    "gram": Subject("gram_config", SHAPES, gram_tiles, _start(False)),
    "pull": Subject("pull_config", SHAPES[:1], gram_tiles, _start(True)),
    "matrix": Subject("matrix_config", SHAPES[:1], matrix_tiles, _start(True)),
    "apply": Subject("apply_config", SHAPES[:1], apply_tiles, _start(True)),
}
