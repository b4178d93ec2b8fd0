"""Where the scan lies in an ultrasound picture, and the size of its pixels (PS3.3 C.8.5.5)."""

import math
from collections.abc import Sequence
from typing import Any

from intrasense_fast.data.header import HeaderError
from intrasense_fast.data.region import Region

Spacing = tuple[float, float]

_TWO_DIMENSIONAL, _TISSUE, _CENTIMETRES = 1, 1, 3
_MM_PER_CM = 10.0
# Scanners give the last column, or the first beyond it.
_BEYOND = 1
_SAME = 1e-3


def scan_region(dataset: Any, width: int, height: int) -> tuple[Region | None, Spacing | None, str]:
    """The rectangle of the B-mode scan, millimetres a pixel (down, across), and what is said of it.

    Regions of format 2D and type tissue count; several are taken together, as the smallest
    rectangle that holds them, and have a spacing where theirs agree. None is the whole picture, or
    an unknown spacing. Without such a region PixelSpacing gives the spacing.

    Raises:
        HeaderError: a region without its corners or without pixels.
    """
    items = [item for item in dataset.get("SequenceOfUltrasoundRegions") or () if _is_scan(item)]
    if not items:
        return None, _pixel_spacing(dataset), ""
    corners = [_corners(item) for item in items]
    left, top = (min(corner[i] for corner in corners) for i in (0, 1))
    right, bottom = (max(corner[i] for corner in corners) for i in (2, 3))
    if right >= width + _BEYOND or bottom >= height + _BEYOND:
        # The picture was made smaller or cut after the scanner wrote its regions.
        return (
            None,
            None,
            f"its scan region ({left}, {top}) to ({right}, {bottom}) does not fit the {width} x "
            f"{height} picture: the whole is taken, millimetres are unknown (--spacing gives them)",
        )
    right, bottom = min(right, width - 1), min(bottom, height - 1)
    region = Region(left, top, right - left + 1, bottom - top + 1)
    if region.width < 1 or region.height < 1:
        raise HeaderError(f"corrupt: its scan region from ({left}, {top}) holds no pixels")
    whole = region.shape == (height, width)
    spacing = _common([_spacing(item) for item in items])
    return None if whole else region, spacing or _pixel_spacing(dataset), ""


def _is_scan(item: Any) -> bool:
    return (
        item.get("RegionSpatialFormat") == _TWO_DIMENSIONAL
        and item.get("RegionDataType") == _TISSUE
    )


def _corners(item: Any) -> tuple[int, int, int, int]:
    """Left, top, right, bottom; the last two within the region."""
    keywords = ("MinX0", "MinY0", "MaxX1", "MaxY1")
    values = [item.get(f"RegionLocation{keyword}") for keyword in keywords]
    if not all(isinstance(value, int) for value in values):
        raise HeaderError("corrupt: a scan region lacks its corners")
    left, top, right, bottom = (int(value) for value in values)
    if right < left or bottom < top:
        raise HeaderError(f"corrupt: its scan region from ({left}, {top}) holds no pixels")
    return left, top, right, bottom


def _spacing(item: Any) -> Spacing | None:
    units = [item.get(f"PhysicalUnits{axis}Direction") for axis in "YX"]
    if units != [_CENTIMETRES, _CENTIMETRES]:
        return None
    # A delta is negative where its axis runs against the rows.
    return _positive([item.get(f"PhysicalDelta{axis}") for axis in "YX"], _MM_PER_CM)


def _pixel_spacing(dataset: Any) -> Spacing | None:
    """Of the attribute PixelSpacing: millimetres between rows, then between columns."""
    return _positive(dataset.get("PixelSpacing"), 1.0)


def _positive(values: Any, times: float) -> Spacing | None:
    if not isinstance(values, Sequence) and not hasattr(values, "__len__"):
        return None
    if len(values) != 2 or any(value is None for value in values):
        return None
    down, across = (abs(float(value)) * times for value in values)
    sound = all(math.isfinite(value) and value > 0 for value in (down, across))
    return (down, across) if sound else None


def _common(spacings: Sequence[Spacing | None]) -> Spacing | None:
    first = spacings[0]
    if first is None:
        return None
    for other in spacings[1:]:
        if other is None or any(
            not math.isclose(one, two, rel_tol=_SAME) for one, two in zip(first, other, strict=True)
        ):
            return None
    return first
