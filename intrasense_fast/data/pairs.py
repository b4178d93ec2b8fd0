"""The search for pairs of near-duplicates: a perceptual hash proposes, an alignment confirms.

The 143 bits of a whole picture are compared with those of 16 windows of every other, each window
less a sixteenth of some sides. At most 34 different bits make a candidate. The two thumbnails are
then aligned by an affine map, and the pair is confirmed when their structure (less its local mean)
correlates by at least 0.8. Two rules bound the alignments, of which n pictures would need n * (n -
1) / 2: pictures joined already, to a cluster of more than 8, are not compared with one another
again, and a picture of which 32 candidates proved to be others is given no further ones.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from intrasense_fast.data.signatures import BITS, SIDE, WINDOWS, Signature

LARGEST_DISTANCE = 34
SMALLEST_CORRELATION = 0.8
FULLY_COMPARED = 8
MOST_FAILURES = 32

_BLUR = 4.0
_TILE = 256
_ALIGNED_AT_ONCE = 64


class Pair(NamedTuple):
    """Two near-duplicates by name, the correlation of their structure, and the Dice overlap of
    their masks where both see."""

    first: str
    second: str
    correlation: float
    overlap: float


def find_pairs(
    names: Sequence[str], signatures: Sequence[Signature], *, progress: bool = False
) -> tuple[list[Pair], int]:
    """Confirmed pairs in the order of `names`, and how many candidates between two clusters were
    left out by the second rule.

    Clusters are what comparing every candidate gives, but for those left out; of a cluster of at
    most FULLY_COMPARED pictures every confirmed pair is there, of a larger one enough to join it.

    Args:
        names: unique.
        signatures: of each name.
        progress: show a bar.
    """
    joined = _Joined(len(names))
    failures = np.zeros(len(names), np.int64)
    found: list[tuple[int, int, float, float]] = []
    left_out = 0

    def aligned(candidate: np.ndarray) -> tuple[float, float]:
        _, _, wide, narrow, window = candidate.tolist()
        return compare(signatures[wide], signatures[narrow], window)

    with (
        tqdm(
            None,
            "near-duplicates",
            _pairs(len(names)),
            unit="pair",
            unit_scale=True,
            disable=not progress,
            leave=False,
        ) as bar,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        for candidates in _candidates([each.hashes for each in signatures], joined, bar):
            for start in range(0, len(candidates), _ALIGNED_AT_ONCE):
                batch = candidates[start : start + _ALIGNED_AT_ONCE]
                batch = batch[~joined.settled(batch[:, 0], batch[:, 1])]
                given_up = failures[batch[:, 0]] >= MOST_FAILURES
                left_out += int((given_up & joined.apart(batch[:, 0], batch[:, 1])).sum())
                batch = batch[~given_up]
                for (first, second, *_), (correlation, overlap) in zip(
                    batch.tolist(), pool.map(aligned, batch), strict=True
                ):
                    if correlation < SMALLEST_CORRELATION:
                        failures[first] += 1
                    else:
                        found.append((first, second, correlation, overlap))
                        joined.join(first, second)
    pairs = [
        Pair(names[first], names[second], round(c, 4), round(overlap, 4))
        for first, second, c, overlap in sorted(found)
    ]
    return pairs, left_out


def compare(wide: Signature, narrow: Signature, window: int) -> tuple[float, float]:
    """Align `narrow` with one of WINDOWS of `wide`: correlation of their structure, and Dice
    overlap of the masks there."""
    if np.array_equal(wide.thumbnail, narrow.thumbnail):
        return 1.0, _dice(wide.mask > 0, narrow.mask > 0)
    top, bottom, left, right = WINDOWS[window]
    matrix = np.array(
        [[(right - left) / SIDE, 0, left], [0, (bottom - top) / SIDE, top]], np.float32
    )
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-4)
    inputs = (_structure(narrow.thumbnail), _structure(wide.thumbnail))
    try:
        correlation, matrix = cv2.findTransformECC(
            *inputs, matrix, cv2.MOTION_AFFINE, criteria, None, 3
        )  # type: ignore[call-overload]
    except cv2.error:
        # Pictures without common structure do not converge.
        return 0.0, 0.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen, mask = (
        cv2.warpAffine(each.astype(np.float32), matrix, (SIDE, SIDE), flags=flags) >= 0.5
        for each in (np.ones_like(wide.mask), wide.mask)
    )
    return float(correlation), _dice(mask & seen, (narrow.mask > 0) & seen)


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


def _candidates(hashes: Sequence[np.ndarray], joined: _Joined, bar: tqdm) -> Iterator[np.ndarray]:
    """Candidates that are not settled, int64 (n, 5): first < second, wide, narrow, window; those of
    _TILE first ones at a time.

    The whole of `narrow` is close to that window of `wide`. Each pair comes once, at its closest,
    and of each first one the closest pairs come first.
    """
    if len(hashes) < 2:
        return
    windows = np.stack(hashes)
    whole = _signs(windows[:, 0])
    for start in range(0, len(windows), _TILE):
        rows = slice(start, start + _TILE)
        own = _signs(windows[rows])
        tiles = []
        for left in range(start, len(windows), _TILE):
            columns = slice(left, left + _TILE)
            tile = _close(
                _agreement(own, whole[columns]), _agreement(_signs(windows[columns]), whole[rows])
            )
            tile[:, :2] += (start, left)
            tile = tile[tile[:, 0] < tile[:, 1]]
            tiles.append(tile[~joined.settled(tile[:, 0], tile[:, 1])])
            height, width = len(own), len(windows[columns])
            bar.update(_pairs(height) if left == start else height * width)
        first, second, agreement, forward, window = np.concatenate(tiles).T
        found = np.stack(
            (
                first,
                second,
                np.where(forward, first, second),
                np.where(forward, second, first),
                window,
            ),
            axis=1,
        )
        yield found[np.lexsort((second, -agreement, first))]


def _close(ahead: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Where one of the windows is close to a whole: int64 (n, 5) of row, column, agreement, is it
    of `ahead`, window.

    Args:
        ahead: equal less different bits of each row's windows and each column's whole: float32
            (rows, windows, columns).
        behind: the same of each column's windows and each row's whole: float32 (columns, windows,
            rows).
    """
    best_ahead, best_behind = ahead.max(axis=1), behind.max(axis=1).T
    agreement = np.maximum(best_ahead, best_behind)
    row, column = np.nonzero(agreement >= BITS - 2 * LARGEST_DISTANCE)
    forward = best_ahead[row, column] >= best_behind[row, column]
    window = np.where(
        forward, ahead[row, :, column].argmax(axis=1), behind[column, :, row].argmax(axis=1)
    )
    return np.stack((row, column, agreement[row, column].astype(np.int64), forward, window), axis=1)


def _agreement(windows: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Equal less different bits of (n, 16, 143) signs and (m, 143) signs: float32 (n, 16, m)."""
    # One product of two matrices: three axes would make it n small ones, of half the speed.
    return (windows.reshape(-1, BITS) @ whole.T).reshape(*windows.shape[:2], -1)


def _signs(hashes: np.ndarray) -> np.ndarray:
    """Bits as -1 and 1, so that a matrix product counts the equal ones: uint8 (..., 18) as float32
    (..., 143)."""
    return np.unpackbits(hashes, axis=-1, count=BITS).astype(np.float32) * 2 - 1


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


def _structure(thumbnail: np.ndarray) -> np.ndarray:
    image = thumbnail.astype(np.float32)
    return image - cv2.GaussianBlur(image, (0, 0), _BLUR)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0
