"""Checks of the operators' arguments: an error says what came, what is needed, what to do."""

import functools
import numbers
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from intrasense_fast.kernels._common.plain import plain_steps
from intrasense_fast.kernels._common.precision import DTYPES

# Signatures a check remembers; beyond, it forgets them all.
MOST_SIGNATURES = 1024


def once_a_signature(check: Callable[..., None]) -> Callable[..., None]:
    """A check of an operator's arguments that is not repeated for a signature that passed it.

    The signature: type, shape, dtype, device and layout of tensors, type and value of options.
    The check may look at nothing else, and takes its arguments by position.
    """
    passed: set[tuple] = set()

    @functools.wraps(check)
    def checked(*args: object) -> None:
        if torch.compiler.is_compiling() or plain_steps():
            check(*args)
            return
        signature = _signature(args)
        try:
            if signature in passed:
                return
        except TypeError:
            # An option that cannot be hashed cannot be remembered.
            check(*args)
            return
        check(*args)
        if signature:
            if len(passed) >= MOST_SIGNATURES:
                passed.clear()
            passed.add(signature)

    return checked


def _signature(args: tuple) -> tuple:
    """What a check sees of its arguments; () where a subclass of Tensor may show something else."""
    found: list[object] = []
    for arg in args:
        kind = type(arg)
        if kind is Tensor or kind is torch.nn.Parameter:
            found += (arg.shape, arg.dtype, arg.device, arg.layout)
        elif isinstance(arg, Tensor):
            return ()
        else:
            found += (kind, arg)
    return tuple(found)


def shape_of(tensor: Tensor) -> str:
    """The shape as errors show it: (2, 3)."""
    return _shown(tensor.shape)


def _shown(sizes: Iterable[int]) -> str:
    return "(" + ", ".join(str(size) for size in sizes) + ")"


def check_tensors(operator: str, **tensors: Tensor) -> None:
    """Check that all arguments are dense float tensors on one device.

    Raises:
        TypeError: an argument that is no tensor, or a DTensor.
        ValueError: another dtype, a sparse layout, or another device than the first one's.
    """
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{operator}: {name} must be a tensor, got {type(tensor).__name__}")
        if hasattr(tensor, "full_tensor"):
            raise TypeError(
                f"{operator}: {name} is a {type(tensor).__name__}, of which this process holds a "
                "part; call the module that owns it, whose forward gathers it, or give "
                "its .full_tensor()"
            )
        if not tensor.dtype.is_floating_point:
            raise ValueError(
                f"{operator}: {name} must be floating point, got {tensor.dtype}; "
                "convert it with .float()"
            )
        if tensor.dtype not in DTYPES:
            needed = "float16, bfloat16, float32 or float64"
            raise ValueError(
                f"{operator}: {name} must be {needed}, got {tensor.dtype}; "
                "convert it with .to(torch.bfloat16)"
            )
        if tensor.layout != torch.strided:
            raise ValueError(
                f"{operator}: {name} must be dense, got {tensor.layout}; "
                "convert it with .to_dense()"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{operator}: {name} is on {tensor.device} and {first_name} on {first.device}; "
                "move them together with .to()"
            )


def check_shape(
    operator: str, name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str
) -> None:
    """Raise ValueError unless `tensor` has the shape `expected`; `meaning` names its axes."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(
            f"{operator}: {name} must have shape {meaning} = {_shown(expected)}, "
            f"got {shape_of(tensor)}"
        )


def check_dim(operator: str, name: str, tensor: Tensor, dim: int, meaning: str) -> None:
    """Raise ValueError unless `tensor` has `dim` axes."""
    if tensor.dim() != dim:
        raise ValueError(f"{operator}: {name} must have shape {meaning}, got {shape_of(tensor)}")


def check_number(operator: str, **values: float) -> None:
    """Raise TypeError for an option that is no real number."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{operator}: {name} must be a number, got {value!r}")


def check_positive(operator: str, **sizes: int) -> None:
    """Raise ValueError for a size of zero."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{operator}: {name} must be at least 1, got {size}")


def check_same_dtype(operator: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have the first one's dtype."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.dtype != first.dtype:
            raise ValueError(
                f"{operator}: {name} is {tensor.dtype} and {first_name} is {first.dtype}; "
                "convert one with .to()"
            )
