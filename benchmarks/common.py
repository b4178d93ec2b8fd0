"""What the benchmarks share: a path is held against float64 before any of its passes is timed."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.autograd.profiler import DeviceType

from benchmarks.saved import saved_bytes
from tests.proof.budget import error

CUDA = torch.cuda.is_available()
# The walk through everything with tiny shapes: gpu.sh --dry-run.
QUICK = os.environ.get("INTRASENSE_BENCH_QUICK") == "1"
DTYPE = torch.bfloat16 if CUDA else torch.float32
# On a GPU what the report shows: time there is dear.
MODES = ("forward", "both") if CUDA else ("forward", "backward", "both")
# Of which torch's profiler takes the mean.
CALLS = 5
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def choose(on_gpu: Sequence, on_cpu: Sequence, quick: Sequence) -> list:
    """Shapes for this machine and this run."""
    return list(quick if QUICK else on_gpu if CUDA else on_cpu)


def choose_paths(paths: Mapping[str, Callable], on_cpu: Sequence[str]) -> list[str]:
    """Every path on a GPU and in a quick walk; else those that are not interpreted or compiled."""
    return list(paths) if CUDA or QUICK else [name for name in paths if name in on_cpu]


def kernels(function: Callable[[], object]) -> dict[str, list[float]]:
    """{kernel: [microseconds a call, launches a call]} by torch's profiler, the longest first."""
    for _ in range(3):
        function()
    synchronise = torch.cuda.synchronize if CUDA else lambda: None
    synchronise()
    with torch.profiler.profile() as profile:
        for _ in range(CALLS):
            function()
        synchronise()
    time = lambda event: event.self_device_time_total if CUDA else event.self_cpu_time_total
    kind = DeviceType.CUDA if CUDA else DeviceType.CPU
    # An annotation (the optimizer's step, a compiled region) spans kernels counted themselves.
    rows = [
        event
        for event in profile.key_averages()
        if event.device_type == kind and not event.is_user_annotation
    ]
    found: dict[str, list[float]] = {}
    for event in rows:
        entry = found.setdefault(event.key, [0.0, 0.0])
        entry[0] += time(event) / CALLS
        entry[1] += event.count / CALLS
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


class Compiled:
    """torch.compile of a path, fresh for every shape.

    Past its limit of shapes torch would run eager what it should have compiled.
    """

    def __init__(self, function: Callable) -> None:
        self.function = function

    def build(self) -> Callable:
        torch._dynamo.reset()
        # A walk on a CPU goes through the tracer only.
        return torch.compile(self.function, dynamic=False, **({} if CUDA else {"backend": "eager"}))


@dataclass
class Prepared:
    """A path that has passed its check: its inputs, its graph, and its error."""

    function: Callable[..., tuple[Tensor, ...]]
    inputs: Sequence[Tensor]
    leaves: Sequence[Tensor]
    outputs: tuple[Tensor, ...]
    grads: Sequence[Tensor]
    error: float
    saved: int

    def call(self, mode: str) -> Callable[[], object]:
        wanted = [t for t in self.leaves if t.requires_grad]

        def forward():
            with torch.no_grad():
                return self.function(*self.inputs)

        def backward():
            return torch.autograd.grad(self.outputs, wanted, self.grads, retain_graph=True)

        def both():
            return torch.autograd.grad(self.function(*self.leaves), wanted, self.grads)

        return {"forward": forward, "backward": backward, "both": both}[mode]


class CannotRunError(Exception):
    """A library does not take this shape."""


_prepared: dict[tuple, Prepared | Exception] = {}


