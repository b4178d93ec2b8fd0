"""The values that mask files hold, and the one rule that reads all of a data set."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from intrasense_fast.errors import UsageError

AMBIGUOUS_FRACTION = 0.01
# Of the masks of a data set that show anything: more ambiguous ones make its rule unknown.
AMBIGUOUS_MASKS = 0.1
MOST_VALUES = 16
_LARGEST_LABEL = 15
_WHITES = (255, 1023, 4095, 16383, 65535)
_NEARLY_WHITE = 0.75
_REMEDY = "say which values are lesion with --mask-values, for instance --mask-values"

Value = int | float | str


class MaskLevels(NamedTuple):
    """The values of one mask file.

    Attributes:
        kind: "uint8", "uint16", "float", or "colour" where pixels are coloured (few colours).
        values: ascending, at most 16 of them (numbers, or "#rrggbb"); None where there are more.
        low, top: the smallest and the largest; 0 of colours.
        between: share of the pixels between an eighth and seven eighths of `top`.
    """

    kind: str
    values: tuple[Value, ...] | None
    low: float
    top: float
    between: float


@dataclass(frozen=True)
class MaskRule:
    """Which pixels are lesion: those of `values` where given, else those above a threshold.

    Attributes:
        thresholds: kind -> the largest value that is background (the smallest lesion for "float").
        values: numbers and "#rrggbb" that are lesion, or None.
        seen: kind -> the values of all masks, for `describe`.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    values: tuple[Value, ...] | None = None
    seen: Mapping[str, str] = field(default_factory=dict, compare=False)

    def threshold(self, kind: str) -> float:
        """Of a kind that the data set did not show: half of the type's range."""
        return self.thresholds.get(kind, {"uint8": 127, "uint16": 32767, "float": 0.5}.get(kind, 0))

    def lesion(self, levels: MaskLevels) -> tuple[Value, ...] | float:
        """The values of a file that are lesion, or the threshold where it holds too many to
        list."""
        if levels.values is None:
            return self.threshold(levels.kind)
        return tuple(value for value in levels.values if self._is_lesion(value, levels.kind))

    def _is_lesion(self, value: Value, kind: str) -> bool:
        if self.values is not None:
            return value in self.values
        if isinstance(value, str):
            return value != "#000000"
        limit = self.threshold(kind)
        return value >= limit if kind == "float" else value > limit

    def describe(self) -> str:
        """One line for `verify`: "0, 255 (uint8): lesion above 127"."""
        chosen = None if self.values is None else ", ".join(map(str, self.values))
        parts = []
        for kind, seen in self.seen.items():
            if chosen is not None:
                rule = f"lesion where {chosen}"
            elif kind == "colour":
                rule = "lesion where not black"
            else:
                limit = self.threshold(kind)
                rule = f"lesion {'from' if kind == 'float' else 'above'} {limit:g}"
            parts.append(f"{seen} ({kind}): {rule}")
        return "; ".join(parts) or "none"


def parse_values(text: str) -> tuple[Value, ...]:
    """The values of --mask-values, "1,2" or "#800000,255".

    Raises:
        UsageError: another form.
    """
    values: list[Value] = []
    for part in text.replace(" ", "").split(","):
        if part.startswith("#") and len(part) == 7:
            try:
                int(part[1:], 16)
            except ValueError:
                break
            values.append(part.lower())
        elif part.isdecimal() and len(part) < 6:
            values.append(int(part))
        else:
            break
    else:
        return tuple(values)
    raise UsageError(f"--mask-values {text!r}: numbers and colours are needed, as 1,2 or #800000")


def decide(
    masks: Sequence[tuple[Path, MaskLevels]], values: tuple[Value, ...] | None = None
) -> tuple[MaskRule, str | None]:
    """The one rule by which these masks are read, and why it is not known (None where it is).

    Files of a kind that hold two values, or labels up to 15: whatever is not 0 is lesion. Others:
    what is above half of white, the largest value of all of them (255, 4095, 65535 ...).

    Args:
        masks: every mask file of a data set and what it holds.
        values: the values that are lesion, where the user says so.
    """
    kinds: dict[str, list[tuple[Path, MaskLevels]]] = defaultdict(list)
    for path, levels in masks:
        kinds[levels.kind].append((path, levels))
    thresholds: dict[str, float] = {}
    seen: dict[str, str] = {}
    reasons: list[str] = []
    for kind in sorted(kinds):
        pooled = _pooled([levels for _, levels in kinds[kind]])
        top = max(levels.top for _, levels in kinds[kind])
        low = min(levels.low for _, levels in kinds[kind])
        shown = [f"{value:g}" if not isinstance(value, str) else value for value in pooled or ()]
        seen[kind] = ", ".join(shown) if pooled else f"{low:g} to {top:g}"
        thresholds[kind] = 0 if kind == "colour" else _threshold(kind, pooled, top)
        rule = MaskRule(thresholds)
        if values is None:
            reason = _ambiguity(rule, kind, kinds[kind], pooled)
            reasons += [reason] if reason else []
    rule = MaskRule(thresholds, values, seen)
    if values is not None and masks and not any(any_lesion(rule, levels) for _, levels in masks):
        held = "; ".join(f"{text} ({kind})" for kind, text in seen.items())
        listed = ",".join(map(str, values))
        return rule, f"--mask-values {listed}: no mask holds any of them; they hold {held}"
    return rule, "; ".join(reasons) or None


