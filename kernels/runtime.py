"""What callers outside this folder may use, beside the operators themselves.

`fused_status` is the one predicate behind dispatch, error texts and test skips: can the Triton
kernels serve this tensor? The rest are the operators' conventions: dtypes, layouts, autocast.
"""

import contextlib
import importlib.util
import os
import sys
from typing import NamedTuple

import torch
from torch import Tensor

from intrasense_fast.kernels._common import plan
from intrasense_fast.kernels._common.layout import as_rows, from_rows, without_autocast
from intrasense_fast.kernels._common.plain import exporting, transforming
from intrasense_fast.kernels._common.plan import PlanStatus
from intrasense_fast.kernels._common.precision import DTYPES, statistics_dtype
from intrasense_fast.kernels._common.tuned import use_tuned_configs

__all__ = [
    "DTYPES",
    "FUSED_DTYPES",
    "FusedStatus",
    "FusedUnavailableError",
    "PlanStatus",
    "as_rows",
    "exporting",
    "from_rows",
    "fused_status",
    "interpreting",
    "launch_plan_status",
    "statistics_dtype",
    "transforming",
    "use_fused",
    "use_launch_plans",
    "use_tuned_configs",
    "without_autocast",
]

# Looked up once: torch.compile of 2.11 cannot trace the search.
_TRITON = importlib.util.find_spec("triton") is not None

FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class FusedUnavailableError(RuntimeError):
    """`fused=True` and the Triton kernels cannot run: the message says why and what to do."""


class FusedStatus(NamedTuple):
    """Whether the Triton kernels can serve a tensor, and the reason in one sentence."""

    available: bool
    reason: str


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter.

    They do where TRITON_INTERPRET=1 was set before Triton was first imported.
    """
    # torch.compile traces the environment, but no table of modules.
    language = None if torch.compiler.is_compiling() else sys.modules.get("triton.language")
    if language is not None:
        # Triton has decided when it was imported, whatever the environment says now.
        return type(getattr(language, "sum", None)).__name__ == "InterpretedFunction"
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def fused_status(tensor: Tensor) -> FusedStatus:
    """Say whether the Triton kernels can serve `tensor` (its device and dtype), and why or why not.

    Args:
        tensor: any tensor; only its device and dtype are looked at.

    Returns:
        FusedStatus(available, reason). On a CPU the kernels run only in Triton's interpreter, a
        correctness check that `fused=True` alone starts: `fused=None` stays eager there.
    """
    if not tensor.dtype.is_floating_point:
        return FusedStatus(False, f"the kernels take floating-point tensors, got {tensor.dtype}")
    if not _TRITON:
        return FusedStatus(False, "Triton is not installed: pip install triton (Linux)")
    device = tensor.device.type
    if device == "cuda":
        if tensor.dtype not in FUSED_DTYPES:
            return FusedStatus(
                False,
                f"{tensor.dtype} runs eager on a GPU; "
                "the kernels take float32, float16 and bfloat16",
            )
        plans = "with" if plan.enabled() else "without"
        return FusedStatus(True, f"Triton kernels on {tensor.device}, {plans} launch plans")
    if device == "cpu":
        if not interpreting():
            return FusedStatus(
                False,
                "the kernels need a CUDA or ROCm GPU; "
                "to check them on a CPU set TRITON_INTERPRET=1 before Python starts",
            )
        return FusedStatus(
            True, "Triton interpreter on the CPU (a check of correctness, not of speed)"
        )
    return FusedStatus(
        False, f"the kernels need a CUDA or ROCm GPU, the tensor is on {tensor.device}"
    )


def use_fused(fused: bool | None, tensor: Tensor, operator: str) -> bool:
    """Resolve the public `fused=` argument for one call.

    Args:
        fused: True, False or None, as in every operator.
        tensor: the operator's feature tensor.
        operator: its public name, for the message.

    Raises:
        FusedUnavailableError: `fused=True` and the kernels cannot serve `tensor`.
        TypeError: `fused` is not True, False or None.
    """
    if fused is False:
        return False
    if transforming() and (fused is None or fused is True):
        if fused:
            raise FusedUnavailableError(
                f"{operator}(fused=True): the kernels take no transform of torch.func and no "
                "forward-mode differentiation. Use fused=None to run the eager path there."
            )
        return False
    # The usual case, without the words for it.
    served = _TRITON and tensor.is_cuda and tensor.dtype in FUSED_DTYPES
    if served and (fused is None or fused is True):
        return True
    if fused is None:
        return tensor.device.type == "cuda" and fused_status(tensor).available
    if fused is not True:
        raise TypeError(f"{operator}: fused must be True, False or None, got {fused!r}")
    status = fused_status(tensor)
    if not status.available:
        raise FusedUnavailableError(
            f"{operator}(fused=True): {status.reason}. Use fused=None to run the eager path here."
        )
    return True


def use_launch_plans(enabled: bool) -> contextlib.AbstractContextManager[object]:
    """Turn launch plans on (as they are from the start) or off, for debugging.

    With plans an operator's second call with the same shapes starts its compiled kernels directly;
    without, every call goes through torch.library and Triton's own launcher. Results are the same
    to the bit. Holds for the whole process, autograd's threads included, from now on; as a context
    manager, until the end of the block. Either way the plans that there are are forgotten.

        with use_launch_plans(False):
            loss.backward()

    Raises:
        TypeError: enabled is not True or False.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"use_launch_plans: enabled must be True or False, got {enabled!r}")
    before = plan.enable(enabled)
    until_the_end = contextlib.ExitStack()
    until_the_end.callback(plan.enable, before)
    return until_the_end


def launch_plan_status() -> dict[str, PlanStatus]:
    """Which way the fused calls of this process went, forward and backward by name.

    An operator appears once its kernels have been imported.
    """
    return plan.plan_status()
