"""The data sets users have on disk, one module a layout: `detect(path) -> bool` and `read(path) -> (records, problems)`.

A module that has FOLDS is cross-validated in so many folds by default.
"""

import os
from pathlib import Path
from types import ModuleType

from intrasense_fast.data.duplicates import cached_duplicates, find_duplicates, regrouped
from intrasense_fast.data.layouts import bus_bra, busi, dataset_b, ddti, ddti_masks, generic, unext
from intrasense_fast.data.layouts._files import files, folders
from intrasense_fast.data.records import DataError, Problem, Record, SegmentationData, accept

# In the order of detection: the generic layout would accept several of the others, so it comes last.
LAYOUTS: dict[str, ModuleType] = {
    module.NAME: module for module in (busi, unext, bus_bra, dataset_b, ddti, ddti_masks, generic)
}

_MAX_DESCENT = 3


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
) -> SegmentationData:
    """Open a data set where it lies: files are listed, paired, checked for size and permission, and grouped.

    Args:
        path: the folder of the data set, or one that holds nothing else.
        layout: "auto", or one of "busi", "unext", "bus-bra", "dataset-b", "ddti", "ddti-masks", "generic".
        skip_bad: leave images out that cannot be used, listed in `.problems`, instead of raising.
        group_duplicates: put near-duplicates into one group, beyond the cases that the layout tells. Decodes every image the
            first time (a cache of this machine remembers what was found); False decodes nothing.
        progress: show a bar while images are decoded.

    Returns:
        A sequence of `Sample`: image float32 (H, W) in [0, 1], mask uint8 (H, W) in {0, 1}, name, case, group, label.
        Pixels are decoded on access; `.checked()` decodes all of them once and raises before a training run does.

    Raises:
        DataError: the folder is missing, empty or of another layout; or files cannot be used, every one of them named.
    """
    data = accept(read_dataset(path, layout), skip_bad=skip_bad)
    if not group_duplicates:
        return data
    found = cached_duplicates(data.records)
    if found is None:
        signatures = [finding.signature for finding in data.inspect(progress, signatures=True)]
        found = find_duplicates(data.records, signatures, progress=progress)
    return regrouped(data, found)


def read_dataset(path: str | os.PathLike[str], layout: str = "auto") -> SegmentationData:
    """`open_dataset` without decoding a pixel, that keeps every problem in `.problems` instead of raising for it.

    Raises:
        DataError: the folder is missing, empty or of another layout.
    """
    root, module = _locate(Path(path), layout)
    try:
        records, problems = module.read(root)
        lists: dict[str, tuple[str, ...]] = (
            module.published(root) if hasattr(module, "published") else {}
        )
    except PermissionError as error:
        raise DataError(
            f"{error.filename}: permission denied: make the folder readable for this user"
        ) from None
    sound, faults = _check_files(records)
    problems = [*problems, *faults]
    known = {record.name for record in records}
    for name, members in lists.items():
        absent = [member for member in members if member not in known]
        if absent:
            shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            problems.append(
                Problem(
                    "warning",
                    str(root),
                    f"split list {name!r} names {len(absent)} images that are missing or cannot be used: {shown}",
                )
            )
    if not records and not problems:
        raise DataError(f"{root}: no images found; {module.NAME} expects {module.EXPECTED}")
    return SegmentationData(
        root, module.NAME, tuple(sound), tuple(problems), lists, getattr(module, "NOTE", "")
    )


def _locate(path: Path, layout: str) -> tuple[Path, ModuleType]:
    """The folder that holds the layout (descending where there is only one way to go), and the layout's module."""
    wanted = layout.replace("_", "-").casefold()
    if wanted != "auto" and wanted not in LAYOUTS:
        raise DataError(f"layout {layout!r} is unknown; known: auto, {', '.join(LAYOUTS)}")
    if not path.exists():
        raise DataError(
            f"{path}: no such folder" + (" (a broken link)" if path.is_symlink() else "")
        )
    if not path.is_dir():
        raise DataError(
            f"{path}: a file, the folder of a data set is needed (unpack an archive first)"
        )
    try:
        return _search(path, wanted)
    except PermissionError as error:
        raise DataError(
            f"{error.filename}: permission denied: make the folder readable for this user"
        ) from None


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
    return f"{found}; expected one of\n" + "\n".join(
        f"  {module.NAME}: {module.EXPECTED}" for module in LAYOUTS.values()
    )


def _check_files(records: list[Record]) -> tuple[list[Record], list[Problem]]:
    """Records whose files exist, are not empty and may be read, and an error for each file that is otherwise."""
    sound, problems = [], []
    for record in records:
        faults = [(path, _fault(path)) for path in (record.image, *record.masks)]
        problems += [Problem("error", str(path), fault) for path, fault in faults if fault]
        if not any(fault for _, fault in faults):
            sound.append(record)
    return sound, problems


def _fault(path: Path) -> str | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "a broken link: its target is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if size == 0:
        return "empty file (0 bytes): get it again from its source"
    return (
        None
        if os.access(path, os.R_OK)
        else "permission denied: make the file readable for this user"
    )
