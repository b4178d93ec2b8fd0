"""Grouped and stratified splits with three roles, written once, hashed, and checked against the data they are used with."""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from intrasense_fast.data.records import DataError, Finding, natural_key
from intrasense_fast.files import atomic_path

_FORMAT = 1


class Fold(NamedTuple):
    """Names of the images to train on, to select the checkpoint on, and to test on; `test` may be empty."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """Folds of one data set and how they came about: `made` records the seed, the fractions, the layout, or the files."""

    folds: tuple[Fold, ...]
    made: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the folds, in hexadecimal: equal where every image has the same role."""
        return hashlib.sha256(json.dumps([fold._asdict() for fold in self.folds]).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write splits.json.

        Raises:
            FileExistsError: the file exists; splits are written once.
        """
        if Path(path).exists():
            raise FileExistsError(f"{path} exists already; splits are written once: reuse it, or choose another folder")
        content = {
            "format": _FORMAT,
            "made": dict(self.made),
            "digest": self.digest,
            "folds": [fold._asdict() for fold in self.folds],
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Splits":
        """Read splits.json.

        Raises:
            DataError: the file is missing, damaged, or was changed since it was written.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            folds = tuple(Fold(*(tuple(map(str, fold[role])) for role in Fold._fields)) for fold in content["folds"])
            splits, digest = cls(folds, content.get("made", {})), content.get("digest")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}: is no splits.json; needed is {{"folds": [{{"train": [...], "val": [...], "test": [...]}}]}}'
            ) from error
        if digest is not None and digest != splits.digest:
            raise DataError(f"{path}: was changed since it was written; delete its digest line to use it as your own splits")
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
            absent, unused = sorted(used - have, key=natural_key), sorted(have - used, key=natural_key)
            if absent or unused:
                parts = [f"{len(absent)} images of the splits are not in the data ({_few(absent)})"] if absent else []
                parts += [f"{len(unused)} images of the data are not in the splits ({_few(unused)})"] if unused else []
                raise DataError(f"splits, fold {number}: {'; '.join(parts)}. Use the data they were made for, or make new ones")


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

    With folds >= 2 every image is tested once, in one fold; of the others `val_fraction` select the checkpoint and the rest
    train. With folds = 0 there is one fold without a test role. Depends on the seed and the sorted names alone.

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
        raise DataError(f"names must be unique; more than once: {_few([name for name, n in Counter(names).items() if n > 1])}")
    rows = sorted(zip(names, groups, strata, strict=True), key=lambda row: natural_key(row[0]))
    needed = max(2, folds) if folds == 0 else max(3, folds)
    found = len(set(groups))
    if found < needed:
        wanted = f"{folds} folds" if folds else "training and selection"
        raise DataError(
            f"{len(names)} images in {found} groups cannot be split into {wanted}: at least {needed} groups are needed; "
            "use fewer folds, or more patients"
        )
    bins = _deal(rows, [1 / folds] * folds, (seed, 0)) if folds else [[]]
    made = []
    for number, test in enumerate(bins):
        tested = {row[0] for row in test}
        rest = [row for row in rows if row[0] not in tested]
        train, val = _deal(rest, [1 - val_fraction, val_fraction], (seed, 1, number))
        made.append(Fold(*(tuple(row[0] for row in role) for role in (train, val, test))))
    return Splits(
        tuple(made), {"folds": folds, "val_fraction": val_fraction, "seed": seed, "images": len(names), "groups": found}
    )


def read_splits(path: str | os.PathLike[str], names: Sequence[str]) -> Splits:
    """A splits.json, or a folder with the list files of a publication: train.txt, val.txt and test.txt, a name a line.

    Names in list files may carry a file ending or a folder. Without val.txt, the test images are not used for selection:
    it is an error that says so.

    Raises:
        DataError: a file is missing or names images that the data do not have.
    """
    source = Path(path)
    if source.is_file():
        splits = Splits.load(source)
        splits.check(names)
        return splits
    lists = {role: _list_file(source, role, names) for role in Fold._fields}
    if lists["train"] is None or lists["val"] is None:
        missing = "train.txt" if lists["train"] is None else "val.txt (selecting on the test images would spoil the test)"
        raise DataError(f"{source}: needed are train.txt and val.txt, and test.txt if there is one; missing: {missing}")
    fold = Fold(*(tuple(lists[role] or ()) for role in Fold._fields))
    splits = Splits((fold,), {"files": str(source)})
    _check_disjoint(splits, str(source))
    return splits


