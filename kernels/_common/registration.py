"""Registration of the kernels' launchers as torch operators: schema, implementation, fake."""

from collections.abc import Callable

import torch
from torch.library import Library, infer_schema, register_fake

from intrasense_fast.kernels._common.plan import planned

# A module's global: an operator lives as long as its library.
_LIBRARY = Library("intrasense_fast", "DEF")


def register(name: str, *, fake: Callable) -> Callable[[Callable], Callable]:
    """Register a launcher as `intrasense_fast::<name>` and return what to call.

    That is the operator while torch traces, and the launcher's plans (plan.py) otherwise.
    `Library.define` + `impl` is the cheapest boundary that torch.compile(fullgraph=True) takes;
    gradients come from the torch.autograd.Function around it. `fake` must allocate with the same
    expressions as the launcher.
    """

    def decorate(launcher: Callable) -> Callable:
        _LIBRARY.define(name + infer_schema(launcher, mutates_args=()))
        for key in ("CUDA", "CPU"):
            _LIBRARY.impl(name, launcher, key)
        register_fake(f"intrasense_fast::{name}", fake, lib=_LIBRARY)
        operator = getattr(torch.ops.intrasense_fast, name).default
        return planned(name, launcher, operator)

    return decorate


def refuse_double_backward(operator: str, instead: str = "use fused=False") -> None:
    """Call first in every backward: a gradient of a gradient would be silently wrong.

    Raises:
        NotImplementedError: gradients of the backward were asked for.
    """
    if torch.is_grad_enabled():
        raise NotImplementedError(
            f"{operator} (fused) has no double backward; "
            f"{instead} where gradients of gradients are needed"
        )
