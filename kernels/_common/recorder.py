"""How a launch plan is made and repeated (plan.py says what it is for)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from intrasense_fast.kernels._common.launch import Launch, recording

# Pieces of the workspace start at multiples of it, as torch's own allocations do on a GPU.
ALIGNMENT = 512

# Of ATen only these may happen beside the launches, and views.
_ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"}


class RefusedError(Exception):
    """A call that no plan can repeat, and why."""


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


def _written_out(steps: list[Step]) -> Callable[[list[Tensor], list[int], int], None]:
    """All steps as one function: a loop that fills in addresses takes twice as long."""
    scope: dict[str, Any] = {}
    calls = [step.source(f"step{number}", scope) for number, step in enumerate(steps)]
    body = "\n    ".join(calls or ["pass"])
    exec(f"def start(tensors, addresses, stream):\n    {body}\n", scope)
    return scope["start"]


class Plan:
    """The launches of one key, to be repeated with other tensors.

    outputs: (shape, strides, dtype) of each. single: whether the launcher returns a tensor alone.
    workspace: bytes. device: the inputs'.
    """

    def __init__(
        self,
        steps: list[Step],
        outputs: list[tuple[torch.Size, tuple[int, ...], torch.dtype]],
        workspace: int,
        device: torch.device,
        single: bool,
    ) -> None:
        from triton import knobs
        from triton.runtime import driver

        self.steps, self.outputs, self.workspace = steps, outputs, workspace
        self.start = _written_out(steps)
        self.device, self.single = device, single
        self.knobs = knobs.runtime
        self.driver = driver.active if any(isinstance(s, CompiledStep) for s in steps) else None

    def watched(self) -> bool:
        """Whether something of Triton's wants to see every launch, or other kernels."""
        knobs = self.knobs
        enter, leave = knobs.launch_enter_hook, knobs.launch_exit_hook
        return bool(
            # A chain of hooks, or the one hook that somebody put in its place.
            getattr(enter, "calls", enter)
            or getattr(leave, "calls", leave)
            or knobs.debug
            or getattr(knobs, "add_stages_inspection_hook", None)
        )

    def replay(self, inputs: tuple[Tensor, ...], addresses: list[int]) -> Any:
        """New outputs, filled: all the launches on the current stream of the inputs' device.

        addresses: the inputs', to which those of the outputs and the workspace are added.
        """
        if self.driver is None:
            return self._replay(inputs, addresses, 0)
        current = self.driver.get_current_device()
        index = self.device.index
        if index is None or index == current:
            return self._replay(inputs, addresses, self.driver.get_current_stream(current))
        with torch.cuda.device(self.device):
            return self._replay(inputs, addresses, self.driver.get_current_stream(index))

    def _replay(self, inputs: tuple[Tensor, ...], addresses: list[int], stream: int) -> Any:
        device = self.device
        outputs = [
            torch.empty_strided(shape, strides, dtype=dtype, device=device)
            for shape, strides, dtype in self.outputs
        ]
        tensors = [*inputs, *outputs]
        if self.workspace:
            tensors.append(torch.empty(self.workspace, dtype=torch.uint8, device=device))
        addresses.extend(map(Tensor.data_ptr, tensors[len(inputs) :]))
        self.start(tensors, addresses, stream)
        return outputs[0] if self.single else tuple(outputs)


class _Recorder(TorchDispatchMode):
    """Notes the launches of a block, what it allocates, and what torch computes in it."""

    def __init__(self) -> None:
        super().__init__()
        # A launch and its compiled kernel, or the target and the source of a copy.
        self.started: list[tuple[Launch | Tensor, Any]] = []
        # Kept until the plan is made: an address must not serve twice.
        self.allocated: list[Tensor] = []
        self.computed: list[str] = []
        self.starting = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The guard against torch.compile imports it, for seconds: here nothing compiles.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.starting:
            # The interpreter computes with torch as well.
            return result
        name = func._schema.name
        if name in _ALLOCATIONS:
            self.allocated.append(result)
        elif name == "aten::clone":
            self.allocated.append(result)
            self.started.append((result, args[0]))
        elif not func.is_view:
            self.computed.append(name)
        return result

    def launch(self, launch: Launch) -> None:
        self.starting = True
        try:
            self.started.append((launch, launch.start()))
        finally:
            self.starting = False


