"""The compilations that an operator's launches would cause, recorded on meta tensors."""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels._common.configs import assume
from intrasense_fast.kernels._common.launch import Launch, recording

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class CompileJob:
    """One compilation: a kernel, what its arguments are, and for which target.

    kernel: "module:function". parameters: the kernel's, in order. signature: run-time argument ->
    Triton type. constexprs: name -> value, dtypes as "tl.float32"; an integer argument equal to 1
    is one of them, as in Triton's JIT. divisible: arguments divisible by 16. options: num_warps,
    num_stages, enable_fp_fusion, maxnreg. label: the operator's name for the row.
    """

    kernel: str
    parameters: tuple[str, ...]
    signature: dict[str, str] = field(hash=False)
    constexprs: dict[str, Any] = field(hash=False)
    divisible: tuple[str, ...]
    options: dict[str, Any] = field(hash=False)
    target: str
    label: str = ""

    @property
    def name(self) -> str:
        """The kernel's, without its module."""
        return self.kernel.split(":")[1]

    @property
    def key(self) -> str:
        """A hash of how the kernel is specialised: all that decides its code but its syntax tree.

        Arguments count by position: neither their names nor the kernel's nor its module's matter.
        """
        arguments = [self._argument(name) for name in self.parameters]
        text = json.dumps([arguments, self.options, self.target], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _argument(self, name: str) -> tuple:
        if name in self.signature:
            return (self.signature[name], name in self.divisible)
        return ("constexpr", self.constexprs.get(name, "default"))


def recorded_jobs(run: Callable[[], Any], target: str, label: str) -> list[CompileJob]:
    """The compilations that the launches of `run` would cause on `target`; nothing is executed.

    Args:
        run: calls launchers (plain functions, not the registered operators) on meta tensors.
        target: one of configs.ARCHITECTURES; the launchers choose that architecture's tables.
        label: the row's name in reports, e.g. "C=512 bfloat16".

    Returns:
        Jobs as Triton's JIT would have them: pointer types, alignment, specialised integers.
    """
    jobs: list[CompileJob] = []
    with assume(target), recording(lambda launch: jobs.append(_job(launch, target, label))):
        run()
    return unique(jobs)


def unique(jobs: Iterable[CompileJob]) -> list[CompileJob]:
    """Without repetitions, in order."""
    first: dict[tuple[str, str], CompileJob] = {}
    for job in jobs:
        first.setdefault((job.kernel, job.key), job)
    return list(first.values())


def _job(launch: Launch, target: str, label: str) -> CompileJob:
    import triton.language as tl

    function = launch.kernel.fn
    kernel = f"{function.__module__}:{function.__name__}"
    parameters = inspect.signature(function).parameters
    runtime = [name for name, each in parameters.items() if each.annotation is not tl.constexpr]
    if len(runtime) != len(launch.args):
        names = ", ".join(runtime)
        raise TypeError(
            f"{kernel} takes {len(runtime)} run-time arguments ({names}), got {len(launch.args)}"
        )
    signature: dict[str, str] = {}
    constexprs = {name: _constexpr(value) for name, value in launch.constexprs.items()}
    divisible: list[str] = []
    for name, value in zip(runtime, launch.args, strict=True):
        if value is None or (type(value) is int and value == 1):
            constexprs[name] = value
            continue
        signature[name] = _type(value, f"{kernel}: argument {name}")
        if _is_divisible(value):
            divisible.append(name)
    options = dict(launch.options)
    return CompileJob(
        kernel,
        tuple(parameters),
        signature,
        constexprs,
        tuple(divisible),
        options,
        target,
        label,
    )


def _type(value: Any, what: str) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"{what} is a {type(value).__name__}")


def _is_divisible(value: Any) -> bool:
    if isinstance(value, Tensor):
        # A fresh allocation is aligned: only a view's offset can break it.
        return value.storage_offset() * value.element_size() % 16 == 0
    return type(value) is int and value % 16 == 0


def _constexpr(value: Any) -> Any:
    import triton.language as tl

    names = {
        tl.float64: "tl.float64",
        tl.float32: "tl.float32",
        tl.float16: "tl.float16",
        tl.bfloat16: "tl.bfloat16",
    }
    return names[value] if isinstance(value, tl.dtype) else value
