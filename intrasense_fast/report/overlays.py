"""Segmentations drawn over their images."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from intrasense_fast.metrics import image_metrics
from intrasense_fast.report import figures
from intrasense_fast.report.figures import GREEN, SKY, VERMILLION, YELLOW, hex_colour, to_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, OUTLINE = GREEN, VERMILLION, SKY, YELLOW
COLUMNS = ("image", "ground truth", "prediction", "errors")
WORST_TO_BEST = "worst to best"
FILL, ERROR_FILL = 0.25, 0.45
DRAWN_SIZE = 384
LARGEST_DRAWN = 1536


class OverlayItem(NamedTuple):
    """One row: an image as `to_rgb` takes it, its masks (H, W) of bool or 0 and 1; target None
    where there is no truth."""

    name: str
    image: ArrayLike
    target: ArrayLike | None
    prediction: ArrayLike


def overlay(image: ArrayLike, target: ArrayLike | None, prediction: ArrayLike) -> NDArray[np.uint8]:
    """The image with the segmentation on it: light fills within contours, in colours safe for
    colour-blind readers.

    True positives are bluish green, false positives vermillion, false negatives sky blue. Without a
    target the prediction alone is drawn, in yellow.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3); uint8, uint16, bool, or floats in [0, 1].
        target, prediction: (H, W), bool, or 0 and 1.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: sizes that differ, masks with other values, or an image of another kind.
    """
    canvas = to_rgb(image).copy()
    found = _mask(prediction, "prediction", canvas)
    if target is None:
        _paint(canvas, found, OUTLINE)
        return canvas
    truth = _mask(target, "target", canvas)
    _paint(canvas, truth & found, TRUE_POSITIVE)
    _paint(canvas, found & ~truth, FALSE_POSITIVE, ERROR_FILL)
    _paint(canvas, truth & ~found, FALSE_NEGATIVE, ERROR_FILL)
    return canvas


def worst_to_best(rows: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Places of at most `count` rows of `image_metrics`, spread evenly from the worst image to the
    best.

    By Dice; a false alarm on a normal image is as bad as a lesion that was missed, and one found
    empty as good as can be.
    """
    dice = [1.0 if math.isnan(row["dice"]) else row["dice"] for row in rows]
    order = np.argsort(dice, kind="stable")
    picked = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [int(index) for index in order[picked]]


def drawn_size(item: OverlayItem) -> OverlayItem:
    """An item whose longer side is at most 1536 pixels, so that many large pictures fit in memory.

    The Dice beside it is then that of the reduced masks.
    """
    shape = np.shape(item.image)
    times = max(shape[:2]) / LARGEST_DRAWN
    if times <= 1:
        return item
    size = (max(1, round(shape[1] / times)), max(1, round(shape[0] / times)))

    def reduced(mask: ArrayLike) -> NDArray[np.uint8]:
        small = cv2.resize(np.asarray(mask, np.uint8), size, interpolation=cv2.INTER_NEAREST)
        return small.astype(np.uint8)

    image = cv2.resize(np.asarray(item.image), size, interpolation=cv2.INTER_AREA)
    target = None if item.target is None else reduced(item.target)
    return OverlayItem(item.name, image, target, reduced(item.prediction))


