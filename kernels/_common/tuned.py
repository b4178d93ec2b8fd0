"""Opt-in: configurations measured on this GPU in place of the tables'."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from intrasense_fast.errors import UsageError
from intrasense_fast.kernels._common.configs import KernelConfig

_tuned: dict[str, KernelConfig] = {}
# Counts the changes of what is in use.
_version = 0


def _chosen(asked: str) -> KernelConfig | None:
    return _tuned.get(asked)


# The tuner puts a function of its own here while it times a candidate.
override: Callable[[str], KernelConfig | None] = _chosen


def version() -> int:
    """Another number whenever the configurations in use have changed."""
    return _version


def being_tuned() -> bool:
    """Whether the tuner answers in place of the tables."""
    return override is not _chosen


def question(function: Callable, args: tuple) -> str:
    """A call of a function of some configs.py as text: a tuned configuration answers it."""
    operator = function.__module__.split(".")[-2]
    return f"{operator}.{function.__name__}({', '.join(map(str, args))})"


def tunable(function: Callable[..., KernelConfig]) -> Callable[..., KernelConfig]:
    """A function of a configs.py whose answer `use_tuned_configs` may replace.

    No argument is a batch.
    """

    # Every launch asks: without tuned configurations the answer must cost nothing.
    shipped = functools.cache(function)

    @functools.wraps(function)
    def answer(*args: object) -> KernelConfig:
        if override is _chosen and not _tuned:
            return shipped(*args)
        config = override(question(function, args))
        return shipped(*args) if config is None else config

    return answer


def use_tuned_configs(path: str | os.PathLike[str] | None) -> int:
    """Use the configurations of a file that the tuner wrote; None: the shipped tables.

    The tuner is part of the repository: `python -m benchmarks.tuning --save FILE` in a clone.
    Holds for the whole process, from the next call of an operator on. Results stay within the same
    error budgets, but sums may be added in another order.

    Returns:
        How many configurations are in use.

    Raises:
        UsageError: the file cannot be read, is no such file, or is of another GPU or another
            version of Triton.
    """
    global _version
    _tuned.clear()
    _version += 1
    if path is None:
        return 0
    import triton

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        made_on, made_with = content["gpu"], content["triton"]
        found = {
            key: KernelConfig(row["blocks"], int(row["num_warps"]), int(row["num_stages"]))
            for key, row in content["configs"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no file of tuned configurations ({error}); "
            "make one in a clone of the repository: python -m benchmarks.tuning --save FILE"
        ) from error
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    if (made_on, made_with) != (here, triton.__version__):
        raise UsageError(
            f"{path} was tuned on {made_on} with Triton {made_with}; "
            f"here: {here}, Triton {triton.__version__}; tune again"
        )
    _tuned.update(found)
    _version += 1
    return len(_tuned)
