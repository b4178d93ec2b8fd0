"""Launch plans: what a launcher starts is recorded once, and started directly from then on.

A launcher's work on the host depends on its arguments' key alone: shapes, strides, dtypes,
alignment, options, and the settings that its tables read. The first call with a key runs it and
notes every launch, each pointer as an offset into an input, an output or a workspace. Later calls
make the outputs and one workspace, and start the compiled kernels with the new addresses.

A plan holds numbers and compiled kernels: no tensor, no address. What it cannot repeat (arithmetic
of torch between the launches, memory that is no input's and was not allocated in the call) it
refuses: such a key goes through the library's operator, as every call does under torch.compile,
export, a dispatch mode or a hook.
"""

import contextlib
import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from intrasense_fast.kernels._common import tuned
from intrasense_fast.kernels._common.configs import assumed_architecture
from intrasense_fast.kernels._common.launch import being_recorded
from intrasense_fast.kernels._common.recorder import Plan, RefusedError, recorded

# Plans an operator's forward or backward keeps, the least recently used dropped first.
MOST_PLANS = 128

_PLAIN = {Tensor, torch.nn.Parameter}


class PlanStatus(NamedTuple):
    """Which way the calls of an operator's forward or backward went, in this process.

    Threads count without a lock: a count may miss a call, a result never depends on it.
    """

    plans: int  # kept now
    recorded: int  # calls that made a plan
    replayed: int  # calls that started a plan's kernels directly
    passed: int  # calls that went through the library's operator
    reason: str  # why the last of those did, or ""


class Planner:
    """A launcher with its plans: call it as the launcher.

    registered: the same launcher behind torch.library, for calls that no plan may serve.
    """

    def __init__(self, launcher: Callable, registered: Callable) -> None:
        self.launcher, self.registered = launcher, registered
        parameters = inspect.signature(launcher).parameters.values()
        self.tensors = sum(parameter.annotation is Tensor for parameter in parameters)
        self.plans: OrderedDict[tuple, Plan | str] = OrderedDict()
        self.recorded = self.replayed = self.passed = 0
        self.reason = ""

    def __call__(self, *args: Any) -> Any:
        tensors = args[: self.tensors]
        obstacle = _obstacle(tensors)
        if obstacle:
            return self._pass(args, obstacle)
        addresses = list(map(_address, tensors))
        key = _key(tensors, addresses, args[self.tensors :])
        plan = self.plans.get(key)
        if plan is None:
            return self._record(key, args)
        if isinstance(plan, str):
            return self._pass(args, plan)
        if plan.watched():
            return self._pass(args, "a hook of Triton or its debug mode")
        try:
            self.plans.move_to_end(key)
        except KeyError:
            pass  # another thread has dropped it; this call still has it
        self.replayed += 1
        return plan.replay(tensors, addresses)

    def _record(self, key: tuple, args: tuple) -> Any:
        """Run the launcher and keep its plan, or why there is none."""
        result, plan = recorded(self.launcher, args, self.tensors)
        if isinstance(plan, RefusedError):
            self.passed += 1
            self.reason = str(plan)
            self.plans[key] = self.reason
        else:
            self.recorded += 1
            self.plans[key] = plan
        self._drop_the_oldest()
        return result

    def _drop_the_oldest(self) -> None:
        # Another thread may drop or forget some at the same time.
        with contextlib.suppress(KeyError):
            while len(self.plans) > MOST_PLANS:
                self.plans.popitem(last=False)

    def _pass(self, args: tuple, reason: str) -> Any:
        self.passed += 1
        self.reason = reason
        return self.registered(*args)

    def status(self) -> PlanStatus:
        plans = sum(isinstance(plan, Plan) for plan in tuple(self.plans.values()))
        return PlanStatus(plans, self.recorded, self.replayed, self.passed, self.reason)


_planners: dict[str, Planner] = {}
_enabled = True


def planned(name: str, launcher: Callable, registered: Callable) -> Callable:
    """The launcher as callers use it: its plans where they serve, else `registered`.

    Args:
        name: of the operator, for `plan_status`.
        launcher: takes its tensors first, each annotated Tensor, then options that can be hashed.
        registered: the same launcher as an operator of torch.library.
    """
    planner = _planners[name] = Planner(launcher, registered)

    def call(*args: Any) -> Any:
        # What traces must see one operator, not what it does.
        return registered(*args) if torch.compiler.is_compiling() else planner(*args)

    return call


def plan_status() -> dict[str, PlanStatus]:
    """{"<operator>_forward" or "_backward": which way its calls went}, of operators in use."""
    return {name: planner.status() for name, planner in _planners.items()}


def enable(enabled: bool) -> bool:
    """Turn plans on or off for the process and forget those that there are; returns what was."""
    global _enabled
    before, _enabled = _enabled, enabled
    for planner in tuple(_planners.values()):
        planner.plans.clear()
    return before


def enabled() -> bool:
    """Whether calls may be served by plans."""
    return _enabled


def _obstacle(tensors: tuple[Tensor, ...]) -> str:
    """Why no plan may serve this call, whatever its key; "" where one may."""
    if not _enabled:
        return "plans are turned off"
    if being_recorded():
        return "a hook on launches"
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return "a dispatch mode or a transform of torch.func"
    if not _PLAIN.issuperset(map(type, tensors)):
        return "a subclass of Tensor"
    if tensors[0].is_meta:
        return "a tensor without memory"
    if tuned.being_tuned():
        return "the tuner times a candidate"
    return ""


def _key(tensors: tuple[Tensor, ...], addresses: list[int], options: tuple) -> tuple:
    """All that a launcher's launches depend on but the addresses themselves."""
    # A plan tells inputs apart by their addresses: those that share one have plans of their own.
    apart = len(set(addresses)) == len(addresses)
    device = tensors[0].device
    return (
        options,
        None if apart else tuple(map(addresses.index, addresses)),
        device,
        None if tensors[0].is_cuda else assumed_architecture(),
        torch.get_float32_matmul_precision(),
        tuned.version(),
        # Shapes, strides and dtypes side by side: a tuple for each tensor takes twice as long.
        *map(_shape, tensors),
        *map(_strides, tensors),
        *map(_dtype, tensors),
        *[address and address % 16 for address in addresses],
        True in map(_is_negated, tensors),
    )


_address, _strides, _is_negated = Tensor.data_ptr, Tensor.stride, Tensor.is_neg
_shape, _dtype = operator.attrgetter("shape"), operator.attrgetter("dtype")
