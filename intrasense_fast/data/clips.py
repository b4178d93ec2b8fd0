"""Clips, frame by frame, with a clear error for one that cannot be read or ends too early."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from intrasense_fast.data.dicom.header import read_dicom_header
from intrasense_fast.data.dicom.package import is_dicom, quiet
from intrasense_fast.data.header import HeaderError
from intrasense_fast.data.images import MAX_PIXELS, ImageError, decode_frames, frame_count
from intrasense_fast.data.opening import open_regular
from intrasense_fast.data.region import Region

SUFFIXES = (".avi", ".mp4", ".m4v", ".mov")
_AGAIN = "get it again from its source"
# Of clips whose header has no rate.
_RATE = 25.0


class ClipError(ImageError):
    """A clip that cannot be used, or not to its end; the message says why, without its name."""


class Clip(NamedTuple):
    """A clip that is open.

    Attributes:
        frames: its pictures in turn, uint8 (H, W, 3), RGB. It raises a ClipError where the clip
            ends before its header says. Of DICOM also uint16, and (H, W).
        rate: frames a second.
        length: frames by its header; 0 where that does not say.
        shape: (H, W).
        white: the value of white of DICOM, where it is not the largest of its type.
        region: the scan within the frames of DICOM; None is the whole of them.
        spacing: millimetres between rows and between columns; None where unknown.
        note: what is said of the region, or "".
    """

    frames: Iterator[np.ndarray]
    rate: float
    length: int
    shape: tuple[int, int]
    white: int | None = None
    region: Region | None = None
    spacing: tuple[float, float] | None = None
    note: str = ""


def is_clip(path: Path) -> bool:
    """Is it a clip: by its name, or a DICOM file of several frames?"""
    if path.suffix.casefold() in SUFFIXES:
        return True
    try:
        return frame_count(path) > 1
    except ImageError:
        # It is named where it is read as an image.
        return False


@contextmanager
def open_clip(path: Path, max_pixels: int = MAX_PIXELS) -> Iterator[Clip]:
    """A clip, of which one frame is in memory at a time.

    Raises:
        ClipError: it cannot be decoded, or its frames have more than `max_pixels` pixels.
        OSError: it is missing, no regular file, or may not be read.
    """
    if is_dicom(path):
        yield _dicom_clip(path, max_pixels)
        return
    with open_regular(path) as stream:
        if not stream.read(1):
            raise ClipError(f"empty file (0 bytes): {_AGAIN}")
    capture = cv2.VideoCapture(str(path))
    try:
        width, height, count = (
            int(_number(capture, key))
            for key in (
                cv2.CAP_PROP_FRAME_WIDTH,
                cv2.CAP_PROP_FRAME_HEIGHT,
                cv2.CAP_PROP_FRAME_COUNT,
            )
        )
        if not capture.isOpened() or width < 1 or height < 1:
            raise ClipError(
                "cannot be decoded: damaged, cut off, or of a codec that OpenCV does not read "
                f"here; {_AGAIN}, or convert it to AVI with MJPEG"
            )
        if width * height > max_pixels:
            raise ClipError(
                f"frames of {width} x {height} = {width * height / 1e6:.0f} million pixels, more "
                f"than the {max_pixels / 1e6:g} million of --max-pixels: raise it"
            )
        rate = _number(capture, cv2.CAP_PROP_FPS)
        frames = _frames(capture, max(0, count))
        yield Clip(frames, rate if rate > 0 else _RATE, max(0, count), (height, width))
    finally:
        capture.release()


def _dicom_clip(path: Path, max_pixels: int) -> Clip:
    try:
        with open_regular(path) as stream:
            header, _ = read_dicom_header(stream)
        with quiet("corrupt rate of frames"):
            rate = header.rate
    except HeaderError as error:
        raise ClipError(str(error)) from None
    rate = rate if math.isfinite(rate) and rate > 0 else _RATE
    shape = (header.height, header.width)
    frames = _dicom_frames(path, max_pixels)
    return Clip(
        frames,
        rate,
        header.frames,
        shape,
        header.white,
        header.region,
        header.spacing,
        header.note,
    )


def _dicom_frames(path: Path, max_pixels: int) -> Iterator[np.ndarray]:
    try:
        for decoded in decode_frames(path, max_pixels):
            yield decoded.pixels
    except ImageError as error:
        raise ClipError(str(error).removeprefix(f"{path}: ")) from None


def _frames(capture: cv2.VideoCapture, count: int) -> Iterator[np.ndarray]:
    read = 0
    while True:
        there, frame = capture.read()
        if not there:
            break
        read += 1
        yield frame[:, :, ::-1] if frame.ndim == 3 else np.repeat(frame[:, :, None], 3, 2)
    if read < max(1, count):
        raise ClipError(
            f"ends after frame {read} of the {count} that its header names: truncated or damaged; "
            f"{_AGAIN}"
        )


def _number(capture: cv2.VideoCapture, key: int) -> float:
    value = capture.get(key)
    return value if math.isfinite(value) else 0.0
