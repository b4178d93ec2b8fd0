"""Grouped and stratified splits with three roles, written once, hashed, and checked against the
data they are used with."""

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from intrasense_fast.data.joining import few, join
from intrasense_fast.data.listing import files
from intrasense_fast.data.opening import read_bytes
from intrasense_fast.data.order import Row, deal, natural_key
from intrasense_fast.data.records import DataError, Finding
from intrasense_fast.data.tables import NAME_COLUMNS, read_lines, read_rows
from intrasense_fast.files import atomic_path

_FORMAT = 1


class Fold(NamedTuple):
    """Names of the images to train on, to select the checkpoint on, and to test on; `test` may be
    empty."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """Folds of one data set and how they came about: `made` records the seed, the fractions, the
    layout, or the files."""

    folds: tuple[Fold, ...]
    made: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the folds, in hexadecimal: equal where every image has the same role."""
        return hashlib.sha256(
            json.dumps([fold._asdict() for fold in self.folds]).encode()
        ).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write splits.json.

        Raises:
            FileExistsError: the file exists; splits are written once.
        """
        if Path(path).exists():
            raise FileExistsError(
                f"{path} exists already; splits are written once: reuse it, or choose another "
                f"folder"
            )
        content = {
            "format": _FORMAT,
            "made": dict(self.made),
            "digest": self.digest,
            "folds": [fold._asdict() for fold in self.folds],
        }
        with atomic_path(path) as temporary:
            # What UTF-8 cannot hold becomes JSON's own escape, and is read back as it was.
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Splits":
        """Read splits.json.

        Raises:
            DataError: the file is missing, damaged, or was changed since it was written.
        """
        try:
            content = json.loads(read_bytes(path).decode("utf-8"))
            folds = tuple(
                Fold(*(tuple(map(str, fold[role])) for role in Fold._fields))
                for fold in content["folds"]
            )
            splits, digest = cls(folds, content.get("made", {})), content.get("digest")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: is no splits.json; needed is "
                '{"folds": [{"train": [...], "val": [...], "test": [...]}]}'
            ) from error
        if digest is not None and digest != splits.digest:
            raise DataError(
                f"{path}: was changed since it was written; delete its digest line to use it as "
                f"your own splits"
            )
        _check_disjoint(splits, str(path))
        return splits

    def check(self, names: Iterable[str]) -> None:
        """Refuse data that these splits were not made for.

        Raises:
            DataError: an image is in the splits and not in the data, or the other way round.
        """
        have = set(names)
        for number, fold in enumerate(self.folds):
            used = {name for role in fold for name in role}
            absent, unused = (
                sorted(used - have, key=natural_key),
                sorted(have - used, key=natural_key),
            )
            if absent or unused:
                parts = (
                    [f"{len(absent)} images of the splits are not in the data ({_few(absent)})"]
                    if absent
                    else []
                )
                parts += (
                    [f"{len(unused)} images of the data are not in the splits ({_few(unused)})"]
                    if unused
                    else []
                )
                raise DataError(
                    f"splits, fold {number}: {'; '.join(parts)}. Use the data and --subset they "
                    f"were made for, or new ones"
                )

    def without(self, missing: Iterable[str]) -> "Splits":
        """The same roles of the images that are left."""
        gone = set(missing)
        folds = tuple(
            Fold(*(tuple(name for name in role if name not in gone) for role in fold))
            for fold in self.folds
        )
        return Splits(folds, self.made)


def make_splits(
    names: Sequence[str],
    groups: Sequence[str],
    strata: Sequence[str],
    *,
    folds: int,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Split images so that groups stay together and strata spread evenly.

    With folds >= 2 every image is tested once, in one fold; of the others `val_fraction` select the
    checkpoint and the rest train. With folds = 0 there is one fold without a test role. Depends on
    the seed and the sorted names alone.

    Args:
        names: unique.
        groups: of each image; a group never parts.
        strata: of each image; spread over the roles as evenly as groups allow.
        folds: 0, or at least 2.
        val_fraction: in (0, 1), of what is not tested.
        seed: of the order in which equal groups are dealt out.

    Raises:
        DataError: too few groups, or an argument outside its range.
    """
    if folds < 0 or folds == 1:
        raise DataError(f"folds must be 0 (one split) or at least 2, got {folds}")
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
    if len(set(names)) != len(names):
        raise DataError(
            f"names must be unique; more than once: "
            f"{_few([name for name, n in Counter(names).items() if n > 1])}"
        )
    rows = sorted(zip(names, groups, strata, strict=True), key=lambda row: natural_key(row[0]))
    # Of two folds each trains and selects on the other alone, by whole groups.
    least = 2 if folds == 2 else 1
    needed = least * folds or 2
    found = len(set(groups))
    if found < needed:
        wanted = f"{folds} folds" if folds else "training and selection"
        raise DataError(
            f"{len(names)} images in {found} groups cannot be split into {wanted}: at least "
            f"{needed} groups are needed; "
            "use fewer folds, or more patients"
        )
    tests = (
        [[row[0] for row in each] for each in deal(rows, [1 / folds] * folds, (seed, 0), least)]
        if folds
        else [[]]
    )
    made = {
        "folds": folds,
        "val_fraction": val_fraction,
        "seed": seed,
        "images": len(names),
        "groups": found,
    }
    return _with_selection(rows, tests, val_fraction, seed, made)


