"""What the layouts share: listing folders, pairing images with masks, reading tables."""

import csv
import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from intrasense_fast.data.images import SUFFIXES
from intrasense_fast.data.order import natural_key
from intrasense_fast.data.records import Problem, Record
from intrasense_fast.files import legible

Reading = tuple[list[Record], list[Problem]]

MASK_NAME = re.compile(r"^(?P<name>.+?)_mask.*$", re.IGNORECASE)

_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}
_BESIDE_IMAGES = {
    "",
    ".txt",
    ".csv",
    ".json",
    ".xml",
    ".md",
    ".xlsx",
    ".xls",
    ".html",
    ".yaml",
    ".yml",
    ".pdf",
    ".doc",
    ".docx",
    ".rtf",
}
_HINTS = 20
_HINT_CANDIDATES = 2000
NAME_COLUMNS = (
    "name",
    "id",
    "image",
    "image_id",
    "imageid",
    "image_name",
    "filename",
    "file",
    "file_name",
)
_LABEL_COLUMNS = ("label", "pathology", "class", "category", "cate", "type", "diagnosis", "tirads")
_CASE_COLUMNS = ("case", "patient", "patient_id", "patientid", "case_id", "caseid")


class Identity(NamedTuple):
    """What a table says of one image; "" where it says nothing."""

    label: str
    case: str
    group: str = ""


def folders(path: Path) -> dict[str, Path]:
    """The visible sub-folders of `path` by casefolded name, in natural order."""
    found = sorted(_entries(path), key=lambda entry: natural_key(entry.name))
    return {entry.name.casefold(): entry for entry in found if entry.is_dir()}


def files(path: Path, *, recursive: bool = False) -> list[Path]:
    """The visible files under `path` in natural order; broken links are listed, to be reported by whoever opens them."""
    found: list[Path] = []
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        for entry in _entries(folder):
            if not entry.is_dir():
                found.append(entry)
            elif recursive:
                waiting.append(entry)
    return sorted(found, key=lambda file: natural_key(file.relative_to(path).as_posix()))


def _entries(path: Path) -> list[Path]:
    return [
        entry
        for entry in path.iterdir()
        if not entry.name.startswith(".") and entry.name.casefold() not in _JUNK
    ]


def is_image(path: Path) -> bool:
    return path.suffix.casefold() in SUFFIXES


def not_images(paths: Iterable[Path]) -> list[Problem]:
    """A warning for each file that looks like a picture of a format that is not read."""
    return [
        Problem("warning", str(path), "not read: PNG, JPEG, BMP and TIFF are; convert it to PNG")
        for path in paths
        if not is_image(path) and path.suffix.casefold() not in _BESIDE_IMAGES
    ]


def name_of(path: Path, root: Path | None = None) -> str:
    """The name of a file without its ending, relative to `root`, in the Unicode form that macOS and Linux copies share.

    Bytes of it that are no UTF-8 stand as %E9 or the like: tables and lists hold the same name as the record.
    """
    relative = path.relative_to(root) if root else Path(path.name)
    return legible(unicodedata.normalize("NFC", relative.with_suffix("").as_posix()))


def read_lines(path: Path) -> list[str]:
    """The lines of a list of names, stripped and without the empty ones; bytes that are no UTF-8 as in `name_of`."""
    text = legible(path.read_text(encoding="utf-8-sig", errors="surrogateescape"))
    return [line.strip() for line in text.splitlines() if line.strip()]


def by_name(
    paths: Iterable[Path], root: Path | None = None
) -> tuple[dict[str, Path], list[Problem]]:
    """Files by name; a second file of one name (another ending) is an error."""
    found: dict[str, Path] = {}
    problems = []
    for path in paths:
        name = name_of(path, root)
        if name in found:
            problems.append(
                Problem("error", str(path), f"same name as {found[name].name}: keep one of them")
            )
        else:
            found[name] = path
    return found, problems


