"""The part of a picture that is looked at, where a scanner's screen shows more than the scan."""

from typing import NamedTuple

import numpy as np


class Region(NamedTuple):
    """A rectangle of pixels within a picture (H, W)."""

    left: int
    top: int
    width: int
    height: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    def crop(self, pixels: np.ndarray) -> np.ndarray:
        """The rectangle of (H, W) or (H, W, C) pixels: a view."""
        rows = slice(self.top, self.top + self.height)
        return pixels[rows, self.left : self.left + self.width]

    def paste(self, pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Pixels of the rectangle on the grid (H, W) of the whole picture, 0 outside."""
        whole = np.zeros(shape, pixels.dtype)
        self.crop(whole)[:] = pixels
        return whole
