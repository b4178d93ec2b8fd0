"""The user's own images: what ranges are measured on, and what a lower precision costs there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from intrasense_fast.data.images import ImageError, read_image
from intrasense_fast.data.inputs import list_inputs
from intrasense_fast.data.layouts import open_dataset
from intrasense_fast.data.records import DataError
from intrasense_fast.data.transforms import resize_image, resize_mask
from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.export.checks import Runner

# More say little more, and take minutes.
MOST = 64


class Pictures(NamedTuple):
    """Images (1, C, size, size), float32 in [0, 1], their masks (size, size) where known, and why
    they are not, where they are not."""

    images: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    remark: str


class Lost(NamedTuple):
    """Mean Dice of the masks of two files with each other, and of each with the ground truth.

    The latter are NaN where there is none.
    """

    images: int
    between: float
    before: float
    after: float

    def __str__(self) -> str:
        text = (
            f"Dice of its masks with those of float32 on {self.images} images: {self.between:.4f}"
        )
        if np.isfinite(self.before):
            text += (
                f"; with the ground truth {self.after:.4f}, float32 {self.before:.4f}: "
                f"{self.before - self.after:+.4f} lost"
            )
        return text


def read_pictures(folder: str, size: int, channels: int, levels: int | None) -> Pictures:
    """Images of a folder, at most 64 of them, evenly taken; with masks where it is a data set.

    Raises:
        UsageError: it holds no image, or one cannot be read.
    """
    try:
        images, masks, remark = _dataset(folder, levels), True, ""
    except (DataError, UsageError) as error:
        images, masks, remark = _images_alone(folder, levels), False, first_line(error)
    squares = (resize_image(image, size)[None, None] for image, _ in images)
    return Pictures(
        tuple(np.repeat(square, channels, 1).astype(np.float32) for square in squares),
        tuple(resize_mask(mask, size) for _, mask in images if mask is not None) if masks else (),
        remark,
    )


def _dataset(folder: str, levels: int | None) -> list[tuple[np.ndarray, np.ndarray | None]]:
    data = open_dataset(folder, "auto", group_duplicates=False)
    data.decided()
    data = replace(data, options=replace(data.options, levels=levels))
    try:
        samples = [data[index] for index in _evenly(len(data))]
    except (ImageError, OSError) as error:
        raise UsageError(first_line(error)) from error
    return [(sample.image, sample.mask) for sample in samples]


def _images_alone(folder: str, levels: int | None) -> list[tuple[np.ndarray, np.ndarray | None]]:
    try:
        paths = [path for _, path in list_inputs(Path(folder)).images]
    except UsageError as error:
        raise UsageError(f"--calibrate {error}") from error
    if not paths:
        raise UsageError(f"--calibrate {folder}: holds no image that can be read")
    try:
        return [(read_image(paths[index], levels), None) for index in _evenly(len(paths))]
    except (ImageError, OSError) as error:
        raise UsageError(f"--calibrate {first_line(error)}") from error


def _evenly(count: int) -> Sequence[int]:
    step = max(1, -(-count // MOST))
    return range(0, count, step)


def lost_dice(before: Runner, after: Runner, pictures: Pictures, threshold: float) -> Lost:
    """What a lower precision costs: both files give probabilities.

    Raises:
        UsageError: a probability of the lower precision is NaN or infinite.
    """
    between, truths = [], []
    for index, image in enumerate(pictures.images):
        one, other = (run(torch.from_numpy(image))[0, 0].numpy() for run in (before, after))
        if not np.isfinite(other).all():
            raise UsageError(
                "the lower precision gives NaN or infinite values, its range is too small for "
                "this network: nothing was written; take --precision float32"
            )
        first, second = one > threshold, other > threshold
        between.append(_dice(second, first))
        if pictures.masks:
            mask = pictures.masks[index] > 0
            truths.append((_dice(first, mask), _dice(second, mask)))
    means = np.mean(truths, 0) if truths else (np.nan, np.nan)
    return Lost(len(between), float(np.mean(between)), float(means[0]), float(means[1]))


def _dice(prediction: np.ndarray, target: np.ndarray) -> float:
    """Of two masks; two empty ones agree."""
    area = np.count_nonzero(prediction) + np.count_nonzero(target)
    return 2 * np.count_nonzero(prediction & target) / area if area else 1.0
