"""Image files: one grey channel in [0, 1], masks in {0, 1}, and a clear error for whatever is no whole image."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from intrasense_fast.data.integrity import fault, image_format, png_mode
from intrasense_fast.files import atomic_path

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LUMINANCE = (0.299, 0.587, 0.114)
SIZE_TOLERANCE = 2
AMBIGUOUS_FRACTION = 0.01


class ImageError(ValueError):
    """An image or mask file that cannot be used; the message names the file, the fault and the remedy."""


class Decoded(NamedTuple):
    """Pixels as stored, (H, W) or (H, W, C) in RGB(A) order, and the colour mode of the file ("RGB 16-bit")."""

    pixels: np.ndarray
    mode: str


def decode_image(path: str | os.PathLike[str]) -> Decoded:
    """Decode a PNG, JPEG, BMP or TIFF, by its content rather than its name, without changing a pixel value.

    Raises:
        ImageError: the file is missing, a folder, unreadable, empty, truncated, corrupt, of another format or of a
            sample type other than uint8, uint16 and float; or float pixels are not finite.
    """
    data = _read(Path(path))
    name = image_format(data)
    if name is None:
        raise ImageError(
            f"{path}: not a PNG, JPEG, BMP or TIFF (it begins with {data[:8]!r}): convert it to PNG"
        )
    broken = fault(data)
    if broken:
        raise ImageError(f"{path}: {broken}. Get the file again from its source")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{path}: corrupt {name}, it cannot be decoded ({error.err})") from None
    if pixels is None or pixels.size == 0:
        raise ImageError(
            f"{path}: corrupt {name}, it cannot be decoded. Get the file again from its source"
        )
    if pixels.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise ImageError(
            f"{path}: {pixels.dtype} pixels; 8-bit, 16-bit and float are read: convert it to PNG"
        )
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ImageError(
            f"{path}: {int((~np.isfinite(pixels)).sum())} pixels are NaN or infinite: replace them"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]]
    colour = (
        (png_mode(data) if name == "PNG" else None)
        or {2: "grey"}.get(pixels.ndim)
        or ("RGB" if pixels.shape[2] == 3 else "RGBA")
    )
    depth = {"uint8": "", "uint16": " 16-bit"}.get(pixels.dtype.name, " float")
    return Decoded(pixels, colour + depth)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as one grey channel: float32 (H, W) in [0, 1].

    8-bit values are divided by 255 and 16-bit values by 65535, never by the image's own maximum. Alpha is dropped. Colour
    becomes its luminance (0.299 R + 0.587 G + 0.114 B), or the channel itself where all three are equal. Float pixels must
    already lie in [0, 1].

    Raises:
        ImageError: the file is no whole image (see `decode_image`), or float pixels leave [0, 1].
    """
    return to_grey(decode_image(path).pixels, path)


