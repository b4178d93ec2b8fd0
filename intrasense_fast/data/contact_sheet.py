"""Near-duplicates side by side, a frame a cluster, so that a reader sees what was taken for the same picture."""

import os
from collections.abc import Sequence

import cv2
import numpy as np

from intrasense_fast.data.duplicates import Duplicates
from intrasense_fast.data.images import ImageError, write_png
from intrasense_fast.data.records import Record, SegmentationData, load_record

_TILE = 160
_TEXT = 34
_GAP = 8
_WIDTH = 8
_OUTLINE = (255, 190, 0)
_CONFLICT = (230, 60, 60)
_AGREEMENT = (90, 90, 90)


def write_contact_sheet(
    path: str | os.PathLike[str], data: SegmentationData, found: Duplicates
) -> None:
    """Draw every cluster of `found` as PNG, 8 pictures a row, with outlines of the masks; framed red where classes differ.

    Names are shown in ASCII, other characters as "?". Without clusters the sheet says so.

    Raises:
        OSError: the file cannot be written.
    """
    known = {record.name: record for record in data.records}
    clusters = [[known[name] for name in cluster if name in known] for cluster in found.clusters]
    rows: list[list[np.ndarray]] = [[]]
    for number, cluster in enumerate(clusters, 1):
        colour = _CONFLICT if len({record.label for record in cluster}) > 1 else _AGREEMENT
        tiles = [_tile(record, number, colour) for record in cluster]
        for tile in tiles:
            if len(rows[-1]) == _WIDTH or (
                len(rows[-1]) + len(tiles) > _WIDTH and tile is tiles[0] and rows[-1]
            ):
                rows.append([])
            rows[-1].append(tile)
    height, width = _TILE + _TEXT + _GAP, _TILE + _GAP
    sheet = np.full((max(1, len(rows)) * height + _GAP, _WIDTH * width + _GAP, 3), 255, np.uint8)
    if not clusters:
        cv2.putText(
            sheet,
            "no near-duplicates",
            (20, 60),
            cv2.FONT_HERSHEY_SIMPLEX,
            1,
            (0, 0, 0),
            1,
            cv2.LINE_AA,
        )
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            top, left = row * height + _GAP, column * width + _GAP
            sheet[top : top + len(tile), left : left + tile.shape[1]] = tile
    write_png(path, sheet)


def _tile(record: Record, number: int, colour: Sequence[int]) -> np.ndarray:
    """RGB uint8 (tile + text, tile, 3): the picture with its mask's outline, cluster number, class and name."""
    tile = np.full((_TILE + _TEXT, _TILE, 3), 255, np.uint8)
    try:
        sample = load_record(record)[0]
    except ImageError:
        return tile
    scale = _TILE / max(sample.image.shape)
    size = (
        max(1, round(sample.image.shape[1] * scale)),
        max(1, round(sample.image.shape[0] * scale)),
    )
    picture = np.rint(cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA) * 255).astype(
        np.uint8
    )
    picture = np.ascontiguousarray(picture[..., None].repeat(3, 2))
    mask = cv2.resize(sample.mask, size, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, _OUTLINE, 1)
    tile[: size[1], : size[0]] = picture
    cv2.rectangle(tile, (0, 0), (_TILE - 1, _TILE - 1), tuple(colour), 2)
    name = record.name if len(record.name) <= 24 else "..." + record.name[-21:]
    for line, text in enumerate((f"{number}: {record.label or 'unlabelled'}", name)):
        shown = text.encode("ascii", "replace").decode()
        cv2.putText(
            tile,
            shown,
            (2, _TILE + 13 + 15 * line),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.4,
            (0, 0, 0),
            1,
            cv2.LINE_AA,
        )
    return tile
