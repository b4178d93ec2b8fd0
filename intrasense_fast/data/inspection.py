"""Decode the files of a record, and say what that showed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from intrasense_fast.data.budget import PixelBudget
from intrasense_fast.data.images import (
    Decoded,
    ImageError,
    decode_image,
    low_range,
    pixel_count,
    to_grey,
)
from intrasense_fast.data.items import Problem, Record, Sample, problem_of
from intrasense_fast.data.mask_values import MaskLevels, MaskRule, decide
from intrasense_fast.data.masks import LoadedMask, load_masks, merge
from intrasense_fast.data.reading import DEFAULT, ReadingOptions
from intrasense_fast.data.signatures import Signature, signature

_COVERS_ALL = 0.9


class Loaded(NamedTuple):
    """A decoded record: warnings each name their file, `mode` is the image's colour mode.

    `masks` is what each mask file holds, `turned` the files whose orientation tag turned them,
    `low` whether the image uses less than a tenth of its range.
    """

    sample: Sample
    warnings: list[str]
    mode: str
    masks: tuple[tuple[Path, MaskLevels], ...] = ()
    turned: tuple[Path, ...] = ()
    low: bool = False


@dataclass(frozen=True)
class Finding:
    """What decoding one record showed; `size` is (height, width), `area` the lesion's pixels; None
    where it failed.

    `signature` is what near-duplicates are found by, where it was asked for. The others as in
    `Loaded`.
    """

    record: Record
    problems: tuple[Problem, ...]
    size: tuple[int, int] | None = None
    area: int | None = None
    mode: str = ""
    signature: Signature | None = None
    masks: tuple[tuple[Path, MaskLevels], ...] = ()
    turned: tuple[Path, ...] = ()
    low: bool = False


def load_record(
    record: Record, options: ReadingOptions = DEFAULT, rule: MaskRule | None = None
) -> Loaded:
    """Decode one record.

    Args:
        record: whose files.
        options: the pixel budget and the value of white.
        rule: of the masks of its data set; None decides it over this record's alone.

    Raises:
        ImageError: a file of the record cannot be used.
    """
    decoded = decode_image(record.image, options.max_pixels)
    white = decoded.levels(options.levels)
    image = to_grey(decoded.scan(), record.image, white)
    low = low_range(decoded.scan(), white)
    frame = decoded.pixels.shape[:2]
    turned = [record.image] if decoded.orientation != 1 else []
    levels: tuple[tuple[Path, MaskLevels], ...] = ()
    if record.regions:
        mask, warnings = draw_regions(record.regions, frame, record.image)
    else:
        masks = load_masks(record.masks, options.max_pixels)
        levels = tuple((each.path, each.levels) for each in masks)
        turned += [each.path for each in masks if each.orientation != 1]
        chosen = rule or decide(levels, options.mask_values)[0]
        drawn_on = _grid(masks, decoded)
        mask, warnings = merge(masks, drawn_on, chosen)
    if decoded.region is not None and mask.shape == frame:
        mask = decoded.region.crop(mask)
    warnings = [*([f"{record.image}: {decoded.note}"] if decoded.note else []), *warnings]
    if low is not None:
        warnings = [f"{record.image}: {low}", *warnings]
    spacing = decoded.spacing or options.spacing
    sample = Sample(image, mask, record.name, record.case, record.group, record.label, spacing)
    return Loaded(sample, warnings, decoded.mode, levels, tuple(turned), low is not None)


def _grid(masks: Sequence[LoadedMask], decoded: Decoded) -> tuple[int, int]:
    """(H, W) that the masks of a picture are drawn on: its scan where all have that size, else the
    whole of it."""
    frame = (decoded.pixels.shape[0], decoded.pixels.shape[1])
    shapes = {mask.pixels.shape[:2] for mask in masks}
    scan = decoded.region.shape if decoded.region else frame
    return scan if shapes == {scan} else frame


def draw_regions(
    regions: Iterable[Sequence[tuple[float, float]]], shape: tuple[int, int], name: object
) -> tuple[np.ndarray, list[str]]:
    """Fill polygons of (x, y) vertices, outline included, merged by OR: uint8 (H, W) in {0, 1}, and
    warnings."""
    mask = np.zeros(shape, np.uint8)
    outside = 0
    for region in regions:
        points = np.rint(np.asarray(region, np.float64)).astype(np.int32)
        outside += int(((points < 0) | (points >= (shape[1], shape[0]))).any(axis=1).sum())
        # One call for each: together, cv2 would fill by the even-odd rule and cut the overlap of
        # two regions out.
        cv2.fillPoly(mask, [points], 1)
    if outside:
        return mask, [
            f"{name}: {outside} outline points lie outside the {shape[1]} x {shape[0]} image: cut "
            "at its border"
        ]
    return mask, []


def largest_picture(record: Record, max_pixels: int) -> int:
    """Pixels of the largest picture of a record, by its header; of one beyond the bound, none."""
    return max(pixel_count(path, max_pixels) for path in (record.image, *record.masks))


def inspect_record(
    record: Record,
    options: ReadingOptions,
    rule: MaskRule | None,
    budget: PixelBudget,
    signatures: bool,
) -> Finding:
    """Decode a record within a pixel budget; a file that cannot be used is an error of the
    finding."""
    with budget.hold(largest_picture(record, options.max_pixels)):
        return _inspect(record, options, rule, signatures)


def _inspect(
    record: Record, options: ReadingOptions, rule: MaskRule | None, signatures: bool
) -> Finding:
    try:
        loaded = load_record(record, options, rule)
    except ImageError as error:
        # The first fault ended the load; the other files of the record may have faults of their
        # own.
        paths = (record.image, *record.masks)
        faults = list(dict.fromkeys([str(error), *_decoding_faults(paths, options.max_pixels)]))
        return Finding(record, tuple(problem_of("error", text, record) for text in faults))
    sample = loaded.sample
    warnings = [*loaded.warnings, *_doubts(record, sample.mask)]
    problems = tuple(problem_of("warning", warning, record) for warning in warnings)
    seen = None
    if signatures:
        # Stretched where it is nearly black: near-duplicates do not depend on --levels.
        stretch = float(sample.image.max()) if loaded.low else 0.0
        seen = signature(sample.image / stretch if stretch else sample.image, sample.mask)
    height, width = sample.image.shape
    return Finding(
        record,
        problems,
        (height, width),
        int(np.count_nonzero(sample.mask)),
        loaded.mode,
        seen,
        loaded.masks,
        loaded.turned,
        loaded.low,
    )


def _doubts(record: Record, mask: np.ndarray) -> Iterator[str]:
    share = np.count_nonzero(mask) / mask.size
    if share > _COVERS_ALL:
        yield f"{record.image}: its mask covers {share:.0%} of the image: is it inverted?"
    lesion = share > 0
    if (record.label in ("benign", "malignant") and not lesion) or (
        record.label == "normal" and lesion
    ):
        shown = "shows a lesion" if lesion else "is empty"
        yield f"{record.image}: class {record.label}, but its mask {shown}"


def _decoding_faults(paths: Iterable[Path], max_pixels: int) -> Iterator[str]:
    for path in paths:
        try:
            decode_image(path, max_pixels)
        except ImageError as error:
            yield str(error)