def to_grey(pixels: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """Decoded pixels as float32 (H, W) in [0, 1]; `path` is named in errors. See `read_image`."""
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if low < 0 or high > 1:
            raise ImageError(
                f"{path}: float pixels from {low:g} to {high:g}; [0, 1] is needed: rescale them or save 8 or 16 bits"
            )
        scale = 1.0
    else:
        scale = float(np.iinfo(pixels.dtype).max)
    if pixels.ndim == 3:
        red, green, blue = (pixels[:, :, channel] for channel in range(3))
        if np.array_equal(red, green) and np.array_equal(red, blue):
            pixels = red
        else:
            pixels = red * LUMINANCE[0] + green * LUMINANCE[1] + blue * LUMINANCE[2]
    return (np.asarray(pixels, np.float64) / scale).clip(0, 1).astype(np.float32)


def read_mask(
    paths: Sequence[str | os.PathLike[str]], shape: tuple[int, int]
) -> tuple[np.ndarray, list[str]]:
    """Read the mask files of one image and merge them by logical OR: uint8 (H, W) in {0, 1}, and a list of warnings.

    Of each file alpha is dropped and the maximum over the colour channels taken. A pixel is lesion when it is > 0 in a mask
    whose maximum is at most 1, else when it is > 127 (> 32767 in 16-bit masks whose maximum exceeds 255; >= 0.5 in float masks
    within [0, 1]). A mask at most 2 pixels off `shape` (H, W) in height and width is resized by nearest neighbour, with a
    warning. A warning also says when more than 1 % of the pixels lie further than an eighth of the maximum from both of its
    two levels, when non-zero pixels all fall below the threshold, and when colour is constant while alpha is not.

    Raises:
        ImageError: a file is no whole image (see `decode_image`), or its size differs by more than 2 pixels.
    """
    merged = np.zeros(shape, np.uint8)
    warnings: list[str] = []
    for path in paths:
        mask, notes = binarize(decode_image(path).pixels)
        warnings += [f"{path}: {note}" for note in notes]
        if mask.shape != shape:
            sizes = f"mask is {mask.shape[1]} x {mask.shape[0]}, its image {shape[1]} x {shape[0]} (width x height)"
            if max(abs(mask.shape[0] - shape[0]), abs(mask.shape[1] - shape[1])) > SIZE_TOLERANCE:
                raise ImageError(
                    f"{path}: {sizes}: use the mask drawn on this image, or resize it with nearest neighbour"
                )
            mask = cv2.resize(mask, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
            warnings.append(f"{path}: {sizes}: resized with nearest neighbour")
        merged |= mask
    return merged, warnings


def binarize(pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Decoded mask (H, W) or (H, W, C) as uint8 (H, W) in {0, 1} by the rule of `read_mask`, and warnings without file name."""
    warnings = []
    alpha = None
    if pixels.ndim == 3:
        alpha = pixels[:, :, 3] if pixels.shape[2] == 4 else None
        pixels = pixels[:, :, :3].max(axis=2)
    top = float(pixels.max())
    if pixels.dtype.kind == "f":
        threshold = 0.5 if top <= 1 else 127.5
        mask = (pixels >= threshold).astype(np.uint8)
    else:
        threshold = 0 if top <= 1 else 127 if top <= 255 else 32767
        mask = (pixels > threshold).astype(np.uint8)
    between = float(np.mean((pixels > top / 8) & (pixels < top * 7 / 8)))
    if between > AMBIGUOUS_FRACTION:
        warnings.append(
            f"ambiguous grey values: {between:.1%} of the pixels are near neither 0 nor {top:g}; "
            f"above {threshold:g} counts as lesion"
        )
    if top > 0 and not mask.any():
        warnings.append(
            f"values up to {top:g}, none above {threshold:g}: read as an empty mask; store lesions as 1 or 255"
        )
    if alpha is not None and alpha.min() != alpha.max() and pixels.min() == pixels.max():
        warnings.append(
            "colour is constant and alpha is not: alpha is dropped; store the lesion in the colour channels"
        )
    return mask, warnings


def write_png(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write uint8 or uint16 (H, W) or RGB(A) (H, W, 3 or 4) as PNG: whole or not at all (temporary file, then rename).

    Raises:
        ValueError: another dtype or shape.
        OSError: the disk is full or the folder cannot be written; what stood at `path` is untouched.
    """
    array = np.asarray(array)
    if (
        array.dtype not in (np.uint8, np.uint16)
        or array.ndim not in (2, 3)
        or array.shape[2:] not in ((), (3,), (4,))
    ):
        raise ValueError(
            f"write_png needs uint8 or uint16 of shape (H, W), (H, W, 3) or (H, W, 4), got {array.dtype} {array.shape}"
        )
    if array.ndim == 3:
        array = array[:, :, [2, 1, 0, *range(3, array.shape[2])]]
    done, data = cv2.imencode(".png", np.ascontiguousarray(array))
    if not done:
        raise ValueError(f"{path}: an array of shape {array.shape} cannot be encoded as PNG")
    with atomic_path(path, flush=False) as temporary:
        temporary.write_bytes(data.tobytes())


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: a folder, an image file is needed") from None
    except PermissionError:
        raise ImageError(
            f"{path}: permission denied: make the file readable for this user"
        ) from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not data:
        raise ImageError(f"{path}: empty file (0 bytes): get it again from its source")
    return data
