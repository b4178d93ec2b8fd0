"""Near-duplicates side by side: a reader sees what was taken for one picture or one view."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from intrasense_fast.data.duplicates import Duplicates, conflicts_of
from intrasense_fast.data.images import ImageError, write_png
from intrasense_fast.data.records import Record, SegmentationData, load_record

_TILE = 160
_TEXT = 34
_GAP = 8
_WIDTH = 8
_LEGEND = 64
_OUTLINE = (255, 190, 0)
_SAME_PICTURE = (90, 90, 90)
_SAME_VIEW = (60, 130, 230)
_CLASSES = (230, 60, 60)
_MASKS = (190, 60, 220)
_MEANINGS = (
    (_SAME_PICTURE, "same picture"),
    (_SAME_VIEW, "same view only"),
    (_CLASSES, "conflict: two classes"),
    (_MASKS, "conflict: masks differ"),
    (_OUTLINE, "outline of the mask"),
)


def write_contact_sheet(
    path: str | os.PathLike[str], data: SegmentationData, found: Duplicates
) -> None:
    """Draw every view of `found` as PNG, 8 pictures a row, with outlines of the masks and a legend.

    Pictures of one number show one view; those of one number and letter are the same picture. The
    frame's colour is grey, blue for a picture that only shares its view, red where the classes of
    the same picture differ and violet, inside, where its masks do. Names are shown in ASCII, other
    characters as "?". Without near-duplicates the sheet says so.

    Raises:
        OSError: the file cannot be written.
    """
    rows: list[list[np.ndarray]] = [[]]
    for tiles in _views(data, found):
        for place, tile in enumerate(tiles):
            full = len(rows[-1]) == _WIDTH
            better_below = not place and rows[-1] and len(rows[-1]) + len(tiles) > _WIDTH
            if full or better_below:
                rows.append([])
            rows[-1].append(tile)
    height, width = _TILE + _TEXT + _GAP, _TILE + _GAP
    shape = (_LEGEND + len(rows) * height + _GAP, _WIDTH * width + _GAP, 3)
    sheet = np.full(shape, 255, np.uint8)
    _draw_legend(sheet)
    if not rows[0]:
        _write(sheet, "no near-duplicates", (20, _LEGEND + 60), 1)
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            top, left = _LEGEND + row * height + _GAP, column * width + _GAP
            sheet[top : top + len(tile), left : left + tile.shape[1]] = tile
    write_png(path, sheet)


def _views(data: SegmentationData, found: Duplicates) -> Iterator[list[np.ndarray]]:
    """The tiles of each view, copies of a picture side by side."""
    known = {record.name: record for record in data.records}
    cluster = {name: each for each in found.clusters for name in each}
    frames = _frames(data, found)
    for number, view in enumerate(found.views, 1):
        pictures: dict[tuple[str, ...], list[str]] = {}
        for name in view:
            if name in known:
                pictures.setdefault(cluster.get(name, (name,)), []).append(name)
        tiles = []
        for place, names in enumerate(pictures.values()):
            title = f"{number}{_letter(place) if len(pictures) > 1 else ''}"
            alone = len(names) == 1
            for name in names:
                colours = frames[name] or [_SAME_VIEW if alone else _SAME_PICTURE]
                tiles.append(_tile(data, known[name], title, colours))
        if tiles:
            yield tiles


def _frames(data: SegmentationData, found: Duplicates) -> dict[str, list[tuple[int, int, int]]]:
    """The colours of the conflicts that each picture has a part in, by name."""
    frames: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    listed = list(conflicts_of(data.records, found))
    for colour, hit in ((_CLASSES, "classes"), (_MASKS, "masks")):
        for conflict in listed:
            for name in (conflict.pair.first, conflict.pair.second):
                if getattr(conflict, hit) and colour not in frames[name]:
                    frames[name].append(colour)
    return frames


def _letter(place: int) -> str:
    return chr(ord("a") + place) if place < 26 else f".{place}"


def _draw_legend(sheet: np.ndarray) -> None:
    for place, (colour, meaning) in enumerate(_MEANINGS):
        left = _GAP + place * 260
        cv2.rectangle(sheet, (left, _GAP), (left + 24, _GAP + 18), colour, 3)
        _write(sheet, meaning, (left + 32, _GAP + 14), 0.5)
    text = "one number: one view; one number and letter (12a): the same picture. Below: class, name"
    _write(sheet, text, (_GAP, _GAP + 42), 0.5)


def _write(sheet: np.ndarray, text: str, place: tuple[int, int], size: float) -> None:
    shown = text.encode("ascii", "replace").decode()
    cv2.putText(sheet, shown, place, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)


def _tile(
    data: SegmentationData,
    record: Record,
    title: str,
    colours: Sequence[tuple[int, int, int]],
) -> np.ndarray:
    """RGB uint8 (tile + text, tile, 3): the picture with its mask's outline and frames, number,
    class and name."""
    tile = np.full((_TILE + _TEXT, _TILE, 3), 255, np.uint8)
    try:
        # An ambiguous rule of the masks is told by `verify`, and no reason to draw none.
        rule = data.masks.rule() if data.masks else None
        sample = load_record(record, data.options, rule).sample
    except ImageError:
        return tile
    scale = _TILE / max(sample.image.shape)
    height, width = (max(1, round(side * scale)) for side in sample.image.shape)
    small = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_AREA)
    picture = np.ascontiguousarray(np.rint(small * 255).astype(np.uint8)[..., None].repeat(3, 2))
    mask = cv2.resize(sample.mask, (width, height), interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, _OUTLINE, 1)
    tile[:height, :width] = picture
    for inward, colour in enumerate(colours):
        first, last = 1 + 3 * inward, _TILE - 2 - 3 * inward
        cv2.rectangle(tile, (first, first), (last, last), colour, 3)
    name = record.name if len(record.name) <= 24 else "..." + record.name[-21:]
    for line, text in enumerate((f"{title}: {record.label or 'unlabelled'}", name)):
        _write(tile, text, (2, _TILE + 13 + 15 * line), 0.4)
    return tile
