"""The folder of a study: how it comes to be, what it records, and how far each of its runs is."""

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from intrasense_fast.data.records import Finding, SegmentationData
from intrasense_fast.data.splits import Splits, strata_of
from intrasense_fast.errors import UsageError
from intrasense_fast.fields import as_flags
from intrasense_fast.files import atomic_folder, write_text
from intrasense_fast.report.tables import write_csv
from intrasense_fast.training import run_folder, sources
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.execution import Task
from intrasense_fast.training.study import Cell, Study, changes
from intrasense_fast.training.trainer import steps_of

STUDY, IMAGES = "study.json", "images.csv"
CELLS, LOGS, DATA, FOLDS = "cells", "logs", "data", "splits"


def read_study(out: Path) -> tuple[Study, dict[str, Any]]:
    """The study of a folder, and the whole of its study.json.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    file = out / STUDY
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{out}: is no folder of a study, {STUDY} cannot be read ({error.strerror})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: is damaged, or not the record of a study") from error
    if not isinstance(record, dict) or not isinstance(record.get("folds"), list):
        raise UsageError(f"{file}: is damaged, or not the record of a study")
    try:
        return Study.from_record(record), record
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def check_same(out: Path, study: Study) -> None:
    """Refuse to go on with another study than the folder's.

    Raises:
        UsageError: something that changes the results differs; the message says what.
    """
    changed = changes(read_study(out)[0], study)
    if changed:
        raise UsageError(
            f"{out}: holds another study: {'; '.join(changed)}. "
            "Give the command it began with, or --resume, or another --out"
        )


def check_free(out: Path) -> None:
    """Raise a UsageError where something other than an empty folder stands at `out`."""
    if out.is_file() or out.is_symlink() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(
            f"--out {out} is in use, by no study; nothing is overwritten: choose a new folder"
        )


def create(out: Path, study: Study, parameters: Mapping[str, int], threads: int) -> None:
    """Read or simulate the images, split them once for all runs, and write the folder, whole or not
    at all.

    Args:
        out: a new folder.
        study: what was asked for.
        parameters: of the networks, by label.
        threads: of each run.

    Raises:
        UsageError, DataError: images that cannot be used or split so.
    """
    with atomic_folder(out) as folder:
        shared = study.shared
        if shared.data is None:
            sources.simulate_pool(folder / DATA, shared)
            shared = replace(shared, data=str(folder / DATA), layout="generic")
        data, findings, splits = images_and_splits(study, shared)
        splits.save(folder / run_folder.SPLITS)
        (folder / FOLDS).mkdir()
        for number, fold in enumerate(splits.folds):
            Splits((fold,), {**splits.made, "fold": number}).save(folder / _fold_file(number))
        write_csv(folder / IMAGES, _images(data, findings))
        for name in (CELLS, LOGS):
            (folder / name).mkdir()
        record = study.record()
        for row in record["rows"]:
            row["parameters"] = parameters[row["name"]]
        record |= {
            "folds": list(range(len(splits.folds))),
            "images": len(data),
            "layout": "phantom" if study.shared.data is None else data.layout,
            "splits": splits.digest,
            "threads": threads,
            "created": datetime.datetime.now().isoformat(timespec="seconds"),
            "commit": run_folder.commit(),
            "versions": run_folder.versions(),
        }
        write_text(folder / STUDY, json.dumps(record, indent=1) + "\n")


def images_and_splits(
    study: Study, shared: TrainConfig
) -> tuple[SegmentationData, list[Finding], Splits]:
    """The images of `shared.data`, and their folds; `study` says whether they are phantoms.

    Raises:
        UsageError, DataError: a fold has no test images or too few to train, or the data cannot be
            used.
    """
    data, findings = sources.open_source(Path(), shared)
    if study.shared.data is None and not shared.folds:
        splits = sources.split_pool(shared, [record.name for record in data.records])
    else:
        splits = sources.split(shared, data, findings)
    for number, fold in enumerate(splits.folds):
        if not fold.test:
            raise UsageError(
                f"fold {number} has no test images, and networks are compared on these: "
                "give --folds 5, or --splits with a list for the test"
            )
        steps_of(len(fold.train), shared.batch_size)
    return data, findings, splits


def arguments_of(out: Path, study: Study, cell: Cell) -> list[str]:
    """The arguments of `train` that begin or go on with a cell."""
    folder = out / CELLS / cell.name
    trusted = ["--network", cell.row.network] if ":" in cell.row.network else []
    if (folder / run_folder.CONFIG).exists():
        return ["--resume", str(folder), *trusted]
    return _beginning(out, study, cell)


def task_of(out: Path, study: Study, cell: Cell) -> Task:
    """The run of a cell, for an executor."""
    return Task(
        cell.name,
        out / CELLS / cell.name,
        out / LOGS / f"{cell.name}.txt",
        lambda: arguments_of(out, study, cell),
        lambda: [*_beginning(out, study, cell), "--resume-or-start"],
    )


def _beginning(out: Path, study: Study, cell: Cell) -> list[str]:
    shared = study.shared
    if shared.data is None:
        shared = replace(shared, data=str(out / DATA), layout="generic")
    config = replace(
        cell.row.config(shared),
        seed=cell.seed,
        splits=str(out / _fold_file(cell.fold)),
        folds=0,
        fold=None,
        preset="paper",
    )
    paper = TrainConfig()
    values = {
        item.name: getattr(config, item.name)
        for item in fields(TrainConfig)
        if getattr(config, item.name) != getattr(paper, item.name)
    }
    return ["--preset=paper", *as_flags(TrainConfig, values), "--out", str(out / CELLS / cell.name)]


def _fold_file(number: int) -> str:
    return os.path.join(FOLDS, f"fold-{number}.json")


def _images(data: SegmentationData, findings: list[Finding]) -> list[dict[str, Any]]:
    """A row an image: what a cluster bootstrap and strata need beside per_image.csv."""
    rows = zip(data.records, strata_of(findings), strict=True)
    return [
        {
            "name": record.name,
            "case": record.case,
            "label": record.label,
            "group": record.group,
            "stratum": stratum,
        }
        for record, stratum in rows
    ]