def compare(
    timed: Callable,
    *,
    operator: str,
    paths: Mapping[str, Callable | Compiled],
    path: str,
    mode: str,
    inputs: Sequence[Tensor],
    shape: Sequence[int],
    specification: Callable[..., tuple[Tensor, ...]],
    flops: tuple[int, int] = (0, 0),
    floor: tuple[int, int] = (0, 0),
    scored: Sequence[Tensor] | None = None,
    **info: object,
) -> None:
    """Time one path in one mode, beside the path it is compared with.

    Outputs and gradients pass against float64 first.

    Args:
        timed: the fixture.
        paths: every path by name; "fused" and "eager" are ours and must run, the others may refuse
            a shape.
        inputs: what the path is called with; gradients are taken for the floating-point ones.
        specification: the same from the operator's reference.py, called with float64 inputs.
        flops, floor: useful FLOPs and least bytes of (forward, backward).
        scored: smaller inputs for the check, where float64 would not fit the whole.
    """
    against = "fused" if CUDA else "eager"
    key = (operator, tuple(shape))
    wanted = {(*key, path), (*key, against)}
    for stale in _prepared.keys() - wanted:
        del _prepared[stale]
    prepared = _prepare(key, path, paths, inputs, specification, scored)
    rival = None if path == against else _rival(key, against, paths, inputs, specification, scored)
    work = {
        "forward": (flops[0], floor[0]),
        "backward": (flops[1], floor[1]),
        "both": (sum(flops), sum(floor)),
    }[mode]
    dtype = str(inputs[0].dtype)[6:]
    timed(
        prepared.call(mode),
        group=f"{operator} {mode} {'x'.join(map(str, shape))} {dtype}",
        error=prepared.error,
        allowed=ALLOWED[inputs[0].dtype],
        useful_flops=work[0],
        useful_bytes=work[1],
        against=against,
        rival=rival and rival.call(mode),
        operator=operator,
        path=path,
        mode=mode,
        shape=list(shape),
        dtype=dtype,
        saved_bytes=prepared.saved,
        interpreted=path == "fused" and not CUDA,
        **info,
    )


def _rival(key: tuple, against: str, *arguments) -> Prepared | None:
    """The path that ratios are taken to, or None where its check failed: its benchmark says so."""
    try:
        prepared = _prepare(key, against, *arguments)
    except Exception:
        return None
    return prepared if prepared.error <= ALLOWED[prepared.inputs[0].dtype] else None


def _prepare(
    key: tuple,
    path: str,
    paths: Mapping[str, Callable | Compiled],
    inputs: Sequence[Tensor],
    specification: Callable[..., tuple[Tensor, ...]],
    scored: Sequence[Tensor] | None,
) -> Prepared:
    found = _prepared.get((*key, path))
    if found is None:
        try:
            found = _checked(
                paths[path], inputs, specification, inputs if scored is None else scored
            )
        except (RuntimeError, ValueError, torch._dynamo.exc.TorchDynamoException) as failure:
            if path in ("fused", "eager"):
                raise
            found = CannotRunError(
                f"{path} does not take this shape: {str(failure).splitlines()[0][:120]}"
            )
        _prepared[(*key, path)] = found
    if isinstance(found, CannotRunError):
        pytest.skip(str(found))
    return found


def _checked(
    path: Callable | Compiled,
    inputs: Sequence[Tensor],
    specification: Callable,
    scored: Sequence[Tensor],
) -> Prepared:
    function = path.build() if isinstance(path, Compiled) else path
    worst = worst_error(function, specification, scored)
    leaves = leaves_of(inputs)
    outputs = function(*leaves)
    return Prepared(
        function,
        inputs,
        leaves,
        outputs,
        [torch.randn_like(t) for t in outputs],
        worst,
        saved_bytes(lambda: function(*leaves)),
    )


def worst_error(function: Callable, specification: Callable, inputs: Sequence[Tensor]) -> float:
    """The largest relative error of an output or gradient against the specification in float64.

    inf where one is not finite.
    """
    leaves, exact = leaves_of(inputs), leaves_of(inputs, torch.float64)
    outputs, truth = function(*leaves), specification(*exact)
    grads = [torch.randn_like(t) for t in outputs]
    wanted, exactly = ([t for t in side if t.requires_grad] for side in (leaves, exact))
    found = torch.autograd.grad(outputs, wanted, grads)
    expected = torch.autograd.grad(
        truth, exactly, [g.to(t.dtype) for g, t in zip(grads, truth, strict=True)]
    )
    if not all(t.isfinite().all() for t in (*outputs, *found)):
        return float("inf")
    pairs = zip((*outputs, *found), (*truth, *expected), strict=True)
    return max(error(actual, reference) for actual, reference in pairs)


def leaves_of(inputs: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Detached inputs, in `dtype` if given, that take gradients where they are floating point."""
    return [
        t.detach().to(dtype or t.dtype).requires_grad_() if t.is_floating_point() else t
        for t in inputs
    ]