def recorded(launcher: Callable, args: tuple, count: int) -> tuple[Any, Plan | RefusedError]:
    """What `launcher(*args)` returns, and the plan that repeats it.

    count: how many of the arguments, the first ones, are tensors.
    """
    recorder = _Recorder()
    with recorder, recording(recorder.launch):
        result = launcher(*args)
    single = isinstance(result, Tensor)
    outputs = (result,) if single else tuple(result)
    try:
        plan: Plan | RefusedError = _plan(recorder, args[:count], outputs, single)
    except RefusedError as refused:
        # Without its traceback, whose frames hold the tensors.
        plan = refused.with_traceback(None)
    return (result if single else outputs), plan


def _plan(
    recorder: _Recorder, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], single: bool
) -> Plan:
    if recorder.computed:
        raise RefusedError(f"{recorder.computed[0]} between the launches")
    if any(tensor.is_neg() for tensor in inputs):
        raise RefusedError("an input that is stored negated")
    memory = _Memory(recorder, inputs, outputs)
    steps: list[Step] = []
    for started, other in recorder.started:
        if isinstance(started, Tensor):
            steps.append(CopyStep(memory.pointer(started), memory.pointer(other)))
            continue
        args = tuple(memory.pointer(a) if isinstance(a, Tensor) else a for a in started.args)
        launch = started._replace(args=args)
        steps.append(InterpretedStep(launch) if other is None else CompiledStep(launch, other))
    shapes = [(output.shape, output.stride(), output.dtype) for output in outputs]
    return Plan(steps, shapes, memory.workspace, inputs[0].device, single)


class _Memory:
    """Which tensor of a call an address belongs to."""

    def __init__(
        self, recorder: _Recorder, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
    ) -> None:
        self.inputs = {t.data_ptr(): slot for slot, t in reversed(list(enumerate(inputs)))}
        self.allocated = {_start(tensor) for tensor in recorder.allocated}
        self.outputs: dict[int, int] = {}
        for slot, output in enumerate(outputs, len(inputs)):
            start = output.data_ptr()
            if start == 0 and output.numel() == 0:
                continue
            if start != _start(output) or start not in self.allocated or start in self.outputs:
                raise RefusedError("an output that is no memory of its own")
            self.outputs[start] = slot
        self.last = len(inputs) + len(outputs)
        self.pieces: dict[int, int] = {}
        self.workspace = 0

    def pointer(self, tensor: Tensor) -> Pointer:
        slot, offset = self._place(tensor)
        return Pointer(slot, offset, tensor.dtype, tuple(tensor.shape), tensor.stride())

    def _place(self, tensor: Tensor) -> tuple[int, int]:
        address, start = tensor.data_ptr(), _start(tensor)
        if address == 0:
            raise RefusedError("a pointer to nothing")
        if start in self.outputs:
            return self.outputs[start], address - start
        if start in self.allocated:
            return self.last, self._piece(tensor, start) + address - start
        if address in self.inputs:
            return self.inputs[address], 0
        raise RefusedError("a pointer into memory that is neither an input's start nor of the call")

    def _piece(self, tensor: Tensor, start: int) -> int:
        """Where the workspace holds what was allocated at `start`."""
        if start not in self.pieces:
            self.pieces[start] = self.workspace
            size = tensor.untyped_storage().nbytes()
            self.workspace += -(-size // ALIGNMENT) * ALIGNMENT
        return self.pieces[start]


def _start(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
