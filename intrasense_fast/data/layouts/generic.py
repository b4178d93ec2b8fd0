"""A folder with images/ and masks/ of equal names, or one folder of NAME.png + NAME_mask.png."""

from collections.abc import Iterable
from pathlib import Path

from intrasense_fast.data.layouts._files import (
    MASK_NAME,
    Reading,
    by_name,
    files,
    is_picture,
    name_of,
    not_read,
    pair,
    read_labels,
    two_folders,
)

NAME = "generic"
EXPECTED = "images/ and masks/ with files of equal names, or NAME.png beside NAME_mask.png"


def detect(path: Path) -> bool:
    return two_folders(path) is not None or any(
        is_picture(file) and MASK_NAME.match(file.stem) for file in files(path)
    )


def read(path: Path) -> Reading:
    """Pairs by name; several masks NAME_mask*.png are merged. labels.csv (name, label, case) may
    give classes and patients."""
    two = two_folders(path)
    return _read_folders(*two, path) if two else _read_pairs(path)


def _read_folders(image_folder: Path, mask_folder: Path, root: Path) -> Reading:
    image_files = files(image_folder, recursive=True)
    mask_files = files(mask_folder, recursive=True)
    images, problems = by_name(filter(is_picture, image_files), image_folder)
    exact, twice = by_name(filter(is_picture, mask_files), mask_folder)
    masks = masks_of(images, exact)
    records, unpaired, joins = pair(images, masks, read_labels(root, images))
    problems += [*twice, *not_read([*image_files, *mask_files]), *unpaired]
    return Reading(records, problems, joins)


def masks_of(images: Iterable[str], masks: dict[str, Path]) -> dict[str, list[Path]]:
    """The masks of each image: the one of its name, and those named NAME_mask*."""
    known = set(images)
    found: dict[str, list[Path]] = {}
    for name, mask in masks.items():
        base = MASK_NAME.match(name)
        found.setdefault(base["name"] if base and name not in known else name, []).append(mask)
    return found


def _read_pairs(path: Path) -> Reading:
    entries = files(path)
    pictures = [file for file in entries if is_picture(file)]
    images, problems = by_name(file for file in pictures if not MASK_NAME.match(file.stem))
    masks: dict[str, list[Path]] = {}
    for file in pictures:
        base = MASK_NAME.match(name_of(file))
        if base:
            masks.setdefault(base["name"], []).append(file)
    records, unpaired, joins = pair(images, masks, read_labels(path, images))
    return Reading(records, problems + not_read(entries) + unpaired, joins)
