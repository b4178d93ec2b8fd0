"""Near-duplicates: the same picture stored twice, resized, recompressed, brightened or cropped, perhaps in two classes.

A perceptual hash proposes pairs: 143 bits of the whole picture against those of 16 windows of the other, each window less a
sixteenth of some sides. At most 34 different bits make a candidate. The two thumbnails are then aligned by an affine map, and
the pair is confirmed when their structure (less its local mean) correlates by at least 0.8. Confirmed pairs are joined to
clusters, whatever their class. Mirror images do not count.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from intrasense_fast.data.order import natural_key
from intrasense_fast.data.records import Problem, Record, SegmentationData, threaded
from intrasense_fast.data.signatures import BITS, SIDE, VERSION, WINDOWS, Signature
from intrasense_fast.files import atomic_path

LARGEST_DISTANCE = 34
SMALLEST_CORRELATION = 0.8
SMALLEST_OVERLAP = 0.7

_BLUR = 4.0
_AT_ONCE = 1 << 25


class Pair(NamedTuple):
    """Two near-duplicates by name, the correlation of their structure, and the Dice overlap of their masks where both see."""

    first: str
    second: str
    correlation: float
    overlap: float


@dataclass(frozen=True)
class Duplicates:
    """What a search found: confirmed pairs, clusters of them (in natural order), and what could not be done."""

    pairs: tuple[Pair, ...] = ()
    clusters: tuple[tuple[str, ...], ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def images(self) -> int:
        return sum(map(len, self.clusters))


def find_duplicates(records: Sequence[Record], signatures: Sequence[Signature | None], *, progress: bool = False) -> Duplicates:
    """The near-duplicates among records, from the cache of this machine where the same files were searched before.

    Args:
        records: with unique names.
        signatures: of each record; None where it cannot be decoded.
    """
    file = cache_file(records)
    pairs = _read(file)
    problems: list[Problem] = []
    if pairs is None:
        known = [(record.name, each) for record, each in zip(records, signatures, strict=True) if each is not None]
        pairs = find_pairs([name for name, _ in known], [each for _, each in known], progress=progress)
        try:
            with atomic_path(file) as temporary:
                content = {"version": VERSION, "images": len(records), "pairs": pairs}
                temporary.write_text(json.dumps(content, ensure_ascii=True), encoding="utf-8")
        except OSError as error:
            reason = f"near-duplicates are not kept for next time ({error.strerror}): set XDG_CACHE_HOME to a folder of yours"
            problems.append(Problem("warning", str(file), reason))
    return Duplicates(tuple(pairs), clusters_of(pairs), tuple(problems))


def cached_duplicates(records: Sequence[Record]) -> Duplicates | None:
    """What an earlier search of the very same files found, or None."""
    pairs = _read(cache_file(records))
    return None if pairs is None else Duplicates(tuple(pairs), clusters_of(pairs))


def regrouped(data: SegmentationData, found: Duplicates) -> SegmentationData:
    """`data` with groups that share near-duplicates made one, and a warning for each cluster and each conflict in it.

    A group that grew is named after its first image.
    """
    group = {record.name: record.group for record in data.records}
    pairs = [pair for pair in found.pairs if pair.first in group and pair.second in group]
    joined = clusters_of((group[pair.first], group[pair.second]) for pair in pairs)
    first: dict[str, str] = {}
    for record in data.records:
        first.setdefault(record.group, record.name)
    renamed = {old: first[groups[0]] for groups in joined for old in groups}
    records = [replace(record, group=renamed.get(record.group, record.group)) for record in data.records]
    return data.with_records(records, [*found.problems, *_conflicts(data.records, found)])


def find_pairs(names: Sequence[str], signatures: Sequence[Signature], *, progress: bool = False) -> list[Pair]:
    """Every confirmed pair, in the order of `names`."""
    candidates = list(_candidates([each.hashes for each in signatures]))

    def confirmed(candidate: tuple[int, int, int]) -> Pair | None:
        wide, narrow, window = candidate
        correlation, overlap = compare(signatures[wide], signatures[narrow], window)
        if correlation < SMALLEST_CORRELATION:
            return None
        first, second = sorted((wide, narrow))
        return Pair(names[first], names[second], round(correlation, 4), round(overlap, 4))

    place = {name: index for index, name in enumerate(names)}
    pairs = [pair for pair in threaded(confirmed, candidates, "near-duplicates", progress) if pair]
    return sorted(pairs, key=lambda pair: (place[pair.first], place[pair.second]))


def compare(wide: Signature, narrow: Signature, window: int) -> tuple[float, float]:
    """Align `narrow` with one of WINDOWS of `wide`: correlation of their structure, and Dice overlap of the masks there."""
    if np.array_equal(wide.thumbnail, narrow.thumbnail):
        return 1.0, _dice(wide.mask > 0, narrow.mask > 0)
    top, bottom, left, right = WINDOWS[window]
    matrix = np.array([[(right - left) / SIDE, 0, left], [0, (bottom - top) / SIDE, top]], np.float32)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-4)
    inputs = (_structure(narrow.thumbnail), _structure(wide.thumbnail))
    try:
        correlation, matrix = cv2.findTransformECC(*inputs, matrix, cv2.MOTION_AFFINE, criteria, None, 3)  # type: ignore[call-overload]
    except cv2.error:
        # Pictures without common structure do not converge.
        return 0.0, 0.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen, mask = (
        cv2.warpAffine(each.astype(np.float32), matrix, (SIDE, SIDE), flags=flags) >= 0.5
        for each in (np.ones_like(wide.mask), wide.mask)
    )
    return float(correlation), _dice(mask & seen, (narrow.mask > 0) & seen)


def clusters_of(pairs: Iterable[Sequence]) -> tuple[tuple[str, ...], ...]:
    """Names joined by pairs (their first two entries), each cluster and the clusters in natural order."""
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


def cache_file(records: Sequence[Record]) -> Path:
    """Where the pairs of these files are kept; the name changes with the algorithm, and with any file's path, size or time."""
    digest = hashlib.sha256(f"near-duplicates {VERSION}".encode())
    for record in records:
        digest.update(f"\0{record.name}\0{record.regions}".encode(errors="surrogateescape"))
        for path in (record.image, *record.masks):
            try:
                status = path.stat()
            except OSError:
                continue
            digest.update(f"\0{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "intrasense_fast" / "near-duplicates" / f"{digest.hexdigest()[:32]}.json"


def _read(file: Path) -> list[Pair] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [Pair(*pair) for pair in content["pairs"]] if content["version"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _candidates(hashes: Sequence[np.ndarray]) -> Iterator[tuple[int, int, int]]:
    """(wide, narrow, window): the whole of `narrow` is close to that window of `wide`; each pair once, at its closest."""
    if len(hashes) < 2:
        return
    whole = _signs(np.stack([each[0] for each in hashes]))
    step = max(1, _AT_ONCE // (len(WINDOWS) * len(hashes)))
    best: dict[tuple[int, int], tuple[float, int, int, int]] = {}
    for start in range(0, len(hashes), step):
        windows = np.stack(hashes[start : start + step])
        agreement = _signs(windows.reshape(-1, windows.shape[-1])) @ whole.T
        agreement = agreement.reshape(len(windows), len(WINDOWS), -1)
        closest = agreement.max(axis=1)
        for row, narrow in np.argwhere(closest >= BITS - 2 * LARGEST_DISTANCE):
            wide = start + int(row)
            if wide != narrow:
                found = (-float(closest[row, narrow]), wide, int(narrow), int(agreement[row, :, narrow].argmax()))
                key = (min(wide, int(narrow)), max(wide, int(narrow)))
                best[key] = min(best.get(key, found), found)
    for _, wide, narrow, window in (best[key] for key in sorted(best)):
        yield wide, narrow, window


def _signs(hashes: np.ndarray) -> np.ndarray:
    """Bits as -1 and 1, so that a matrix product counts the equal ones: float32 (n, 143)."""
    return np.unpackbits(hashes, axis=1, count=BITS).astype(np.float32) * 2 - 1


def _structure(thumbnail: np.ndarray) -> np.ndarray:
    image = thumbnail.astype(np.float32)
    return image - cv2.GaussianBlur(image, (0, 0), _BLUR)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def _conflicts(records: Sequence[Record], found: Duplicates) -> Iterator[Problem]:
    known = {record.name: record for record in records}
    for cluster in found.clusters:
        members = [known[name] for name in cluster if name in known]
        if len(members) > 1:
            others = ", ".join(str(record.name) for record in members[1:])
            yield Problem("warning", str(members[0].image), f"near-duplicate of {others}: kept in one group")
    for pair in found.pairs:
        if pair.first not in known or pair.second not in known:
            continue
        first, second = known[pair.first], known[pair.second]
        same = f"the same picture as {second.name}, but"
        if first.label != second.label:
            classes = f"class {first.label or 'unknown'} here and {second.label or 'unknown'} there"
            yield Problem("warning", str(first.image), f"conflict: {same} {classes}")
        if pair.overlap < SMALLEST_OVERLAP:
            yield Problem("warning", str(first.image), f"conflict: {same} their masks overlap by a Dice of {pair.overlap:.2f}")
