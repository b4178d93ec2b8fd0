"""The data sets users have on disk, one module a layout: `detect(path) -> bool` and `read(path) ->
Reading`.

A module that has FOLDS is cross-validated in so many folds by default.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from intrasense_fast.data.duplicates import cached_duplicates, inspect_and_search, regrouped
from intrasense_fast.data.joining import few, join
from intrasense_fast.data.layouts import (
    bus_bra,
    busi,
    by_pattern,
    class_folders,
    dataset_b,
    ddti,
    ddti_masks,
    generic,
    unext,
)
from intrasense_fast.data.layouts._files import Reading
from intrasense_fast.data.listing import files, folders
from intrasense_fast.data.masks import MaskDecision
from intrasense_fast.data.opening import special_kind
from intrasense_fast.data.patterns import EXAMPLE
from intrasense_fast.data.reading import DEFAULT, ReadingOptions
from intrasense_fast.data.records import DataError, Problem, Record, SegmentationData, accept

# In the order of detection: the generic layout would accept several of the others, so it comes
# last.
LAYOUTS: dict[str, ModuleType] = {
    module.NAME: module
    for module in (busi, unext, bus_bra, dataset_b, ddti, ddti_masks, generic, class_folders)
}

_MAX_DESCENT = 3

Result = TypeVar("Result")


def folds_of(layout: str) -> int:
    """How many cross-validation folds a layout's data are published with; 0 = one split."""
    return getattr(LAYOUTS.get(layout), "FOLDS", 0)


def open_dataset(
    path: str | os.PathLike[str],
    layout: str = "auto",
    *,
    skip_bad: bool = False,
    group_duplicates: bool = True,
    progress: bool = False,
    options: ReadingOptions = DEFAULT,
) -> SegmentationData:
    """Open a data set where it lies: files are listed, paired, checked for size and permission, and
    grouped.

    Args:
        path: the folder of the data set, or one that holds nothing else.
        layout: "auto", or one of LAYOUTS: "busi", "unext", "bus-bra", "dataset-b", "ddti",
            "ddti-masks", "generic", "class-folders".
        skip_bad: leave images out that cannot be used, listed in `.problems`, instead of raising.
        group_duplicates: put near-duplicates into one group, beyond the cases that the layout
            tells. Decodes every image the first time (a cache of this machine remembers what was
            found); False decodes nothing.
        progress: show a bar while images are decoded.
        options: how files are read: pixel budget, levels, mask values, patterns instead of a
            layout.

    Returns:
        A sequence of `Sample`: image float32 (H, W) in [0, 1], mask uint8 (H, W) in {0, 1}, name,
        case, group, label. Pixels are decoded on access; `.checked()` decodes all of them once and
        raises before a
        training run does.

    Raises:
        DataError: the folder is missing, empty or of another layout; or files cannot be used, every
            one of them named.
    """
    data = accept(read_dataset(path, layout, options), skip_bad=skip_bad)
    if not group_duplicates:
        return data
    found = cached_duplicates(data)
    if found is None:
        _, found = inspect_and_search(data, progress=progress)
    data.decided()
    return regrouped(data, found)


def read_dataset(
    path: str | os.PathLike[str], layout: str = "auto", options: ReadingOptions = DEFAULT
) -> SegmentationData:
    """`open_dataset` without decoding a pixel, that keeps every problem in `.problems` instead of
    raising for it.

    Raises:
        DataError: the folder is missing, empty or of another layout.
    """
    root, name, reading, lists = _read(Path(path), layout, options)
    records, problems, joins = reading
    sound, faults = _check_files(records)
    problems = [*problems, *faults]
    joined: dict[str, tuple[str, ...]] = {}
    for title, members in lists.items():
        found = join(members, [record.name for record in records])
        joined[title] = tuple(
            name or member for name, member in zip(found.names, members, strict=True)
        )
        if found.lost:
            text = f"names {len(found.lost)} images that are missing or cannot be used"
            text = f"split list {title!r} {text}: {few(found.lost)}"
            problems.append(Problem("warning", str(root), text))
        if found.loose:
            entry, image = found.loose[0]
            text = (
                f"{len(found.loose)} names joined though written otherwise ({entry!r} = {image!r})"
            )
            joins = (*joins, f"split list {title!r}: {text}")
    masks = MaskDecision(
        (mask for record in sound for mask in record.masks),
        options.mask_values,
        options.max_pixels,
    )
    note = "" if name == by_pattern.NAME else getattr(LAYOUTS[name], "NOTE", "")
    return SegmentationData(
        root, name, tuple(sound), tuple(problems), joined, note, options, masks, joins
    )


