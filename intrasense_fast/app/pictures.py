"""The pictures of the page as bytes of PNG files: outline, probability, doubt, mask."""

import cv2
import numpy as np
from numpy.typing import NDArray

from intrasense_fast.app.answers import Mask
from intrasense_fast.data.images import png_bytes
from intrasense_fast.inference.ensemble import Map
from intrasense_fast.report.overlays import overlay

# Longest side of what is shown, in pixels; downloads have the picture's own size.
_LARGEST = 1024


def outlined(image: Map, mask: Mask) -> bytes:
    """The picture with its mask on it, as `predict` draws it: (H, W) in [0, 1] and (H, W)."""
    small = _resized(mask.astype(np.uint8), _size(image.shape), cv2.INTER_NEAREST)
    return png_bytes(overlay(_shown(image), None, small))


def coloured(values: Map, colours: int) -> bytes:
    """A map (H, W) in [0, 1] in one of OpenCV's colours, such as cv2.COLORMAP_VIRIDIS."""
    return png_bytes(_coloured(_shown(values), colours))


def scale(colours: int) -> bytes:
    """The colours from 0 to 1, left to right."""
    return png_bytes(_coloured(np.arange(256, dtype=np.uint8)[None].repeat(8, 0), colours))


def mask_png(mask: Mask) -> bytes:
    """The mask of the picture's own size, 0 and 255."""
    return png_bytes(mask.astype(np.uint8) * 255)


def _coloured(grey: NDArray[np.uint8], colours: int) -> NDArray[np.uint8]:
    """(H, W, 3), RGB."""
    return np.asarray(cv2.applyColorMap(grey, colours), np.uint8)[..., ::-1]


def _shown(values: Map) -> NDArray[np.uint8]:
    grey = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return _resized(grey, _size(values.shape), cv2.INTER_AREA)


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    height, width = shape[:2]
    factor = min(1.0, _LARGEST / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _resized(
    array: NDArray[np.uint8], shape: tuple[int, int], interpolation: int
) -> NDArray[np.uint8]:
    if array.shape == shape:
        return array
    return np.asarray(cv2.resize(array, shape[::-1], interpolation=interpolation), np.uint8)