def levels_of(pixels: np.ndarray) -> MaskLevels:
    """The values of decoded mask pixels, (H, W) or coloured (H, W, 3)."""
    if pixels.ndim == 3:
        colours = _colours(pixels)
        if colours is not None:
            return MaskLevels("colour", colours, 0, 0, 0)
        pixels = pixels.max(axis=2)
    if pixels.dtype.kind == "f":
        values, counts = np.unique(pixels, return_counts=True)
        kind = "float"
    elif np.count_nonzero(pixels) == np.count_nonzero(pixels == (top_value := pixels.max())):
        # Nearly every mask: 0 and one value, found without a histogram.
        distinct = np.unique([int(pixels.min()), int(top_value)])
        two = tuple(distinct.tolist())
        return MaskLevels(pixels.dtype.name, two, float(two[0]), float(two[-1]), 0.0)
    else:
        bins = int(np.iinfo(pixels.dtype).max) + 1
        counted = cv2.calcHist([np.ascontiguousarray(pixels)], [0], None, [bins], [0, bins])
        histogram = np.ravel(counted)
        held: np.ndarray = np.flatnonzero(histogram)
        values, counts = held, histogram[held]
        kind = pixels.dtype.name
    low, top = float(values[0]), float(values[-1])
    middle = (values > top / 8) & (values < top * 7 / 8)
    few = tuple(values.tolist()) if len(values) <= MOST_VALUES else None
    return MaskLevels(kind, few, low, top, float(counts[middle].sum() / pixels.size))


def _pooled(masks: Iterable[MaskLevels]) -> tuple[Value, ...] | None:
    values: set[Value] = set()
    for levels in masks:
        if levels.values is None:
            return None
        values |= set(levels.values)
        if len(values) > MOST_VALUES:
            return None
    return tuple(sorted(values, key=lambda value: (str(type(value)), value)))


def _threshold(kind: str, pooled: tuple[Value, ...] | None, top: float) -> float:
    if kind == "float":
        return 0.5 if top <= 1 else 127.5 if top <= 255 else top / 2
    if pooled is not None and (len([value for value in pooled if value]) < 2 or _labels(top)):
        return 0
    white = next(white for white in _WHITES if white >= top)
    return float(white // 2 if top > _NEARLY_WHITE * white else top // 2)


def _labels(top: float) -> bool:
    return top <= _LARGEST_LABEL


def _ambiguity(
    rule: MaskRule,
    kind: str,
    masks: Sequence[tuple[Path, MaskLevels]],
    pooled: tuple[Value, ...] | None,
) -> str | None:
    example = masks[0][0].name
    if kind == "colour":
        if pooled is None or "#000000" in pooled or len(pooled) < 2:
            return None
        return (
            f"masks of the colours {', '.join(map(str, pooled))} and no black background "
            f"({example}): {_REMEDY} '{pooled[-1]}'"
        )
    low, top = (min(m.low for _, m in masks), max(m.top for _, m in masks))
    if kind != "float" and low > top / 8 and low < top:
        held = f"masks of values from {low:g} to {top:g}, none of them 0 ({example})"
        return f"{held}: {_REMEDY} {top:g}"
    if rule.threshold(kind) == 0:
        return None
    shown = [(path, m) for path, m in masks if m.top > 0]
    faint = [(path, m) for path, m in shown if not any_lesion(rule, m) and two_valued(m)]
    # Soft edges have many values in between, a third level has one.
    grey = [(p, m) for p, m in shown if m.between > AMBIGUOUS_FRACTION and m.values is not None]
    for doubtful, what in (
        (faint, "hold one value that is background in the others"),
        (grey, "have many pixels near neither black nor white"),
    ):
        if len(doubtful) > 1 and len(doubtful) > AMBIGUOUS_MASKS * len(shown):
            path, first = doubtful[0]
            held = ", ".join(map(str, first.values)) if first.values else f"up to {first.top:g}"
            return (
                f"{len(doubtful)} of {len(shown)} masks {what} ({path.name}: {held}): {_REMEDY} "
                f"{top:g}"
            )
    return None


def any_lesion(rule: MaskRule, levels: MaskLevels) -> bool:
    """Does a file hold anything that is lesion by the rule?"""
    lesion = rule.lesion(levels)
    if isinstance(lesion, tuple):
        return bool(lesion)
    return levels.top >= lesion if levels.kind == "float" else levels.top > lesion


def two_valued(levels: MaskLevels) -> bool:
    """Does a file hold one value beside 0?"""
    return levels.values is not None and len([value for value in levels.values if value]) == 1


def colour_codes(pixels: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) as numbers 0xrrggbb, uint32 (H, W)."""
    red, green, blue = (pixels[:, :, i].astype(np.uint32) for i in range(3))
    return (red << 16) | (green << 8) | blue


def _colours(pixels: np.ndarray) -> tuple[str, ...] | None:
    """The colours of an 8-bit mask, "#rrggbb" ascending; None where there are more than 16."""
    if pixels.dtype != np.uint8:
        return None
    codes = np.unique(colour_codes(pixels))
    return tuple(f"#{code:06x}" for code in codes) if len(codes) <= MOST_VALUES else None
