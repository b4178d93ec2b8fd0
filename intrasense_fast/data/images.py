"""Image files: one grey channel in [0, 1], and a clear error for whatever is no whole image.

Every file passes the same steps: only a regular file is opened, the header gives the size and the
orientation, a picture beyond the budget is refused, the rest is decoded and turned as people see
it. DICOM files do so in `data.dicom`.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from intrasense_fast.data.decoded import Decoded, ImageError
from intrasense_fast.data.dicom.header import read_dicom_header
from intrasense_fast.data.dicom.package import is_dicom
from intrasense_fast.data.dicom.pixels import DicomPicture, read_frames, read_picture
from intrasense_fast.data.grey import LOW_RANGE, LUMINANCE, low_range, to_grey, white_of
from intrasense_fast.data.header import (
    Header,
    HeaderError,
    neutral_tiff,
    picture_name,
    read_header,
)
from intrasense_fast.data.integrity import fault, png_mode
from intrasense_fast.data.opening import FileError, open_regular
from intrasense_fast.files import atomic_path

__all__ = [
    "LOW_RANGE",
    "LUMINANCE",
    "MAX_PIXELS",
    "Decoded",
    "ImageError",
    "decode_frames",
    "decode_image",
    "frame_count",
    "low_range",
    "pixel_count",
    "read_image",
    "to_grey",
    "white_of",
    "write_png",
]

MAX_PIXELS = 100_000_000

_AGAIN = "get it again from its source"


def decode_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode a PNG, JPEG, BMP, TIFF or DICOM file, by its content rather than its name; no value
    is changed.

    Args:
        path: the file.
        max_pixels: a picture of more, by its header, is refused before it is decoded.

    Raises:
        ImageError: the file is missing, no regular file, unreadable, empty, truncated, corrupt, of
            another format, too large, or of a sample type other than uint8, uint16 and float; or
            float pixels are not finite; or a DICOM file of several frames.
    """
    if is_dicom(path):
        with _naming(Path(path)), open_regular(path) as stream:
            return _of_dicom(read_picture(stream, max_pixels))
    header, data = _read(Path(path), max_pixels)
    try:
        pixels = _pixels(header, data)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if pixels.ndim == 3:
            pixels = pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]]
        mode = _mode(header, data, pixels)
        return Decoded(_turned(pixels, header.orientation), mode, header.orientation)
    except MemoryError:
        reason = f"{header.width} x {header.height} pixels do not fit into memory"
        raise ImageError(f"{path}: {reason}: lower --max-pixels, or make it smaller") from None
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from None


