"""What a study folder holds: which cells are done, and the metrics of every tested image."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intrasense_fast.data.order import natural_key
from intrasense_fast.data.splits import Splits
from intrasense_fast.errors import UsageError
from intrasense_fast.metrics import COUNTS, METRICS

STUDY, SPLITS, IMAGES, CELLS = "study.json", "splits.json", "images.csv", "cells"
FAILED, DONE = "failed.txt", "summary.json"
_FAILED_PREFIX = "failed: "
_COLUMNS = (*METRICS, *COUNTS)
# Keys that study.json must have, and what they hold.
_NEEDED = {"kind": str, "rows": list, "seeds": list, "folds": list, "reference": str}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One training of the grid: `run` holds best/ and per_image.csv; `fault` is why it is not done,
    or ""."""

    label: str
    seed: int
    fold: int
    run: Path
    fault: str
    rows: tuple[Mapping[str, str], ...] = ()

    @property
    def name(self) -> str:
        return cell_name(self.label, self.seed, self.fold)

    @property
    def done(self) -> bool:
        return not self.fault

    @property
    def failed(self) -> bool:
        return self.fault.startswith(_FAILED_PREFIX)

    def record(self) -> dict[str, Any]:
        """The run's config.json; empty where it cannot be read."""
        try:
            record = json.loads((self.run / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}


@dataclass(frozen=True)
class Study:
    """A compare or ablate, complete or not.

    Attributes:
        names: the tested images, in natural order; `images` counts on it.
        classes: name -> label, and `areas`: name -> lesion pixels over all pixels.
        values: of a label, (seeds, images, METRICS and COUNTS); nan where no cell tells.
        groups: name -> patient or cluster of near-duplicates; `group_source` says where from.
        role: "test", or "selection" where the splits test nothing.
    """

    out: Path
    record: Mapping[str, Any]
    splits: Splits
    cells: tuple[Cell, ...]
    names: tuple[str, ...]
    classes: Mapping[str, str]
    areas: Mapping[str, float]
    values: Mapping[str, Array]
    groups: Mapping[str, str]
    group_source: str
    role: str

    @property
    def kind(self) -> str:
        return self.record["kind"]

    @property
    def labels(self) -> list[str]:
        return [row["name"] for row in self.record["rows"]]

    @property
    def reference(self) -> str:
        return self.record["reference"]

    @property
    def seeds(self) -> list[int]:
        return list(self.record["seeds"])

    @property
    def folds(self) -> list[int]:
        return list(self.record["folds"])

    def row(self, label: str) -> Mapping[str, Any]:
        """What study.json says of a label."""
        return next(row for row in self.record["rows"] if row["name"] == label)

    def done(self, label: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.label == label and cell.done]

    def fold_of(self) -> dict[str, int]:
        """name -> fold that tests it."""
        tested = _tested(self.splits, self.role)
        return {name: fold for fold in self.folds for name in tested[fold]}

    def metric(self, label: str, name: str) -> Array:
        """(seeds, images) of one metric or count."""
        return self.values[label][:, :, _COLUMNS.index(name)]

    def lesion(self) -> NDArray[np.bool_]:
        """(images,): which show a lesion."""
        return np.array([self.areas.get(name, 0) > 0 for name in self.names], bool)


def cell_name(label: str, seed: int, fold: int) -> str:
    return f"{label}-s{seed}-f{fold}"


def read_study(out: Path) -> Study:
    """Read the folder of a study; cells that failed or are missing have a fault.

    Raises:
        UsageError: study.json or the per_image.csv of a finished cell is missing or damaged, or no
            cell is done and none failed.
        DataError: splits.json is missing or damaged.
    """
    record = _read_record(out)
    splits = Splits.load(out / SPLITS)
    highest = max(record["folds"], default=-1)
    if highest >= len(splits.folds):
        raise UsageError(
            f"{out / STUDY}: names fold {highest}, {SPLITS} has {len(splits.folds)} folds; "
            "put the splits back that the study began with"
        )
    role = "test" if all(splits.folds[fold].test for fold in record["folds"]) else "selection"
    cells = tuple(_cells(out, record, role))
    if not any(cell.done or cell.failed for cell in cells):
        reasons = "; ".join(f"{cell.name}: {cell.fault}" for cell in cells[:3])
        raise UsageError(f"{out}: no cell of the study is done yet ({reasons}, ...); train first")
    tested = _tested(splits, role)
    names = sorted({name for fold in record["folds"] for name in tested[fold]}, key=natural_key)
    place = {name: i for i, name in enumerate(names)}
    labels = [row["name"] for row in record["rows"]]
    values = {
        label: np.full((len(record["seeds"]), len(names), len(_COLUMNS)), np.nan)
        for label in labels
    }
    classes: dict[str, str] = {}
    areas: dict[str, float] = {}
    cases: dict[str, str] = {}
    for cell in cells:
        for row in cell.rows:
            numbers = np.array([float(row[column] or "nan") for column in _COLUMNS])
            name = row["name"]
            values[cell.label][record["seeds"].index(cell.seed), place[name]] = numbers
            tp, _, fn, _ = numbers[-4:]
            classes[name], cases[name] = row["label"], row["case"]
            areas[name] = (tp + fn) / numbers[-4:].sum()
    groups, source = _groups(out, cases)
    return Study(
        out, record, splits, cells, tuple(names), classes, areas, values, groups, source, role
    )


def _read_record(out: Path) -> dict[str, Any]:
    file = out / STUDY
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{out}: is no folder of a study, {STUDY} cannot be read ({error.strerror}); "
            "name the --out of a compare or ablate"
        ) from error
    except ValueError as error:
        raise UsageError(f"{file}: is damaged; put it back from a copy") from error
    for key, kind in _NEEDED.items():
        if not isinstance(record, dict) or not isinstance(record.get(key), kind):
            raise UsageError(f'{file}: is damaged: "{key}" must be a {kind.__name__}')
    labels = [row.get("name") for row in record["rows"] if isinstance(row, dict)]
    if record["reference"] not in labels or len(labels) != len(record["rows"]):
        raise UsageError(
            f"{file}: is damaged: the reference {record['reference']!r} is none of the rows "
            f"{labels}"
        )
    return record


