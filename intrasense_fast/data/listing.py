"""Which files of a folder are pictures: decided here, for every command."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from intrasense_fast.data.dicom.package import is_dicom
from intrasense_fast.data.header import picture_name
from intrasense_fast.data.items import Problem
from intrasense_fast.data.opening import open_regular, special_kind
from intrasense_fast.data.order import natural_key

_DICOM = (".dcm", ".dicom", ".ima")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", *_DICOM)

# Pictures by their names, of formats that are not read.
_OTHER_PICTURES = (
    ".webp .jp2 .j2k .j2c .jpx .jpf .gif .pgm .ppm .pbm .pnm .heic .heif .avif "
    ".exr .hdr .psd .tga .nii .nii.gz .mha .mhd .nrrd .svg"
).split()
_BESIDE_PICTURES = set(
    ".txt .csv .tsv .json .xml .md .xlsx .xls .ods .html .htm .yaml .yml .pdf .doc .docx .rtf "
    ".py .ipynb .sh .log".split()
)
_SYSTEM = {
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}
_READ = "PNG, JPEG, BMP, TIFF and DICOM are read; convert it to PNG"
# A number, as at the end of a UID: part of a name.
_NUMBER = re.compile(r"\.\d+")
_INDEX = "dicomdir"


def counts(name: str) -> bool:
    """Hidden and system entries (.thumbnails, .ipynb_checkpoints, __MACOSX, Thumbs.db) do not."""
    return not name.startswith(".") and name.casefold() not in _SYSTEM


def folders(path: Path) -> dict[str, Path]:
    """The sub-folders of `path` that count, by casefolded name, in natural order."""
    inside, _ = _entries(path)
    return {entry.name.casefold(): entry for entry in inside}


def files(path: Path, *, recursive: bool = False) -> list[Path]:
    """The entries under `path` that are no folders, in natural order.

    Broken links, FIFOs, sockets and devices are among them, to be named by whoever wants to open
    them. A link to a folder is followed unless it leads back: to a folder that holds it, or to a
    parent of one. Inside a linked folder, links to folders that were read already are not followed.

    Raises:
        OSError: a folder may not be read.
    """
    found: list[Path] = []
    seen: set[str] = set()
    waiting: list[tuple[Path, tuple[str, ...], bool]] = [(path, (os.path.realpath(path),), False)]
    linked: list[tuple[Path, tuple[str, ...], bool]] = []
    while waiting or linked:
        # Plain folders come first, so that `seen` does not depend on the order on the disk.
        if waiting:
            folder, chain, within_link = waiting.pop()
        else:
            folder, chain, nested = linked.pop(0)
            if nested and chain[-1] in seen:
                continue
            within_link = True
        seen.add(chain[-1])
        inside, entries = _entries(folder)
        found += entries
        if not recursive:
            break
        for each in inside:
            real = os.path.realpath(each)
            if not os.path.islink(each):
                waiting.append((each, (*chain, real), within_link))
            elif not any(_holds(real, above) for above in chain):
                linked.append((each, (*chain, real), within_link))
    return sorted(found, key=lambda file: natural_key(file.relative_to(path).as_posix()))


def is_picture(path: Path) -> bool:
    """Is this a picture of a format that is read: by its name, or by its mark a DICOM file that is
    named otherwise?"""
    suffix = path.suffix.casefold()
    if suffix in SUFFIXES:
        return True
    name = path.name.casefold()
    if suffix in _BESIDE_PICTURES or name == _INDEX or name.endswith(tuple(_OTHER_PICTURES)):
        return False
    return is_dicom(path)


def without_ending(path: Path) -> Path:
    """A path without the ending that tells its format: 1.2.840.7 keeps its last number."""
    return path if _NUMBER.fullmatch(path.suffix) else path.with_suffix("")


def not_read(paths: Iterable[Path]) -> list[Problem]:
    """What is no readable picture among files that stand where pictures do.

    An error for what looks like a picture, by its name or its first bytes, but is of a format that
    is not read, and for a FIFO, a socket or a device; a warning for a file of another kind. Tables,
    notes and the like are nothing to tell.
    """
    problems = []
    for path in paths:
        if not is_picture(path):
            problems += _problem(path)
    return problems


def _problem(path: Path) -> list[Problem]:
    name = path.name.casefold()
    try:
        kind = special_kind(path)
    except OSError as error:
        return [Problem("warning", str(path), f"not read: {error.strerror}")]
    if kind is not None:
        return [Problem("error", str(path), f"{kind}, no regular file: never opened; move it away")]
    ending = next((suffix for suffix in _OTHER_PICTURES if name.endswith(suffix)), None)
    if ending is not None:
        return [
            Problem("error", str(path), f"a picture in {ending[1:]}, which is not read: {_READ}")
        ]
    if path.suffix.casefold() in _BESIDE_PICTURES:
        return []
    format_ = _format_by_content(path)
    if name == _INDEX and format_ == "DICOM":
        return [Problem("warning", str(path), "an index of DICOM files, no picture: not read")]
    if format_ is not None:
        text = f"a {format_} picture by its first bytes: not read under this name; {_READ}"
        return [Problem("error", str(path), text)]
    if not path.suffix:
        return []
    return [Problem("warning", str(path), f"not read: {_READ}")]


def _format_by_content(path: Path) -> str | None:
    try:
        with open_regular(path) as stream:
            return picture_name(stream.read(352))
    except OSError:
        return None


def _entries(path: Path) -> tuple[list[Path], list[Path]]:
    """The folders of `path` (links to folders too) in natural order, and its other entries."""
    inside: list[Path] = []
    others: list[Path] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if counts(entry.name):
                (inside if entry.is_dir() else others).append(Path(path, entry.name))
    inside.sort(key=lambda entry: natural_key(entry.name))
    return inside, others


def _holds(folder: str, other: str) -> bool:
    """Is `folder` the same as `other`, or above it? Both are real paths."""
    return other == folder or other.startswith(folder.rstrip(os.sep) + os.sep)
