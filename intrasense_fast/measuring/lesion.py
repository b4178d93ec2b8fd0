"""What a sonographer measures of a lesion: area, longest axis, the one across it, taller than wide.

All of them are of the outline that the pixels' outer edges draw, and of the largest component.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike

from intrasense_fast.measuring.components import largest_component

MILLIMETRES, PIXELS = "mm", "px"
# Of a longest axis: others of this share of it are as long, but for rounding.
_AS_LONG = 1 - 1e-9

Spacing = tuple[float, float]


@dataclass(frozen=True)
class Measurements:
    """Of the largest component of a mask, in `unit`; nan where the mask is empty.

    Attributes:
        area: of its pixels, in the square of the unit.
        longest_axis: the maximum Feret diameter, the largest distance of two points of its outline.
        cross_axis: its extent perpendicular to the longest axis.
        taller_than_wide: height over width of its bounding box; in ultrasound the rows go into the
            depth, so antero-posterior over transverse. Above 1 it is taller than wide.
        unit: "mm" where the spacing is known, else "px"; a ratio in "px" takes pixels as square.
        components: how many the mask has (8-connected).
    """

    area: float
    longest_axis: float
    cross_axis: float
    taller_than_wide: float
    unit: str
    components: int


def measure(mask: ArrayLike, spacing: Spacing | None = None) -> Measurements:
    """Measure the largest component of a mask.

    Args:
        mask: (H, W), bool, or numbers of which 0 is background.
        spacing: millimetres between rows and between columns; None measures in pixels.

    Raises:
        ValueError: not two-dimensional, or a spacing that is not two positive numbers.
    """
    whole = np.asarray(mask) != 0
    if whole.ndim != 2:
        raise ValueError(f"measure: a mask (H, W) is needed, got shape {whole.shape}")
    down, across = checked_spacing(spacing) or (1.0, 1.0)
    unit = PIXELS if spacing is None else MILLIMETRES
    component, count = largest_component(whole)
    if not count:
        return Measurements(np.nan, np.nan, np.nan, np.nan, unit, 0)
    ys, xs = np.nonzero(component)
    height, width = (float(np.ptp(places) + 1) for places in (ys, xs))
    longest, cross = _axes(_corner_hull(component) * (across, down))
    return Measurements(
        area=len(ys) * down * across,
        longest_axis=longest,
        cross_axis=cross,
        taller_than_wide=height * down / (width * across),
        unit=unit,
        components=count,
    )


def checked_spacing(spacing: Spacing | None) -> Spacing | None:
    """The spacing as it is.

    Raises:
        ValueError: not two positive finite numbers.
    """
    if spacing is None:
        return None
    if len(spacing) != 2 or not all(np.isfinite(value) and value > 0 for value in spacing):
        raise ValueError(
            f"spacing must be two positive numbers, millimetres between rows and between columns, "
            f"got {spacing}"
        )
    return spacing


def _corner_hull(component: np.ndarray) -> np.ndarray:
    """Vertices (N, 2), x and y, of the convex hull of the pixels' corners, in order."""
    contours, _ = cv2.findContours(
        component.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    centres = np.concatenate(contours).reshape(-1, 2)
    corners = np.concatenate([centres + (x, y) for x in (0, 1) for y in (0, 1)])
    hull = cv2.convexHull(corners.astype(np.int32)).reshape(-1, 2)
    return hull.astype(np.float64)


def _axes(hull: np.ndarray) -> tuple[float, float]:
    """The largest distance of two vertices, and the largest extent across a pair that far apart."""
    between = hull[:, None] - hull[None]
    distances = np.hypot(between[..., 0], between[..., 1])
    longest = float(distances.max())
    pairs = between[np.triu(distances >= longest * _AS_LONG)]
    normals = np.stack([-pairs[:, 1], pairs[:, 0]]) / longest
    extents = np.ptp(hull @ normals, axis=0)
    return longest, float(extents.max())
