"""Is an encoded image whole? Decoders fill in what is missing from a cut file without saying so;
these checks do not."""

import io
import struct
import zlib
from collections.abc import Sequence
from math import ceil

import cv2
import numpy as np

from intrasense_fast.data.header import FORMATS

_PNG_MODES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey+alpha", 6: "RGBA"}
_SEQUENTIAL = (0xC0, 0xC1)
_TIFF_TYPE_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def image_format(data: bytes) -> str | None:
    """PNG, JPEG, BMP or TIFF by the first bytes of the file, whatever its name ends in; None for
    anything else."""
    return next((name for magic, name in FORMATS.items() if data.startswith(magic)), None)


def fault(data: bytes) -> str | None:
    """What is wrong with an encoded PNG, JPEG, BMP or TIFF as a file; None when every byte it
    promises is there."""
    check = {"PNG": _png_fault, "JPEG": _jpeg_fault, "BMP": _bmp_fault, "TIFF": _tiff_fault}.get(
        image_format(data) or ""
    )
    if check is None:
        return "not a PNG, JPEG, BMP or TIFF"
    try:
        return check(data)
    except (struct.error, IndexError):
        return "truncated: the file ends inside its header"
    except (LookupError, ValueError, ArithmeticError):
        return "corrupt: its header contradicts itself"


def png_mode(data: bytes) -> str | None:
    """Colour mode from the header of a PNG ("palette" cannot be told from the decoded pixels)."""
    return _PNG_MODES.get(data[25])


def _png_fault(data: bytes) -> str | None:
    at = 8
    pixels = False
    while at < len(data):
        if at + 12 > len(data):
            return "truncated: the PNG ends inside a chunk"
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            return f"truncated: {end - len(data)} bytes of a PNG chunk are missing"
        if zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            chunk = kind.decode("ascii", "replace")
            return f"corrupt: the checksum of PNG chunk {chunk!r} does not match its bytes"
        pixels = pixels or kind == b"IDAT"
        if kind == b"IEND":
            return None if pixels else "corrupt: the PNG holds no pixel data"
        at = end
    return "truncated: the PNG has no end chunk"


def _jpeg_fault(data: bytes) -> str | None:
    """Walk the segments to the end marker, then decode twice, the second time with filler after
    each scan.

    A whole scan ignores what follows it, so the pixels stay the same; a scan cut short goes on with
    the filler, so they change.
    """
    # No 0xFF, so that the filler holds no marker.
    filler = bytes(np.random.default_rng(0).integers(0, 255, 1024, dtype=np.uint8))
    at, padded_from = 2, 0
    padded = bytearray()
    scans, kind = 0, 0
    frame: dict[int, tuple[int, int]] = {}
    size = (0, 0)
    interval = 0
    while True:
        if at + 2 > len(data):
            return "truncated: the JPEG ends before its end marker"
        if data[at] != 0xFF:
            return "corrupt: bytes where a JPEG marker should be"
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + length
        if end > len(data):
            return "truncated: the JPEG ends inside a segment"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            kind, size = marker, struct.unpack_from(">HH", data, at + 5)
            frame = {data[p]: (data[p + 1] >> 4, data[p + 1] & 15) for p in range(at + 10, end, 3)}
        elif marker == 0xDD:
            (interval,) = struct.unpack_from(">H", data, at + 4)
        elif marker == 0xDA:
            components = list(data[at + 5 : at + 5 + 2 * data[at + 4] : 2])
            end, restarts = _scan_end(data, end)
            expected = (_units(frame, components, size) - 1) // interval if interval else 0
            if restarts < expected:
                marks = f"{restarts} of {expected} restart markers"
                return f"truncated: {marks} of the JPEG scan are there"
            padded += data[padded_from:end] + filler
            padded_from = end
            scans += 1
        at = end
    if not padded:
        return "corrupt: the JPEG holds no scan"
    # On its way from the filler to a marker OpenCV's decoder prints "Corrupt JPEG data" to the
    # terminal. Where the only scan holds the picture it needs no marker.
    several = scans > 1 or kind not in _SEQUENTIAL
    if several:
        padded += data[padded_from:]
    both = (data, bytes(padded))
    whole, tested = (_quietly_decoded(both) if several else None) or [
        _decoded(each) for each in both
    ]
    if whole is None:
        return "corrupt: the JPEG cannot be decoded"
    if tested is None or not np.array_equal(whole, tested):
        return "truncated: the JPEG has an end marker, but its scan data stop early"
    return None


def _decoded(data: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def _quietly_decoded(files: Sequence[bytes]) -> list[np.ndarray | None] | None:
    """Pixels by Pillow's decoder, which prints nothing; None where there is no Pillow (matplotlib
    brings it) or it refuses."""
    try:
        from PIL import Image

        return [np.asarray(Image.open(io.BytesIO(each), formats=["JPEG"])) for each in files]
    except Exception:
        # Whatever it is, OpenCV's decoder has the last word.
        return None


def _scan_end(data: bytes, at: int) -> tuple[int, int]:
    """Where the entropy-coded bytes from `at` on end (the next marker that is no restart), and the
    restart markers passed."""
    restarts = 0
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return len(data), restarts
        following = data[at + 1]
        if 0xD0 <= following <= 0xD7:
            restarts += 1
        elif following == 0xFF:
            at += 1
            continue
        elif following:
            return at, restarts
        at += 2


def _units(frame: dict[int, tuple[int, int]], components: list[int], size: tuple[int, int]) -> int:
    """Coding units (MCUs) of a scan: interleaved blocks of all its components, or the single blocks
    of one component."""
    horizontal, vertical = (max(factor[axis] for factor in frame.values()) for axis in (0, 1))
    height, width = size
    if len(components) > 1:
        return ceil(width / (8 * horizontal)) * ceil(height / (8 * vertical))
    own = frame[components[0]]
    return ceil(ceil(width * own[0] / horizontal) / 8) * ceil(ceil(height * own[1] / vertical) / 8)


def _bmp_fault(data: bytes) -> str | None:
    offset, header = struct.unpack_from("<II", data, 10)
    if header < 40:
        return None
    width, height, _, bits, compression, stored = struct.unpack_from("<iiHHII", data, 18)
    needed = offset + (
        stored if compression in (1, 2) else (abs(width) * bits + 31) // 32 * 4 * abs(height)
    )
    return (
        f"truncated: {needed - len(data)} of {needed} bytes of the BMP are missing"
        if needed > len(data)
        else None
    )


def _tiff_fault(data: bytes) -> str | None:
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
        if tag in (273, 279, 324, 325) and kind in (3, 4):
            start = entry + 8
            if number * _TIFF_TYPE_SIZE[kind] > 4:
                (start,) = struct.unpack_from(order + "I", data, start)
            tags[tag] = struct.unpack_from(
                f"{order}{number}{'H' if kind == 3 else 'I'}", data, start
            )
    (following,) = struct.unpack_from(order + "I", data, at + 2 + 12 * count)
    if following:
        return "several pages in one TIFF: save each page as a file of its own"
    offsets, lengths = tags.get(273, tags.get(324, ())), tags.get(279, tags.get(325, ()))
    end = max((start + length for start, length in zip(offsets, lengths, strict=False)), default=0)
    return (
        f"truncated: {end - len(data)} bytes of the TIFF's pixels are missing"
        if end > len(data)
        else None
    )
