"""What the first bytes of a picture tell before a pixel is decoded: format, size, orientation."""

import struct
from collections.abc import Callable, Mapping
from typing import BinaryIO, NamedTuple

FORMATS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}
# Pictures that are recognised, to be named, and not read: offset, bytes, name.
_OTHERS = (
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (4, b"jP  \r\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (128, b"DICM", "DICOM"),
    (4, b"ftyphe", "HEIF"),
    (4, b"ftypmif", "HEIF"),
    (4, b"ftypavif", "AVIF"),
    (0, b"II+\x00", "BigTIFF"),
    (0, b"MM\x00+", "BigTIFF"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"8BPS", "Photoshop"),
    (344, b"n+1\x00", "NIfTI"),
)
ORIENTATION, PHOTOMETRIC = 274, 262
_WHITE_IS_ZERO = 0
_COMPRESSION = 259
_COMPRESSIONS = {
    1: "none",
    2: "CCITT RLE",
    3: "CCITT Group 3",
    4: "CCITT Group 4",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    34661: "JBIG",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_ARITHMETIC = {0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


class HeaderError(ValueError):
    """A header that is cut short or contradicts itself; the message does not name the file."""


class Header(NamedTuple):
    """`orientation` is EXIF's, 1 to 8; `variant` names what few decoders take ("compression
    JBIG")."""

    format: str
    width: int
    height: int
    orientation: int = 1
    variant: str = ""

    @property
    def pixels(self) -> int:
        return self.width * self.height


def picture_name(data: bytes) -> str | None:
    """The name of a picture format by the first 352 bytes of a file, read or not; None else."""
    known = next((name for magic, name in FORMATS.items() if data.startswith(magic)), None)
    return known or next(
        (name for start, magic, name in _OTHERS if data[start : start + len(magic)] == magic), None
    )


def read_header(stream: BinaryIO, *, orientation: bool = True) -> Header | None:
    """Format, size and orientation of a PNG, JPEG, BMP or TIFF, by content; None for anything else.

    orientation=False: only the size is wanted, and of a PNG no more than its beginning is read.

    Raises:
        HeaderError: the header is cut short or contradicts itself.
    """
    at = _reader(stream)
    stream.seek(0)
    start = stream.read(16)
    format_ = next((name for magic, name in FORMATS.items() if start.startswith(magic)), None)
    if format_ is None:
        return None
    if format_ == "PNG" and not orientation and len(start) == 16:
        start += stream.read(8)
        if len(start) == 24:
            return Header("PNG", *struct.unpack_from(">II", start, 16))
    read = {"PNG": _png, "JPEG": _jpeg, "BMP": _bmp, "TIFF": _tiff}[format_]
    try:
        header = read(at)
    except struct.error:
        raise HeaderError("truncated: the file ends inside its header") from None
    if header.width < 1 or header.height < 1:
        raise HeaderError(f"corrupt: its header gives a size of {header.width} x {header.height}")
    if header.orientation not in range(1, 9):
        # 0 and others mean nothing: readers leave the picture as it is.
        return header._replace(orientation=1)
    return header


_Reader = Callable[[int, int], bytes]


def _reader(stream: BinaryIO) -> _Reader:
    def at(offset: int, count: int) -> bytes:
        stream.seek(offset)
        return stream.read(count)

    return at


def _png(at: _Reader) -> Header:
    width, height = struct.unpack(">II", at(16, 8))
    orientation = 1
    offset = 8
    while len(chunk := at(offset, 8)) == 8:
        length, kind = struct.unpack(">I4s", chunk)
        if kind == b"eXIf":
            orientation = exif_orientation(at(offset + 8, min(length, 1 << 16)))
        if kind == b"IEND":
            break
        offset += 12 + length
    return Header("PNG", width, height, orientation)


def _jpeg(at: _Reader) -> Header:
    orientation = 1
    offset = 2
    while True:
        mark, kind = struct.unpack(">BB", at(offset, 2))
        if mark != 0xFF:
            raise HeaderError("corrupt: bytes where a JPEG marker should be")
        if kind == 0xFF:
            offset += 1
            continue
        if kind in (0xD9, 0xDA):
            raise HeaderError("corrupt: the JPEG gives no size before its scan")
        (length,) = struct.unpack(">H", at(offset + 2, 2))
        if kind == 0xE1:
            segment = at(offset + 4, length - 2)
            if segment.startswith(b"Exif\x00\x00"):
                orientation = exif_orientation(segment[6:])
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            bits, height, width = struct.unpack(">BHH", at(offset + 4, 5))
            return Header("JPEG", width, height, orientation, _jpeg_variant(kind, bits))
        offset += 2 + length


def _jpeg_variant(kind: int, bits: int) -> str:
    if bits != 8:
        return f"a JPEG of {bits} bits"
    if kind in _LOSSLESS:
        return "a lossless JPEG"
    if kind in _ARITHMETIC:
        return "an arithmetic-coded JPEG"
    return "" if kind in (0xC0, 0xC1, 0xC2) else "a hierarchical JPEG"


def _bmp(at: _Reader) -> Header:
    (size,) = struct.unpack("<I", at(14, 4))
    if size == 12:
        return Header("BMP", *struct.unpack("<HH", at(18, 4)))
    width, height, _, bits, compression = struct.unpack("<iiHHI", at(18, 16))
    plain = bits in (1, 4, 8, 24, 32) and compression in (0, 3)
    variant = "" if plain else f"a BMP of {bits} bits and compression {compression}"
    return Header("BMP", width, abs(height), 1, variant)


def _tiff(at: _Reader) -> Header:
    order = "<" if at(0, 2) == b"II" else ">"
    tags = _tags(at, order)
    try:
        width, height = tags[256][1], tags[257][1]
    except KeyError:
        raise HeaderError("corrupt: the TIFF gives no size") from None
    compression = tags.get(_COMPRESSION, (0, 1))[1]
    name = _COMPRESSIONS.get(compression, str(compression))
    variant = "" if compression in (1, 5, 8, 32773, 32946) else f"a TIFF of compression {name}"
    return Header("TIFF", width, height, tags.get(ORIENTATION, (0, 1))[1], variant)


def _tags(at: _Reader, order: str) -> Mapping[int, tuple[int, int, str]]:
    """Tag -> (where its value stands, the value, its struct format): first page, whole numbers."""
    (start,) = struct.unpack(order + "I", at(4, 4))
    (count,) = struct.unpack(order + "H", at(start, 2))
    block = at(start + 2, 12 * count)
    tags: dict[int, tuple[int, int, str]] = {}
    for entry in range(0, len(block) - 11, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", block, entry)
        if kind not in (3, 4) or number < 1:
            continue
        form, width = ("H", 2) if kind == 3 else ("I", 4)
        where = start + 2 + entry + 8
        if number * width > 4:
            (where,) = struct.unpack_from(order + "I", block, entry + 8)
            value = at(where, width)
            if len(value) < width:
                continue
        else:
            value = block[entry + 8 : entry + 8 + width]
        tags.setdefault(tag, (where, struct.unpack(order + form, value)[0], order + form))
    return tags


def neutral_tiff(data: bytes) -> tuple[bytes, bool]:
    """A TIFF without orientation and with white as its largest value; whether 0 was white.

    Decoders differ, by version and depth, in whether they heed these two tags.
    """
    order = "<" if data[:2] == b"II" else ">"
    try:
        tags = _tags(lambda offset, count: data[offset : offset + count], order)
    except struct.error:
        return data, False
    changed = bytearray(data)
    inverted = PHOTOMETRIC in tags and tags[PHOTOMETRIC][1] == _WHITE_IS_ZERO
    for tag in (ORIENTATION, *([PHOTOMETRIC] if inverted else [])):
        if tag in tags:
            struct.pack_into(tags[tag][2], changed, tags[tag][0], 1)
    return bytes(changed), inverted


def exif_orientation(data: bytes) -> int:
    """The orientation in EXIF data (a TIFF without pixels), 1 where there is none or it is
    damaged."""
    if data[:4] not in (b"II*\x00", b"MM\x00*"):
        return 1
    try:
        tags = _tags(
            lambda offset, count: data[offset : offset + count], "<" if data[:2] == b"II" else ">"
        )
    except struct.error:
        return 1
    return tags.get(ORIENTATION, (0, 1))[1]
