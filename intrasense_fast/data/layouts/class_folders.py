"""A folder a class, or a part of the data, each with images and masks: benign/images,
benign/masks."""

from pathlib import Path

from intrasense_fast.data.layouts import bus_bra, ddti_masks, unext
from intrasense_fast.data.layouts._files import (
    Identity,
    Reading,
    attach,
    by_name,
    files,
    folders,
    is_picture,
    not_read,
    pair,
    two_folders,
)
from intrasense_fast.data.layouts.generic import masks_of
from intrasense_fast.data.tables import Attached

NAME = "class-folders"
EXPECTED = "CLASS/images/ and CLASS/masks/ with files of equal names (or train/images/ ...)"

# Folders of this name are parts of a split, no classes.
_PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")


def detect(path: Path) -> bool:
    return len(_inside(path)) > 1


def read(path: Path) -> Reading:
    """The class is the folder's name, unless that is train, val or test; labels.csv comes first."""
    images: dict[str, Path] = {}
    masks: dict[str, list[Path]] = {}
    labels: dict[str, Identity] = {}
    problems = []
    for folder, image_folder, mask_folder in _inside(path):
        image_files = files(image_folder, recursive=True)
        mask_files = files(mask_folder, recursive=True)
        own, twice = by_name(filter(is_picture, image_files), image_folder)
        drawn, again = by_name(filter(is_picture, mask_files), mask_folder)
        problems += [*twice, *again, *not_read([*image_files, *mask_files])]
        label = "" if folder.name.casefold() in _PARTS else folder.name
        for name, file in own.items():
            images[f"{folder.name}/{name}"] = file
            labels[f"{folder.name}/{name}"] = Identity(label, "")
        for name, drawings in masks_of(own, drawn).items():
            masks[f"{folder.name}/{name}"] = drawings
    table = next((file for file in files(path) if file.name.casefold() == "labels.csv"), None)
    attached = attach(table, images) if table else Attached()
    identities = {
        name: attached.identities[name]._replace(label=attached.identities[name].label or own.label)
        if name in attached.identities
        else own
        for name, own in labels.items()
    }
    records, unpaired, joins = pair(images, masks, attached._replace(identities=identities))
    return Reading(records, problems + unpaired, joins)


def published(path: Path) -> dict[str, tuple[str, ...]]:
    """Parts that are folders: "train" -> the names of its images."""
    lists = {}
    for folder, image_folder, _ in _inside(path):
        if folder.name.casefold() in _PARTS:
            own, _ = by_name(filter(is_picture, files(image_folder, recursive=True)), image_folder)
            lists[folder.name] = tuple(f"{folder.name}/{name}" for name in own)
    return lists


def _inside(path: Path) -> list[tuple[Path, Path, Path]]:
    """The folders that hold images and masks: (folder, images, masks)."""
    pairs = [
        (folder, two_folders(folder))
        for folder in folders(path).values()
        if not any(module.detect(folder) for module in (unext, bus_bra, ddti_masks))
    ]
    return [(folder, *two) for folder, two in pairs if two is not None]
