"""Compressed pixel data: is every fragment there, and of the size that the header gives?

Decoders fill in what is missing without saying so, and take memory for any size that a compressed
stream claims.
"""

import os
import struct
from typing import BinaryIO

from intrasense_fast.data.dicom.package import AGAIN
from intrasense_fast.data.header import HeaderError

_ITEM, _END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_JPEG, _JPEG_2000 = b"\xff\xd8\xff", b"\xff\x4f\xff\x51"
_BOX = b"\0\0\0\x0cjP  "
# Start-of-frame markers, that of JPEG-LS among them; the others in their range are none.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def check_fragments(
    stream: BinaryIO, start: int, length: int | None, width: int, height: int, frames: int
) -> None:
    """Walk the fragments of encapsulated pixel data (PS3.5 A.4).

    Args:
        stream: the file.
        start: where the offset table begins.
        length: bytes of the pixel data, or None, where they end with a mark.
        width, height, frames: of the header.

    Raises:
        HeaderError: the file ends inside them, there are fewer than frames, or one is of another
            size.
    """
    size = stream.seek(0, os.SEEK_END)
    at, fragments = start, -1
    while True:
        if length is not None and at - start >= length:
            break
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:
            raise HeaderError(f"truncated: its compressed pixels have no end: {AGAIN}")
        group, element, count = struct.unpack("<HHI", head)
        if (group, element) == _END:
            break
        if (group, element) != _ITEM:
            raise HeaderError(f"corrupt: bytes between its compressed frames: {AGAIN}")
        if at + 8 + count > size:
            raise HeaderError(f"truncated: it ends inside a compressed frame: {AGAIN}")
        fragments += 1
        if fragments:
            _check_size(stream.read(count), width, height)
        at += 8 + count
    if fragments < frames:
        raise HeaderError(f"truncated: {max(fragments, 0)} of its {frames} frames are there")


def _check_size(fragment: bytes, width: int, height: int) -> None:
    size = _size(fragment)
    if size not in (None, (width, height)):
        raise HeaderError(
            f"corrupt: a compressed frame of {size[0]} x {size[1]} in a picture of {width} x "
            f"{height}: {AGAIN}"
        )


def _size(fragment: bytes) -> tuple[int, int] | None:
    """Width and height of a compressed frame by its own header; None where it has none."""
    if fragment.startswith(_BOX):
        fragment = fragment[max(fragment.find(_JPEG_2000), 0) :]
    if fragment.startswith(_JPEG_2000):
        right, bottom, left, top = struct.unpack_from(">IIII", fragment, 8)
        return right - left, bottom - top
    if not fragment.startswith(_JPEG):
        return None
    at = 2
    while at + 9 <= len(fragment):
        mark, marker, length = struct.unpack_from(">BBH", fragment, at)
        if mark != 0xFF:
            return None
        if marker in _FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", fragment, at + 5)
            return width, height
        at += 1 if marker == 0xFF else 2 + length
    return None
