"""Registration of the kernels' launchers as torch operators: schema, implementation, fake."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library, infer_schema, register_fake

_LIBRARY = Library(
    "intrasense_fast", "DEF"
)  # module global: an operator lives as long as its library


def register(name: str, *, fake: Callable) -> Callable[[Callable], Callable]:
    """Register a launcher as `intrasense_fast::<name>` and return the callable operator.

    `Library.define` + `impl` is the cheapest boundary that torch.compile(fullgraph=True) takes; gradients come from the
    torch.autograd.Function around it. `fake` must allocate with the same expressions as the launcher.
    """

    def decorate(launcher: Callable) -> Callable:
        _LIBRARY.define(name + infer_schema(launcher, mutates_args=()))
        for key in ("CUDA", "CPU"):
            _LIBRARY.impl(name, launcher, key)
        register_fake(f"intrasense_fast::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.intrasense_fast, name).default

    return decorate


def refuse_double_backward(operator: str, instead: str = "use fused=False") -> None:
    """Call first in every backward: a gradient of a gradient would be silently wrong, so it is an error."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            f"{operator} (fused) has no double backward; {instead} where gradients of gradients are needed"
        )


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor itself where its last axis is dense, else a contiguous copy: kernels take any other stride."""
    return tensor if tensor.shape[-1] == 1 or tensor.stride(-1) == 1 else tensor.contiguous()
