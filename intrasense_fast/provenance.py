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
from typing import Any, NamedTuple

from intrasense_fast.data.joining import few
from intrasense_fast.data.opening import FileError, read_text, sha256_of
from intrasense_fast.data.records import DataError, Record, threaded
from intrasense_fast.data.splits import Fold, Splits
from intrasense_fast.errors import UsageError
from intrasense_fast.files import legible
from intrasense_fast.networks.checksums import check_files
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
    them). A role is empty where the splits do not name the image.
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


@dataclass(frozen=True)
class Changes:
    """How the files of a data set differ from those of images.csv: legible name -> the digests then
    and now, "IMAGE|MASK|MASK".
    """

    changed: Mapping[str, tuple[str, str]]
    missing: Mapping[str, str]
    added: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.changed or self.missing or self.added)

    def __str__(self) -> str:
        kinds = (("changed", self.changed), ("missing", self.missing), ("added", self.added))
        return ", ".join(f"{len(each)} {kind} ({few(list(each))})" for kind, each in kinds if each)

    def record(self) -> dict[str, Any]:
        """The same for JSON."""
        changed = {name: {"before": then, "now": now} for name, (then, now) in self.changed.items()}
        kinds = {"changed": changed, "missing": dict(self.missing), "added": dict(self.added)}
        return {kind: each for kind, each in kinds.items() if each}


def changes_since(
    path: str | os.PathLike[str], splits: Splits, digests: Mapping[str, FileDigests]
) -> Changes:
    """Compare files with an images.csv; where there is none, their names with the splits.

    Raises:
        DataError: the table is damaged.
    """
    now = {legible(name): _joined(each) for name, each in digests.items()}
    if Path(path).exists():
        then = _read_images(path)
    else:
        names = {legible(name) for fold in splits.folds for role in fold for name in role}
        then = {name: now.get(name, "") for name in sorted(names)}
    return Changes(
        {name: (then[name], one) for name, one in now.items() if then.get(name, one) != one},
        {name: one for name, one in then.items() if name not in now},
        {name: one for name, one in now.items() if name not in then},
    )


def former_digests(accepted: Iterable[Any]) -> dict[str, list[str]]:
    """Digests of image files that a run used before they changed, from what its attempts
    accepted."""
    former: dict[str, list[str]] = {}
    for each in accepted:
        for name, digests in each.get("changed", {}).items():
            former.setdefault(name, []).append(digests["before"].partition("|")[0])
        for name, digest in each.get("missing", {}).items():
            former.setdefault(name, []).append(digest.partition("|")[0])
    return former


def _joined(digests: FileDigests) -> str:
    return "|".join((digests.image, *digests.masks))


def _read_images(path: str | os.PathLike[str]) -> dict[str, str]:
    try:
        table = csv.DictReader(io.StringIO(read_text(path), newline=""))
        rows = {row["name"]: (row["image_sha256"], row["mask_sha256"]) for row in table}
        if any(not name or image is None or masks is None for name, (image, masks) in rows.items()):
            raise KeyError("image_sha256")
        return {name: f"{image}|{masks}".removesuffix("|") for name, (image, masks) in rows.items()}
    except (FileError, csv.Error, KeyError) as error:
        raise DataError(
            f"{path}: is damaged ({error}); remove it, and it is written of the files as they are"
        ) from error


def trained_on_text(
    fold: Fold,
    digests: Mapping[str, FileDigests],
    former: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """What trained_on.json holds: the SHA-256 of the images that train and select in a fold.

    Args:
        fold: names of images; those without digests are no longer there.
        digests: of the files as they are.
        former: of files as they were when the run began, by legible name, see `former_digests`.
    """
    roles = {
        role: sorted(
            {digests[name].image for name in names if name in digests}
            | {digest for name in names for digest in (former or {}).get(legible(name), ())}
        )
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
        check_files(checkpoint, (TRAINED_ON,))
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
