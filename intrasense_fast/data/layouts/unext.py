"""The layout of UNeXt, CMU-Net and their relatives: images/, masks/0/ (masks/1/, ...) and split
lists of bare names."""

import re
from pathlib import Path

from intrasense_fast.data.items import Problem
from intrasense_fast.data.joining import bare_name
from intrasense_fast.data.layouts._files import (
    Identity,
    Reading,
    by_name,
    files,
    folders,
    is_picture,
    name_of,
    not_read,
    pair,
    read_labels,
    read_lines,
)
from intrasense_fast.data.layouts.busi import CLASSES

NAME = "unext"
EXPECTED = "images/ with 'benign (1).png', masks/0/ with 'benign (1).png'"

_SPLIT_LIST = re.compile(
    r"^(.*[_-])?(train|val|valid|test|fold)[_-]?\d*$|^.*fold.*$", re.IGNORECASE
)


def detect(path: Path) -> bool:
    inside = folders(path)
    return "images" in inside and "masks" in inside and "0" in folders(inside["masks"])


def read(path: Path) -> Reading:
    """Masks of all numbered folders are merged. Class and case: manifest.csv or labels.csv, else
    the class from the name."""
    inside = folders(path)
    found = files(inside["images"])
    images, problems = by_name(filter(is_picture, found))
    problems += not_read(found)
    masks: dict[str, list[Path]] = {}
    for folder, location in sorted(folders(inside["masks"]).items()):
        if not folder.isdecimal():
            problems.append(
                Problem("warning", str(location), "not read: mask folders are numbered 0, 1, ...")
            )
            continue
        each, twice = by_name(filter(is_picture, files(location)))
        problems += twice + not_read(files(location))
        for name, mask in each.items():
            masks.setdefault(name, []).append(mask)
    attached = read_labels(path, images, ("manifest.csv", "labels.csv"))
    identities = dict(attached.identities)
    for name in images:
        if name not in identities:
            label = next((each for each in CLASSES if name.casefold().startswith(each)), "")
            identities[name] = Identity(label, "")
    records, unpaired, joins = pair(images, masks, attached._replace(identities=identities))
    return Reading(records, problems + unpaired, joins)


def published(path: Path) -> dict[str, tuple[str, ...]]:
    """The split lists (busi_train.txt, busi_val.txt, ...): file name without .txt -> image
    names."""
    lists = {}
    for file in files(path):
        if file.suffix.casefold() == ".txt" and _SPLIT_LIST.match(file.stem):
            lists[name_of(file)] = tuple(bare_name(line) for line in read_lines(file))
    return lists
