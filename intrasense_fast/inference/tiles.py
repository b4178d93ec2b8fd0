"""Pictures beyond the size a network was trained for, in overlapping tiles that are blended.

Along each axis a tile's weight is a squared sine, over the sum of the weights of all tiles there:
the weights of every pixel add up to 1, and no seam shows.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Maps = list[NDArray[np.float32] | None]


class Window(NamedTuple):
    """A tile along one axis: where it begins, and the weight (length,) of each of its pixels."""

    start: int
    weights: NDArray[np.float32]


def windows(length: int, tile: int) -> list[Window]:
    """Tiles over an axis, each of `tile` pixels, or of all where there are fewer; neighbours share
    at least half of a tile.

    Raises:
        ValueError: an axis or a tile without pixels.
    """
    if length < 1 or tile < 1:
        raise ValueError(f"windows: needs pixels, got length {length} and tile {tile}")
    side = min(length, tile)
    count = 1 + math.ceil((length - side) / max(1, side // 2))
    starts = np.linspace(0, length - side, count).round().astype(int)
    bump = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    total = np.zeros(length)
    for start in starts:
        total[start : start + side] += bump
    return [
        Window(int(start), (bump / total[start : start + side]).astype(np.float32))
        for start in starts
    ]


def fits(shape: Sequence[int], tile: int) -> bool:
    """Does one tile hold an image (H, W)?"""
    return max(shape) <= tile


def tiled(
    predict: Callable[[list[NDArray[np.float32]]], Maps],
    image: NDArray[np.float32],
    tile: int,
    batch: int,
) -> NDArray[np.float32] | None:
    """The blended answer for an image; None where it fails for one of the tiles.

    Memory beyond the answer's own is that of `batch` tiles.

    Args:
        predict: gives a map (h, w) for each of a few tiles (h, w).
        image: (H, W).
        tile: side of a tile in pixels of the image.
        batch: tiles at a time.
    """
    blended = np.zeros(image.shape, np.float32)
    down, across = (windows(length, tile) for length in image.shape)
    places = [(top, left) for top in down for left in across]
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        areas = [
            (
                slice(top.start, top.start + len(top.weights)),
                slice(left.start, left.start + len(left.weights)),
            )
            for top, left in some
        ]
        maps = predict([image[area] for area in areas])
        for (top, left), area, answer in zip(some, areas, maps, strict=True):
            if answer is None:
                return None
            blended[area] += top.weights[:, None] * left.weights * answer
    # Rounding of the weights may lead a hair beyond.
    return blended.clip(0, 1)
