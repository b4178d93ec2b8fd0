"""BUS-BRA: Images/bus_0001-l.png, Masks/mask_0001-l.png, bus_data.csv with patient and pathology,
official fold tables."""

import re
from pathlib import Path

from intrasense_fast.data.joining import bare_name
from intrasense_fast.data.layouts._files import (
    Reading,
    attach,
    by_name,
    files,
    folders,
    is_picture,
    not_read,
    pair,
    read_rows,
)

NAME = "bus-bra"
FOLDS = 5
EXPECTED = (
    "Images/ with bus_*.png, Masks/ with mask_*.png, bus_data.csv with the columns ID, Case, "
    "Pathology"
)

_TABLE = "bus_data.csv"


def detect(path: Path) -> bool:
    inside = folders(path)
    return {"images", "masks"} <= set(inside) and any(
        file.name.casefold() == _TABLE for file in files(path)
    )


def read(path: Path) -> Reading:
    """Grouped by patient (Case). An image the table does not know is an error: its patient could
    stand in two folds."""
    inside = folders(path)
    image_files, mask_files = files(inside["images"]), files(inside["masks"])
    images, problems = by_name(filter(is_picture, image_files))
    masks, twice = by_name(filter(is_picture, mask_files))
    table = next(file for file in files(path) if file.name.casefold() == _TABLE)
    paired = {re.sub("^mask_", "bus_", name): [mask] for name, mask in masks.items()}
    records, unpaired, joins = pair(images, paired, attach(table, images, strict=True))
    problems += [*twice, *not_read([*image_files, *mask_files]), *unpaired]
    return Reading(records, problems, joins)


def published(path: Path) -> dict[str, tuple[str, ...]]:
    """The official partitions: "5-fold-cv/1" -> the images of fold 1, of each *fold*.csv with the
    columns ID and kFold."""
    lists: dict[str, list[str]] = {}
    for file in files(path):
        if file.suffix.casefold() != ".csv" or "fold" not in file.stem.casefold():
            continue
        for row in read_rows(file)[0]:
            fold = next((value for key, value in row.items() if "fold" in key), "")
            if fold and row.get("id"):
                lists.setdefault(f"{file.stem}/{fold}", []).append(bare_name(row["id"]))
    return {name: tuple(members) for name, members in sorted(lists.items())}
