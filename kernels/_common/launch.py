"""One way to start a kernel: on the tensor's device, never with an empty grid, floating-point fusion stated."""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int,
    num_stages: int,
    maxnreg: int | None = 255,
    enable_fp_fusion: bool = True,
    **constexprs: Any,
) -> None:
    """Start `kernel` on the device of its first tensor; an empty grid starts nothing.

    Args:
        kernel: a @triton.jit function.
        grid: one to three sizes; the big dimension first (CUDA limits the others to 65535).
        args: run-time arguments in the kernel's order: tensors, integers, floats.
        num_warps, num_stages: of the compiled kernel.
        maxnreg: registers a thread; 255 keeps ptxas from spilling for occupancy, None leaves it to ptxas (always so on ROCm).
        enable_fp_fusion: whether multiply and add may contract into one rounding.
        constexprs: the kernel's tl.constexpr parameters, by name.
    """
    if math.prod(grid) == 0:
        return
    options = {
        "num_warps": num_warps,
        "num_stages": num_stages,
        "enable_fp_fusion": enable_fp_fusion,
    }
    if maxnreg is not None and torch.version.hip is None:
        options["maxnreg"] = maxnreg
    _start(kernel, grid, args, constexprs, options)


def _start(
    kernel: Any,
    grid: tuple[int, ...],
    args: tuple,
    constexprs: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """The launch itself; the proof system replaces it to record what would have been launched."""
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    if device.type == "cpu" and any(
        isinstance(arg, Tensor) and arg.dtype == torch.bfloat16 for arg in args
    ):
        # As it comes, Triton's interpreter computes garbage from bfloat16 without a word.
        from intrasense_fast.kernels._proof.interpreter import install

        install()
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
        kernel[grid](*args, **constexprs, **options)
