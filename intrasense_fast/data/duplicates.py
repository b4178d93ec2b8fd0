"""Near-duplicates: the same picture stored twice, and the same view in several pictures.

`pairs` says what the two are and how they are found. Confirmed pairs are joined to clusters,
whatever their class. Clusters of the same picture are what `--subset deduplicated` thins out and
what conflicts are reported of; whatever shows the same view stays in one group, so that no split
parts it. Mirror images do not count.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2

from intrasense_fast.data.order import natural_key
from intrasense_fast.data.pairs import FULLY_COMPARED, MOST_FAILURES, Pair, find_pairs
from intrasense_fast.data.records import Finding, Problem, Record, SegmentationData
from intrasense_fast.data.signatures import VERSION, Signature
from intrasense_fast.files import atomic_path

SMALLEST_OVERLAP = 0.7


@dataclass(frozen=True)
class Duplicates:
    """What a search found.

    Attributes:
        pairs: confirmed pairs, of both levels.
        problems: what could not be done.
        left_out: the pairs of similar pictures that were not compared, lest the search take hours,
            and had not been joined by others until then.
    """

    pairs: tuple[Pair, ...] = ()
    problems: tuple[Problem, ...] = ()
    left_out: int = 0

    @cached_property
    def clusters(self) -> tuple[tuple[str, ...], ...]:
        """Names of the same picture, each cluster and the clusters in natural order."""
        return clusters_of(pair for pair in self.pairs if pair.same_picture)

    @cached_property
    def views(self) -> tuple[tuple[str, ...], ...]:
        """Names of the same view, which the same picture always shows; every cluster lies in one of
        them."""
        return clusters_of(self.pairs)

    @property
    def images(self) -> int:
        """How many pictures are stored more than once."""
        return sum(map(len, self.clusters))


class Conflict(NamedTuple):
    """A pair of one picture whose classes differ, whose masks overlap by a Dice below 0.7, or
    both."""

    pair: Pair
    classes: bool
    masks: bool


def find_duplicates(
    data: SegmentationData, signatures: Sequence[Signature | None], *, progress: bool = False
) -> Duplicates:
    """The near-duplicates of a data set, from the cache of this machine where the same files were
    searched before, read in the same way.

    Args:
        data: its records have unique names.
        signatures: of each record; None where it cannot be decoded.
    """
    file = cache_file(data)
    records = data.records
    found = _read(file)
    if found is not None:
        return found
    known = [
        (record.name, each)
        for record, each in zip(records, signatures, strict=True)
        if each is not None
    ]
    pairs, left_out = find_pairs(
        [name for name, _ in known], [each for _, each in known], progress=progress
    )
    found = Duplicates(tuple(pairs), left_out=left_out)
    try:
        with atomic_path(file) as temporary:
            content = {
                "version": VERSION,
                "images": len(records),
                "pairs": pairs,
                "left_out": left_out,
            }
            temporary.write_text(json.dumps(content, ensure_ascii=True), encoding="utf-8")
    except OSError as error:
        reason = (
            f"near-duplicates are not kept for next time ({error.strerror}): "
            "set XDG_CACHE_HOME to a folder of yours"
        )
        return replace(found, problems=(Problem("warning", str(file), reason),))
    return found


def inspect_and_search(
    data: SegmentationData, *, progress: bool = False
) -> tuple[list[Finding], Duplicates]:
    """Decode every record once, and find the near-duplicates, or remember them."""
    found = cached_duplicates(data)
    findings = data.inspect(progress, signatures=found is None)
    if found is None:
        found = find_duplicates(data, [each.signature for each in findings], progress=progress)
    return findings, found


def cached_duplicates(data: SegmentationData) -> Duplicates | None:
    """What an earlier search of the very same files, read in the same way, found; or None."""
    return _read(cache_file(data))


def regrouped(data: SegmentationData, found: Duplicates) -> SegmentationData:
    """`data` with groups that share a view made one, and a warning for each cluster and view, and
    each conflict in a cluster.

    A group that grew is named after its first image.
    """
    group = {record.name: record.group for record in data.records}
    # Clusters, not pairs: of a large one not every pair is there, and a picture between two others
    # may be missing from `data`.
    known = ([group[name] for name in cluster if name in group] for cluster in found.views)
    joined = clusters_of(pair for groups in known for pair in pairwise(groups))
    first: dict[str, str] = {}
    for record in data.records:
        first.setdefault(record.group, record.name)
    renamed = {old: first[groups[0]] for groups in joined for old in groups}
    records = [
        replace(record, group=renamed.get(record.group, record.group)) for record in data.records
    ]
    problems = list(found.problems)
    if found.left_out:
        reason = (
            f"up to {found.left_out} pairs of similar pictures were not compared: a picture is "
            f"given no further one after {MOST_FAILURES} that proved to be others, so a "
            "near-duplicate among them may stand in another group"
        )
        problems.append(Problem("warning", str(data.root), reason))
    return data.with_records(records, [*problems, *_warnings(data.records, found)])


def conflicts_of(records: Iterable[Record], found: Duplicates) -> Iterator[Conflict]:
    """The pairs of one picture that two of `records` show with two classes, or with masks that
    differ."""
    labels = {record.name: record.label for record in records}
    for pair in found.pairs:
        if pair.same_picture and pair.first in labels and pair.second in labels:
            classes = labels[pair.first] != labels[pair.second]
            masks = pair.overlap < SMALLEST_OVERLAP
            if classes or masks:
                yield Conflict(pair, classes, masks)


def clusters_of(pairs: Iterable[Sequence]) -> tuple[tuple[str, ...], ...]:
    """Names joined by pairs (their first two entries), each cluster and the clusters in natural
    order."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for first, second, *_ in pairs:
        parent[root(second)] = root(first)
    members = defaultdict(list)
    for name in parent:
        members[root(name)].append(name)
    found = [tuple(sorted(each, key=natural_key)) for each in members.values() if len(each) > 1]
    return tuple(sorted(found, key=lambda each: natural_key(each[0])))


