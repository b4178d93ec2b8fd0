"""Measurements against rectangles, discs and ellipses worked out by hand, clean-up and distances
against scipy."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist, pdist

from intrasense_fast.errors import UsageError
from intrasense_fast.measuring.components import CleanUp
from intrasense_fast.measuring.lesion import measure
from intrasense_fast.measuring.surfaces import surface, surface_distances
from intrasense_fast.metrics import image_metrics

Mask = NDArray[np.bool_]


def rectangle(shape: tuple[int, int], top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def ellipse(
    shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]
) -> Mask:
    ys, xs = np.indices(shape)
    return ((ys - centre[0]) / radii[0]) ** 2 + ((xs - centre[1]) / radii[1]) ** 2 <= 1


def blobs(generator: np.random.Generator, shape: tuple[int, int] = (60, 70)) -> Mask:
    smooth = ndimage.gaussian_filter(generator.normal(size=shape), 2)
    return smooth > np.quantile(smooth, 0.75)


@pytest.mark.parametrize("spacing", [None, (0.1, 0.1), (0.2, 0.05)])
def test_a_rectangle_is_measured_exactly(spacing: tuple[float, float] | None, seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = (int(side) for side in generator.integers(1, 40, 2))
    top, left = (int(place) for place in generator.integers(0, 10, 2))
    found = measure(rectangle((50, 50), top, left, height, width), spacing)
    down, across = spacing or (1.0, 1.0)
    a, b = height * down, width * across
    diagonal = math.hypot(a, b)
    assert found.unit == ("px" if spacing is None else "mm") and found.components == 1
    assert found.area == pytest.approx(a * b)
    assert found.longest_axis == pytest.approx(diagonal)
    assert found.cross_axis == pytest.approx(2 * a * b / diagonal)
    assert found.taller_than_wide == pytest.approx(a / b)


def test_an_ellipse_is_measured_to_the_pixel(seed: int) -> None:
    generator = np.random.default_rng(seed)
    radii = tuple(generator.uniform(20, 45, 2))
    centre = tuple(generator.uniform(49, 51, 2))
    down, across = spacing = tuple(generator.uniform(0.05, 0.2, 2))
    found = measure(ellipse((100, 100), centre, radii), spacing)
    # The outline runs along the pixels' edges, at most half a diagonal off the curve at each end.
    pixel = math.hypot(down, across)
    sides = radii[0] * down * 2, radii[1] * across * 2
    assert found.area == pytest.approx(math.pi * sides[0] * sides[1] / 4, rel=0.02)
    assert abs(found.longest_axis - max(sides)) <= pixel
    assert abs(found.taller_than_wide / (sides[0] / sides[1]) - 1) < 0.06
    if max(sides) > 1.2 * min(sides):
        assert abs(found.cross_axis - min(sides)) <= 2 * pixel


def test_a_disc_has_equal_axes() -> None:
    found = measure(ellipse((101, 101), (50, 50), (40, 40)), (0.1, 0.1))
    assert found.longest_axis == pytest.approx(8.0, abs=0.15)
    assert found.cross_axis == pytest.approx(8.0, abs=0.15)
    assert found.taller_than_wide == 1


def test_any_shape_against_all_pairs_of_corners(seed: int) -> None:
    generator = np.random.default_rng(seed)
    spacing = tuple(generator.uniform(0.5, 2, 2))
    mask = blobs(generator)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = ndimage.sum(mask, labels, range(1, count + 1))
    largest = labels == 1 + int(np.argmax(sizes))
    pixels = np.argwhere(largest)
    corners = np.concatenate([pixels + (y, x) for y in (0, 1) for x in (0, 1)]) * spacing
    found = measure(mask, spacing)
    assert found.components == count
    assert found.area == pytest.approx(len(pixels) * spacing[0] * spacing[1])
    assert found.longest_axis == pytest.approx(pdist(corners).max())
    height, width = np.ptp(corners, axis=0)
    assert found.taller_than_wide == pytest.approx(height / width)
    assert found.cross_axis <= found.longest_axis


def test_an_empty_mask_and_what_is_no_mask() -> None:
    found = measure(np.zeros((5, 6), np.uint8))
    assert found.components == 0 and math.isnan(found.area) and math.isnan(found.longest_axis)
    with pytest.raises(ValueError, match="a mask"):
        measure(np.zeros(5))
    for spacing in ((0.0, 1.0), (1.0, math.nan), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="two positive numbers"):
            measure(np.ones((3, 3)), spacing)


@pytest.mark.parametrize("equal", [True, False])
def test_distances_in_millimetres_against_all_pairs(equal: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(5):
        p, t = blobs(generator), blobs(generator)
        spacing = tuple(generator.uniform(0.05, 0.4, 2))
        spacing = (spacing[0], spacing[0]) if equal else spacing
        table = cdist(*(np.argwhere(surface(mask)) * spacing for mask in (p, t)))
        wanted = np.concatenate([table.min(1), table.min(0)])
        np.testing.assert_allclose(surface_distances(p, t, spacing), wanted, rtol=1e-9)
        row, in_pixels = image_metrics(p, t, spacing=spacing), image_metrics(p, t)
        assert row["hd95"] == pytest.approx(np.percentile(wanted, 95))
        assert row["assd"] == pytest.approx(wanted.mean())
        assert row["dice"] == in_pixels["dice"]
        if equal:
            assert row["hd95"] == pytest.approx(in_pixels["hd95"] * spacing[0])


def test_clean_up_against_scipy(seed: int) -> None:
    mask = blobs(np.random.default_rng(seed))
    before = mask.copy()
    filled = CleanUp(fill_holes=True)(mask)
    assert np.array_equal(filled, ndimage.binary_fill_holes(mask))
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = ndimage.sum(mask, labels, range(1, count + 1))
    least = int(np.median(sizes))
    kept = np.isin(labels, 1 + np.flatnonzero(sizes >= least))
    assert np.array_equal(CleanUp(min_area=least)(mask), kept)
    one = CleanUp(keep_largest=True)(mask.astype(np.uint8))
    assert one.dtype == np.uint8 and one.sum() == sizes.max()
    assert np.array_equal(mask, before)
    assert not CleanUp() and np.array_equal(CleanUp()(mask), mask)


def test_holes_are_filled_before_sizes_count() -> None:
    ring = rectangle((20, 20), 2, 2, 7, 7)
    ring[3:8, 3:8] = False
    block = rectangle((20, 20), 12, 12, 6, 6)
    both = ring | block
    assert np.array_equal(CleanUp(keep_largest=True)(both), block)
    cleaned = CleanUp(fill_holes=True, keep_largest=True)(both)
    assert np.array_equal(cleaned, rectangle((20, 20), 2, 2, 7, 7))
    assert not CleanUp(min_area=37)(block).any()
    assert CleanUp(min_area=36)(block).sum() == 36
    with pytest.raises(UsageError, match="--min-area must be"):
        CleanUp(min_area=-1)
