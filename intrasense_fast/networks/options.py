"""The options of the network: what each may be, as plain Python values that JSON can hold."""

import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from intrasense_fast.networks.encoder import STRIDES
from intrasense_fast.kernels.channel_decoupling.api import SQUEEZES
from intrasense_fast.kernels.entropy_whitening.api import ENTROPY_SCALES

REFINABLE_STRIDES = (4, 8, 16, 32)
PLACEMENTS = ("skips", "trunk")
MODULE_NORMS = ("batch", "none")


def checked_options(**options: Any) -> dict[str, Any]:
    """The constructor's options of an `IntraSenseNet`, checked: numpy's values and tuples become Python's numbers and lists.

    Raises:
        ValueError: an option of another type or outside its range.
    """
    found = {name: _plain(value) for name, value in options.items()}

    def require(fits: bool, name: str, needed: str) -> None:
        if not fits:
            raise ValueError(f"IntraSenseNet: {name} must be {needed}, got {options[name]!r}")

    def counts(name: str) -> bool:
        return isinstance(found[name], list) and all(map(_is_count, found[name]))

    require(
        _is_count(found["in_channels"]) and found["in_channels"] in (1, 3), "in_channels", "1 or 3"
    )
    require(_is_count(found["num_classes"]), "num_classes", "an integer >= 1 and below 2**31")
    strides = found["refine_strides"]
    strides_fit = counts("refine_strides") and set(strides) <= set(REFINABLE_STRIDES)
    require(strides_fit, "refine_strides", f"some of {REFINABLE_STRIDES}")
    require(len(set(strides)) == len(strides), "refine_strides", "free of duplicates")
    choices = {
        "placement": PLACEMENTS,
        "entropy_scale": ENTROPY_SCALES,
        "squeeze": SQUEEZES,
        "module_norm": MODULE_NORMS,
    }
    for name, known in choices.items():
        require(isinstance(found[name], str) and found[name] in known, name, f"one of {known}")
    for name in ("gcp", "cdr", "entropy_normalization"):
        require(found[name] in (True, False), name, "True or False")
        found[name] = bool(found[name])
    require(
        _is_count(found["window"]) and found["window"] % 2 == 1,
        "window",
        "an odd integer >= 1 and below 2**31, such as 3, 5 or 7",
    )
    for name in ("entropy_threshold", "ridge", "alpha", "beta"):
        found[name] = _number(found[name])
    require(
        0 <= found["entropy_threshold"] < float("inf"),
        "entropy_threshold",
        "finite and >= 0, a number such as 0.5",
    )
    require(0 < found["ridge"] < float("inf"), "ridge", "finite and > 0, a number such as 10.0")
    for name in ("alpha", "beta"):
        require(abs(found[name]) < float("inf"), name, "finite, a number such as 0.01")
    widths_fit = counts("decoder_channels") and len(found["decoder_channels"]) == len(STRIDES)
    require(widths_fit, "decoder_channels", "five integers >= 1 and below 2**31")
    return found


def checked_fused(fused: Any) -> bool | None:
    """`fused` if it is True, False or None.

    Raises:
        ValueError: it is something else, 0 and 1 included.
    """
    found = _plain(fused)
    if found is not None and not isinstance(found, bool):
        raise ValueError(f"IntraSenseNet: fused must be True, False or None, got {fused!r}")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Tensor)):
        return [_plain_scalar(one) for one in value]
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return int(value) if isinstance(value, numbers.Integral) else value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _number(value: Any) -> float:
    """A real number as a float, infinite where it is too large for one; NaN for everything else."""
    try:
        return (
            float(value)
            if isinstance(value, numbers.Real) and not isinstance(value, bool)
            else float("nan")
        )
    except OverflowError:
        return float("inf")
