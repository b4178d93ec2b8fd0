"""Clips in `predict`: a row and a mask for each frame, and a clip with the masks drawn on it."""

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from intrasense_fast.data.clips import Clip, ClipError, open_clip
from intrasense_fast.data.images import ImageError, to_grey
from intrasense_fast.data.opening import sha256_of
from intrasense_fast.files import atomic_path
from intrasense_fast.inference import NOT_FINITE
from intrasense_fast.prediction.kept import frame_name
from intrasense_fast.prediction.outputs import (
    KINDS,
    OVERLAY_CLIP,
    Origin,
    clip_folder,
    table_name,
    write_outputs,
)
from intrasense_fast.prediction.table import DONE, Row
from intrasense_fast.prediction.work import Picture, Work, answers_of, failed, reason_of
from intrasense_fast.report.overlays import overlay

_WRITTEN = re.compile(rf"\d+_({'|'.join(KINDS)})\.png")


def rows_of_clip(relative: Path, path: Path, work: Work) -> Generator[list[Row], None, None]:
    """Segment a clip, a few frames at a time, and write what belongs to each before its row comes.

    The overlay clip comes last, also of one that ends too early: its name then has a row of its
    own, which failed.
    """
    name = table_name(relative)
    folder = clip_folder(work.destination.folder, relative)
    digest = ""
    try:
        digest = sha256_of(path)
        with open_clip(path, work.max_pixels) as clip:
            _clear(folder)
            with _writer(folder / OVERLAY_CLIP, clip) as drawn:
                reason = yield from _frames(clip, name, folder, digest, work, drawn)
        if reason:
            yield [failed(name, digest, reason)]
    except (ImageError, OSError) as error:
        if isinstance(error, OSError) and error.filename != str(path):
            raise
        yield [failed(name, digest, reason_of(error, path))]


def _frames(
    clip: Clip, name: str, folder: Path, digest: str, work: Work, drawn: "_EvenWriter"
) -> Generator[list[Row], None, str]:
    """Rows of the frames; returns why there are no more of them, "" at the clip's end."""
    numbers = count(1)
    reason = ""
    frames = clip.frames
    kinds = tuple(kind for kind in work.destination.kinds if kind != "overlay")
    # A segmentation refers to a file of one frame.
    destination = replace(work.destination, kinds=kinds, algorithm=None)
    origin = Origin(None, clip.spacing or work.spacing, clip.region)
    levels = min((value for value in (work.levels, clip.white) if value), default=None)
    while not reason:
        some: list[np.ndarray] = []
        try:
            for frame in frames:
                some.append(frame)
                if len(some) == work.ensemble.batch:
                    break
        except ClipError as error:
            reason = str(error)
        if not some:
            break
        pictures = [Picture(to_grey(frame, name, levels), origin) for frame in some]
        rows: list[Row] = []
        answers = answers_of(pictures, work.ensemble, work.disagreement)
        for (image, _, _), answer, number in zip(pictures, answers, numbers, strict=False):
            title = frame_name(name, number)
            if answer is None:
                drawn.write(overlay(image, None, np.zeros(image.shape, bool)))
                rows.append(failed(title, digest, NOT_FINITE))
                continue
            stem = folder / f"{number:04d}"
            row, mask = write_outputs(destination, title, stem, image, answer, origin)
            drawn.write(overlay(image, None, mask))
            rows.append(row | {"sha256": digest, "message": clip.note})
        yield rows
    return reason


def frames_done(rows: list[Row]) -> int:
    """How many of the rows are of segmented frames."""
    return sum(row["status"] == DONE for row in rows)


class _EvenWriter:
    """Writes pictures with even sides, as codecs need them: the last row and column may be
    doubled."""

    def __init__(self, writer: cv2.VideoWriter) -> None:
        self._writer = writer

    def write(self, picture: np.ndarray) -> None:
        """Write (H, W, 3) uint8, RGB."""
        down, right = (side % 2 for side in picture.shape[:2])
        whole = np.ascontiguousarray(picture[:, :, ::-1])
        self._writer.write(cv2.copyMakeBorder(whole, 0, down, 0, right, cv2.BORDER_REPLICATE))


def _clear(folder: Path) -> None:
    """Remove what an earlier call wrote of a clip that is done again: it may have been longer."""
    if folder.is_dir():
        for file in folder.iterdir():
            if _WRITTEN.fullmatch(file.name) or file.name == OVERLAY_CLIP:
                file.unlink()


@contextmanager
def _writer(path: Path, clip: Clip) -> Iterator[_EvenWriter]:
    """A clip of the same size and rate, in Motion JPEG, which every OpenCV writes."""
    height, width = (side + side % 2 for side in clip.shape)
    with atomic_path(path) as temporary:
        codec = cv2.VideoWriter_fourcc(*"MJPG")  # type: ignore[attr-defined]
        writer = cv2.VideoWriter(str(temporary), codec, clip.rate, (width, height))
        try:
            if not writer.isOpened():
                raise OSError(None, "no clip in Motion JPEG can be written", str(path))
            yield _EvenWriter(writer)
        finally:
            writer.release()