def _read(
    path: Path, layout: str, options: ReadingOptions
) -> tuple[Path, str, Reading, dict[str, tuple[str, ...]]]:
    """The folder, the layout's name, what it read, and its lists.

    Raises:
        DataError: as in `read_dataset`.
    """
    if options.pairs is not None:
        if layout != "auto":
            raise DataError(f"--pairs takes the place of a layout: leave --layout {layout} out")
        patterns = options.pairs
        _check_folder(path)
        reading = _permitted(lambda: by_pattern.read(path, patterns))
        return path, by_pattern.NAME, reading, {}
    root, module = _locate(path, layout)
    reading = _permitted(lambda: module.read(root))
    lists = _permitted(lambda: module.published(root)) if hasattr(module, "published") else {}
    if not reading.records and not reading.problems:
        raise DataError(f"{root}: no images found; {module.NAME} expects {module.EXPECTED}")
    return root, module.NAME, reading, lists


def _permitted(work: Callable[[], Result]) -> Result:
    """What `work` returns; a folder that may not be read is a DataError."""
    try:
        return work()
    except PermissionError as error:
        reason = "permission denied: make the folder readable for this user"
        raise DataError(f"{error.filename}: {reason}") from None


def _locate(path: Path, layout: str) -> tuple[Path, ModuleType]:
    """The folder that holds the layout (descending where there is only one way to go), and the
    layout's module."""
    wanted = layout.replace("_", "-").casefold()
    if wanted != "auto" and wanted not in LAYOUTS:
        raise DataError(f"layout {layout!r} is unknown; known: auto, {', '.join(LAYOUTS)}")
    _check_folder(path)
    return _permitted(lambda: _search(path, wanted))


def _check_folder(path: Path) -> None:
    if not path.exists():
        raise DataError(
            f"{path}: no such folder" + (" (a broken link)" if path.is_symlink() else "")
        )
    if not path.is_dir():
        raise DataError(
            f"{path}: a file, the folder of a data set is needed (unpack an archive first)"
        )


def _search(path: Path, wanted: str) -> tuple[Path, ModuleType]:
    folder = shown = path
    looks_like = None
    for _ in range(_MAX_DESCENT + 1):
        found = next((module for module in LAYOUTS.values() if module.detect(folder)), None)
        if wanted != "auto" and LAYOUTS[wanted].detect(folder):
            return folder, LAYOUTS[wanted]
        if found and wanted == "auto":
            return folder, found
        looks_like = looks_like or found
        inside = list(folders(folder).values())
        if len(inside) != 1:
            break
        if shown == folder and not files(folder):
            # Nothing is beside it: what lies further down is all there is to tell of.
            shown = inside[0]
        folder = inside[0]
    if looks_like:
        raise DataError(
            f"{path}: this looks like {looks_like.NAME} ({looks_like.EXPECTED}), expected {wanted} "
            f"({LAYOUTS[wanted].EXPECTED}): use layout {looks_like.NAME!r} or 'auto'"
        )
    raise DataError(_unrecognised(shown, folder, wanted))


def _unrecognised(path: Path, deepest: Path, wanted: str) -> str:
    names = [f"{entry.name}/" for entry in folders(path).values()] + [
        file.name for file in files(path)
    ]
    if not names:
        return f"{path}: an empty folder; a data set is needed"
    found = f"{path}: holds {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
    candidates = [
        entry
        for entry in folders(deepest).values()
        if any(module.detect(entry) for module in LAYOUTS.values())
    ]
    if candidates:
        return f"{found}; open one of its folders: {', '.join(str(entry) for entry in candidates)}"
    if wanted != "auto":
        return f"{found}; {wanted} expects {LAYOUTS[wanted].EXPECTED}"
    known = "\n".join(f"  {module.NAME}: {module.EXPECTED}" for module in LAYOUTS.values())
    return f"{found}; expected one of\n{known}\nor say how the files pair: {EXAMPLE}"


def _check_files(records: list[Record]) -> tuple[list[Record], list[Problem]]:
    """Records whose files exist, are not empty and may be read, and an error for each file that is
    otherwise."""
    sound, problems = [], []
    for record in records:
        faults = [(path, _fault(path)) for path in (record.image, *record.masks)]
        problems += [Problem("error", str(path), fault) for path, fault in faults if fault]
        if not any(fault for _, fault in faults):
            sound.append(record)
    return sound, problems


def _fault(path: Path) -> str | None:
    try:
        status = path.stat()
        kind = None if stat.S_ISREG(status.st_mode) else special_kind(path)
    except FileNotFoundError:
        return "a broken link: its target is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if kind is not None:
        return f"{kind}, no regular file: never opened; move it away"
    if status.st_size == 0:
        return "empty file (0 bytes): get it again from its source"
    return (
        None
        if os.access(path, os.R_OK)
        else "permission denied: make the file readable for this user"
    )
