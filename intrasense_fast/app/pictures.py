"""The pictures of the page as bytes of PNG files: outline, probability, doubt, mask."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from intrasense_fast.app.answers import Mask
from intrasense_fast.inference.ensemble import Map
from intrasense_fast.report.overlays import overlay

# Longest side of what is shown, in pixels; downloads have the picture's own size.
_LARGEST = 1024


def outlined(image: Map, mask: Mask) -> bytes:
    """The picture with its mask on it, as `predict` draws it: (H, W) in [0, 1] and (H, W)."""
    small = _resized(mask.astype(np.uint8), _size(image.shape), cv2.INTER_NEAREST)
    return _png(overlay(_shown(image), None, small)[..., ::-1])


def coloured(values: Map, colours: int) -> bytes:
    """A map (H, W) in [0, 1] in one of OpenCV's colours, such as cv2.COLORMAP_VIRIDIS."""
    return _png(cv2.applyColorMap(_shown(values), colours))


def scale(colours: int) -> bytes:
    """The colours from 0 to 1, left to right."""
    return _png(cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None].repeat(8, 0), colours))


def mask_png(mask: Mask) -> bytes:
    """The mask of the picture's own size, 0 and 255."""
    return _png(mask.astype(np.uint8) * 255)


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


def _png(array: NDArray[Any]) -> bytes:
    done, data = cv2.imencode(".png", np.ascontiguousarray(array))
    if not done:
        raise ValueError(f"an array of shape {array.shape} cannot be encoded as PNG")
    return data.tobytes()
