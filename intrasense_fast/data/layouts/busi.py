"""BUSI as downloaded: a folder a class, `benign (1).png` with `benign (1)_mask.png`, `benign
(1)_mask_1.png`, ..."""

from pathlib import Path

from intrasense_fast.data.items import Problem
from intrasense_fast.data.layouts._files import (
    MASK_NAME,
    Attached,
    Identity,
    Reading,
    files,
    folders,
    is_picture,
    name_of,
    not_read,
    pair,
)

NAME = "busi"
FOLDS = 5
EXPECTED = "benign/, malignant/ and normal/ with 'benign (1).png', 'benign (1)_mask.png', ..."
NOTE = (
    "BUSI has no patient identifiers: groups are near-duplicates only, so images of one patient "
    "can stand in two folds"
)

CLASSES = ("benign", "malignant", "normal")


def detect(path: Path) -> bool:
    inside = folders(path)
    return any(
        name in inside and any(is_picture(file) for file in files(inside[name])) for name in CLASSES
    )


def read(path: Path) -> Reading:
    """All `_mask*` files of an image are merged. The class is the folder's name."""
    images: dict[str, Path] = {}
    masks: dict[str, list[Path]] = {}
    labels: dict[str, Identity] = {}
    problems: list[Problem] = []
    for label, folder in sorted(folders(path).items()):
        inside = files(folder)
        if label not in CLASSES:
            if any(is_picture(file) for file in inside):
                problems.append(
                    Problem(
                        "warning", str(folder), f"not read: BUSI's classes are {', '.join(CLASSES)}"
                    )
                )
            continue
        problems += not_read(inside)
        for file in filter(is_picture, inside):
            stem = name_of(file)
            base = MASK_NAME.match(stem)
            name = base["name"] if base else stem
            if not name.casefold().startswith(label):
                name = f"{label}/{name}"
            if base:
                masks.setdefault(name, []).append(file)
            elif name in images:
                problems.append(
                    Problem("error", str(file), f"same name as {images[name]}: keep one of them")
                )
            else:
                images[name], labels[name] = file, Identity(label, "")
    records, unpaired, _ = pair(images, masks, Attached(labels))
    return Reading(records, problems + unpaired)
