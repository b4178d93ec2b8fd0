"""Which pictures may be near-duplicates: of close hashes, or with many local features in common.

Hashes of whole pictures are compared each with each, 143 bits by one matrix product. Features go
into four tables, by some bits of their descriptor and their orientation; pictures that meet in a
table's cell gain a vote there, the more the fewer meet in it, and each picture's 12 closest by
votes are candidates; that grows with the number of pictures, not with its square.
"""

from collections.abc import Callable, Sequence

import numpy as np

from intrasense_fast.data.signatures import BITS, Signature

LARGEST_DISTANCE = 34
NEIGHBOURS = 12
_TABLES = 4
_TURN = 30.0
# No pair that was confirmed on BUSI and BUS-BRA has fewer than 0.83; by chance 0.25 is common.
_FEWEST_VOTES = 0.75
# Features of one cell on either side that a feature meets: copies of one picture by the thousand
# stay cheap.
_REACH = 32
_BLOCK = 128
_TILE = 1024


def alike(
    hashes: np.ndarray,
    rows: slice,
    settled: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Pairs whose first is in `rows` and whose hashes differ in at most LARGEST_DISTANCE bits.

    Args:
        hashes: uint8 (pictures, 18).
        rows: of the first ones, not open.
        settled: which pairs (of first and second, int64 (n,)) need not be proposed: bool (n,).

    Returns:
        int64 (n, 3): first < second, and the bits that differ.
    """
    own = _signs(hashes[rows])
    found = []
    for left in range(rows.start, len(hashes), _TILE):
        distance = (BITS - own @ _signs(hashes[left : left + _TILE]).T) / 2
        row, column = np.nonzero(distance <= LARGEST_DISTANCE)
        first, second = row + rows.start, column + left
        pairs = np.stack((first, second, distance[row, column].astype(np.int64)), axis=1)
        pairs = pairs[first < second]
        found.append(pairs[~settled(pairs[:, 0], pairs[:, 1])])
    return np.concatenate(found)


def neighbours(signatures: Sequence[Signature]) -> np.ndarray:
    """Pairs that share local features, each once.

    Returns:
        int64 (n, 3): first < second, in order, and their rank: BITS + 0 for the closest of a
        picture, BITS + 1 for the next.
    """
    owner, keys = _features(signatures)
    count = len(signatures) if keys else 0
    # Each set of keys is let go when its table stands: together they are as large as all tables.
    tables = [_Table(keys.pop(0), owner) for _ in range(len(keys))]
    found = [np.zeros((0, 3), np.int64)]
    for start in range(0, count, _BLOCK):
        height = min(_BLOCK, count - start)
        places, weights = zip(
            *(each.votes(start, start + height, count) for each in tables), strict=True
        )
        # All tables at once: the array is as long as the data set is large.
        votes = np.bincount(np.concatenate(places), np.concatenate(weights), height * count)
        found += [_closest(each, start + row) for row, each in enumerate(votes.reshape(height, -1))]
    # The same pair may come from both sides: its better rank stays.
    pairs = np.concatenate(found)
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    return pairs[np.r_[True, (pairs[1:, :2] != pairs[:-1, :2]).any(axis=1)][: len(pairs)]]


def _closest(votes: np.ndarray, picture: int) -> np.ndarray:
    """Pairs of one picture and those with most votes, float64 (pictures,): int64 (n, 3) as in
    `neighbours`."""
    votes[picture] = 0
    best = np.flatnonzero(votes >= _FEWEST_VOTES)
    best = best[np.argsort(-votes[best], kind="stable")[:NEIGHBOURS]]
    own = np.full(len(best), picture)
    ranks = BITS + np.arange(len(best))
    return np.stack((np.minimum(own, best), np.maximum(own, best), ranks), axis=1)


class _Table:
    """Features sorted by key, and by picture among equal keys."""

    def __init__(self, keys: np.ndarray, owner: np.ndarray) -> None:
        order = np.argsort(keys, kind="stable").astype(np.int32)
        ordered = keys[order]
        new = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        ends = np.r_[new[1:], len(ordered)]
        sizes = ends - new
        self._pictures = owner[order]
        self._first = np.repeat(new, sizes).astype(np.int32)
        self._end = np.repeat(ends, sizes).astype(np.int32)
        self._place = np.empty(len(order), np.int32)
        self._place[order] = np.arange(len(order), dtype=np.int32)
        self._owner = owner

    def votes(self, start: int, end: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Votes of the pictures start to end: where in (end - start, count), flat, and how much
        each."""
        own = slice(*np.searchsorted(self._owner, (start, end)))
        place = self._place[own]
        low = np.maximum(self._first[place], place - _REACH)
        high = np.minimum(self._end[place], place + _REACH + 1)
        met = high - low
        total = int(met.sum())
        offsets = np.arange(total) - np.repeat(np.cumsum(met) - met, met)
        others = self._pictures[np.repeat(low, met) + offsets].astype(np.int64)
        rows = np.repeat(self._owner[own].astype(np.int64) - start, met)
        return rows * count + others, np.repeat(1 / met, met)


def _features(signatures: Sequence[Signature]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The picture of each feature, int32 (m,), and its key in each table, int64 (m,)."""
    owner = np.repeat(
        np.arange(len(signatures), dtype=np.int32), [len(each.points) for each in signatures]
    )
    if not len(owner):
        return owner, []
    descriptors = np.concatenate([each.descriptors for each in signatures])
    angles = np.concatenate([each.angles for each in signatures]).astype(np.float32)
    even = _even_bits(descriptors)
    # As many bits as keep the cells of a larger set as small.
    used = min(len(even) // 2, 14 + round(np.log2(len(signatures))))
    rng = np.random.default_rng(0)
    keys = []
    for _ in range(_TABLES):
        turns = (angles + np.float32(rng.uniform(0, _TURN))) // _TURN
        key = turns.astype(np.int64)
        for bit in rng.permutation(even)[:used]:
            key = key * 2 + ((descriptors[:, bit >> 3] >> (7 - (bit & 7))) & 1)
        keys.append(key)
    return owner, keys


def _even_bits(descriptors: np.ndarray) -> np.ndarray:
    """The 128 bits of a descriptor that are 1 most nearly half of the time, in a sample of
    20,000."""
    sample = descriptors[:: max(1, len(descriptors) // 20_000)]
    return np.argsort(np.abs(np.unpackbits(sample, axis=1).mean(axis=0) - 0.5), kind="stable")[:128]


def _signs(hashes: np.ndarray) -> np.ndarray:
    """Bits as -1 and 1, so that a matrix product counts the equal ones: uint8 (n, 18) as float32
    (n, 143)."""
    return np.unpackbits(hashes, axis=-1, count=BITS).astype(np.float32) * 2 - 1
