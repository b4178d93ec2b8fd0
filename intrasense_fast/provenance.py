"""Which files a run used, by their bytes: images.csv in its folder, trained_on.json in every
checkpoint."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from intrasense_fast.data.joining import few
from intrasense_fast.data.opening import FileError, read_text, sha256_of
from intrasense_fast.data.records import DataError, Record, threaded
from intrasense_fast.data.splits import Fold, Splits
from intrasense_fast.errors import UsageError
from intrasense_fast.files import legible
from intrasense_fast.report.tables import write_csv

IMAGES, TRAINED_ON = "images.csv", "trained_on.json"
_FORMAT = 1
_DIGITS = frozenset("0123456789abcdef")


class FileDigests(NamedTuple):
    """SHA-256, in hexadecimal, of an image file and of each of its mask files.

    Of outlines, which are no files of their own, it is that of their points.
    """

    image: str
    masks: tuple[str, ...]


@dataclass(frozen=True)
class TrainedOn:
    """SHA-256 of the images that trained a checkpoint, and of those that selected it."""

    train: frozenset[str]
    val: frozenset[str]

    def role(self, digest: str) -> str:
        """ "train", "val", or "no" for an image of other bytes."""
        return "train" if digest in self.train else "val" if digest in self.val else "no"


def digests_of(records: Sequence[Record], *, progress: bool = False) -> dict[str, FileDigests]:
    """The digests of each record's files, by its name; each file is read once, in threads.

    Raises:
        OSError: a file cannot be read.
    """
    found = threaded(_digests, records, "SHA-256", progress)
    return {record.name: each for record, each in zip(records, found, strict=True)}


def write_images(
    path: str | os.PathLike[str], splits: Splits, digests: Mapping[str, FileDigests]
) -> None:
    """Write images.csv: name, role in each fold, SHA-256 of the image and of its masks ("|" between
    them).
    """
    roles: dict[str, dict[str, str]] = {name: {} for name in digests}
    for number, fold in enumerate(splits.folds):
        for role, names in zip(Fold._fields, fold, strict=True):
            for name in names:
                roles[name][f"fold-{number}"] = role
    rows = [
        {
            "name": name,
            **roles[name],
            "image_sha256": each.image,
            "mask_sha256": "|".join(each.masks),
        }
        for name, each in digests.items()
    ]
    folds = [f"fold-{number}" for number in range(len(splits.folds))]
    write_csv(path, rows, ["name", *folds, "image_sha256", "mask_sha256"])


def check_images(path: str | os.PathLike[str], digests: Mapping[str, FileDigests]) -> None:
    """Refuse files that are not those of an images.csv.

    Raises:
        DataError: a file has other bytes than when the run began, or the table is damaged.
    """
    try:
        table = csv.DictReader(io.StringIO(read_text(path), newline=""))
        then = {row["name"]: (row["image_sha256"], row["mask_sha256"]) for row in table}
    except (FileError, csv.Error, KeyError) as error:
        raise DataError(
            f"{path}: is damaged ({error}); remove it, and it is written of the files as they are"
        ) from error
    now = {legible(name): (each.image, "|".join(each.masks)) for name, each in digests.items()}
    changed = [name for name, found in now.items() if then.get(name) != found]
    if changed:
        raise DataError(
            f"{path}: the files of {len(changed)} images are not those this run began with "
            f"({few(changed)}): put them back, or start a new run"
        )


def trained_on_text(fold: Fold, digests: Mapping[str, FileDigests]) -> str:
    """What trained_on.json holds: the SHA-256 of the images that train and select in a fold."""
    roles = {
        role: sorted({digests[name].image for name in names})
        for role, names in (("train", fold.train), ("val", fold.val))
    }
    return json.dumps({"format": _FORMAT, **roles}, indent=1) + "\n"


def read_trained_on(checkpoint: str | os.PathLike[str]) -> TrainedOn | None:
    """The record of a checkpoint's folder; None of one that has none.

    Raises:
        UsageError: it is damaged.
    """
    file = Path(checkpoint) / TRAINED_ON
    if not file.exists():
        return None
    try:
        content = json.loads(read_text(file))
        return TrainedOn(_checked(content["train"]), _checked(content["val"]))
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file}: is damaged, or of another version: copy the checkpoint again, or remove this "
            "file; then it cannot be told which images trained the checkpoint"
        ) from error


def _checked(digests: Iterable[str]) -> frozenset[str]:
    found = frozenset(digests)
    if any(len(digest) != 64 or not _DIGITS.issuperset(digest) for digest in found):
        raise ValueError("no SHA-256")
    return found


def _digests(record: Record) -> FileDigests:
    masks = tuple(map(sha256_of, record.masks))
    if record.regions:
        masks = (hashlib.sha256(json.dumps(record.regions).encode()).hexdigest(),)
    return FileDigests(sha256_of(record.image), masks)
