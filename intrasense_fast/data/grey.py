"""Decoded pixels as one grey channel in [0, 1]."""

import math
import os

import cv2
import numpy as np

from intrasense_fast.data.decoded import ImageError

LUMINANCE = (0.299, 0.587, 0.114)
LOW_RANGE = 0.1

_ROWS_AT_ONCE = 256
# The depths that scanners have, in files of 16 bits.
_DEPTHS_IN_16_BITS = (8, 10, 12, 14)


def white_of(dtype: np.dtype, levels: int | None = None) -> float:
    """The value of white: the largest of the type, 1 for floats; `levels` where given and less."""
    if dtype.kind == "f":
        return float(levels or 1)
    largest = float(np.iinfo(dtype).max)
    return min(largest, float(levels)) if levels else largest


def to_grey(
    pixels: np.ndarray, path: str | os.PathLike[str], levels: int | None = None
) -> np.ndarray:
    """Decoded pixels as float32 (H, W) in [0, 1]; `path` is named in errors. See `read_image`."""
    white = white_of(pixels.dtype, levels)
    channels = pixels if pixels.ndim == 2 else pixels[:, :, :3]
    if pixels.dtype.kind == "f" and (channels.min() < 0 or channels.max() > white):
        low, high = float(channels.min()), float(channels.max())
        remedy = "rescale them, save 8 or 16 bits, or give the value of white with --levels"
        raise ImageError(
            f"{path}: float pixels from {low:g} to {high:g}; [0, {white:g}] is needed: {remedy}"
        )
    if levels and channels.max() > white:
        high = channels.max()
        raise ImageError(f"{path}: pixels up to {high}, beyond --levels {levels}: raise it")
    if pixels.ndim == 3:
        red, green, blue = (channels[:, :, channel] for channel in range(3))
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            return _luminance(channels, white)
        channels = red
    if pixels.dtype.kind == "f":
        return (np.asarray(channels, np.float64) / white).clip(0, 1).astype(np.float32)
    # One division a value of the type, instead of one a pixel.
    table = (np.arange(np.iinfo(pixels.dtype).max + 1) / white).clip(0, 1).astype(np.float32)
    if pixels.dtype == np.uint8:
        return cv2.LUT(np.ascontiguousarray(channels), table)
    return table[channels]


def low_range(pixels: np.ndarray, levels: int | None = None) -> str | None:
    """What to say of an image that uses less than a tenth of its range; None of any other."""
    white = white_of(pixels.dtype, levels)
    top = float((pixels if pixels.ndim == 2 else pixels[:, :, :3]).max())
    if top >= LOW_RANGE * white:
        return None
    bits = max(1, math.ceil(math.log2(top + 1))) if pixels.dtype.kind != "f" else 0
    if pixels.dtype.itemsize > 1 and bits:
        bits = next(depth for depth in _DEPTHS_IN_16_BITS if depth >= bits)
    remedy = f": if white is {2**bits - 1}, give --levels {2**bits - 1}" if bits else ""
    return f"low levels: values up to {top:g} of {white:g}, less than a tenth{remedy}"


def _luminance(channels: np.ndarray, white: float) -> np.ndarray:
    grey = np.empty(channels.shape[:2], np.float32)
    # By rows: float64 for the whole of a large picture would be eight times its memory.
    for start in range(0, len(grey), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        red, green, blue = (channels[rows, :, channel] for channel in range(3))
        mixed = red * LUMINANCE[0] + green * LUMINANCE[1] + blue * LUMINANCE[2]
        grey[rows] = (np.asarray(mixed, np.float64) / white).clip(0, 1)
    return grey
