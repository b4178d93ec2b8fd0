"""The folder of a run: how it comes to be, and config.json, which says what the run is."""

import contextlib
import datetime
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intrasense_fast import provenance
from intrasense_fast.errors import UsageError
from intrasense_fast.fields import flag_of
from intrasense_fast.files import exclusive, remove_leftovers, write_text
from intrasense_fast.training import checkpoint, sources
from intrasense_fast.training import config as configuration
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.version import __version__

CONFIG, SPLITS, DONE = "config.json", "splits.json", "summary.json"
# Stands in the folder until config.json does: what lies beside it was written by a run that was
# killed while it began.
BEGINNING = ".begins"


def new_place(out: str | None, now: datetime.datetime) -> Path:
    if out == "":
        raise UsageError(
            "--out was given an empty name; name a new folder, or leave --out out for "
            "runs/DATE-TIME"
        )
    run = Path("runs", now.strftime("%Y%m%d-%H%M%S")) if out is None else Path(out)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UsageError(
            f"--out {run} is in use; nothing is overwritten: choose a new folder, or --resume {run}"
        )
    return run


@contextlib.contextmanager
def claimed(run: Path, *, phantoms: bool) -> Iterator[None]:
    """Make the folder of a new run and keep others out; a run that ends before its config.json
    leaves nothing behind.

    phantoms: whether the run simulates its own images, in a folder of its own.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(made)
        raise UsageError(f"--out {run}: cannot be made ({error.strerror})") from error
    with exclusive(run):
        if any(run.iterdir()):
            raise UsageError(f"--out {run} is in use; nothing is overwritten: choose a new folder")
        try:
            (run / BEGINNING).touch()
            yield
        except BaseException:
            if not (run / CONFIG).exists():
                # Whatever cannot be removed, the error that ended the run is the one to tell.
                with contextlib.suppress(OSError):
                    _remove_first_files(run, phantoms=phantoms)
                _remove_empty(made)
            raise


def remove_beginning(run: Path) -> None:
    """Remove what a run that was killed while it began left in its folder; of other folders
    nothing.

    Raises:
        UsageError: another process is in it.
    """
    if (run / BEGINNING).exists() and not (run / CONFIG).exists():
        with exclusive(run):
            _remove_first_files(run, phantoms=True)


def _remove_first_files(run: Path, *, phantoms: bool) -> None:
    """Remove what stands in a run's folder before its config.json."""
    checkpoint.tidy(run)
    remove_leftovers(run)
    (run / SPLITS).unlink(missing_ok=True)
    (run / provenance.IMAGES).unlink(missing_ok=True)
    if phantoms:
        shutil.rmtree(run / sources.PHANTOMS, ignore_errors=True)
    (run / BEGINNING).unlink(missing_ok=True)


def agreed(run: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the values of a command, those that a run may change.

    Raises:
        UsageError: the run was begun with others.
    """
    try:
        config = TrainConfig.from_dict(read_record(run)["config"])
    except UsageError as error:
        raise UsageError(f"{run / CONFIG}: {error}") from error
    then = config.as_dict()
    now = {**then, **replace(config, **given).as_dict()}
    changed = [
        f"{flag_of(name)} {then[name]}, now {value}"
        for name, value in now.items()
        if name in given and value != then[name] and name not in configuration.RESUMABLE
    ]
    if changed:
        raise UsageError(
            f"--resume-or-start: {run} was begun with {'; '.join(changed)}: give the command it "
            f"began with, or another --out"
        )
    return {name: value for name, value in given.items() if name in configuration.RESUMABLE}


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            if folder.exists():
                folder.rmdir()


def changed(run: Path, record: dict[str, Any], changes: Mapping[str, Any]) -> TrainConfig:
    """The run's values with those given beside --resume.

    Raises:
        UsageError: one of them is impossible; the message names its flag, or the file and the key.
    """
    file = run / CONFIG
    try:
        before = TrainConfig.from_dict(record["config"])
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    config = replace(before, **changes)
    configuration.check(
        config, lambda name: flag_of(name) if name in changes else f"{file}: {name}"
    )
    if config.epochs < before.epochs:
        raise UsageError(
            f"--epochs can only be raised on resume: the run has {before.epochs}, got "
            f"{config.epochs}"
        )
    if config.epochs > before.epochs and config.scheduler in ("cosine", "onecycle"):
        raise UsageError(
            f"--epochs: a {config.scheduler} schedule ends with the {before.epochs} epochs it was "
            f"made for"
        )
    return config


def write_record(run: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=1) + "\n"
    if not (run / CONFIG).exists() or (run / CONFIG).read_bytes() != text.encode():
        write_text(run / CONFIG, text)


def read_record(run: Path) -> dict[str, Any]:
    file = run / CONFIG
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{run}: is no run folder, {CONFIG} cannot be read ({error.strerror})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: is damaged, or not the record of a run") from error
    if not isinstance(record, dict):
        raise UsageError(f"{file}: is damaged, or not the record of a run")
    for key, kind, needed in (
        ("config", dict, "the values of the run"),
        ("splits", str, "the digest of splits.json"),
    ):
        if not isinstance(record.get(key), kind):
            raise UsageError(
                f'{file}: is damaged: "{key}" must be {needed}, got {json.dumps(record.get(key))}'
            )
    return record


def versions() -> dict[str, str]:
    """Of this package, of Python, and of every library that computes; "None" for what is not
    there."""
    import cv2

    return {
        "intrasense_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "triton": _version_of("triton"),
    }


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(None)


def commit() -> str | None:
    """The commit of the checkout this package runs from, if it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
