"""contours.json, the outlines of all masks of a folder that `predict` wrote."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from intrasense_fast.data.images import read_image
from intrasense_fast.data.reading import MOST_PIXELS
from intrasense_fast.prediction.table import DONE, TABLE, read_rows
from intrasense_fast.report.contours import write_coco

CONTOURS = "contours.json"


def write_contours(folder: Path) -> None:
    """Write the outlines of every mask in predictions.csv, also of earlier calls, atomically.

    Raises:
        ImageError: a mask is gone or damaged.
        OSError: the file cannot be written.
    """
    write_coco(folder / CONTOURS, _masks(folder))


def _masks(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    rows, _ = read_rows(folder / TABLE)
    for row in rows:
        if row["status"] == DONE:
            yield row["image"], read_image(folder / row["mask"], max_pixels=MOST_PIXELS) > 0.5
