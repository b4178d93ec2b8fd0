"""What GCP does to an image: entropy, mask, gate and attention of the refined strides."""

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from intrasense_fast.report import figures
from intrasense_fast.report.figures import GREEN, ORANGE, SKY, hex_colour, to_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CELL = 1.75
_POSITIONS = (("inside the lesion", hex_colour(ORANGE)), ("outside", hex_colour(SKY)))


class StrideMaps(NamedTuple):
    """Of one image at one stride: entropy (h, w), mask (h, w), gate (h, w), attention (2, h, w) of
    the two positions."""

    entropy: ArrayLike
    mask: ArrayLike
    gate: ArrayLike
    attention: ArrayLike


class RefinementItem(NamedTuple):
    """One image: as `to_rgb` takes it, its ground truth (H, W), two positions (row, column), and
    maps by stride."""

    name: str
    image: ArrayLike
    truth: ArrayLike
    positions: tuple[tuple[int, int], tuple[int, int]]
    maps: Mapping[int, StrideMaps]


def positions_to_show(truth: ArrayLike) -> tuple[tuple[int, int], tuple[int, int]]:
    """The deepest point of a lesion and, at its depth, the point farthest from it; (row, column) in
    truth (H, W).

    Without a lesion the middle takes the place of the first.
    """
    lesion = np.asarray(truth).astype(bool)
    height, width = lesion.shape
    row, column = height // 2, width // 2
    if lesion.any():
        # A frame of background: a lesion at the border is no deeper there.
        padded = np.pad(lesion, 1).astype(np.uint8)
        depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
        row, column = (int(place) for place in np.unravel_index(depth.argmax(), depth.shape))
    else:
        lesion[row, column] = True
    distance = cv2.distanceTransform((~lesion).astype(np.uint8), cv2.DIST_L2, 5)
    return (row, column), (row, int(distance[row].argmax()))


def save_refinement_maps(
    path: str | os.PathLike[str], items: Iterable[RefinementItem], scale: str = "nats"
) -> None:
    """A block of rows an image, one a stride; written atomically.

    Columns: the image with its ground truth outlined and the two positions marked, the entropy and
    the mask of Eq. 6, the gate of Eq. 4, and how the two positions attend (Eq. 2). The range of
    every map stands above it.

    Args:
        items: 1 to 64, with the same strides.
        scale: what the entropy is measured in, the network's `entropy_scale`; it is printed.

    Raises:
        ValueError: no items or too many, strides that differ, or maps of another shape.
    """
    images = [RefinementItem(*item) for item in items]
    figures.check_rows(len(images), "save_refinement_maps")
    strides = sorted(images[0].maps)
    for item in images:
        _check(item, strides)
    down = len(images) * len(strides)
    figure = figures.new_figure(0.4 + 6 * _CELL, 0.6 + (_CELL + 0.28) * down)
    grid = figure.subplots(down, 6, squeeze=False)
    for i, item in enumerate(images):
        for k, stride in enumerate(strides):
            axes = grid[i * len(strides) + k]
            _draw_image(axes[0], item, f"stride {stride}")
            _draw_maps(axes[1:], item.maps[stride], scale)
    figure.supxlabel(
        "image: ground truth in green, the two positions as dots; mask: white positions are "
        "whitened\n"
        "entropy and attention from low (dark) to high (bright), each map on its own scale; gate "
        "from 0 to 1",
        fontsize=8,
        color=figures.INK,
    )
    figures.arrange(figure, w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.02)
    figures.save_figure(figure, path)


def _draw_image(axes: "Axes", item: RefinementItem, note: str) -> None:
    picture = to_rgb(item.image).copy()
    truth = np.asarray(item.truth).astype(np.uint8)
    contours, _ = cv2.findContours(truth, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, GREEN, 1)
    figures.show(axes, picture)
    for (row, column), (_, colour) in zip(item.positions, _POSITIONS, strict=True):
        axes.plot(column, row, "o", markersize=5, color=colour, markeredgecolor="white")
    figures.row_name(axes, item.name, note)


def _draw_maps(axes: NDArray[np.object_], maps: StrideMaps, scale: str) -> None:
    entropy, gate = np.asarray(maps.entropy, np.float64), np.asarray(maps.gate, np.float64)
    mask, attention = np.asarray(maps.mask).astype(bool), np.asarray(maps.attention, np.float64)
    _draw(axes[0], entropy, f"entropy ({scale})\n{_span(entropy)}", cmap="cividis")
    share = f"{100 * mask.mean():.0f} % whitened"
    _draw(axes[1], mask, f"mask\n{share}", cmap="gray", vmin=0, vmax=1)
    _draw(axes[2], gate, f"gate\n{_span(gate)}", cmap="gray", vmin=0, vmax=1)
    for k, (where, colour) in enumerate(_POSITIONS):
        times = attention[k].max() * attention[k].size
        title = f"attention from {where}\nat most {times:.1f} x the mean"
        _draw(axes[3 + k], attention[k], title, cmap="inferno", vmin=0)
        axes[3 + k].title.set_color(colour)


def _draw(axes: "Axes", picture: NDArray[np.generic], title: str, **options: object) -> None:
    figures.show(axes, picture, interpolation="nearest", **options)
    axes.set_title(title, fontsize=7, color=figures.INK)


def _span(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.min():.2f} to {finite.max():.2f}" if finite.size else "not finite"


def _check(item: RefinementItem, strides: list[int]) -> None:
    if sorted(item.maps) != strides:
        raise ValueError(
            f"save_refinement_maps: {item.name} has maps at strides {sorted(item.maps)}; "
            f"every image needs them at {strides}"
        )
    if np.shape(item.truth) != np.shape(item.image)[:2]:
        raise ValueError(
            f"save_refinement_maps: {item.name}: the truth {np.shape(item.truth)} must be as large "
            f"as "
            f"the image {np.shape(item.image)[:2]}"
        )
    for stride, maps in item.maps.items():
        size = np.shape(maps[0])
        shapes = [np.shape(each) for each in maps]
        if len(size) != 2 or 0 in size or shapes != [size, size, size, (2, *size)]:
            raise ValueError(
                f"save_refinement_maps: {item.name}, stride {stride}: entropy, mask, gate and "
                f"attention must "
                f"be (h, w), (h, w), (h, w) and (2, h, w), got {', '.join(map(str, shapes))}"
            )
