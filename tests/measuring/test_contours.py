"""Outlines against the masks they came from, filled again by other means."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from intrasense_fast.report.contours import (
    coco_annotations,
    draw_outline,
    outlines,
    write_coco,
)

Mask = NDArray[np.bool_]


def noise(generator: np.random.Generator, smooth: float) -> Mask:
    field = ndimage.gaussian_filter(generator.normal(size=(23, 31)), smooth)
    return field > np.quantile(field, 0.6)


def even_odd(polygons: list[list[float]], shape: tuple[int, int]) -> Mask:
    """Pixels whose centre a ray to the left leaves an odd number of times: the definition."""
    inside = np.zeros(shape, bool)
    ys = np.arange(shape[0]) + 0.5
    xs = np.arange(shape[1]) + 0.5
    for polygon in polygons:
        points = np.reshape(polygon, (-1, 2))
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if x0 == x1:
                rows = (ys > min(y0, y1)) & (ys < max(y0, y1))
                inside ^= rows[:, None] & (xs > x0)
    return inside


def decoded(annotation: dict, shape: tuple[int, int]) -> Mask:
    """The mask of an annotation, by COCO's own definitions."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return even_odd(segmentation, shape)
    assert segmentation["size"] == list(shape)
    values = np.arange(len(segmentation["counts"])) % 2
    return np.repeat(values, segmentation["counts"]).reshape(shape, order="F").astype(bool)


@pytest.mark.parametrize("smooth", [0.0, 1.0, 3.0])
def test_annotations_hold_exactly_the_pixels(smooth: float, seed: int) -> None:
    mask = noise(np.random.default_rng(seed), smooth)
    annotations = list(coco_annotations(mask))
    _, count = ndimage.label(mask, np.ones((3, 3)))
    assert len(annotations) == count
    together = np.zeros(mask.shape, int)
    for annotation in annotations:
        part = decoded(annotation, mask.shape)
        together += part
        ys, xs = np.nonzero(part)
        assert annotation["area"] == part.sum() and annotation["iscrowd"] == 0
        assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        # Background that leaves through a corner between pixels makes no hole.
        closed = ndimage.binary_fill_holes(part, np.ones((3, 3)))
        has_hole = not np.array_equal(part, closed)
        assert isinstance(annotation["segmentation"], dict) == has_hole
    assert np.array_equal(together, mask)


def test_a_square_has_four_corners_and_a_ring_two_outlines() -> None:
    square = np.zeros((9, 9), bool)
    square[2:7, 3:8] = True
    assert outlines(square) == [[(3, 2), (8, 2), (8, 7), (3, 7)]]
    square[4, 5] = False
    outer, hole = outlines(square)
    assert len(outer) == 4 and sorted(hole) == [(5, 4), (5, 5), (6, 4), (6, 5)]
    touching = np.eye(2, dtype=bool)
    assert [len(loop) for loop in outlines(touching)] == [4, 4]


def test_outlines_agree_with_opencv_on_a_disc() -> None:
    disc = cv2.circle(np.zeros((60, 60), np.uint8), (30, 28), 17, 1, -1).astype(bool)
    (loop,) = outlines(disc)
    assert cv2.contourArea(np.array(loop, np.int32)) == disc.sum()


def test_the_file_is_coco_as_its_readers_need_it(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    masks = {"a.png": noise(generator, 2), "b.dcm": np.zeros((5, 7), np.uint8)}
    write_coco(tmp_path / "contours.json", masks.items())
    record = json.loads((tmp_path / "contours.json").read_text())
    assert [image["file_name"] for image in record["images"]] == ["a.png", "b.dcm"]
    assert [(image["width"], image["height"]) for image in record["images"]] == [(31, 23), (7, 5)]
    assert [category["id"] for category in record["categories"]] == [1]
    identities = [annotation["id"] for annotation in record["annotations"]]
    assert identities == list(range(1, len(identities) + 1))
    together = np.zeros((23, 31), bool)
    for annotation in record["annotations"]:
        assert annotation["image_id"] == 1 and annotation["category_id"] == 1
        together |= decoded(annotation, (23, 31))
        for polygon in annotation["segmentation"]:
            assert not isinstance(polygon, list) or len(polygon) >= 8
    assert np.array_equal(together, masks["a.png"])


def test_an_outline_is_drawn_without_a_fill() -> None:
    image = np.full((12, 12), 80, np.uint8)
    mask = np.zeros((12, 12), np.uint8)
    mask[3:9, 3:9] = 1
    drawn = draw_outline(image, mask)
    changed = (drawn != 80).any(axis=2)
    assert drawn.shape == (12, 12, 3) and drawn.dtype == np.uint8
    assert changed.sum() == 20 and not changed[4:8, 4:8].any() and not changed[mask == 0].any()