def _cells(out: Path, record: Mapping[str, Any], role: str) -> Iterator[Cell]:
    for row in record["rows"]:
        for seed in record["seeds"]:
            for fold in record["folds"]:
                yield _cell(out, row["name"], seed, fold, role)


def _cell(out: Path, label: str, seed: int, fold: int, role: str) -> Cell:
    folder = out / CELLS / cell_name(label, seed, fold)
    # A run of one fold of several keeps it in a folder of its own.
    run = folder / f"fold-{fold}" if (folder / f"fold-{fold}").is_dir() else folder
    if (folder / FAILED).exists():
        reason = (folder / FAILED).read_text(encoding="utf-8", errors="replace").strip()
        last = reason.splitlines()[-1] if reason else "no reason given"
        return Cell(label, seed, fold, run, f"{_FAILED_PREFIX}{last}")
    if not (run / DONE).exists():
        return Cell(label, seed, fold, run, "unfinished" if folder.exists() else "not begun")
    file = run / "per_image.csv"
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row["role"] == role]
        for row in rows:
            for column in _COLUMNS:
                float(row[column] or "nan")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UsageError(
            f"{file}: missing or damaged ({error}); remove {run / DONE} and resume: it is made "
            f"again"
        ) from error
    return Cell(label, seed, fold, run, "", tuple(rows))


def _tested(splits: Splits, role: str) -> list[tuple[str, ...]]:
    return [fold.test if role == "test" else fold.val for fold in splits.folds]


def _groups(out: Path, cases: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Of images.csv, whose groups never part in a split; else the case of per_image.csv."""
    try:
        with open(out / IMAGES, newline="", encoding="utf-8") as stream:
            stored = {row["name"]: row["group"] for row in csv.DictReader(stream)}
    except FileNotFoundError:
        return dict(
            cases
        ), "the column case of per_image.csv (near-duplicates count as independent)"
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise UsageError(
            f"{out / IMAGES}: is damaged ({error}); put it back from a copy"
        ) from error
    lacking = sorted(set(cases) - set(stored))
    if lacking:
        raise UsageError(
            f"{out / IMAGES}: lacks {len(lacking)} images that were tested, such as {lacking[0]}; "
            "put it back from a copy"
        )
    return {name: stored[name] for name in cases}, f"{IMAGES}: patients and near-duplicate clusters"
