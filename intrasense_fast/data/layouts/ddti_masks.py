"""DDTI turned into masks by others: image/1.PNG + mask/1.PNG + category.csv, or 1.a.jpg + 1.b.jpg (the mask) + label.txt."""

from pathlib import Path

from intrasense_fast.data.layouts._files import (
    Identity,
    Reading,
    by_name,
    files,
    folders,
    is_image,
    name_of,
    not_images,
    pair,
    read_identities,
)
from intrasense_fast.data.records import Problem

NAME = "ddti-masks"
FOLDS = 5
EXPECTED = "image/1.PNG, mask/1.PNG and category.csv, or 1.a.jpg (image) beside 1.b.jpg (mask)"
NOTE = "these copies of DDTI are renumbered: patients are unknown, and crops of one frame can stand in different folds"

_TABLE = "category.csv"


def detect(path: Path) -> bool:
    found = files(path)
    if {"image", "mask"} <= set(folders(path)) and any(
        file.name.casefold() == _TABLE for file in found
    ):
        return True
    names = {file.name.casefold() for file in found if is_image(file)}
    return any(
        name.endswith(".a.jpg") and name.removesuffix(".a.jpg") + ".b.jpg" in names
        for name in names
    )


def read(path: Path) -> Reading:
    """Pairs by number; every image a group of its own. JPEG masks are read by the rule of `read_mask`."""
    return _read_folders(path) if "image" in folders(path) else _read_jpeg_pairs(path)


def _read_folders(path: Path) -> Reading:
    inside = folders(path)
    image_files, mask_files = files(inside["image"]), files(inside["mask"])
    images, problems = by_name(filter(is_image, image_files))
    masks, twice = by_name(filter(is_image, mask_files))
    table = next(file for file in files(path) if file.name.casefold() == _TABLE)
    identities, table_problems = read_identities(table)
    records, unpaired = pair(images, {name: [mask] for name, mask in masks.items()}, identities)
    return records, problems + twice + not_images(
        [*image_files, *mask_files]
    ) + table_problems + unpaired


def _read_jpeg_pairs(path: Path) -> Reading:
    images: dict[str, Path] = {}
    masks: dict[str, list[Path]] = {}
    problems: list[Problem] = []
    for file in files(path):
        name, _, part = name_of(file).rpartition(".")
        if is_image(file) and part.casefold() == "a":
            images[name] = file
        elif is_image(file) and part.casefold() == "b":
            masks.setdefault(name, []).append(file)
        elif is_image(file):
            problems.append(
                Problem("warning", str(file), "not read: neither NAME.a.jpg nor NAME.b.jpg")
            )
    identities, table_problems = _read_label_lines(path / "label.txt")
    records, unpaired = pair(images, masks, identities)
    return records, problems + table_problems + unpaired


def _read_label_lines(path: Path) -> tuple[dict[str, Identity], list[Problem]]:
    """Lines of NAME LABEL; a file of another form is reported and not used."""
    if not path.exists():
        return {}, []
    try:
        fields = [
            line.replace(",", " ").split()
            for line in path.read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
    except UnicodeDecodeError as error:
        return {}, [Problem("warning", str(path), f"classes not read: no UTF-8 text ({error})")]
    if any(len(each) != 2 for each in fields):
        return {}, [
            Problem("warning", str(path), "classes not read: lines of NAME LABEL are needed")
        ]
    return {
        name.removesuffix(".a.jpg").removesuffix(".jpg"): Identity(label, "")
        for name, label in fields
    }, []