def cache_file(data: SegmentationData) -> Path:
    """Where the pairs of a data set are kept.

    The name changes with the algorithm and OpenCV's version; with the path, size and times of any
    file of a record; and with what decides how it is read: the options, and all masks of the data
    set, over which their one rule is decided.
    """
    options = data.options
    reading = (options.max_pixels, options.levels, options.mask_values)
    digest = hashlib.sha256(f"near-duplicates {VERSION} {cv2.__version__} {reading}".encode())
    for record in data.records:
        digest.update(f"\0{record.name}\0{record.regions}".encode(errors="surrogateescape"))
        for path in (record.image, *record.masks):
            digest.update(_state(path))
    digest.update(b"\0masks")
    for path in sorted(data.masks.files) if data.masks else ():
        digest.update(_state(path))
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "intrasense_fast" / "near-duplicates" / f"{digest.hexdigest()[:32]}.json"


def _state(path: Path) -> bytes:
    """A file's path, size and times: of its content, and of its content or permission."""
    try:
        status = path.stat()
    except OSError:
        return b"\0missing"
    parts = (os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return "".join(f"\0{part}" for part in parts).encode(errors="surrogateescape")


def _read(file: Path) -> Duplicates | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pairs = tuple(Pair(*pair) for pair in content["pairs"])
        found = Duplicates(pairs, left_out=int(content["left_out"]))
        return found if content["version"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _warnings(records: Sequence[Record], found: Duplicates) -> Iterator[Problem]:
    known = {record.name: record for record in records}
    yield from _clusters(known, found)
    yield from _views(known, found)
    for conflict in conflicts_of(records, found):
        first, second = known[conflict.pair.first], known[conflict.pair.second]
        same = f"conflict: the same picture as {second.name}, but"
        if conflict.classes:
            classes = f"class {first.label or 'unknown'} here and {second.label or 'unknown'} there"
            yield Problem("warning", str(first.image), f"{same} {classes}")
        if conflict.masks:
            masks = f"their masks overlap by a Dice of {conflict.pair.overlap:.2f}"
            yield Problem("warning", str(first.image), f"{same} {masks}")


def _clusters(known: Mapping[str, Record], found: Duplicates) -> Iterator[Problem]:
    for cluster in found.clusters:
        members = [known[name] for name in cluster if name in known]
        if len(members) > 1:
            others = ", ".join(str(record.name) for record in members[1:])
            message = f"near-duplicate of {others}: kept in one group"
            if len(cluster) > FULLY_COMPARED:
                message += (
                    "; so many are not compared each with each: further conflicts may be among them"
                )
            yield Problem("warning", str(members[0].image), message)


def _views(known: Mapping[str, Record], found: Duplicates) -> Iterator[Problem]:
    """A warning for each view that holds more than one picture; of the copies of a picture the
    first stands for all."""
    present = ([name for name in cluster if name in known] for cluster in found.clusters)
    copies = {name for cluster in present for name in cluster[1:]}
    for view in found.views:
        members = [known[name] for name in view if name in known and name not in copies]
        if len(members) > 1:
            others = ", ".join(record.name for record in members[1:])
            message = (
                f"the same view as {others} (neighbouring frames, or drawn on): kept in one group"
            )
            yield Problem("warning", str(members[0].image), message)
