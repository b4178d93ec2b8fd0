"""Distances between the surfaces of two masks, in pixels or in millimetres."""

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

# Distances to columns that are held at a time, 32 MB in float64.
_AT_ONCE = 1 << 22


def surface_distances(
    prediction: Mask, target: Mask, spacing: tuple[float, float] | None = None
) -> NDArray[np.float64]:
    """Distances to the other mask's surface, of all surface pixels of `prediction`, then of
    `target`.

    Args:
        prediction, target: (H, W), neither empty.
        spacing: millimetres between rows and between columns; None gives pixels.
    """
    surfaces = surface(prediction), surface(target)
    if spacing is not None and spacing[0] != spacing[1]:
        one, other = surfaces
        return np.concatenate([_nearest(one, other, spacing), _nearest(other, one, spacing)])
    to_prediction, to_target = (
        cv2.distanceTransform((~s).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for s in surfaces
    )
    distances = np.concatenate([to_target[surfaces[0]], to_prediction[surfaces[1]]])
    # Squared distances are integers: this takes the float32 rounding out.
    pixels = np.sqrt(np.rint(distances.astype(np.float64) ** 2))
    return pixels if spacing is None else pixels * spacing[0]


def surface(mask: Mask) -> Mask:
    """The pixels of a mask that have a background pixel among their 4 neighbours or lie at the
    border."""
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (inner == 0)


def _nearest(points: Mask, others: Mask, spacing: tuple[float, float]) -> NDArray[np.float64]:
    """Distance of each of `points` to the nearest of `others`, on pixels that are not square.

    First along each column, then over the columns: exact, as squared distances add.
    """
    down, across = spacing
    columns = np.flatnonzero(others.any(axis=0))
    rows_off = _along_columns(others[:, columns]) * down
    ys, xs = np.nonzero(points)
    nearest = np.empty(len(ys))
    step = max(1, _AT_ONCE // len(columns))
    for start in range(0, len(ys), step):
        part = slice(start, start + step)
        columns_off = (xs[part, None] - columns) * across
        nearest[part] = np.hypot(rows_off[ys[part]], columns_off).min(axis=1)
    return nearest


def _along_columns(mask: Mask) -> NDArray[np.float64]:
    """Rows from each pixel to the nearest of its column in the mask; every column has one."""
    rows = np.arange(len(mask), dtype=np.float64)[:, None]
    above = np.maximum.accumulate(np.where(mask, rows, -np.inf), axis=0)
    below = np.minimum.accumulate(np.where(mask, rows, np.inf)[::-1], axis=0)[::-1]
    return np.minimum(rows - above, below - rows)
