"""What an image file becomes, and the error of one that cannot be used."""

from typing import NamedTuple

import numpy as np

from intrasense_fast.data.region import Region


class ImageError(ValueError):
    """An image or mask that cannot be used; the message names the file, the fault and the
    remedy."""


class Decoded(NamedTuple):
    """Pixels (H, W) or (H, W, C) in RGB(A) order, turned as the orientation tag says.

    `mode` is the colour mode of the file ("RGB 16-bit"), `orientation` the tag, 1 where there is
    none. The others come with DICOM: `white` is the value of white where it is not the largest of
    the type, `region` the scan within the picture (None: all of it), `spacing` millimetres between
    rows and between columns (None: unknown), `note` what is said of them.
    """

    pixels: np.ndarray
    mode: str
    orientation: int = 1
    white: int | None = None
    region: Region | None = None
    spacing: tuple[float, float] | None = None
    note: str = ""

    def levels(self, given: int | None) -> int | None:
        """The value of white for `to_grey`: `given` (--levels), or what the file says if less."""
        return min((value for value in (given, self.white) if value), default=None)

    def scan(self) -> np.ndarray:
        """The pixels of `region`."""
        return self.pixels if self.region is None else self.region.crop(self.pixels)
