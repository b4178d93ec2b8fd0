"""The options of IntraSense-Net: each is declared once, with its meaning and its check."""

import math
from dataclasses import dataclass, fields
from typing import Any

from intrasense_fast.fields import (
    Need,
    are_counts,
    first_fault,
    is_count,
    number,
    one_of,
    option,
    plain,
)
from intrasense_fast.kernels.channel_decoupling.api import SQUEEZES
from intrasense_fast.kernels.entropy_whitening.api import ENTROPY_SCALES
from intrasense_fast.networks.encoder import ENCODERS, STRIDES

REFINABLE_STRIDES = (4, 8, 16, 32)
PLACEMENTS = ("skips", "trunk")
MODULE_NORMS = ("batch", "none")

IN_CHANNELS = Need(lambda value: is_count(value) and value in (1, 3), "1 or 3")
ENCODER = one_of(tuple(ENCODERS))
NUM_CLASSES = Need(is_count, "an integer >= 1 and below 2**31")
DECODER_CHANNELS = Need(
    lambda value: are_counts(value) and len(value) == len(STRIDES),
    "five integers >= 1 and below 2**31",
)
_STRIDES = Need(
    lambda value: are_counts(value) and set(value) <= set(REFINABLE_STRIDES),
    f"some of {REFINABLE_STRIDES}",
)
_DISTINCT = Need(lambda value: len(set(value)) == len(value), "free of duplicates")
_SWITCH = Need(lambda value: isinstance(value, bool), "True or False")
_ODD = Need(
    lambda value: is_count(value) and value % 2 == 1,
    "an odd integer >= 1 and below 2**31, such as 3, 5 or 7",
)
_THRESHOLD = Need(lambda value: 0 <= value < math.inf, "finite and >= 0, a number such as 0.5")
_POSITIVE = Need(lambda value: 0 < value < math.inf, "finite and > 0, a number such as 10.0")
_FINITE = Need(lambda value: abs(value) < math.inf, "finite, a number such as 0.01")


@dataclass(frozen=True)
class NetworkOptions:
    """The options of IntraSense-Net beyond its channels. The constructor, config.json, flags and
    errors are made from it.
    """

    encoder: str = option(
        "resnet50", "which ResNet; resnet18 is for laptops", choices=tuple(ENCODERS)
    )
    refine_strides: tuple[int, ...] = option(
        (8, 16, 32), "where GCP and CDR act: any of 4, 8, 16, 32; may be empty", _STRIDES, _DISTINCT
    )
    placement: str = option(
        "skips",
        "skips: only what the decoder receives is refined; trunk: the next encoder stage too",
        choices=PLACEMENTS,
    )
    gcp: bool = option(True, "global-local collaborative perception (Eq. 1-7)", _SWITCH)
    cdr: bool = option(
        True, "channel decoupling and re-weighting (Eq. 8-12), and its loss", _SWITCH
    )
    entropy_normalization: bool = option(
        True, "whitening inside GCP (Eq. 6-7); without it: Table 4's GCP-dagger", _SWITCH
    )
    entropy_scale: str = option(
        "score", "what Eq. 6 compares with its threshold", choices=ENTROPY_SCALES
    )
    entropy_threshold: float = option(0.5, "tau of Eq. 6", _THRESHOLD)
    window: int = option(7, "side of the whitening window of Eq. 7 in positions", _ODD)
    ridge: float = option(10.0, "regularisation of Eq. 8", _POSITIVE)
    squeeze: str = option("input", "what Eq. 10 averages", choices=SQUEEZES)
    alpha: float = option(0.01, "weight of the rank gap in Eq. 9", _FINITE)
    beta: float = option(0.01, "weight of the distance in Eq. 9", _FINITE)
    decoder_channels: tuple[int, ...] = option(
        (256, 128, 64, 32, 16),
        "output channels of the five decoder blocks, deepest first",
        DECODER_CHANNELS,
        nargs=len(STRIDES),
    )
    module_norm: str = option(
        "batch",
        "normalisation inside GCP and CDR; none: the equations' letter, which does not stay alive",
        choices=MODULE_NORMS,
    )


def checked_options(owner: str, options: dict[str, Any], kind: type = NetworkOptions) -> Any:
    """A dataclass of options, its values checked and made Python's own.

    Args:
        owner: the class whose options they are; errors begin with it.
        options: by name; what is missing takes its default.
        kind: the dataclass.

    Raises:
        TypeError: an option that there is not.
        ValueError: an option of another type or outside its range.
    """
    plain_options = {name: plain(value) for name, value in options.items()}
    for item in fields(kind):
        if item.name not in plain_options:
            continue
        value = plain_options[item.name]
        if item.type is float:
            plain_options[item.name] = number(value)
        if item.type is bool and not isinstance(value, tuple) and value in (True, False):
            plain_options[item.name] = bool(value)
    known = [item.name for item in fields(kind)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"{owner}: there is no option {unknown[0]!r}; known: {', '.join(known)}")
    checked = kind(**plain_options)
    fault = first_fault(checked)
    if fault is not None:
        name, needed = fault
        raise ValueError(f"{owner}: {name} must be {needed}, got {options[name]!r}")
    return checked


def as_json(options: Any) -> dict[str, Any]:
    """A dataclass of options as JSON holds it: tuples are lists."""
    values = {item.name: getattr(options, item.name) for item in fields(options)}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def checked_channels(owner: str, in_channels: Any, num_classes: Any) -> tuple[int, int]:
    """The channels of the image and of the logits, which every network has.

    Raises:
        ValueError: in_channels is not 1 or 3, or num_classes no integer >= 1.
    """
    channels, classes = plain(in_channels), plain(num_classes)
    if not IN_CHANNELS.fits(channels):
        raise ValueError(f"{owner}: in_channels must be {IN_CHANNELS.text}, got {in_channels!r}")
    if not NUM_CLASSES.fits(classes):
        raise ValueError(f"{owner}: num_classes must be {NUM_CLASSES.text}, got {num_classes!r}")
    return channels, classes


def checked_fused(fused: Any) -> bool | None:
    """`fused` if it is True, False or None.

    Raises:
        ValueError: it is something else, 0 and 1 included.
    """
    choice = plain(fused)
    if choice is not None and not isinstance(choice, bool):
        raise ValueError(f"IntraSenseNet: fused must be True, False or None, got {fused!r}")
    return choice
