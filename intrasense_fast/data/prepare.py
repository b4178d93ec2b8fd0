"""Write a clean copy of a data set in the UNeXt layout."""

import csv
import io
import os
from pathlib import Path

import numpy as np

from intrasense_fast.data.budget import PixelBudget
from intrasense_fast.data.images import ImageError, write_png
from intrasense_fast.data.inspection import largest_picture
from intrasense_fast.data.layouts import open_dataset
from intrasense_fast.data.opening import sha256_of
from intrasense_fast.data.reading import DEFAULT, ReadingOptions
from intrasense_fast.data.records import (
    DataError,
    Problem,
    Record,
    SegmentationData,
    accept,
    problem_of,
    threaded,
)
from intrasense_fast.data.transforms import resize_image, resize_mask
from intrasense_fast.files import atomic_folder, escaped, legible

MANIFEST = (
    "name", "label", "case", "group", "width", "height", "source_width", "source_height",
    "source", "source_sha256", "masks", "masks_sha256", "repaired",
)  # fmt: skip


def prepare(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    size: int | None = 256,
    layout: str = "auto",
    *,
    skip_bad: bool = False,
    progress: bool = False,
    options: ReadingOptions = DEFAULT,
) -> SegmentationData:
    """Copy a data set as grey PNG and {0, 255} masks to `out`: images/, masks/0/, its split lists,
    manifest.csv, problems.csv.

    Names of files and in tables are valid UTF-8, as the records' names are: other bytes stand as
    %E9 or the like.

    Args:
        path: the folder of the data set.
        out: the folder to write; it must not exist, or be empty. It appears whole, or not at all.
        size: pixels of the square images, or None for the original sizes.
        layout: as in `open_dataset`.
        skip_bad: leave out what cannot be used (listed in problems.csv) instead of raising.

    Returns:
        The copy, opened.

    Raises:
        DataError: the data set cannot be used, or `out` lies inside it.
        UsageError: `out` is in use.
        OSError: the disk is full or `out` cannot be written; no half copy is left.
    """
    out = Path(out)
    if size is not None and size < 1:
        raise DataError(
            f"size {size}: a positive number of pixels is needed, or None for the original sizes"
        )
    data = open_dataset(path, layout, skip_bad=skip_bad, progress=progress, options=options)
    data.decided()
    if data.root.resolve() in (out.resolve(), *out.resolve().parents):
        raise DataError(f"{out}: lies inside the data set {data.root}: choose a folder outside it")
    files = _file_names(data)
    with atomic_folder(out) as temporary:
        (temporary / "images").mkdir()
        (temporary / "masks" / "0").mkdir(parents=True)
        rows: list[dict[str, object]] = []
        written: list[Record] = []
        problems: list[Problem] = []
        budget = PixelBudget(options.max_pixels)

        def copied(record: Record) -> tuple[Record, dict[str, object] | None, list[Problem]]:
            with budget.hold(largest_picture(record, options.max_pixels)):
                return _copy(data, record, files[record.name], temporary, size)

        copies = threaded(copied, data.records, "prepare", progress)
        for record, row, found in copies:
            problems += found
            if row:
                rows.append(row)
                written.append(record)
        data = accept(data.with_records(written, problems), skip_bad=skip_bad)
        left = {record.name: files[record.name] for record in written}
        for name, members in data.published.items():
            lines = [left[member] for member in members if member in left]
            listed = "".join(f"{line}\n" for line in lines)
            (temporary / f"{name.replace('/', '-')}.txt").write_text(
                listed, encoding="utf-8", newline="\n"
            )
        _write_table(temporary / "manifest.csv", MANIFEST, rows)
        _write_table(
            temporary / "problems.csv",
            ("level", "file", "message"),
            [vars(problem) for problem in data.problems],
        )
    return open_dataset(out, "unext", group_duplicates=False)


def _copy(
    data: SegmentationData, record: Record, file: str, out: Path, size: int | None
) -> tuple[Record, dict[str, object] | None, list[Problem]]:
    """Write one image and its mask; the manifest's row, or None and the error."""
    try:
        loaded = data.load(record)
    except ImageError as error:
        return record, None, [problem_of("error", str(error), record)]
    sample, warnings, mode = loaded.sample, loaded.warnings, loaded.mode
    image, mask = (
        (sample.image, sample.mask)
        if size is None
        else (resize_image(sample.image, size), resize_mask(sample.mask, size))
    )
    levels, dtype = (65535, np.uint16) if mode.endswith(("16-bit", "float")) else (255, np.uint8)
    write_png(
        out / "images" / f"{file}.png", np.rint(image.astype(np.float64) * levels).astype(dtype)
    )
    write_png(out / "masks" / "0" / f"{file}.png", mask * np.uint8(255))
    repaired = [] if mode.startswith("grey") else [f"{mode} image read as grey"]
    if len(record.masks) > 1:
        repaired.append(f"{len(record.masks)} masks merged")
    if loaded.turned:
        repaired.append("turned as its orientation tag says")
    if record.regions:
        repaired.append(f"{len(record.regions)} outlines filled")
    row = {
        "name": file,
        "label": record.label,
        "case": record.case,
        "group": record.group,
        "width": image.shape[1],
        "height": image.shape[0],
        "source_width": sample.image.shape[1],
        "source_height": sample.image.shape[0],
        "source": record.image,
        "source_sha256": sha256_of(record.image),
        "masks": "|".join(map(str, record.masks)),
        "masks_sha256": "|".join(map(sha256_of, record.masks)),
        "repaired": "; ".join([*repaired, *warnings]),
    }
    return record, row, [problem_of("warning", warning, record) for warning in warnings]


def _file_names(data: SegmentationData) -> dict[str, str]:
    """Record name -> file name in one flat folder; two names that would share a file are an
    error."""
    taken: dict[str, str] = {}
    for record in data.records:
        file = record.name.replace("/", "__")
        other = taken.setdefault(file.casefold(), record.name)
        if other != record.name:
            raise DataError(
                f"{data.root}: {other} and {record.name} would both become {file}.png: rename one "
                f"of them"
            )
    return {record.name: record.name.replace("/", "__") for record in data.records}


def _write_table(path: Path, columns: tuple[str, ...], rows: list[dict[str, object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(legible(text.getvalue()).encode("utf-8"))


def left_out_or_repaired(out: str | os.PathLike[str]) -> list[str]:
    """The lines of problems.csv in a copy, as they are printed."""
    with open(Path(out) / "problems.csv", encoding="utf-8", newline="") as stream:
        return [
            escaped(f"{row['level']}: {row['file']}: {row['message']}")
            for row in csv.DictReader(stream)
        ]
