"""DDTI turned into masks by others: image/1.PNG + mask/1.PNG + category.csv, or 1.a.jpg + 1.b.jpg
(the mask) + label.txt."""

from collections.abc import Collection
from pathlib import Path

from intrasense_fast.data.items import Problem
from intrasense_fast.data.joining import join
from intrasense_fast.data.layouts._files import (
    Attached,
    Identity,
    Reading,
    attach,
    by_name,
    files,
    folders,
    is_picture,
    name_of,
    not_read,
    pair,
)
from intrasense_fast.data.opening import read_text
from intrasense_fast.data.tables import attach_rows

NAME = "ddti-masks"
FOLDS = 5
EXPECTED = "image/1.PNG, mask/1.PNG and category.csv, or 1.a.jpg (image) beside 1.b.jpg (mask)"
NOTE = (
    "these copies of DDTI are renumbered: patients are unknown, and crops of one frame can stand "
    "in different folds"
)

_TABLE = "category.csv"


def detect(path: Path) -> bool:
    found = files(path)
    if {"image", "mask"} <= set(folders(path)) and any(
        file.name.casefold() == _TABLE for file in found
    ):
        return True
    names = {file.name.casefold() for file in found if is_picture(file)}
    return any(
        name.endswith(".a.jpg") and name.removesuffix(".a.jpg") + ".b.jpg" in names
        for name in names
    )


def read(path: Path) -> Reading:
    """Pairs by number; every image a group of its own. JPEG masks are read by the rule of
    `read_mask`."""
    return _read_folders(path) if "image" in folders(path) else _read_jpeg_pairs(path)


def _read_folders(path: Path) -> Reading:
    inside = folders(path)
    image_files, mask_files = files(inside["image"]), files(inside["mask"])
    images, problems = by_name(filter(is_picture, image_files))
    masks, twice = by_name(filter(is_picture, mask_files))
    table = next(file for file in files(path) if file.name.casefold() == _TABLE)
    paired = {name: [mask] for name, mask in masks.items()}
    records, unpaired, joins = pair(images, paired, attach(table, images))
    problems += [*twice, *not_read([*image_files, *mask_files]), *unpaired]
    return Reading(records, problems, joins)


def _read_jpeg_pairs(path: Path) -> Reading:
    images: dict[str, Path] = {}
    masks: dict[str, list[Path]] = {}
    problems: list[Problem] = []
    entries = files(path)
    for file in entries:
        name, _, part = name_of(file).rpartition(".")
        if is_picture(file) and part.casefold() == "a":
            images[name] = file
        elif is_picture(file) and part.casefold() == "b":
            masks.setdefault(name, []).append(file)
        elif is_picture(file):
            problems.append(
                Problem("warning", str(file), "not read: neither NAME.a.jpg nor NAME.b.jpg")
            )
    records, unpaired, joins = pair(images, masks, _read_label_lines(path / "label.txt", images))
    return Reading(records, problems + not_read(entries) + unpaired, joins)


def _read_label_lines(path: Path, images: Collection[str]) -> Attached:
    """Lines of NAME LABEL; a file of another form is reported and not used."""
    if not path.exists():
        return Attached()
    try:
        text = read_text(path)
    except OSError as error:
        unread = Problem("warning", str(path), f"classes not read: {error.strerror}")
        return Attached(problems=(unread,))
    fields = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
    if any(len(each) != 2 for each in fields) or not fields:
        unread = Problem("warning", str(path), "classes not read: lines of NAME LABEL are needed")
        return Attached(problems=(unread,))
    names = [name.removesuffix(".a.jpg").removesuffix(".jpg") for name, _ in fields]
    identities = [Identity(label, "") for _, label in fields]
    return attach_rows(
        path, join(names, images), identities, len(images), (), "class from each line"
    )
