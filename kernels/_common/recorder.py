"""How a launch plan is made and repeated (plan.py says what it is for)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from intrasense_fast.kernels._common.launch import Launch, recording
from intrasense_fast.kernels._common.steps import (
    CompiledStep,
    CopyStep,
    InterpretedStep,
    Pointer,
    Step,
    written_out,
)

# Pieces of the workspace start at multiples of it, as torch's own allocations do on a GPU.
ALIGNMENT = 512

# Of ATen only these may happen beside the launches, and views.
_ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"}


class RefusedError(Exception):
    """A call that no plan can repeat, and why."""


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
        self.start = written_out(steps)
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