def pair(
    images: Mapping[str, Path],
    masks: Mapping[str, list[Path]],
    identities: Mapping[str, Identity] | None = None,
) -> Reading:
    """Records of the images that have masks, in natural order; an error, with the nearest name, for each file left alone."""
    identities = identities or {}
    records: list[Record] = []
    problems: list[Problem] = []
    lonely_images = [name for name in images if name not in masks]
    lonely_masks = [name for name in masks if name not in images]
    for index, name in enumerate(sorted(lonely_images, key=natural_key)):
        hint = nearest(name, lonely_masks or masks, masks) if index < _HINTS else ""
        problems.append(Problem("error", str(images[name]), f"image without mask{hint}"))
    for index, name in enumerate(sorted(lonely_masks, key=natural_key)):
        hint = (
            nearest(name, lonely_images or images, {key: [path] for key, path in images.items()})
            if index < _HINTS
            else ""
        )
        problems += [
            Problem("error", str(path), f"mask without image{hint}") for path in masks[name]
        ]
    for name in sorted(images, key=natural_key):
        if name in masks:
            identity = identities.get(name, Identity("", ""))
            case = identity.case or name
            records.append(
                Record(
                    name,
                    images[name],
                    tuple(masks[name]),
                    case,
                    identity.group or case,
                    identity.label,
                )
            )
    return records, problems


def nearest(name: str, candidates: Iterable[str], paths: Mapping[str, list[Path]]) -> str:
    """'; the nearest name is X', or '' where nothing is near."""
    pool = list(candidates)
    if len(pool) > _HINT_CANDIDATES:
        pool = [other for other in pool if other[:3] == name[:3]][:_HINT_CANDIDATES]
    close = difflib.get_close_matches(name, pool, 1, 0.6)
    return f"; the nearest name is {paths[close[0]][0].name}" if close else ""


def read_rows(path: Path) -> tuple[list[dict[str, str]], list[Problem]]:
    """The rows of a CSV file with a header, keys casefolded and stripped; a file that is no such table is an error."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        header = text.splitlines()[0] if text.strip() else ""
        delimiter = max(",;\t", key=header.count)
        rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter, restkey="", restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return [], [
            Problem("error", str(path), f"cannot be read as a CSV table in UTF-8 ({error})")
        ]
    return [
        {str(key).strip().casefold(): str(value).strip() for key, value in row.items()}
        for row in rows
    ], []


def read_identities(
    path: Path, classes: Mapping[str, str] | None = None
) -> tuple[dict[str, Identity], list[Problem]]:
    """Labels and cases of a CSV table by image name; `classes` translates label values.

    One column names the image (name, id, image, file, ...), and one more is a label (label, class, pathology, ...) or a case
    (case, patient, ...). A column "group" keeps images of several cases together.
    """
    rows, problems = read_rows(path)
    if problems or not rows:
        return {}, problems or [Problem("warning", str(path), "an empty table: no labels read")]
    name, label, case = (
        next((key for key in keys if key in rows[0]), None)
        for keys in (NAME_COLUMNS, _LABEL_COLUMNS, _CASE_COLUMNS)
    )
    if name is None or (label is None and case is None):
        columns = ", ".join(rows[0])
        return {}, [
            Problem(
                "error",
                str(path),
                f"columns {columns}; needed: one of {NAME_COLUMNS} and one of {_LABEL_COLUMNS + _CASE_COLUMNS}",
            )
        ]
    found: dict[str, Identity] = {}
    for row in rows:
        stem = row[name]
        if stem.casefold().endswith(SUFFIXES):
            stem = stem[: stem.rindex(".")]
        value = row[label] if label else ""
        identity = Identity(
            (classes or {}).get(value.casefold(), value),
            row[case] if case else "",
            row.get("group", ""),
        )
        if found.setdefault(unicodedata.normalize("NFC", stem), identity) != identity:
            problems.append(
                Problem("error", str(path), f"two rows contradict each other about {stem}")
            )
    return found, problems


def read_labels(
    path: Path, names: tuple[str, ...] = ("labels.csv",)
) -> tuple[dict[str, Identity], list[Problem]]:
    """Identities from the first of `names` that lies in the folder `path`; nothing where there is none."""
    present = {file.name.casefold(): file for file in files(path)}
    return next((read_identities(present[name]) for name in names if name in present), ({}, []))
