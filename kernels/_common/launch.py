"""One way to start a kernel: on the tensor's device, never with an empty grid, fp fusion stated.

`recording` hands the launches of a block to a hook in place of starting them.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """One launch as Triton would get it: kernel[grid](*args, **constexprs, **options).

    kernel: a @triton.jit function. grid: one to three sizes, none of them 0.
    args: run-time arguments in the kernel's order. constexprs: its tl.constexpr parameters by name.
    options: num_warps, num_stages, enable_fp_fusion and, where stated, maxnreg.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constexprs: dict[str, Any]
    options: dict[str, Any]

    def start(self) -> Any:
        """Start it on the device of its first tensor; returns the compiled kernel.

        In the interpreter there is no compiled kernel: None.
        """
        return _start(*self)


Hook = Callable[[Launch], object]

# Of one thread and context: another thread's launches never meet this one's hook.
_hook: ContextVar[Hook | None] = ContextVar("launch_hook", default=None)


@contextlib.contextmanager
def recording(hook: Hook) -> Iterator[None]:
    """Every launch of the block is given to `hook` in place of being started.

    A hook that should let the launch happen calls `launch.start()`. Holds for the thread (and
    contextvars context) that entered the block: autograd's threads on a GPU are others. An inner
    block takes the outer one's place.
    """
    token = _hook.set(hook)
    try:
        yield
    finally:
        _hook.reset(token)


def being_recorded() -> bool:
    """Whether a `recording` block of this thread and context gets its launches."""
    return _hook.get() is not None


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
        maxnreg: registers a thread; 255 keeps ptxas from spilling for occupancy, None leaves it to
            ptxas (always so on ROCm).
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
    hook = _hook.get()
    if hook is None:
        _start(kernel, grid, args, constexprs, options)
    else:
        hook(Launch(kernel, grid, args, constexprs, options))


def _start(
    kernel: Any,
    grid: tuple[int, ...],
    args: tuple[Any, ...],
    constexprs: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    if device.type == "cpu":
        _repair_bfloat16(args)
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
        return kernel[grid](*args, **constexprs, **options)


def _repair_bfloat16(args: tuple[Any, ...]) -> None:
    """As it comes, Triton's interpreter computes garbage from bfloat16 without a word."""
    if any(isinstance(arg, Tensor) and arg.dtype == torch.bfloat16 for arg in args):
        from intrasense_fast.kernels._common.interpreter import repair_interpreter

        repair_interpreter()
