"""What the operator benchmarks share: check a peer against float64, then time its forward, backward or both."""

import os
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.saved import saved_bytes
from intrasense_fast.kernels._proof.budget import error

CUDA = torch.cuda.is_available()
QUICK = os.environ.get("INTRASENSE_BENCH_QUICK") == "1"
DTYPE = torch.bfloat16 if CUDA else torch.float32
MODES = ("forward", "backward", "both")
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def compiled(function: Callable) -> Callable:
    """torch.compile of `function`; nothing is compiled before the first call."""
    return torch.compile(function, dynamic=False)


def compare(
    timed: Callable,
    benchmark,
    *,
    operator: str,
    peer: str,
    mode: str,
    shape: Sequence[int],
    function: Callable[..., tuple[Tensor, ...]],
    specification: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    flops: tuple[int, int] = (0, 0),
    floor: tuple[int, int] = (0, 0),
    scored: Sequence[Tensor] | None = None,
) -> None:
    """Time `function(*inputs)` in `mode` after its outputs and gradients have been held against float64.

    Args:
        function: the peer; every output is floating point.
        specification: the same from the operator's reference.py, called with float64 inputs.
        inputs: what it is called with; gradients are taken for the floating-point ones.
        flops, floor: useful FLOPs and least bytes of (forward, backward).
        scored: smaller inputs for the check, where float64 would not fit the whole.
    """
    benchmark.group = f"{operator} {mode} {tuple(shape)} {str(inputs[0].dtype)[6:]}"
    try:
        worst = worst_error(function, specification, inputs if scored is None else scored)
        leaves = _leaves(inputs)
        wanted = [t for t in leaves if t.requires_grad]
        outputs = function(*leaves)
    except (RuntimeError, torch._dynamo.exc.BackendCompilerFailed) as failure:
        if peer in ("fused", "eager"):
            raise
        pytest.skip(f"{peer} does not take this shape: {str(failure).splitlines()[0][:120]}")
    grads = [torch.randn_like(t) for t in outputs]

    def forward():
        with torch.no_grad():
            return function(*inputs)

    def backward():
        return torch.autograd.grad(outputs, wanted, grads, retain_graph=True)

    def both():
        return torch.autograd.grad(function(*leaves), wanted, grads)

    work = {"forward": (flops[0], floor[0]), "backward": (flops[1], floor[1]), "both": (sum(flops), sum(floor))}[mode]
    timed(
        {"forward": forward, "backward": backward, "both": both}[mode],
        error=worst,
        allowed=ALLOWED[inputs[0].dtype],
        useful_flops=work[0],
        useful_bytes=work[1],
        operator=operator,
        peer=peer,
        mode=mode,
        shape=tuple(shape),
        dtype=str(inputs[0].dtype)[6:],
        saved_bytes=saved_bytes(lambda: function(*leaves)),
    )


def worst_error(function: Callable, specification: Callable, inputs: Sequence[Tensor]) -> float:
    """The largest relative error of an output or of a gradient against the specification in float64."""
    leaves, exact = _leaves(inputs), _leaves(inputs, torch.float64)
    outputs, truth = function(*leaves), specification(*exact)
    grads = [torch.randn_like(t) for t in outputs]
    wanted, exactly = ([t for t in side if t.requires_grad] for side in (leaves, exact))
    found = torch.autograd.grad(outputs, wanted, grads)
    expected = torch.autograd.grad(truth, exactly, [g.to(t.dtype) for g, t in zip(grads, truth, strict=True)])
    pairs = zip((*outputs, *found), (*truth, *expected), strict=True)
    if not all(t.isfinite().all() for t in (*outputs, *found)):
        return float("inf")
    return max(error(actual, reference) for actual, reference in pairs)


def _leaves(inputs: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [t.detach().to(dtype or t.dtype).requires_grad_() if t.is_floating_point() else t for t in inputs]
