"""BUS-BRA: Images/bus_0001-l.png, Masks/mask_0001-l.png, bus_data.csv with patient and pathology, official fold tables."""

import re
from pathlib import Path

from intrasense_fast.data.layouts._files import (
    Reading,
    by_name,
    files,
    folders,
    is_image,
    not_images,
    pair,
    read_identities,
    read_rows,
)
from intrasense_fast.data.records import Problem

NAME = "bus-bra"
FOLDS = 5
EXPECTED = "Images/ with bus_*.png, Masks/ with mask_*.png, bus_data.csv with the columns ID, Case, Pathology"

_TABLE = "bus_data.csv"


def detect(path: Path) -> bool:
    inside = folders(path)
    return {"images", "masks"} <= set(inside) and any(
        file.name.casefold() == _TABLE for file in files(path)
    )


def read(path: Path) -> Reading:
    """Grouped by patient (Case). An image the table does not know is an error: its patient could stand in two folds."""
    inside = folders(path)
    image_files, mask_files = files(inside["images"]), files(inside["masks"])
    images, problems = by_name(filter(is_image, image_files))
    masks, twice = by_name(filter(is_image, mask_files))
    table = next(file for file in files(path) if file.name.casefold() == _TABLE)
    identities, table_problems = read_identities(table)
    paired = {re.sub("^mask_", "bus_", name): [mask] for name, mask in masks.items()}
    records, unpaired = pair(images, paired, identities)
    problems += twice + not_images([*image_files, *mask_files]) + table_problems + unpaired
    if identities:
        known = {name for name, identity in identities.items() if identity.case}
        unknown = [record for record in records if record.name not in known]
        problems += [
            Problem(
                "error",
                str(record.image),
                f"no Case in {_TABLE}: add its row, or move the image away",
            )
            for record in unknown
        ]
        records = [record for record in records if record.name in known]
        absent = [name for name in identities if name not in images]
        problems += [
            Problem("error", str(table), f"lists {name}, but Images/ has no such image")
            for name in absent
        ]
    return records, problems


def published(path: Path) -> dict[str, tuple[str, ...]]:
    """The official partitions: "5-fold-cv/1" -> the images of fold 1, of each *fold*.csv with the columns ID and kFold."""
    lists: dict[str, list[str]] = {}
    for file in files(path):
        if file.suffix.casefold() != ".csv" or "fold" not in file.stem.casefold():
            continue
        for row in read_rows(file)[0]:
            fold = next((value for key, value in row.items() if "fold" in key), "")
            if fold and row.get("id"):
                lists.setdefault(f"{file.stem}/{fold}", []).append(row["id"].removesuffix(".png"))
    return {name: tuple(members) for name, members in sorted(lists.items())}
