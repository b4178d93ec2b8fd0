"""What the tuner asks about one kernel."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from intrasense_fast.kernels._common.configs import SHARED_LIMIT, KernelConfig, architecture

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """One function of an operator's configs.py, and what may take the place of its answers.

    shapes: which to time. candidates(shape): configurations to try. start(shape): makes tensors and
    returns a call of the launcher that asks the function.
    """

    function: str
    shapes: tuple[Shape, ...]
    candidates: Callable[[Shape], Iterable[KernelConfig]]
    start: Callable[[Shape], Callable[[], object]]


def shared_limit() -> int:
    """Bytes of shared memory that a program may use on this GPU."""
    return SHARED_LIMIT[architecture(torch.device("cuda" if torch.cuda.is_available() else "cpu"))]
