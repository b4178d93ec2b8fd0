"""Tiles of the two sweeps. They are bound by memory: one choice serves every architecture."""

from typing import Any

# Elements a program holds at once: eight 16-bit ones a thread are one 128-bit load.
TILE = 1024
# Programs of the forward sweep, and so partial sums of the finishing launch, unless there are more
# planes than that.
PROGRAMS = 1024
# Classes that a program takes together at most.
MOST_CLASSES = 32
# How every kernel is compiled.
OPTIONS: dict[str, Any] = {"num_warps": 4, "num_stages": 1}


def _padded(classes: int) -> int:
    """The next power of two, at most MOST_CLASSES."""
    return min(1 << (classes - 1).bit_length(), MOST_CLASSES)


def sweep_tile(classes: int, neighbours: bool) -> dict[str, Any]:
    """Tile of a sweep: BLOCK_P positions, BLOCK_K classes.

    neighbours: whether the classes of a position lie side by side in memory.
    """
    block_k = _padded(classes) if classes > 1 and neighbours else 1
    return {"BLOCK_P": TILE // block_k, "BLOCK_K": block_k}


def sweep_steps(plane: int, block_p: int, planes: int) -> int:
    """How many blocks of `block_p` positions a program of the forward sweep takes in turn.

    planes: how many sweeps of a plane run side by side.
    """
    blocks = -(-plane // block_p)
    return -(-blocks // max(1, PROGRAMS // planes))


def finish_tile(classes: int) -> dict[str, Any]:
    """Tile of the finishing launch: BLOCK_K classes, BLOCK_R partial sums."""
    block_k = _padded(classes)
    return {"BLOCK_K": block_k, "BLOCK_R": TILE // block_k}
