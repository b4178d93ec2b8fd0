"""What a DICOM file says of its picture, before a pixel is decoded; no tag of a patient is read."""

import struct
from typing import Any, BinaryIO, NamedTuple

from intrasense_fast.data.dicom.deflated import DEFLATED, EXPLICIT, inflated
from intrasense_fast.data.dicom.package import AGAIN, needed, quiet
from intrasense_fast.data.dicom.regions import Spacing, scan_region
from intrasense_fast.data.header import HeaderError
from intrasense_fast.data.region import Region

# All that is read of a file.
_KEYWORDS = (
    "SOPClassUID",
    "SequenceOfUltrasoundRegions",
    "PixelSpacing",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "CineRate",
    "FrameTime",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
_PIXEL_DATA = (0x7FE0, 0x0010)
_FLOAT_DATA = ((0x7FE0, 0x0008), (0x7FE0, 0x0009))
_UNDEFINED = 0xFFFFFFFF
_META = 132
# Value representations whose length takes four bytes.
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"


class DicomHeader(NamedTuple):
    """A picture in a DICOM file.

    Attributes:
        width, height: of a frame, in pixels.
        frames: how many there are.
        colours: DICOM's name of the colour space, such as "MONOCHROME2".
        allocated, stored: bits a sample; those stored are the lowest.
        samples: of a pixel.
        syntax: UID of the transfer syntax.
        region: the B-mode scan within a frame; None is the whole of it.
        spacing: millimetres between rows and between columns; None where unknown.
        note: what is said of the region, or "".
        data: where the value of the pixel data begins, and its length, None for encapsulated.
        dataset: pydicom's, of the tags above.
    """

    width: int
    height: int
    frames: int
    colours: str
    allocated: int
    stored: int
    samples: int
    syntax: str
    region: Region | None
    spacing: Spacing | None
    note: str
    data: tuple[int, int | None]
    dataset: Any

    @property
    def pixels(self) -> int:
        """Of one frame."""
        return self.width * self.height

    @property
    def white(self) -> int | None:
        """The value of white, where it is not the largest of its type."""
        own = self.stored < self.allocated and self.colours != PALETTE
        return 2**self.stored - 1 if own else None

    @property
    def rate(self) -> float:
        """Frames a second; 0 where it is not said."""
        rate, milliseconds = (self.dataset.get(key) for key in ("CineRate", "FrameTime"))
        if rate:
            return float(rate)
        return 1000 / float(milliseconds) if milliseconds else 0.0


def read_dicom_header(stream: BinaryIO) -> tuple[DicomHeader, BinaryIO]:
    """The header of a file that `is_dicom`, and the stream that its pixels are in.

    It is the stream itself, or the bytes that a deflated one holds.

    Raises:
        HeaderError: it holds no picture, or one of a kind that is not read, or it is damaged, or
            pydicom is missing.
    """
    needed("pydicom", "a DICOM file: reading it")
    with quiet("corrupt DICOM header"):
        return _read(stream)


def _read(stream: BinaryIO) -> tuple[DicomHeader, BinaryIO]:
    from pydicom import dcmread

    syntax, kind, end = _meta(stream)
    if not syntax:
        raise HeaderError(f"a DICOM file without its transfer syntax: {AGAIN}")
    if syntax == DEFLATED:
        stream = inflated(stream, end)
        syntax = EXPLICIT
    stream.seek(0)
    dataset = dcmread(stream, stop_before_pixels=True, specific_tags=list(_KEYWORDS))
    data = _pixel_data(stream, syntax)
    if data is None:
        raise HeaderError(
            f"a DICOM file without a picture ({_name(kind)}): leave it out; one that should have a "
            "picture is cut off"
        )
    if kind == _SEGMENTATION:
        raise HeaderError("a DICOM Segmentation, no picture: leave it out, or give its mask as PNG")
    return _checked(dataset, syntax, data), stream


def _meta(stream: BinaryIO) -> tuple[str, str, int]:
    """Transfer syntax and class of a file by its first group, and where that group ends."""
    values: dict[int, str] = {}
    end = _META
    while True:
        stream.seek(end)
        group, element, kind, length = struct.unpack("<HH2sH", _exactly(stream, 8))
        if group != 2:
            return values.get(0x10, ""), values.get(0x02, ""), end
        start = end + 8
        if kind in _LONG:
            (length,) = struct.unpack("<I", _exactly(stream, 4))
            start += 4
        if element in (0x02, 0x10):
            values[element] = _exactly(stream, length).rstrip(b"\0 ").decode("ascii", "replace")
        end = start + length


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise HeaderError(f"truncated: the DICOM file ends inside its header: {AGAIN}")
    return data


def _pixel_data(stream: BinaryIO, syntax: str) -> tuple[int, int | None] | None:
    """Where the value of the pixel data begins and how long it is (None: in fragments); None where
    the file ends before them."""
    start = stream.read(12)
    if not start:
        return None
    if len(start) < 12:
        raise HeaderError(f"truncated: the DICOM file ends inside its header: {AGAIN}")
    order = ">" if syntax == _BIG_ENDIAN else "<"
    tag = struct.unpack_from(order + "HH", start)
    explicit = syntax != _IMPLICIT
    (length,) = struct.unpack_from(order + "I", start, 8 if explicit else 4)
    if tag in _FLOAT_DATA:
        raise HeaderError("DICOM float pixels; whole numbers of 8 to 16 bits are read")
    if tag != _PIXEL_DATA:
        return None
    value = stream.tell() if explicit else stream.tell() - 4
    return value, None if length == _UNDEFINED else length


def _checked(dataset: Any, syntax: str, data: tuple[int, int | None]) -> DicomHeader:
    """A header of whole numbers that make sense together.

    Raises:
        HeaderError: others, or a kind of pixels that is not read.
    """
    width, height = _number(dataset, "Columns"), _number(dataset, "Rows")
    frames = _number(dataset, "NumberOfFrames", 1) or 1
    samples = _number(dataset, "SamplesPerPixel", 1)
    allocated = _number(dataset, "BitsAllocated")
    stored = _number(dataset, "BitsStored", allocated)
    high_bit = _number(dataset, "HighBit", stored - 1)
    colours = str(dataset.get("PhotometricInterpretation") or "")
    if width < 1 or height < 1 or frames < 1:
        size = f"{width} x {height} and {frames} frames"
        raise HeaderError(f"corrupt: its header gives a size of {size}")
    if colours not in (*_MONOCHROME, *_COLOUR, PALETTE):
        known = ", ".join((*_MONOCHROME, *_COLOUR, PALETTE))
        raise HeaderError(f"DICOM colours of a kind that is not read; {known} are")
    if samples != (3 if colours in _COLOUR else 1):
        raise HeaderError(f"corrupt: {samples} samples a pixel of {colours}")
    if _number(dataset, "PixelRepresentation", 0):
        raise HeaderError(
            "signed DICOM pixels, as CT and MR have them: choose a window and save it as PNG"
        )
    if allocated not in (8, 16) or not 8 <= stored <= allocated:
        raise HeaderError(
            f"DICOM pixels of {stored} bits in {allocated}; 8 to 16 bits in 8 or 16 are read"
        )
    if high_bit != stored - 1:
        raise HeaderError(
            f"{stored} bits stored with {high_bit} as the highest, which DICOM retired: {AGAIN}"
        )
    region, spacing, note = scan_region(dataset, width, height)
    return DicomHeader(
        width,
        height,
        frames,
        colours,
        allocated,
        stored,
        samples,
        syntax,
        region,
        spacing,
        note,
        data,
        dataset,
    )


def _number(dataset: Any, keyword: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None and default is not None:
        return default
    if not isinstance(value, int):
        raise HeaderError(f"corrupt: its header gives no {keyword}")
    return int(value)


def _name(kind: str) -> str:
    """The name of a class of objects, where DICOM has one of that number."""
    from pydicom.uid import UID

    name = UID(kind).name
    return name if name != kind else "of an unknown class"
