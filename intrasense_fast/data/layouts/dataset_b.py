"""Dataset B (UDIAT): original/000001.png with GT/000001.png; numbers have gaps, classes come in a
table of their own."""

from pathlib import Path

from intrasense_fast.data.items import Problem
from intrasense_fast.data.layouts._files import (
    Reading,
    by_name,
    files,
    folders,
    is_picture,
    not_read,
    pair,
    read_labels,
)

NAME = "dataset-b"
FOLDS = 5
EXPECTED = (
    "original/ and GT/ with files of equal names (000001.png, ...), optionally labels.csv (name, "
    "label)"
)
NOTE = (
    "Dataset B has no patient identifiers: groups are near-duplicates only, so images of one "
    "patient can stand in two folds"
)


def detect(path: Path) -> bool:
    return {"original", "gt"} <= set(folders(path))


def read(path: Path) -> Reading:
    """Pairs by equal name. labels.csv, beside the folders or one level up, gives the classes."""
    inside = folders(path)
    image_files, mask_files = files(inside["original"]), files(inside["gt"])
    images, problems = by_name(filter(is_picture, image_files))
    masks, twice = by_name(filter(is_picture, mask_files))
    attached = read_labels(path, images)
    if not attached.identities and not attached.problems:
        # A labels.csv one level up may belong to something else.
        attached = read_labels(path.parent, images, optional=True)
    if not attached.identities:
        tables = [file for file in files(path) if file.suffix.casefold() in (".xlsx", ".xls")]
        problems += [
            Problem(
                "warning",
                str(file),
                "classes not read: export it as labels.csv (columns name, label)",
            )
            for file in tables
        ]
    paired = {name: [mask] for name, mask in masks.items()}
    records, unpaired, joins = pair(images, paired, attached)
    problems += [*twice, *not_read([*image_files, *mask_files]), *unpaired]
    return Reading(records, problems, joins)