def decode_frames(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Iterator[Decoded]:
    """The frames of a DICOM file in order, each decoded when it is asked for.

    Raises:
        ImageError: as `decode_image`, at the frame that cannot be had.
    """
    with _naming(Path(path)), open_regular(path) as stream:
        for picture in read_frames(stream, max_pixels):
            yield _of_dicom(picture)


def frame_count(path: str | os.PathLike[str]) -> int:
    """Frames of a DICOM file by its header; 1 of any other file.

    Raises:
        ImageError: a DICOM file whose header cannot be read.
    """
    if not is_dicom(path):
        return 1
    with _naming(Path(path)), open_regular(path) as stream:
        return read_dicom_header(stream)[0].frames


def pixel_count(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> int:
    """Pixels of a picture by its header, of one frame; 0 where it is not known, or more than
    `max_pixels`."""
    try:
        with open_regular(path) as stream:
            # First DICOM: its preamble may begin as a TIFF does.
            if is_dicom(path):
                pixels = read_dicom_header(stream)[0].pixels
            else:
                header = read_header(stream, orientation=False)
                pixels = header.pixels if header else 0
    except (OSError, HeaderError):
        return 0
    return pixels if pixels <= max_pixels else 0


def read_image(
    path: str | os.PathLike[str], levels: int | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read an image file as one grey channel: float32 (H, W) in [0, 1], as people see it.

    8-bit values are divided by 255 and 16-bit values by 65535, or by `levels` where it is less;
    never by the image's own maximum. Alpha is dropped. Colour becomes its luminance (0.299 R +
    0.587 G +
    0.114 B), or the channel itself where all three are equal. Float pixels must lie in [0, 1], or
    in [0, levels].

    Raises:
        ImageError: the file is no whole image (see `decode_image`), or a pixel exceeds white.
    """
    decoded = decode_image(path, max_pixels)
    return to_grey(decoded.pixels, path, decoded.levels(levels))


def write_png(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write uint8 or uint16 (H, W) or RGB(A) (H, W, 3 or 4) as PNG: whole or not at all (temporary
    file, then rename).

    Raises:
        ValueError: another dtype or shape.
        OSError: the disk is full or the folder cannot be written; what stood at `path` is
            untouched.
    """
    array = np.asarray(array)
    if (
        array.dtype not in (np.uint8, np.uint16)
        or array.ndim not in (2, 3)
        or array.shape[2:] not in ((), (3,), (4,))
    ):
        raise ValueError(
            f"write_png needs uint8 or uint16 of shape (H, W), (H, W, 3) or (H, W, 4), got "
            f"{array.dtype} {array.shape}"
        )
    try:
        content = png_bytes(array)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    with atomic_path(path, flush=False) as temporary:
        temporary.write_bytes(content)


def png_bytes(array: np.ndarray) -> bytes:
    """Of such an array the content of its PNG file.

    Raises:
        ValueError: it cannot be encoded.
    """
    if array.ndim == 3:
        array = array[:, :, [2, 1, 0, *range(3, array.shape[2])]]
    done, data = cv2.imencode(".png", np.ascontiguousarray(array))
    if not done:
        raise ValueError(f"an array of shape {array.shape} cannot be encoded as PNG")
    return data.tobytes()


def _pixels(header: Header, data: bytes) -> np.ndarray:
    broken = fault(data)
    if broken and not (header.variant and broken.startswith("corrupt")):
        raise ValueError(f"{broken}. {_AGAIN.capitalize()}")
    inverted = False
    if header.format == "TIFF":
        data, inverted = neutral_tiff(data)
    reason = ""
    pixels = None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        reason = f" ({error.err})"
    if pixels is None or pixels.size == 0:
        if header.variant:
            raise ValueError(f"{header.variant}, which is not read here: convert it to PNG")
        if header.format in ("TIFF", "BMP"):
            kind = f"damaged, or a kind of {header.format} that is not read here"
            raise ValueError(f"cannot be decoded{reason}, {kind}: convert it to PNG, or {_AGAIN}")
        raise ValueError(f"corrupt {header.format}, it cannot be decoded{reason}: {_AGAIN}")
    if pixels.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise ValueError(
            f"{pixels.dtype} pixels; 8-bit, 16-bit and float are read: convert it to PNG"
        )
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        odd = int((~np.isfinite(pixels)).sum())
        raise ValueError(f"{odd} pixels are NaN or infinite: replace them")
    if inverted and pixels.dtype.kind == "u":
        largest = np.uint8(255) if pixels.dtype == np.uint8 else np.uint16(65535)
        return np.asarray(largest - pixels)
    return pixels


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as people see it, of pixels stored in an EXIF orientation."""
    if orientation == 1:
        return pixels
    if orientation in (5, 7):
        pixels = pixels.swapaxes(0, 1)
    turns = {3: 2, 4: 2, 6: 3, 7: 2, 8: 1}.get(orientation, 0)
    pixels = np.rot90(pixels, turns)
    if orientation in (2, 4):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _mode(header: Header, data: bytes, pixels: np.ndarray) -> str:
    colour = png_mode(data) if header.format == "PNG" else None
    if colour is None:
        colour = {2: "grey"}.get(pixels.ndim) or ("RGB" if pixels.shape[2] == 3 else "RGBA")
    return colour + {"uint8": "", "uint16": " 16-bit"}.get(pixels.dtype.name, " float")


def _of_dicom(picture: DicomPicture) -> Decoded:
    pixels, white, region, spacing, note = picture
    colour = "grey" if pixels.ndim == 2 else "RGB"
    mode = f"DICOM {colour}" + (" 16-bit" if pixels.dtype == np.uint16 else "")
    own = white if white < np.iinfo(pixels.dtype).max else None
    return Decoded(pixels, mode, 1, own, region, spacing, note)


def _read(path: Path, max_pixels: int) -> tuple[Header, bytes]:
    """The header of a picture of at most `max_pixels`, and all its bytes.

    Raises:
        ImageError: any other file; the message names it.
    """
    with _naming(path), open_regular(path) as stream:
        header = read_header(stream)
        if header is None:
            stream.seek(0)
            raise HeaderError(_no_picture(stream.read(352)))
        if header.pixels > max_pixels:
            size = f"{header.width} x {header.height} = {header.pixels / 1e6:.0f} million pixels"
            limit = f"more than the {max_pixels / 1e6:g} million of --max-pixels"
            raise HeaderError(f"{size}, {limit}: make it smaller, or raise --max-pixels")
        stream.seek(0)
        # Whatever a file holds beyond 16 bytes a pixel and 64 MiB is no picture of this size.
        if os.fstat(stream.fileno()).st_size > 16 * header.pixels + (64 << 20):
            raise HeaderError(f"far more bytes than {header.pixels} pixels need: {_AGAIN}")
        return header, stream.read()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the block as an ImageError that names the file."""
    try:
        yield
    except HeaderError as error:
        raise ImageError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except PermissionError:
        raise ImageError(
            f"{path}: permission denied: make the file readable for this user"
        ) from None
    except FileError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise ImageError(
            f"{path}: its pixels do not fit into memory: lower --max-pixels, or make it smaller"
        ) from None


def _no_picture(start: bytes) -> str:
    if not start:
        return f"empty file (0 bytes): {_AGAIN}"
    name = picture_name(start)
    kind = f"a {name} picture" if name else f"it begins with {start[:8]!r}"
    return f"not a PNG, JPEG, BMP, TIFF or DICOM ({kind}): convert it to PNG"
