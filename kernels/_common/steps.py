"""The steps of a launch plan: compiled launches, interpreted ones, copies; and their program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from intrasense_fast.kernels._common.launch import Launch


class Pointer(NamedTuple):
    """A tensor among a launch's arguments: `offset` bytes into a tensor of the call.

    slot: which one, of the inputs, the outputs and the workspace, in this order.
    """

    slot: int
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, tensors: list[Tensor]) -> Tensor:
        """The argument itself, for Triton's interpreter."""
        start = tensors[self.slot]
        storage = start.untyped_storage()
        begin = start.data_ptr() + self.offset - storage.data_ptr()
        empty = torch.empty(0, dtype=self.dtype, device=start.device)
        return empty.set_(storage, begin // self.dtype.itemsize, self.shape, self.strides)


class CompiledStep:
    """A launch whose kernel is compiled, which takes addresses."""

    def __init__(self, launch: Launch, kernel: Any) -> None:
        self.grid = (*launch.grid, 1, 1)[:3]
        # Keeps the module loaded.
        self.kernel = kernel
        rest = iter(launch.args)
        self.arguments = [
            launch.constexprs.get(parameter.name, parameter.default)
            if parameter.is_constexpr
            else next(rest)
            for parameter in launch.kernel.params
        ]

    def source(self, name: str, scope: dict[str, Any]) -> str:
        """The call as text; what it names is put into `scope`."""
        arguments = [
            _text(f"{name}_{index}", argument, scope)
            for index, argument in enumerate(self.arguments)
        ]
        grid = ", ".join(map(str, self.grid))
        run, function, metadata = (
            self.kernel.run,
            self.kernel.function,
            self.kernel.packed_metadata,
        )
        scope |= {f"{name}_function": function, f"{name}_metadata": metadata}
        if _is_direct(run):
            scope[name] = run.launch
            # Constants are compiled in: skipping them takes as long as passing addresses.
            kinds = self.kernel.src.signature.values()
            passed = [index for index, kind in enumerate(kinds) if kind != "constexpr"]
            annotations = [run.arg_annotations[index] for index in passed]
            scope[f"{name}_signature"] = (annotations, run.kernel_signature)
            options = f"{run.launch_cooperative_grid}, {run.launch_pdl}, {name}_metadata"
            nothing = "None, None, None, None, None"
            return (
                f"{name}({grid}, stream, {name}_function, {options}, {nothing}, "
                f"*{name}_signature, [{', '.join(arguments[index] for index in passed)}])"
            )
        scope[name] = run
        return (
            f"{name}({grid}, stream, {name}_function, {name}_metadata, None, None, None, "
            f"{', '.join(arguments)})"
        )


def _is_direct(run: Any) -> bool:
    """Whether run() of Triton 3.7 on CUDA can be left out, which takes as long as its call in C.

    The order of that call's arguments is private: every other Triton, and AMD's, go through run().
    """
    import triton

    if type(run).__name__ != "CudaLauncher" or not triton.__version__.startswith("3.7."):
        return False
    return not (run.global_scratch_size or run.profile_scratch_size)


def _text(name: str, argument: Any, scope: dict[str, Any]) -> str:
    """An argument of a launch as text."""
    if isinstance(argument, Pointer):
        start = f"addresses[{argument.slot}]"
        return f"{start} + {argument.offset}" if argument.offset else start
    if type(argument) in (int, bool):
        return repr(argument)
    scope[name] = argument
    return name


class InterpretedStep:
    """A launch in Triton's interpreter, which takes tensors."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch

    def source(self, name: str, scope: dict[str, Any]) -> str:
        scope[name] = self.start
        return f"{name}(tensors)"

    def start(self, tensors: list[Tensor]) -> None:
        args = [arg.view(tensors) if isinstance(arg, Pointer) else arg for arg in self.launch.args]
        self.launch._replace(args=tuple(args)).start()


class CopyStep:
    """A copy by torch between the launches, of a tensor whose strides the kernels do not take."""

    def __init__(self, target: Pointer, source: Pointer) -> None:
        self.target, self.origin = target, source

    def source(self, name: str, scope: dict[str, Any]) -> str:
        scope[name] = self.start
        return f"{name}(tensors)"

    def start(self, tensors: list[Tensor]) -> None:
        self.target.view(tensors).copy_(self.origin.view(tensors))


Step = CompiledStep | InterpretedStep | CopyStep


def written_out(steps: list[Step]) -> Callable[[list[Tensor], list[int], int], None]:
    """All steps as one function: a loop that fills in addresses takes twice as long."""
    scope: dict[str, Any] = {}
    calls = [step.source(f"step{number}", scope) for number, step in enumerate(steps)]
    body = "\n    ".join(calls or ["pass"])
    exec(f"def start(tensors, addresses, stream):\n    {body}\n", scope)
    return scope["start"]
