"""Outlines of masks: COCO JSON, exact to the pixel, and drawn over the picture."""

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from intrasense_fast.files import legible, write_text
from intrasense_fast.measuring.components import components
from intrasense_fast.report.figures import YELLOW, to_rgb

CATEGORY = {"id": 1, "name": "lesion", "supercategory": "finding"}

Point = tuple[int, int]


def outlines(mask: NDArray[np.bool_]) -> list[list[Point]]:
    """The outlines of a mask (H, W) along the edges of its pixels, closed: corners (x, y), each
    once.

    Pixel (x, y) reaches from x to x + 1. Lesion lies to the right of the way, so outer outlines go
    clockwise on the screen, holes the other way. Pixels that touch at a corner alone part.
    """
    ahead = _edges(np.pad(mask.astype(bool), 1))
    loops = []
    # The first corner that is left, row by row, is a turn of its outline.
    for start in sorted(ahead, key=lambda corner: (corner[1], corner[0])):
        while start in ahead:
            loops.append(_loop(ahead, start))
    return loops


def _edges(framed: NDArray[np.bool_]) -> dict[Point, list[Point]]:
    """Corner -> where the outlines that leave it go: steps of one pixel, lesion to the right."""
    inner = framed[1:-1, 1:-1]
    sides = (
        (inner & ~framed[:-2, 1:-1], (0, 0), (1, 0)),
        (inner & ~framed[1:-1, 2:], (1, 0), (0, 1)),
        (inner & ~framed[2:, 1:-1], (1, 1), (-1, 0)),
        (inner & ~framed[1:-1, :-2], (0, 1), (0, -1)),
    )
    ahead: dict[Point, list[Point]] = {}
    for side, (x0, y0), step in sides:
        ys, xs = np.nonzero(side)
        for x, y in zip((xs + x0).tolist(), (ys + y0).tolist(), strict=True):
            ahead.setdefault((x, y), []).append(step)
    return ahead


def _loop(ahead: dict[Point, list[Point]], start: Point) -> list[Point]:
    """One closed outline from `start`, taken out of `ahead`: the corners where it turns."""
    corners: list[Point] = []
    at, came = start, (0, 0)
    while at in ahead:
        steps = ahead[at]
        # Two ways part where pixels touch at a corner: to the right stays on the same pixel.
        right = (-came[1], came[0])
        if corners and at == start and right not in steps:
            break
        step = right if right in steps else steps[0]
        steps.remove(step)
        if not steps:
            del ahead[at]
        if step != came:
            corners.append(at)
        at, came = (at[0] + step[0], at[1] + step[1]), step
    return corners


def coco_annotations(mask: ArrayLike) -> Iterator[dict[str, Any]]:
    """The components of a mask (H, W) as COCO annotations, without ids.

    One without holes is given as polygons, one with holes as run lengths, for polygons of COCO have
    none. Both hold exactly the mask's pixels.
    """
    labels, areas = components(np.asarray(mask) != 0)
    for label, area in enumerate(areas.tolist(), 1):
        component = labels == label
        ys, xs = (np.flatnonzero(component.any(axis)) for axis in (1, 0))
        left, top = int(xs.min()), int(ys.min())
        width, height = int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1
        part = component[top : top + height, left : left + width]
        loops = outlines(part)
        segmentation: Any
        if all(_turns_right(loop) for loop in loops):
            segmentation = [
                [float(value) for x, y in loop for value in (x + left, y + top)] for loop in loops
            ]
        else:
            segmentation = _run_lengths(component)
        yield {
            "category_id": CATEGORY["id"],
            "segmentation": segmentation,
            "area": area,
            "bbox": [left, top, width, height],
            "iscrowd": 0,
        }


def write_coco(path: str | os.PathLike[str], masks: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Write a COCO file of named masks (H, W), one after another, atomically.

    Raises:
        OSError: it cannot be written; what stood at `path` is untouched.
    """
    write_text(path, coco_json(masks))


def coco_json(masks: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """The text of such a file."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, mask) in enumerate(masks, 1):
        height, width = mask.shape
        images.append({"id": number, "file_name": legible(name), "width": width, "height": height})
        for annotation in coco_annotations(mask):
            identity = {"id": len(annotations) + 1, "image_id": number}
            annotations.append(identity | annotation)
    record = {
        "info": {"description": "lesions that intrasense-fast predict outlined"},
        "images": images,
        "annotations": annotations,
        "categories": [CATEGORY],
    }
    return json.dumps(record) + "\n"


def draw_outline(image: ArrayLike, mask: ArrayLike) -> NDArray[np.uint8]:
    """The picture with the outline of the mask's pixels on it, one pixel wide, unfilled.

    Args:
        image: (H, W) or (H, W, 3); uint8, uint16, bool, or floats in [0, 1].
        mask: (H, W), of which 0 is background.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    canvas = to_rgb(image).copy()
    inside = (np.asarray(mask) != 0).astype(np.uint8)
    square = np.ones((3, 3), np.uint8)
    inner = cv2.erode(inside, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    canvas[(inside == 1) & (inner == 0)] = YELLOW
    return canvas


def _turns_right(loop: list[Point]) -> bool:
    """Is this an outer outline? By the sign of its area."""
    points = np.asarray(loop, np.int64)
    after = np.roll(points, -1, axis=0)
    return int((points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1]).sum()) > 0


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed run lengths: down the columns, background first."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    counts = counts[:-1] if counts[-1] == 0 else counts
    return {"size": list(mask.shape), "counts": counts.tolist()}
