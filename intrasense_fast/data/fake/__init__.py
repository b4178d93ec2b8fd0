"""Small fake data sets of phantoms, with every oddity of the real ones, to try everything without a
download."""

import os
from collections.abc import Callable

from intrasense_fast.data.fake._tree import VARIANTS, Picture, Planted, Tree, variant
from intrasense_fast.data.fake.busi import write_busi, write_unext
from intrasense_fast.data.fake.class_folders import write_class_folders
from intrasense_fast.data.fake.ddti import write_ddti
from intrasense_fast.data.fake.others import (
    write_bus_bra,
    write_dataset_b,
    write_ddti_masks,
    write_generic,
)
from intrasense_fast.errors import UsageError
from intrasense_fast.files import atomic_folder

__all__ = ["LAYOUTS", "VARIANTS", "Picture", "Planted", "variant", "write_tree"]

LAYOUTS: dict[str, Callable[[Tree, int], None]] = {
    "generic": write_generic,
    "busi": write_busi,
    "unext": write_unext,
    "dataset-b": write_dataset_b,
    "ddti": write_ddti,
    "ddti-masks": write_ddti_masks,
    "bus-bra": write_bus_bra,
    "class-folders": write_class_folders,
}
SMALLEST_COUNT = 30
SMALLEST_SIZE, LARGEST_SIZE = 64, 1024


def write_tree(
    layout: str,
    out: str | os.PathLike[str],
    count: int = 60,
    *,
    size: int = 256,
    seed: int = 0,
    broken: bool = False,
) -> list[Planted]:
    """Write a fake data set to `out`: whole or not at all.

    Args:
        layout: one of LAYOUTS.
        out: the folder to write; it must not exist, or be empty.
        count: images in all, at least 30 (every oddity needs its place); a few more files may be
            planted.
        size: about the sides of the images in pixels, 64 to 1024; each image has its own.
        seed: not negative; the same arguments give the same data set.
        broken: also plant files that cannot be used: `verify` then fails, and training needs
            --skip-bad.

    Returns:
        Every problem that `verify` must find in it, and no other.

    Raises:
        UsageError: `out` is in use, or an argument outside what is named above.
        OSError: the folder cannot be written.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r} is unknown; known: {', '.join(LAYOUTS)}")
    if count < SMALLEST_COUNT:
        raise UsageError(
            f"{count} images: at least {SMALLEST_COUNT} are needed, so that every oddity has its "
            f"place"
        )
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE or seed < 0:
        raise UsageError(
            f"size {size}, seed {seed}: sizes from {SMALLEST_SIZE} to {LARGEST_SIZE} and seeds "
            f"from 0 are needed"
        )
    with atomic_folder(out) as folder:
        tree = Tree(folder, size, seed, broken)
        LAYOUTS[layout](tree, count)
    return tree.planted
