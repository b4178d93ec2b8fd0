"""Dataset B (UDIAT): original/000001.png with GT/000001.png; numbers have gaps, classes come in a table of their own."""

from pathlib import Path

from intrasense_fast.data.layouts._files import (
    Reading,
    by_name,
    files,
    folders,
    is_image,
    not_images,
    pair,
    read_labels,
)
from intrasense_fast.data.records import Problem

NAME = "dataset-b"
FOLDS = 5
EXPECTED = "original/ and GT/ with files of equal names (000001.png, ...), optionally labels.csv (name, label)"
NOTE = "Dataset B has no patient identifiers: groups are near-duplicates only, so images of one patient can stand in two folds"


def detect(path: Path) -> bool:
    return {"original", "gt"} <= set(folders(path))


def read(path: Path) -> Reading:
    """Pairs by equal name. labels.csv, beside the folders or one level up, gives the classes."""
    inside = folders(path)
    image_files, mask_files = files(inside["original"]), files(inside["gt"])
    images, problems = by_name(filter(is_image, image_files))
    masks, twice = by_name(filter(is_image, mask_files))
    identities, table_problems = read_labels(path)
    if not identities and not table_problems:
        identities, table_problems = read_labels(path.parent)
        # A labels.csv one level up may belong to something else.
        identities = {name: identity for name, identity in identities.items() if name in images}
    if not identities:
        tables = [file for file in files(path) if file.suffix.casefold() in (".xlsx", ".xls")]
        problems += [
            Problem(
                "warning",
                str(file),
                "classes not read: export it as labels.csv (columns name, label)",
            )
            for file in tables
        ]
    records, unpaired = pair(images, {name: [mask] for name, mask in masks.items()}, identities)
    return records, problems + twice + not_images(
        [*image_files, *mask_files]
    ) + table_problems + unpaired
