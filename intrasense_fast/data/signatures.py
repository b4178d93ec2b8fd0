"""What near-duplicates are found by: thumbnails of the image and its mask, and perceptual hashes of the image's windows."""

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

# Part of the name of every cached result: a change of anything below, or in `pairs`, makes new ones.
VERSION = 2

SIDE = 64
BITS = 143
_CUT = 4
_WAVES = 12

# (from, to) along one axis: all of it, and what is left when 1 / 16 is cut off the end, the beginning or both.
_SPANS = ((0, SIDE), (0, SIDE - _CUT), (_CUT, SIDE), (_CUT, SIDE - _CUT))
# (top, bottom, left, right); the first is the whole thumbnail.
WINDOWS = tuple((*rows, *columns) for rows in _SPANS for columns in _SPANS)


class Signature(NamedTuple):
    """A picture in 8 kB.

    Attributes:
        hashes: uint8 (16, 18), a perceptual hash of 143 bits for each of WINDOWS: which of the lowest cosine coefficients
            (but for the mean) exceed their median.
        thumbnail: uint8 (64, 64), stretched over its own range of brightness.
        mask: uint8 (64, 64) in {0, 1}, lesion where it covers at least half of a pixel.
    """

    hashes: np.ndarray
    thumbnail: np.ndarray
    mask: np.ndarray


def signature(image: np.ndarray, mask: np.ndarray) -> Signature:
    """The signature of an image, float32 (H, W) in [0, 1], and its mask, uint8 (H, W) in {0, 1}."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low, high = float(small.min()), float(small.max())
    small = (small - low) / max(high - low, 1e-6)
    waves = _waves()
    grid = (waves @ small @ waves.T).reshape(len(_SPANS), _WAVES, len(_SPANS), _WAVES)
    coefficients = grid.transpose(0, 2, 1, 3).reshape(len(WINDOWS), -1)[:, 1:]
    hashes = np.packbits(coefficients > np.median(coefficients, axis=1, keepdims=True), axis=1)
    covered = cv2.resize(mask.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return Signature(
        hashes, np.rint(small * 255).astype(np.uint8), (covered >= 0.5).astype(np.uint8)
    )


@cache
def _waves() -> np.ndarray:
    """The twelve longest cosine waves of each of the four spans of the thumbnail, 0 outside the span: float32 (48, 64)."""
    rows = np.zeros((len(_SPANS), _WAVES, SIDE), np.float32)
    for span, (start, end) in enumerate(_SPANS):
        place = (np.arange(end - start) + 0.5) * np.pi / (end - start)
        rows[span, :, start:end] = np.cos(np.arange(_WAVES)[:, None] * place)
    return rows.reshape(-1, SIDE)
