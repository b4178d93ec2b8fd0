"""Resizing that keeps lesions, and the paper's augmentation, the same for an image wherever and
whenever it is drawn."""

from collections.abc import Sequence
from typing import Literal, get_args

import cv2
import numpy as np

Augmentation = Literal["paper", "us", "none"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)

# The paper names flips and rotations without their ranges.
_ROTATION = {"paper": 180.0, "us": 15.0}


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """float32 (H, W) -> (size, size): area-averaged where it shrinks, bilinear where it grows, one
    axis at a time."""
    height, width = image.shape
    image = _resized(image, size, height)
    return _resized(image.T, size, width).T.clip(0, 1).astype(np.float32)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W) in {0, 1} -> (size, size): lesion where it covers at least half of a pixel.

    A connected lesion that would vanish keeps the pixel that it covers most, so that no image loses
    a lesion.
    """
    covered = resize_image(mask.astype(np.float32), size)
    small = (covered >= 0.5).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    cell = mask.shape[0] * mask.shape[1] / size**2
    for part in range(1, count):
        # A part of many target pixels' area cannot vanish unless it is a thread; only then is it
        # looked at alone.
        if stats[part, cv2.CC_STAT_AREA] < 16 * cell + 4 * max(
            stats[part, cv2.CC_STAT_WIDTH], stats[part, cv2.CC_STAT_HEIGHT]
        ):
            alone = resize_image((parts == part).astype(np.float32), size)
            if not small[alone > 0].any():
                small[np.unravel_index(int(alone.argmax()), alone.shape)] = 1
    return small


def resize_probability(probability: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """float32 (size, size) in [0, 1] back to the original grid (H, W); the inverse of
    `resize_image` up to smoothing."""
    height, width = shape
    return (
        _resized(_resized(probability, height, len(probability)).T, width, probability.shape[1])
        .T.clip(0, 1)
        .astype(np.float32)
    )


def augment(
    image: np.ndarray, mask: np.ndarray, kind: Augmentation, *, seed: int, epoch: int, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Flip and rotate an image and its mask together.

    "paper": left-right and up-down flips, each with probability 1/2, then a rotation by up to 180
    degrees either way. "us": the probe stays on top: left-right flips and up to 15 degrees. "none":
    nothing. The image is interpolated linearly and mirrored beyond its border, the mask turned by
    the same matrix with the same mirror and cut at 1/2, so that a lesion and its mirror image
    agree. Random numbers depend on (seed, epoch, index) alone, not on workers or order.

    Args:
        image: float32 (H, W). mask: uint8 (H, W) in {0, 1}.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augment must be one of {AUGMENTATIONS}, got {kind!r}")
    if kind == "none":
        return image, mask
    rng = np.random.default_rng((seed, epoch, index))
    left_right, up_down = rng.random(2) < 0.5
    angle = rng.uniform(-1, 1) * _ROTATION[kind]
    if left_right:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if up_down and kind == "paper":
        image, mask = image[::-1], mask[::-1]
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    turned = [
        cv2.warpAffine(
            np.ascontiguousarray(array, np.float32),
            matrix,
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        for array in (image, mask)
    ]
    return turned[0].clip(0, 1), (turned[1] >= 0.5).astype(np.uint8)


def _resized(array: np.ndarray, rows: int, from_rows: int) -> np.ndarray:
    """One axis at a time: an image may shrink along one and grow along the other."""
    if rows == from_rows:
        return array
    interpolation = cv2.INTER_AREA if rows < from_rows else cv2.INTER_LINEAR
    return cv2.resize(
        np.ascontiguousarray(array, np.float32), (array.shape[1], rows), interpolation=interpolation
    )
