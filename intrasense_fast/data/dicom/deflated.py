"""DICOM files that are deflated as a whole (PS3.5 A.5), inflated within bounds."""

import io
import zlib
from typing import BinaryIO

from intrasense_fast.data.dicom.package import AGAIN
from intrasense_fast.data.header import HeaderError

DEFLATED, EXPLICIT = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.1"

# More than any header has, and more than any picture of ultrasound.
_HEADER, _LARGEST = 4 << 20, 1 << 30


def inflated(stream: BinaryIO, end: int) -> BinaryIO:
    """The same file without compression.

    Args:
        stream: the file.
        end: where its first group ends and the compressed part begins.

    Raises:
        HeaderError: it inflates to more than its picture needs, or ends before its end.
    """
    from pydicom import dcmread

    stream.seek(0)
    start = stream.read(end).replace(DEFLATED.encode(), EXPLICIT.encode().ljust(len(DEFLATED)))
    packed = stream.read()
    begun = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _HEADER)
    tags = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated"]
    header = dcmread(io.BytesIO(start + begun), stop_before_pixels=True, specific_tags=tags)
    pixels = 1
    for tag in tags:
        pixels *= int(header.get(tag) or 1)
    bound = pixels // 8 + _HEADER
    if bound > _LARGEST:
        raise HeaderError("a deflated DICOM file of more than 1 GiB: save it without compression")
    whole = zlib.decompressobj(-zlib.MAX_WBITS)
    data = whole.decompress(packed, bound)
    if whole.unconsumed_tail:
        raise HeaderError(f"it inflates to more bytes than its picture needs: {AGAIN}")
    if not whole.eof:
        raise HeaderError(f"truncated: the deflated DICOM file has no end: {AGAIN}")
    return io.BytesIO(start + data)
