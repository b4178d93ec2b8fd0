"""What a data set is made of: records (files of one image), samples (its pixels), problems."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from intrasense_fast.files import escaped


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one file. An "error" keeps the image out of use; a "warning" was handled
    as the message says."""

    level: Literal["error", "warning"]
    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {escaped(self.file)}: {escaped(self.message)}"


class DataError(ValueError):
    """A folder that cannot be used as a data set; `problems` lists every fault found."""

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Record:
    """The files and the identity of one image; no pixels.

    Attributes:
        name: unique in its data set, "/" between folders, without the ending of the file.
        image: the image file.
        masks: mask files, merged by logical OR.
        case: the patient or examination where the layout tells it, else the name.
        group: records of one group never part in a split; the case where known, else the name.
        label: the class, or "" where unknown.
        regions: outlines drawn instead of mask files: polygons of (x, y) pixel positions.
    """

    name: str
    image: Path
    masks: tuple[Path, ...]
    case: str
    group: str
    label: str = ""
    regions: tuple[tuple[tuple[float, float], ...], ...] = ()


@dataclass(frozen=True)
class Sample:
    """One decoded image: `image` float32 (H, W) in [0, 1], `mask` uint8 (H, W) in {0, 1}, and who
    it is; `spacing` is millimetres between rows and between columns, None where unknown."""

    image: np.ndarray
    mask: np.ndarray
    name: str
    case: str
    group: str
    label: str
    spacing: tuple[float, float] | None = None


def problem_of(level: Literal["error", "warning"], text: str, record: Record) -> Problem:
    """Split "FILE: MESSAGE" at the file of the record that the text begins with."""
    for path in (record.image, *record.masks):
        if text.startswith(f"{path}: "):
            return Problem(level, str(path), text[len(f"{path}: ") :])
    return Problem(level, str(record.image), text)
