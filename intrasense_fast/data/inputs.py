"""The pictures of a folder without ground truth, by the same listing as every data set's."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from intrasense_fast.data.clips import SUFFIXES as CLIP_SUFFIXES
from intrasense_fast.data.clips import is_clip
from intrasense_fast.data.images import MAX_PIXELS, pixel_count
from intrasense_fast.data.inspection import largest_picture
from intrasense_fast.data.items import DataError, Problem, Record
from intrasense_fast.data.layouts import read_dataset
from intrasense_fast.data.layouts._files import MASK_NAME
from intrasense_fast.data.layouts.by_pattern import pictures
from intrasense_fast.data.listing import SUFFIXES, files, is_picture, not_read, without_ending
from intrasense_fast.errors import UsageError

Item = TypeVar("Item")


class Inputs(NamedTuple):
    """What `predict` was pointed at.

    Attributes:
        images: (path relative to the source, path) of every picture, in natural order.
        masks: pictures left out: masks beside their images, and those of a known layout.
        problems: an error for each file that looks like a picture and cannot be read.
        clips: (path relative to the source, path) of every clip, in natural order.
    """

    images: list[tuple[Path, Path]]
    masks: list[Path]
    problems: list[Problem]
    clips: Sequence[tuple[Path, Path]] = ()


def list_inputs(source: Path, pairs: tuple[str, str] | None = None) -> Inputs:
    """The pictures of a file or folder; with `pairs`, those that match the pattern of an image.

    Raises:
        UsageError: nothing is there, it holds no picture, or a folder of it cannot be read.
    """
    if not source.is_dir():
        if not source.exists():
            raise UsageError(f"{source}: no such image or folder")
        alone = [(Path(source.name), source)]
        return Inputs([], [], [], alone) if is_clip(source) else Inputs(alone, [], [])
    try:
        there = files(source, recursive=True)
        if pairs is not None:
            chosen = list(pictures(source, pairs[0]))
            return Inputs([(path.relative_to(source), path) for path in chosen], [], [])
    except DataError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        remedy = "make it readable, or move it out of the folder"
        raise UsageError(
            f"{error.filename}: cannot be read ({error.strerror}); {remedy}"
        ) from error
    problems = [problem for problem in not_read(there) if problem.level == "error"]
    clips = {path: (path.relative_to(source), path) for path in there if is_clip(path)}
    found = [path for path in there if is_picture(path) and path not in clips]
    if not found and not problems and not clips:
        known = ", ".join((*SUFFIXES, *CLIP_SUFFIXES))
        raise UsageError(f"{source}: holds no images ({known})")
    masks = _masks(source, found)
    images = [(path.relative_to(source), path) for path in found if path not in masks]
    return Inputs(images, sorted(masks), problems, list(clips.values()))


def chunks(
    images: Sequence[tuple[Path, Path]], count: int, max_pixels: int = MAX_PIXELS
) -> Iterator[list[tuple[Path, Path]]]:
    """At most `count` images at a time, of at most `max_pixels` pixels together, or one alone."""
    return _bounded(images, lambda image, most: pixel_count(image[1], most), count, max_pixels)


def record_chunks(
    records: Sequence[Record], count: int, max_pixels: int = MAX_PIXELS
) -> Iterator[list[Record]]:
    """The same for images with their masks: of each record the largest picture counts."""
    return _bounded(records, largest_picture, count, max_pixels)


def _bounded(
    items: Sequence[Item], pixels_of: Callable[[Item, int], int], count: int, max_pixels: int
) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    held = 0
    for item in items:
        pixels = pixels_of(item, max_pixels)
        if chunk and (len(chunk) == count or held + pixels > max_pixels):
            yield chunk
            chunk, held = [], 0
        chunk.append(item)
        held += pixels
    if chunk:
        yield chunk


def _masks(source: Path, found: Sequence[Path]) -> set[Path]:
    """Pictures that are masks: NAME_mask beside NAME, and those that a known layout pairs."""
    stems = {without_ending(path) for path in found}
    beside = {
        path
        for path in found
        if (match := MASK_NAME.match(path.stem)) and path.with_name(match["name"]) in stems
    }
    try:
        data = read_dataset(source)
    except DataError:
        return beside
    paired = {mask for record in data.records for mask in record.masks}
    return beside | (paired & set(found))
