"""A folder with images/ and masks/ of equal names, or one folder of NAME.png + NAME_mask.png."""

from pathlib import Path

from intrasense_fast.data.layouts._files import (
    MASK_NAME,
    Reading,
    by_name,
    files,
    folders,
    is_image,
    name_of,
    not_images,
    pair,
    read_labels,
)

NAME = "generic"
EXPECTED = "images/ and masks/ with files of equal names, or NAME.png beside NAME_mask.png"

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "annotations", "gt", "labels")


def detect(path: Path) -> bool:
    return _two_folders(path) is not None or any(
        is_image(file) and MASK_NAME.match(file.stem) for file in files(path)
    )


def read(path: Path) -> Reading:
    """Pairs by name; several masks NAME_mask*.png are merged. labels.csv (name, label, case) may give classes and patients."""
    two = _two_folders(path)
    return _read_folders(*two, path) if two else _read_pairs(path)


def _two_folders(path: Path) -> tuple[Path, Path] | None:
    inside = folders(path)
    images, masks = (
        next((inside[name] for name in names if name in inside), None)
        for names in (IMAGE_FOLDERS, MASK_FOLDERS)
    )
    return (images, masks) if images and masks else None


def _read_folders(image_folder: Path, mask_folder: Path, root: Path) -> Reading:
    image_files, mask_files = (
        files(image_folder, recursive=True),
        files(mask_folder, recursive=True),
    )
    images, problems = by_name(filter(is_image, image_files), image_folder)
    exact, twice = by_name(filter(is_image, mask_files), mask_folder)
    masks: dict[str, list[Path]] = {}
    for name, mask in exact.items():
        base = MASK_NAME.match(name)
        masks.setdefault(base["name"] if base and name not in images else name, []).append(mask)
    identities, table_problems = read_labels(root)
    records, unpaired = pair(images, masks, identities)
    return records, problems + twice + not_images(
        [*image_files, *mask_files]
    ) + table_problems + unpaired


def _read_pairs(path: Path) -> Reading:
    found = files(path)
    images, problems = by_name(
        file for file in found if is_image(file) and not MASK_NAME.match(file.stem)
    )
    masks: dict[str, list[Path]] = {}
    for file in found:
        base = MASK_NAME.match(name_of(file))
        if base and is_image(file):
            masks.setdefault(base["name"], []).append(file)
    identities, table_problems = read_labels(path)
    records, unpaired = pair(images, masks, identities)
    return records, problems + not_images(found) + table_problems + unpaired