def save_overlays(
    path: str | os.PathLike[str],
    items: Iterable[OverlayItem],
    columns: Sequence[str] = COLUMNS,
    *,
    title: str = "",
) -> None:
    """A grid, one row an item with its name and Dice, and a legend of the colours; written
    atomically.

    Where no item has a target, the columns of ground truth and errors are left out.

    Args:
        items: OverlayItem, or tuples (name, image, target, prediction); 1 to 64.
        columns: any of "image", "ground truth", "prediction", "errors".
        title: stands above the grid, for instance in which order the rows are.

    Raises:
        ValueError: no items or too many, an unknown column, or an item that `overlay` refuses
            (named).
    """
    rows = [OverlayItem(*item) for item in items]
    figures.check_rows(len(rows), "save_overlays")
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown or not columns:
        raise ValueError(
            f"save_overlays: unknown columns {unknown}; choose from {', '.join(COLUMNS)}"
        )
    with_truth = any(row.target is not None for row in rows)
    shown = [column for column in columns if with_truth or column not in ("ground truth", "errors")]
    shown = shown or ["prediction"]
    panels = [_panels(row, shown) for row in rows]
    heights = [
        max(0.5, min(2.0, pictures[shown[0]].shape[0] / pictures[shown[0]].shape[1]))
        for pictures in panels
    ]
    cell = 2.1
    figure = figures.new_figure(
        0.5 + cell * len(shown), 0.65 + sum(cell * height + 0.06 for height in heights)
    )
    grid = figure.subplots(
        len(rows), len(shown), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for i, (row, pictures) in enumerate(zip(rows, panels, strict=True)):
        for axes, column in zip(grid[i], shown, strict=True):
            if column in pictures:
                figures.show(axes, pictures[column])
            else:
                figures.blank(axes, "no ground truth")
            if i == 0:
                axes.set_title(column, fontsize=10, color=figures.INK)
        figures.row_name(grid[i, 0], row.name, _verdict(row))
    if "errors" in shown:
        _legend(figure)
    if title:
        figure.suptitle(title, fontsize=10, color=figures.INK)
    figures.arrange(figure, w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    figures.save_figure(figure, path)


def _legend(figure: "Figure") -> None:
    from matplotlib.patches import Patch

    kinds = (
        ("true positive", TRUE_POSITIVE),
        ("false positive", FALSE_POSITIVE),
        ("false negative", FALSE_NEGATIVE),
    )
    patches = [
        Patch(facecolor=(hex_colour(rgb), 0.5), edgecolor=hex_colour(rgb), label=name)
        for name, rgb in kinds
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def _panels(row: OverlayItem, shown: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """The pictures of one row, enlarged so that contours are thin beside the lesion."""
    try:
        image = to_rgb(row.image)
        found = _mask(row.prediction, "prediction", image)
        truth = None if row.target is None else _mask(row.target, "target", image)
    except ValueError as error:
        raise ValueError(f"{row.name}: {error}") from error
    times = max(1, math.ceil(DRAWN_SIZE / max(image.shape[:2])))
    image, found = _enlarged(image, times), _enlarged_mask(found, times)
    pictures = {"image": image, "prediction": overlay(image, None, found)}
    if truth is not None:
        truth = _enlarged_mask(truth, times)
        pictures |= {
            "ground truth": overlay(image, None, truth),
            "errors": overlay(image, truth, found),
        }
    return {name: picture for name, picture in pictures.items() if name in shown}


def _verdict(row: OverlayItem) -> str:
    """Dice where there is a lesion; of a normal image, whether it was left alone."""
    if row.target is None:
        return ""
    if np.any(row.target):
        return f"Dice {image_metrics(row.prediction, row.target)['dice']:.3f}"
    return "normal: false alarm" if np.any(row.prediction) else "normal: none found"


def _mask(mask: ArrayLike, name: str, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    values = np.asarray(mask)
    if values.shape != image.shape[:2]:
        raise ValueError(
            f"{name} must have the image's size (H, W) = {image.shape[:2]}, got {values.shape}"
        )
    if values.dtype != np.bool_ and not np.all((values == 0) | (values == 1)):
        raise ValueError(f"{name} must be bool or hold 0 and 1 only; threshold it first")
    return values.astype(bool)


def _paint(
    canvas: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    rgb: tuple[int, int, int],
    fill: float = FILL,
) -> None:
    canvas[mask] = np.rint((1 - fill) * canvas[mask] + fill * np.array(rgb)).astype(np.uint8)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    width = max(1, round(max(mask.shape) / 256))
    inner = cv2.erode(
        mask.astype(np.uint8),
        cross,
        iterations=width,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    canvas[mask & (inner == 0)] = rgb


def _enlarged(image: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    size = (image.shape[1] * times, image.shape[0] * times)
    return (
        cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
        if times > 1
        else image
    )


def _enlarged_mask(mask: NDArray[np.bool_], times: int) -> NDArray[np.bool_]:
    return np.kron(mask, np.ones((times, times), bool)) if times > 1 else mask
