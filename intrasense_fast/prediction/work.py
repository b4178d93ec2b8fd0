"""The images of a call of `predict`, a few at a time: read, answered, written."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from intrasense_fast.data.images import (
    MAX_PIXELS,
    ImageError,
    decode_image,
    low_range,
    to_grey,
)
from intrasense_fast.data.opening import sha256_of
from intrasense_fast.data.region import Region
from intrasense_fast.inference import NOT_FINITE
from intrasense_fast.inference.ensemble import Answer, Ensemble
from intrasense_fast.prediction.outputs import (
    Destination,
    Origin,
    stem_of,
    table_name,
    write_outputs,
)
from intrasense_fast.prediction.table import FAILED, Row
from intrasense_fast.report.dicom_segmentation import SegmentationError

Chunk = Sequence[tuple[Path, Path]]


@dataclass(frozen=True)
class Work:
    """How every image of a call is segmented, and where it goes."""

    destination: Destination
    ensemble: Ensemble
    levels: int | None
    max_pixels: int
    workers: int = 0
    spacing: tuple[float, float] | None = None

    @property
    def disagreement(self) -> bool:
        """Is that map written?"""
        return "disagreement" in self.destination.kinds


class Picture(NamedTuple):
    """Pixels, float32 (H, W) in [0, 1], where they come from, and what is said of the file."""

    image: np.ndarray
    origin: Origin
    remark: str = ""


class Read(NamedTuple):
    """An image that was read, or why it could not be: `message` is that reason, or a remark."""

    relative: Path
    picture: Picture | None
    sha256: str
    message: str


def read_chunks(chunks: Iterable[Chunk], work: Work) -> Iterator[list[Read]]:
    """The images of each chunk, read by `work.workers` threads while the chunk before is in work,
    or when they are asked for where there are none."""
    if not work.workers:
        for chunk in chunks:
            yield [_read(item, work) for item in chunk]
        return
    with ThreadPoolExecutor(work.workers) as pool:
        ahead = None
        for chunk in chunks:
            following = [pool.submit(_read, item, work) for item in chunk]
            if ahead is not None:
                yield [future.result() for future in ahead]
            ahead = following
        if ahead is not None:
            yield [future.result() for future in ahead]


def rows_of(chunk: Sequence[Read], done: frozenset[str], work: Work) -> Iterator[Row]:
    """Segment a few images together, and write what belongs to each before its row comes."""
    for item in chunk:
        if item.picture is None:
            yield failed(table_name(item.relative), item.sha256, item.message)
    images = [(item, item.picture) for item in chunk if item.picture is not None]
    answers = answers_of([picture for _, picture in images], work.ensemble, work.disagreement)
    for (item, (image, origin, _)), answer in zip(images, answers, strict=True):
        name = table_name(item.relative)
        if name in done:
            continue
        if answer is None:
            yield failed(name, item.sha256, NOT_FINITE)
            continue
        stem = stem_of(work.destination.folder, item.relative)
        try:
            row, _ = write_outputs(work.destination, name, stem, image, answer, origin)
        except SegmentationError as error:
            yield failed(name, item.sha256, str(error))
            continue
        yield row | {"sha256": item.sha256, "message": item.message}


def read_picture(
    path: Path,
    levels: int | None,
    max_pixels: int = MAX_PIXELS,
    spacing: tuple[float, float] | None = None,
) -> Picture:
    """Read a picture as the networks take it; `levels` and `spacing` are of files that do not say
    them.

    Raises:
        ImageError: the file is no whole picture; the message names it.
    """
    decoded = decode_image(path, max_pixels)
    white = decoded.levels(levels)
    image = to_grey(decoded.pixels, path, white)
    remarks = [decoded.note, low_range(decoded.scan(), white)]
    source = path if decoded.mode.startswith("DICOM") else None
    origin = Origin(source, decoded.spacing or spacing, decoded.region)
    return Picture(image, origin, "; ".join(text for text in remarks if text))


def answers_of(
    pictures: Sequence[Picture], ensemble: Ensemble, disagreement: bool = False
) -> Iterator[Answer | None]:
    """What the networks say of each picture's region, on the grid of the whole, 0 outside; None
    where they fail."""
    scans = [picture.origin.scan(picture.image) for picture in pictures]
    answers = ensemble.answers(scans, disagreement=disagreement)
    for (image, origin, _), answer in zip(pictures, answers, strict=True):
        if answer is not None and origin.region is not None:
            answer = _pasted(answer, origin.region, image.shape)
        yield answer


def _pasted(answer: Answer, region: Region, shape: tuple[int, ...]) -> Answer:
    whole = (shape[0], shape[1])
    disagreement = answer.disagreement
    if disagreement is not None:
        disagreement = region.paste(disagreement, whole)
    return Answer(region.paste(answer.probability, whole), disagreement)


def failed(name: str, digest: str, reason: str) -> Row:
    """The row of an image that was not segmented."""
    return {"image": name, "status": FAILED, "sha256": digest, "message": reason}


def reason_of(error: ImageError | OSError, path: Path) -> str:
    """What is wrong with a file, without its name, which has a column of its own."""
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error)).removeprefix(f"{path}: ")


def _read(item: tuple[Path, Path], work: Work) -> Read:
    relative, path = item
    digest = ""
    try:
        digest = sha256_of(path)
        picture = read_picture(path, work.levels, work.max_pixels, work.spacing)
    except (ImageError, OSError) as error:
        return Read(relative, None, digest, reason_of(error, path))
    return Read(relative, picture, digest, picture.remark)
