"""What the tuner tries for entropy_whitening, in bfloat16: shapes are (B, C, H, W, window)."""

from collections.abc import Callable, Iterable
from itertools import product

import torch

from benchmarks.tuning.subject import Shape, Subject
from intrasense_fast.kernels._common.configs import KernelConfig

# The model's strides at 512 and 256 pixels.
SHAPES = ((4, 512, 64, 64, 7), (4, 512, 64, 64, 3), (4, 1024, 16, 16, 7))


def _start(backward: bool) -> Callable[[Shape], Callable[[], object]]:
    def start(shape: Shape) -> Callable[[], object]:
        from intrasense_fast.kernels.entropy_whitening import launch

        *size, window = shape
        x, d = (
            torch.randn(*size, device="cuda")
            .bfloat16()
            .contiguous(memory_format=torch.channels_last)
            for _ in range(2)
        )
        weight, bias = torch.randn(1, 2, 7, 7, device="cuda") / 10, torch.zeros(1, device="cuda")
        maps = (x.float().mean(1), x.float().amax(1), weight, bias)
        _, mask, gate = launch.forward(x, *maps, 0.5, "score", window, 1e-3, True)
        if not backward:
            return lambda: launch.forward(x, *maps, 0.5, "score", window, 1e-3, True)
        saved = launch.Saved(x, *maps, mask, gate)
        return lambda: launch.backward(saved, d, window, 1e-3, True, True)

    return start


def strips(shape: Shape) -> Iterable[KernelConfig]:
    """A thread keeps two sums an element of a strip, and no strip is larger than a window."""
    window = shape[-1]
    for rows, strip, lanes, channels, warps in product(
        (3, 4), (2, 3, 4), (4, 8), (32, 64, 128), (2, 4)
    ):
        held = lanes * channels // (32 * warps)
        if (
            max(rows, strip) <= window
            and 2 <= held <= 4
            and 24 <= rows * strip * held <= 64
            and channels <= shape[1]
        ):
            blocks = {"TILE_H": rows, "STRIP": strip, "LANES": lanes, "BLOCK_C": channels}
            yield KernelConfig(blocks | {"EVEN_C": shape[1] % channels == 0}, warps, 1)


def tiles(shape: Shape) -> Iterable[KernelConfig]:
    for rows, columns, channels, warps in product((3, 4, 8), (4, 8, 16), (32, 64, 128), (2, 4)):
        held = columns * channels // (32 * warps)
        if 4 <= held <= 8 and 16 <= rows * held <= 64 and channels <= shape[1]:
            blocks = {
                "TILE_H": rows,
                "TILE_W": columns,
                "BLOCK_C": channels,
                "EVEN_C": shape[1] % channels == 0,
            }
            yield KernelConfig(blocks, warps, 1)


def gates(shape: Shape) -> Iterable[KernelConfig]:
    for block, taps, warps in product((16, 32, 64), (16, 64), (4, 8)):
        if 4 <= block * taps // (32 * warps) <= 64:
            yield KernelConfig({"BLOCK": block, "TAPS": taps}, warps, 1)


SUBJECTS = {
    "whiten": Subject("whiten_config", SHAPES[:2], strips, _start(False)),
    "moments": Subject("whiten_config", SHAPES[:1], strips, _start(True)),
    "gather": Subject("gather_config", SHAPES[:2], tiles, _start(True)),
    "gate_gradient": Subject("gate_config", SHAPES[2:3], gates, _start(True)),
}
