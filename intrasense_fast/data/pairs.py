"""The search for near-duplicates: pairs are proposed, then confirmed at one of two levels.

*The same picture*: one image stored twice, perhaps cropped, zoomed, rescaled, stretched,
recompressed or brightened, or a sector and a rectangular cut-out of it. *The same view*:
neighbouring frames of one examination, also of different calipers or Doppler boxes: other pictures,
that must not part in a split. The same frame with no more than calipers drawn in passes as the same
picture. Mirror images are neither.

`proposals` says how pairs are proposed, `alignment` how two pictures are laid on each other. The
structure of the same picture correlates by at least 0.95, by 0.88 where two thirds of the matched
corners fit one map, or by 0.8 where one picture is enlarged by more than a tenth and 10 corners
fit. That of the same view correlates by 0.7, or by 0.4 where at least 10 corners fit and neither is
enlarged. The borders were set on BUSI and BUS-BRA: there neighbouring frames reach 0.92 with 60 %
of the corners, and no two pictures of different scale lie between 0.5 and 0.86.

Rules bound the alignments, of which n pictures would need n * (n - 1) / 2. The same pictures,
joined to a cluster of more than 8, are not compared with one another again. A picture of which 32
candidates proved to be other pictures is given no further ones, after 4 none that only shares
features with it, and after 2 none that stands in its view already.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from intrasense_fast.data.alignment import Alignment, align
from intrasense_fast.data.proposals import alike, neighbours
from intrasense_fast.data.signatures import BITS, Signature

SAME_PICTURE = 0.95
SAME_PICTURE_IF_FITTING = 0.88
FITTING_SHARE = 0.66
# Neighbouring frames are of one scale: what is enlarged and still correlates is a part of the
# picture.
SAME_PICTURE_IF_ENLARGED = 0.8
SAME_VIEW = 0.4
FEWEST_INLIERS = 10
LARGEST_ZOOM = 1.1
# Of pictures with fewer corners that fit, or of which one is enlarged.
SAME_VIEW_OTHERWISE = 0.7
FULLY_COMPARED = 8
MOST_FAILURES = 32
MOST_FAILURES_OF_FEATURES = 4
MOST_FAILURES_IN_VIEW = 2

_ROWS = 64
_ALIGNED_AT_ONCE = 64


class Pair(NamedTuple):
    """Two near-duplicates by name.

    Attributes:
        first, second: names.
        correlation: of their structure where both are seen.
        overlap: Dice of their masks there.
        same_picture: False for the same view only.
    """

    first: str
    second: str
    correlation: float
    overlap: float
    same_picture: bool = True


def find_pairs(
    names: Sequence[str], signatures: Sequence[Signature], *, progress: bool = False
) -> tuple[list[Pair], int]:
    """Confirmed pairs in the order of `names`, and how many pairs of alike pictures that stand
    apart were left out by the rules above.

    Args:
        names: unique.
        signatures: of each name.
        progress: show a bar.
    """
    search = _Search(signatures)
    with (
        tqdm(
            None,
            "near-duplicates",
            len(names),
            unit="image",
            disable=not progress,
            leave=False,
        ) as bar,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        for rows, candidates in search.candidates():
            for start in range(0, len(candidates), _ALIGNED_AT_ONCE):
                batch = search.worth(candidates[start : start + _ALIGNED_AT_ONCE])
                search.note(batch, pool.map(search.align, batch))
            bar.update(rows)
    pairs = [
        Pair(names[first], names[second], round(each.correlation, 4), round(each.overlap, 4), same)
        for first, second, each, same in sorted(search.confirmed)
    ]
    return pairs, search.left_out


def same_picture(alignment: Alignment) -> bool:
    """Two such pictures are one."""
    if alignment.zoom > LARGEST_ZOOM and alignment.inliers >= FEWEST_INLIERS:
        return alignment.correlation >= SAME_PICTURE_IF_ENLARGED
    fitting = alignment.inliers >= FITTING_SHARE * max(alignment.matches, 1)
    return alignment.correlation >= (SAME_PICTURE_IF_FITTING if fitting else SAME_PICTURE)


def same_view(alignment: Alignment) -> bool:
    """Two such pictures show one view; the same picture always does."""
    fitting = alignment.inliers >= FEWEST_INLIERS and alignment.zoom <= LARGEST_ZOOM
    needed = SAME_VIEW if fitting else SAME_VIEW_OTHERWISE
    return alignment.correlation >= needed


class _Search:
    """What has been confirmed so far, and which candidates are still worth an alignment."""

    def __init__(self, signatures: Sequence[Signature]) -> None:
        count = len(signatures)
        self.confirmed: list[tuple[int, int, Alignment, bool]] = []
        self.left_out = 0
        self._signatures = signatures
        self._pictures, self._views = _Joined(count), _Joined(count)
        self._failures = np.zeros(count, np.int64)

    def candidates(self) -> Iterator[tuple[int, np.ndarray]]:
        """How many first pictures at a time, and theirs: int64 (n, 3), first < second, distance (at
        least BITS where only features are shared); of each first one the closest come first."""
        count = len(self._signatures)
        if count < 2:
            return
        hashes = np.stack([each.hash for each in self._signatures])
        shared = neighbours(self._signatures)
        for start in range(0, count, _ROWS):
            end = min(count, start + _ROWS)
            close = alike(hashes, slice(start, end), self._pictures.settled)
            own = shared[slice(*np.searchsorted(shared[:, 0], (start, end)))]
            known = np.isin(own[:, 0] * count + own[:, 1], close[:, 0] * count + close[:, 1])
            both = np.concatenate((close, own[~known]))
            yield end - start, _in_rounds(both[np.lexsort((both[:, 1], both[:, 2], both[:, 0]))])

    def worth(self, batch: np.ndarray) -> np.ndarray:
        """Those of a batch of candidates that are to be aligned."""
        first, second, distance = batch.T
        apart = self._views.apart(first, second)
        most = np.where(distance < BITS, MOST_FAILURES, MOST_FAILURES_OF_FEATURES)
        most = np.where(apart, most, MOST_FAILURES_IN_VIEW)
        given_up = self._failures[first] >= most
        self.left_out += int((given_up & apart & (distance < BITS)).sum())
        return batch[~given_up & ~self._pictures.settled(first, second)]

    def align(self, candidate: np.ndarray) -> Alignment:
        first, second, distance = candidate.tolist()
        return align(self._signatures[first], self._signatures[second], distance < BITS)

    def note(self, batch: np.ndarray, alignments: Iterator[Alignment]) -> None:
        for (first, second, _), alignment in zip(batch.tolist(), alignments, strict=True):
            same = same_picture(alignment)
            if not same:
                self._failures[first] += 1
            if same or same_view(alignment):
                self.confirmed.append((first, second, alignment, same))
                self._views.join(first, second)
            if same:
                self._pictures.join(first, second)


def _in_rounds(candidates: np.ndarray) -> np.ndarray:
    """Of candidates sorted by first picture: each one's first, then each one's second, ..."""
    first = candidates[:, 0]
    place = np.arange(len(first)) - np.searchsorted(first, first)
    return candidates[np.argsort(place, kind="stable")]


class _Joined:
    """Which pictures, by number, have been joined to clusters so far."""

    def __init__(self, count: int) -> None:
        self._cluster = np.arange(count)
        self._size = np.ones(count, np.int64)

    def join(self, first: int, second: int) -> None:
        kept, gone = self._cluster[first], self._cluster[second]
        if kept != gone:
            self._cluster[self._cluster == gone] = kept
            self._size[kept] += self._size[gone]

    def apart(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """bool (n,): the two pictures stand in two clusters."""
        return self._cluster[first] != self._cluster[second]

    def settled(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """bool (n,): the two pictures stand in one cluster, and it is too large to compare each
        with each."""
        return ~self.apart(first, second) & (self._size[self._cluster[first]] > FULLY_COMPARED)
