"""What the layouts share: pairing images with masks, and the tables that stand beside them."""

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from intrasense_fast.data.items import Problem, Record
from intrasense_fast.data.listing import files, folders, is_picture, not_read, without_ending
from intrasense_fast.data.order import natural_key
from intrasense_fast.data.tables import (
    NAME_COLUMNS,
    Attached,
    Identity,
    attach,
    read_lines,
    read_rows,
)
from intrasense_fast.files import legible

__all__ = [
    "IMAGE_FOLDERS",
    "MASK_FOLDERS",
    "MASK_NAME",
    "NAME_COLUMNS",
    "Attached",
    "Identity",
    "Reading",
    "attach",
    "by_name",
    "files",
    "folders",
    "is_picture",
    "name_of",
    "nearest",
    "not_read",
    "pair",
    "read_labels",
    "read_lines",
    "read_rows",
    "two_folders",
]

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = (
    "masks",
    "mask",
    "annotations",
    "gt",
    "labels",
    "ground_truth",
    "groundtruth",
    "segmentations",
)
MASK_NAME = re.compile(r"^(?P<name>.+?)_mask.*$", re.IGNORECASE)

_HINTS = 20
_HINT_CANDIDATES = 2000


class Reading(NamedTuple):
    """What a layout read: the records, what is wrong, and how each table joined
    (`Attached.lines`)."""

    records: list[Record]
    problems: list[Problem]
    joins: tuple[str, ...] = ()


def two_folders(path: Path) -> tuple[Path, Path] | None:
    """The folder of images and the folder of masks inside `path`, where there are both."""
    inside = folders(path)
    images, masks = (
        next((inside[name] for name in names if name in inside), None)
        for names in (IMAGE_FOLDERS, MASK_FOLDERS)
    )
    return (images, masks) if images and masks else None


def name_of(path: Path, root: Path | None = None) -> str:
    """The name of a file without its ending, relative to `root`, in the Unicode form that macOS and
    Linux copies share.

    Bytes of it that are no UTF-8 stand as %E9 or the like: tables and lists hold the same name as
    the record.
    """
    relative = path.relative_to(root) if root else Path(path.name)
    return legible(unicodedata.normalize("NFC", without_ending(relative).as_posix()))


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
    attached: Attached | None = None,
) -> Reading:
    """Records of the images that have masks, in natural order; an error, with the nearest name, for
    each file left alone.

    `attached` gives classes and patients; its problems come along, and what it bars is an error
    each.
    """
    attached = attached or Attached()
    records: list[Record] = []
    problems: list[Problem] = list(attached.problems)
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
        if name not in masks:
            continue
        if name in attached.barred:
            problems.append(Problem("error", str(images[name]), attached.reason))
            continue
        identity = attached.identities.get(name, Identity("", ""))
        case = identity.case or name
        group = identity.group or case
        records.append(Record(name, images[name], tuple(masks[name]), case, group, identity.label))
    return Reading(records, problems, attached.lines)


def nearest(name: str, candidates: Iterable[str], paths: Mapping[str, list[Path]]) -> str:
    """'; the nearest name is X', or '' where nothing is near."""
    pool = list(candidates)
    if len(pool) > _HINT_CANDIDATES:
        pool = [other for other in pool if other[:3] == name[:3]][:_HINT_CANDIDATES]
    close = difflib.get_close_matches(name, pool, 1, 0.6)
    return f"; the nearest name is {paths[close[0]][0].name}" if close else ""


def read_labels(
    path: Path,
    images: Collection[str],
    names: tuple[str, ...] = ("labels.csv",),
    *,
    optional: bool = False,
) -> Attached:
    """The first of the tables `names` that lies in the folder `path`, joined with the images.

    Other CSV tables there are named as not read.
    """
    tables = {
        file.name.casefold(): file for file in files(path) if file.suffix.casefold() == ".csv"
    }
    chosen = next((tables[name] for name in names if name in tables), None)
    others = [file.name for file in tables.values() if file is not chosen]
    attached = attach(chosen, images, optional=optional) if chosen else Attached()
    if others and not optional:
        line = f"{', '.join(others)}: not read; classes and patients come from {' or '.join(names)}"
        attached = attached._replace(lines=(*attached.lines, line))
    return attached
