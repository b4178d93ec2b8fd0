"""The folder that `predict` writes: settings.json, what the masks were made with, and
predictions.csv, a row an image, which grows as images are done and can be taken up again.
"""

import csv
import errno
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intrasense_fast.console import show
from intrasense_fast.data.opening import FileError, read_text
from intrasense_fast.errors import UsageError
from intrasense_fast.files import exclusive, legible, remove_leftovers, write_text
from intrasense_fast.report.tables import write_csv

TABLE, SETTINGS = "predictions.csv", "settings.json"
DONE, FAILED = "done", "failed"
# Of the largest component, in the unit of the row.
MEASUREMENTS = (
    "lesion_area",
    "longest_axis",
    "cross_axis",
    "taller_than_wide",
    "unit",
    "components",
)
COLUMNS = (
    "image",
    "status",
    "mask",
    "area",
    "left",
    "top",
    "width",
    "height",
    "mean_probability",
    "doubt",
    *MEASUREMENTS,
    "threshold",
    "sha256",
    "message",
)
# What --continue calls the settings that must stay, where they are not flags of that name.
_NAMES = {
    "weights_sha256": "the checkpoint's weights",
    "arguments": "the checkpoint's network",
    "temperatures": "the calibration temperatures",
    "tta": "the --tta flips",
}
# What folders were made with that began before these settings.
_BEFORE = {
    "amp": "off",
    "maps": False,
    "temperatures": [1.0],
    "tta": [[]],
    "tile": None,
    "batch": 8,
    "spacing": None,
    "contours": False,
    "dicom-seg": False,
    "keep-largest": False,
    "fill-holes": False,
    "min-area": 0,
}

Row = dict[str, Any]


class PredictionTable:
    """predictions.csv, open for more rows; each is written at once and whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row of `COLUMNS`; what is missing is empty.

        Raises:
            OSError: it cannot be written; the table ends with the row before it.
        """
        text = io.StringIO(newline="")
        values = {key: legible(v) if isinstance(v, str) else v for key, v in row.items()}
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(values)
        line = text.getvalue().encode("utf-8")
        before = os.fstat(self._descriptor).st_size
        try:
            # One call: no signal comes between two halves of a row.
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        os.close(self._descriptor)


@contextmanager
def open_table(folder: Path) -> Iterator[PredictionTable]:
    """The table of a folder that `begin` or `take_up` prepared, closed afterwards."""
    table = PredictionTable(folder / TABLE)
    try:
        yield table
    finally:
        table.close()


@contextmanager
def claimed(out: Path, settings: Mapping[str, Any], *, go_on: bool) -> Iterator[bool]:
    """Keep other processes out of the folder while the block runs; yields whether it had begun.

    A new folder gets its settings.json; one that began must have been made with the same.

    Raises:
        UsageError: the folder is in use, or was begun with other settings.
    """
    if go_on and out.is_dir():
        with exclusive(out):
            remove_leftovers(out)
    begun = go_on and (out / SETTINGS).exists()
    hint = ", or add --continue" if (out / SETTINGS).exists() else ""
    folder = out if begun else new_folder(out, hint)
    with exclusive(folder):
        if begun:
            _check_same(folder / SETTINGS, settings)
        else:
            if go_on:
                show(f"{out}: nothing has begun there: all images are segmented")
            write_text(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")
            write_csv(folder / TABLE, [], COLUMNS)
        yield begun


def new_folder(out: str | os.PathLike[str], hint: str = "") -> Path:
    """The folder for results, made; `hint` is what else can be done where it is in use.

    Raises:
        UsageError: it is in use or cannot be made.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"--out {folder} is in use; nothing is overwritten: choose a new folder{hint}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be made ({error.strerror})") from error
    return folder


def most_doubted(folder: Path, count: int) -> list[tuple[str, float]]:
    """Names and doubt of at most `count` images of a table, the most doubted first."""
    rows, _ = read_rows(folder / TABLE)
    doubts = [(row["image"], float(row["doubt"])) for row in rows if row["status"] == DONE]
    return sorted(doubts, key=lambda pair: -pair[1])[:count]


def read_rows(path: Path) -> tuple[list[Row], int]:
    """The whole rows of a table, and how many others there are.

    Raises:
        UsageError: it is no table of this version.
    """
    try:
        text = read_text(path, errors="replace")
    except FileNotFoundError:
        return [], 0
    except FileError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    read: list[list[str]] = []
    damaged = 0
    try:
        for line in lines:
            read.append(line)
        if read and not text.endswith("\n"):
            read.pop()
            damaged = 1
    except csv.Error:
        damaged = 1
    if read and set(read[0]) < set(COLUMNS) and "image" in read[0]:
        missing = ", ".join(name for name in COLUMNS if name not in read[0])
        raise UsageError(
            f"{path}: was made by an earlier version, without the columns {missing}: --continue "
            "cannot go on with it; choose a new folder with --out"
        )
    if not read or tuple(read[0]) != COLUMNS:
        raise UsageError(
            f"{path}: is no table that --continue can go on with: choose a new folder with --out"
        )
    whole = [dict(zip(COLUMNS, row, strict=True)) for row in read[1:] if len(row) == len(COLUMNS)]
    return whole, damaged + len(read) - 1 - len(whole)


def _check_same(file: Path, settings: Mapping[str, Any]) -> None:
    try:
        then = {**_BEFORE, **json.loads(read_text(file))}
        now = json.loads(json.dumps(settings))
        changed = [key for key in now if then.get(key) != now[key]]
    except (OSError, ValueError, RecursionError, TypeError) as error:
        raise UsageError(f"{file}: is damaged ({error}): choose a new folder with --out") from error
    if changed:
        parts = [f"{_NAMES.get(key, f'--{key}')} {_shown(then.get(key))}" for key in changed]
        others = ", ".join(_shown(now[key]) for key in changed)
        raise UsageError(
            f"--continue: {file.parent} was made with {', '.join(parts)}, now {others}: give the "
            "same, or choose a new folder with --out"
        )


def _shown(value: object) -> str:
    text = value[:12] if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