def strata_of(findings: Sequence[Finding]) -> list[str]:
    """Class x tertile of the lesion's share of the image, for every finding of `SegmentationData.inspect`."""
    shares = [f.area / (f.size[0] * f.size[1]) if f.area and f.size else 0.0 for f in findings]
    lesions = np.array([share for share in shares if share > 0])
    cuts = np.quantile(lesions, (1 / 3, 2 / 3)) if len(lesions) else np.zeros(2)
    sizes = ["none" if not share else ("small", "medium", "large")[int((share > cuts).sum())] for share in shares]
    return [f"{finding.record.label or 'unlabelled'}, {size}" for finding, size in zip(findings, sizes, strict=True)]


def fold_table(splits: Splits, groups: Mapping[str, str], strata: Mapping[str, str]) -> str:
    """A table of every fold and role: images, groups, and images of every stratum, by name."""
    columns = sorted(set(strata.values()))
    lines = [["fold", "role", "images", "groups", *columns]]
    for number, fold in enumerate(splits.folds):
        for role, names in zip(Fold._fields, fold, strict=True):
            if names:
                counts = Counter(strata[name] for name in names)
                sizes = [str(counts[column]) for column in columns]
                lines.append([str(number), role, str(len(names)), str(len({groups[name] for name in names})), *sizes])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _deal(
    rows: Sequence[tuple[str, str, str]], fractions: Sequence[float], seed: tuple[int, ...]
) -> list[list[tuple[str, str, str]]]:
    """Whole groups into bins, each to the bin whose strata it brings closest to their share; no bin stays empty."""
    members: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for row in rows:
        members[row[1]].append(row)
    keys = list(members)
    order = np.random.default_rng(seed).permutation(len(keys))
    # Large groups first, while every bin still has room; equal ones in random order.
    ordered = sorted((keys[i] for i in order), key=lambda key: -len(members[key]))
    totals = Counter(row[2] for row in rows)
    filled: list[Counter[str]] = [Counter() for _ in fractions]
    bins: list[list[tuple[str, str, str]]] = [[] for _ in fractions]
    for position, key in enumerate(ordered):
        group = Counter(row[2] for row in members[key])
        empty = [i for i, content in enumerate(bins) if not content]
        candidates = empty if len(ordered) - position <= len(empty) else range(len(bins))

        def cost(i: int, group: Counter[str] = group) -> tuple[float, float, int]:
            def excess(stratum: str, extra: int) -> float:
                return ((filled[i][stratum] + extra) / (fractions[i] * totals[stratum]) - 1) ** 2 * fractions[i]

            strain = sum(excess(stratum, count) - excess(stratum, 0) for stratum, count in group.items())
            return round(strain, 9), round(len(bins[i]) / fractions[i], 9), i

        chosen = min(candidates, key=cost)
        filled[chosen] += group
        bins[chosen] += members[key]
    return [sorted(content, key=lambda row: natural_key(row[0])) for content in bins]


def _list_file(folder: Path, role: str, names: Sequence[str]) -> list[str] | None:
    path = next(
        (
            folder / f"{name}.txt"
            for name in ((role, "valid") if role == "val" else (role,))
            if (folder / f"{name}.txt").exists()
        ),
        None,
    )
    if path is None:
        return None
    exact = set(names)
    stems: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stems[name.rsplit("/", 1)[-1]].append(name)
    found, unknown = [], []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        text = line.strip().replace("\\", "/")
        if not text:
            continue
        bare = (
            text.rsplit(".", 1)[0] if text.rsplit(".", 1)[-1].lower() in ("png", "jpg", "jpeg", "bmp", "tif", "tiff") else text
        )
        close = stems.get(bare.rsplit("/", 1)[-1], [])
        if bare in exact:
            found.append(bare)
        elif len(close) == 1:
            found.append(close[0])
        else:
            unknown.append(text)
    if unknown:
        raise DataError(f"{path}: {len(unknown)} names are not in the data, or are in it more than once: {_few(unknown)}")
    return found


def _check_disjoint(splits: Splits, source: str) -> None:
    for number, fold in enumerate(splits.folds):
        counts = Counter(name for role in fold for name in role)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise DataError(f"{source}: fold {number} gives {len(twice)} images two roles or lists them twice: {_few(twice)}")
        if not fold.train or not fold.val:
            raise DataError(f"{source}: fold {number} needs images to train on and images to select on; one list is empty")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" ... and {len(names) - 5} more" if len(names) > 5 else "")
