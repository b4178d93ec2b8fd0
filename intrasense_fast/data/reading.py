"""How every command reads files: --max-pixels, --levels, --mask-values, --pairs, and what they
mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intrasense_fast.data.images import MAX_PIXELS
from intrasense_fast.data.mask_values import Value, parse_values
from intrasense_fast.data.patterns import check_pattern
from intrasense_fast.errors import UsageError

# Decoders refuse more.
MOST_PIXELS = 2**30
MOST_LEVELS = 65535
# Millimetres a pixel: more is no ultrasound.
MOST_SPACING = 100.0

HELP = {
    "max_pixels": "refuse pictures of more pixels, by their header (default 100 million)",
    "levels": "value of white where images do not use their type's range, such as 4095 for 12 bits "
    "(default: the largest value of the type)",
    "mask_values": "values of a mask that are lesion, such as 1,2 or '#800000' (default: one rule "
    "decided over all masks, see verify)",
    "spacing": "millimetres a pixel of pictures that do not say it, as DICOM files do: 0.1, or "
    "between rows and between columns, 0.12,0.1",
    "pairs": "how files pair where no layout fits: 'Image_{id}.png' 'mask_{id}.png'; also with "
    "folders, {label}, {case}, and * for several masks an image",
}


@dataclass(frozen=True)
class ReadingOptions:
    """What may be said of a data set's files.

    Attributes:
        max_pixels: pictures of more are refused, by their header.
        levels: the value of white in images of more levels; None for the largest of their type.
        mask_values: the mask values that are lesion; None for the rule of `decide`.
        pairs: patterns of an image and of its masks, instead of a layout.
        spacing: millimetres between rows and between columns of pictures that do not say it.
    """

    max_pixels: int = MAX_PIXELS
    levels: int | None = None
    mask_values: tuple[Value, ...] | None = None
    pairs: tuple[str, str] | None = None
    spacing: tuple[float, float] | None = None


DEFAULT = ReadingOptions()


def reading_options(
    max_pixels: int | None = None,
    levels: int | None = None,
    mask_values: str | None = None,
    pairs: Sequence[str] | None = None,
    spacing: str | None = None,
) -> ReadingOptions:
    """Options from what the command line or a run's record holds; None is the default.

    Raises:
        UsageError: an impossible value; the message names its flag.
    """
    if max_pixels is not None and not 1 <= max_pixels <= MOST_PIXELS:
        raise UsageError(f"--max-pixels must be from 1 to {MOST_PIXELS}, got {max_pixels}")
    if levels is not None and not 1 <= levels <= MOST_LEVELS:
        raise UsageError(f"--levels must be from 1 to {MOST_LEVELS}, got {levels}")
    chosen = None
    if pairs:
        if len(pairs) != 2:
            raise UsageError(
                f"--pairs needs two patterns, of an image and a mask, got {len(pairs)}"
            )
        chosen = (pairs[0], pairs[1])
        check_pattern(chosen[0], "image")
        check_pattern(chosen[1], "mask")
    values = parse_values(mask_values) if mask_values else None
    millimetres = parse_spacing(spacing) if spacing else None
    return ReadingOptions(max_pixels or MAX_PIXELS, levels, values, chosen, millimetres)


def parse_spacing(text: str) -> tuple[float, float]:
    """Millimetres between rows and between columns, of "0.1" or "0.12,0.1".

    Raises:
        UsageError: no such text.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    sound = len(values) in (1, 2) and all(0 < value <= MOST_SPACING for value in values)
    if not sound:
        raise UsageError(
            f"--spacing {text}: millimetres a pixel are needed, one number (0.1) or two, between "
            f"rows and between columns (0.12,0.1), above 0 and at most {MOST_SPACING:g}"
        )
    return values[0], values[-1]


def options_of(args: Any) -> ReadingOptions:
    """Options of parsed arguments, or of any object with attributes of these names; errors as
    above."""
    return reading_options(
        getattr(args, "max_pixels", None),
        getattr(args, "levels", None),
        getattr(args, "mask_values", None),
        getattr(args, "pairs", None),
        getattr(args, "spacing", None),
    )


def stored_levels(config: Mapping[str, Any]) -> int | None:
    """The --levels that a checkpoint was trained with, from its config.json; None without one."""
    levels = config.get("levels")
    return levels if isinstance(levels, int) and not isinstance(levels, bool) else None