def _with_selection(
    rows: Sequence[Row],
    tests: Sequence[Sequence[str]],
    val_fraction: float,
    seed: int,
    made: Mapping[str, Any],
) -> Splits:
    """Folds with the given test images; of the others `val_fraction` select, by whole groups."""
    folds = []
    for number, test in enumerate(tests):
        tested = set(test)
        rest = [row for row in rows if row[0] not in tested]
        if len({row[1] for row in rest}) < 2:
            raise DataError(
                f"fold {number}: its {len(tested)} test images leave fewer than two groups to "
                f"train and select on"
            )
        train, val = deal(rest, [1 - val_fraction, val_fraction], (seed, 1, number))
        folds.append(
            Fold(tuple(row[0] for row in train), tuple(row[0] for row in val), tuple(test))
        )
    return Splits(tuple(folds), made)


def read_splits(
    path: str | os.PathLike[str],
    names: Sequence[str],
    groups: Sequence[str],
    strata: Sequence[str],
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Splits that a user or a publication gives; every image of the data must have a role.

    Args:
        path: a splits.json; or a folder with lists of names, a name a line, train.txt, val.txt and
            perhaps test.txt (or one file for each role whose name ends so, such as busi_train.txt);
            or a CSV table with a column of names (id, name, image, ...) and a column of folds
            (fold, kfold, ...), such as those of BUS-BRA: each fold is tested once, and
            `val_fraction` of the other images select the checkpoint, by whole groups. Names may
            carry an ending or a folder.
        names, groups, strata: of each image, as in `make_splits`.

    Raises:
        DataError: a file is missing or damaged, or names other images than the data have; without a
            list for selection, for selecting on the test images would spoil the test.
    """
    source = Path(path)
    if source.suffix.casefold() == ".csv":
        rows = sorted(zip(names, groups, strata, strict=True), key=lambda row: natural_key(row[0]))
        splits = _with_selection(
            rows, _fold_column(source, names), val_fraction, seed, {"files": str(source)}
        )
    elif source.is_file():
        splits = Splits.load(source)
    elif not source.is_dir():
        raise DataError(
            f"{source}: no such file or folder; needed is a splits.json, a CSV table with a column "
            f"of folds, or a folder with train.txt and val.txt"
        )
    else:
        lists = {role: _list_file(source, role, names) for role in Fold._fields}
        if lists["train"] is None or lists["val"] is None:
            missing = (
                "train.txt"
                if lists["train"] is None
                else "val.txt (selecting on the test images would spoil the test)"
            )
            raise DataError(
                f"{source}: needed are train.txt and val.txt, and test.txt if there is one; "
                f"missing: {missing}"
            )
        splits = Splits(
            (Fold(*(tuple(lists[role] or ()) for role in Fold._fields)),), {"files": str(source)}
        )
    _check_disjoint(splits, str(source))
    splits.check(names)
    return splits


def parted_groups(splits: Splits, groups: Mapping[str, str]) -> list[str]:
    """A line for each fold in which a group (name -> group) has images in two roles: splits made
    elsewhere may leak so."""
    lines = []
    for number, fold in enumerate(splits.folds):
        roles: dict[str, set[str]] = defaultdict(set)
        for role, members in zip(Fold._fields, fold, strict=True):
            for name in members:
                roles[groups[name]].add(role)
        parted = sorted(
            (group for group, found in roles.items() if len(found) > 1), key=natural_key
        )
        if parted:
            tested = sum("test" in roles[group] for group in parted)
            lines.append(
                f"fold {number}: {len(parted)} groups (patients or near-duplicates) stand in two "
                f"roles, {tested} of them in "
                f"the test: {_few(parted)}. What is measured so is optimistic"
            )
    return lines


def strata_of(findings: Sequence[Finding]) -> list[str]:
    """Class x tertile of the lesion's share of the image, for every finding of
    `SegmentationData.inspect`."""
    shares = [f.area / (f.size[0] * f.size[1]) if f.area and f.size else 0.0 for f in findings]
    lesions = sorted(share for share in shares if share > 0)
    cuts = [lesions[len(lesions) * third // 3] for third in (1, 2)] if lesions else []
    sizes = [
        ("small", "medium", "large")[sum(share >= cut for cut in cuts)] if share else "none"
        for share in shares
    ]
    return [
        f"{finding.record.label or 'unlabelled'}, {size}"
        for finding, size in zip(findings, sizes, strict=True)
    ]


def fold_table(splits: Splits, groups: Mapping[str, str], strata: Mapping[str, str]) -> str:
    """A table of every fold and role: images, groups, and images of every stratum, by name."""
    columns = sorted(set(strata.values()))
    lines = [["fold", "role", "images", "groups", *columns]]
    for number, fold in enumerate(splits.folds):
        for role, names in zip(Fold._fields, fold, strict=True):
            if names:
                counts = Counter(strata[name] for name in names)
                sizes = [str(counts[column]) for column in columns]
                lines.append(
                    [
                        str(number),
                        role,
                        str(len(names)),
                        str(len({groups[name] for name in names})),
                        *sizes,
                    ]
                )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _list_file(folder: Path, role: str, names: Sequence[str]) -> list[str] | None:
    """The names that the list of a role holds, or None where there is no such list."""
    endings = ("val", "valid", "validation") if role == "val" else (role,)
    found = [file for file in files(folder) if file.suffix.casefold() == ".txt"]
    exact = [file for file in found if file.stem.casefold() in endings]
    candidates = exact or [
        file for file in found if re.split("[_-]", file.stem.casefold())[-1] in endings
    ]
    if len(candidates) > 1:
        several = ", ".join(file.name for file in candidates)
        raise DataError(
            f"{folder}: several lists could be {role}.txt: {several}. Copy the ones you mean to a "
            f"folder of their own"
        )
    if not candidates:
        return None
    return _resolved(read_lines(candidates[0]), names, candidates[0])


def _fold_column(path: Path, names: Sequence[str]) -> list[list[str]]:
    """The images of each fold of a CSV table, folds in natural order."""
    rows, problems = read_rows(path)
    if problems or not rows:
        raise DataError(f"{path}: {problems[0].message if problems else 'an empty table'}")
    name = next((key for key in NAME_COLUMNS if key in rows[0]), None)
    fold = next((key for key in rows[0] if "fold" in key), None)
    if name is None or fold is None:
        columns = ", ".join(rows[0])
        raise DataError(
            f"{path}: columns {columns}; needed: one of {', '.join(NAME_COLUMNS)}, and one with "
            f"'fold' in its name"
        )
    resolved = _resolved([row[name] for row in rows], names, path)
    folds: dict[str, list[str]] = defaultdict(list)
    for each, row in zip(resolved, rows, strict=True):
        folds[row[fold]].append(each)
    return [sorted(folds[number], key=natural_key) for number in sorted(folds, key=natural_key)]


def _resolved(entries: Sequence[str], names: Sequence[str], source: Path) -> list[str]:
    """Names of the data for entries that may be written otherwise (see `join`)."""
    joined = join(entries, names)
    if joined.lost:
        raise DataError(
            f"{source}: {len(joined.lost)} names are not in the data, or are in it more than once: "
            f"{few(joined.lost)}; images of the data are {few(joined.bare or names)}"
        )
    return [name for name in joined.names if name is not None]


def _check_disjoint(splits: Splits, source: str) -> None:
    for number, fold in enumerate(splits.folds):
        counts = Counter(name for role in fold for name in role)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise DataError(
                f"{source}: fold {number} gives {len(twice)} images two roles or lists them twice: "
                f"{_few(twice)}"
            )
        if not fold.train or not fold.val:
            raise DataError(
                f"{source}: fold {number} needs images to train on and images to select on; one "
                f"list is empty"
            )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" ... and {len(names) - 5} more" if len(names) > 5 else "")
