"""Runs the rows that an operator declares as bounds, under the traffic meter."""

from dataclasses import dataclass

import torch

from intrasense_fast.kernels._common.configs import assume
from tests.proof.records import Bound, Contract
from tests.proof.traffic import (
    Launch,
    device_bytes,
    dot_flops,
    meter,
    requested_bytes,
)


@dataclass(frozen=True)
class Measured:
    """What one row took: ratios to the bound's floors (0 where it has none)."""

    launches: int
    kernels: tuple[str, ...]
    passes: float
    flops: float
    requested: float


def recorded(contract: Contract, bound: Bound, generator: torch.Generator) -> list[Launch]:
    """The launches of one row, in its mode, in the interpreter."""
    inputs = contract.make_inputs(bound.row, generator)
    if bound.mode == "inference":
        with torch.no_grad(), meter() as launches:
            contract.public(**inputs, fused=True, **bound.options)
        return launches
    inputs = {
        name: t.detach().requires_grad_(name in contract.differentiable)
        for name, t in inputs.items()
    }
    with meter() as launches:
        outputs = contract.public(**inputs, fused=True, **bound.options)
    if bound.mode == "forward":
        return launches
    if bound.mode != "backward":
        raise ValueError(f"mode must be 'inference', 'forward' or 'backward', got {bound.mode!r}")
    named = dict(
        zip(contract.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
    )
    sources = [named[name] for name in contract.differentiable_outputs]
    grads = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in sources]
    # The layout an operator's neighbours would hand it.
    grads = [
        g.contiguous(memory_format=bound.row.memory_format) if g.dim() == 4 else g for g in grads
    ]
    with meter() as launches:
        torch.autograd.grad(sources, [inputs[name] for name in contract.differentiable], grads)
    return launches


def measured(contract: Contract, bound: Bound, generator: torch.Generator) -> Measured:
    """The figures of one row that its bound speaks of."""
    with assume(bound.architecture):
        launches = recorded(contract, bound, generator)
    floor = bound.floor_bytes
    return Measured(
        launches=len(launches),
        kernels=tuple(launch.kernel for launch in launches),
        passes=device_bytes(launches, bound.smallest) / floor if floor else 0.0,
        flops=dot_flops(launches) / bound.useful_flops if bound.useful_flops else 0.0,
        requested=requested_bytes(launches) / floor if floor else 0.0,
    )
