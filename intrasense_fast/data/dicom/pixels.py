"""The frames of a DICOM file as people see them: colours converted, white as the largest value."""

import contextlib
import os
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from intrasense_fast.data.dicom.fragments import check_fragments
from intrasense_fast.data.dicom.header import PALETTE, DicomHeader, read_dicom_header
from intrasense_fast.data.dicom.package import AGAIN, quiet
from intrasense_fast.data.dicom.regions import Spacing
from intrasense_fast.data.header import HeaderError
from intrasense_fast.data.region import Region

_CORRUPT = "corrupt DICOM pixels, or of a kind that the installed decoders do not take"


class DicomPicture(NamedTuple):
    """One frame.

    Attributes:
        pixels: (H, W) or (H, W, 3) in RGB order, uint8 or uint16; the whole frame.
        white: the value of white.
        region: the B-mode scan within the frame; None is the whole of it.
        spacing: millimetres between rows and between columns; None where unknown.
        note: what is said of the region, or "".
    """

    pixels: np.ndarray
    white: int
    region: Region | None
    spacing: Spacing | None
    note: str


def read_picture(stream: BinaryIO, max_pixels: int) -> DicomPicture:
    """The one frame of a DICOM file.

    Raises:
        HeaderError: it has several, or as in `read_frames`.
    """
    header, pixels_in = _header_within(stream, max_pixels)
    if header.frames > 1:
        raise HeaderError(
            f"a DICOM clip of {header.frames} frames, where one picture is needed: save the frame "
            "that is meant as a file of its own; predict takes clips whole"
        )
    (picture,) = _pictures(header, pixels_in)
    return picture


def read_frames(stream: BinaryIO, max_pixels: int) -> Iterator[DicomPicture]:
    """The frames of a DICOM file in order, each decoded when it is asked for.

    Raises:
        HeaderError: no picture, a kind that is not read, no decoder, a frame of more than
            `max_pixels`, truncated or corrupt; pydicom is missing.
    """
    header, pixels_in = _header_within(stream, max_pixels)
    yield from _pictures(header, pixels_in)


def _header_within(stream: BinaryIO, max_pixels: int) -> tuple[DicomHeader, BinaryIO]:
    header, pixels_in = read_dicom_header(stream)
    if header.pixels > max_pixels:
        size = f"{header.width} x {header.height} = {header.pixels / 1e6:.0f} million pixels"
        limit = f"more than the {max_pixels / 1e6:g} million of --max-pixels"
        raise HeaderError(f"{size}, {limit}: make it smaller, or raise --max-pixels")
    with quiet(_CORRUPT):
        _check_decoder(header.syntax)
        _check_length(header, pixels_in)
    return header, pixels_in


def _check_decoder(syntax: str) -> None:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    uid = UID(syntax)
    known = uid.name != syntax
    name = f"the transfer syntax {uid.name}" if known else "an unknown transfer syntax"
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        raise HeaderError(
            f"{name}, which is not read: save it uncompressed, or a frame of it as PNG"
        ) from None
    if not decoder.is_available:
        raise HeaderError(
            f"{name}, for which no decoder is installed: pip install 'intrasense-fast[dicom]'"
        )


def _check_length(header: DicomHeader, stream: BinaryIO) -> None:
    from pydicom.uid import UID

    start, length = header.data
    size = (header.width, header.height, header.frames)
    if UID(header.syntax).is_compressed:
        check_fragments(stream, start, length, *size)
        return
    if length is None:
        raise HeaderError(f"corrupt: uncompressed pixels in fragments: {AGAIN}")
    there = min(length, stream.seek(0, os.SEEK_END) - start)
    samples = 2 if header.colours == "YBR_FULL_422" else header.samples
    needed = header.pixels * header.frames * samples * header.allocated // 8
    if there < needed:
        raise HeaderError(f"truncated: {there} of {needed} bytes of its pixels are there: {AGAIN}")


def _pictures(header: DicomHeader, stream: BinaryIO) -> Iterator[DicomPicture]:
    with quiet(_CORRUPT):
        from pydicom.pixels import iter_pixels

        # A generator, by another name in its annotation.
        arrays = cast("Generator[np.ndarray, None, None]", iter_pixels(stream))
    with contextlib.closing(arrays):
        for _ in range(header.frames):
            with quiet(_CORRUPT):
                array: np.ndarray | None = next(arrays, None)
                if array is None:
                    reason = f"truncated: it ends before its {header.frames} frames"
                    raise HeaderError(f"{reason}: {AGAIN}")
                pixels, white = _as_seen(array, header)
            yield DicomPicture(pixels, white, header.region, header.spacing, header.note)


def _as_seen(array: np.ndarray, header: DicomHeader) -> tuple[np.ndarray, int]:
    """Pixels with white as their largest value, and that value."""
    if header.colours == PALETTE:
        return _coloured(array, header.dataset)
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise HeaderError(f"{array.dtype} DICOM pixels; 8 and 16 bits are read")
    white = 2**header.stored - 1
    pixels = array.astype(array.dtype.newbyteorder("="), copy=False)
    if header.stored < header.allocated:
        # Bits beside the stored ones may hold an overlay.
        pixels = pixels & white
    if header.colours == "MONOCHROME1":
        pixels = white - pixels
    return np.ascontiguousarray(pixels), white


def _coloured(array: np.ndarray, dataset: Any) -> tuple[np.ndarray, int]:
    from pydicom.pixels import apply_color_lut

    pixels = apply_color_lut(array, dataset)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise HeaderError(f"corrupt: a palette of {pixels.dtype}")
    if pixels.dtype == np.uint16 and not (pixels & 0xFF).any():
        # 8-bit entries in the upper byte of 16.
        pixels = (pixels >> 8).astype(np.uint8)
    return np.ascontiguousarray(pixels[:, :, :3]), int(np.iinfo(pixels.dtype).max)
