"""What a data set is made of: records (files of one image), samples (its pixels), problems (what is wrong with a file)."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, overload

import cv2
import numpy as np
from tqdm import tqdm

from intrasense_fast.data.images import ImageError, decode_image, read_mask, to_grey
from intrasense_fast.data.order import natural_key
from intrasense_fast.data.signatures import Signature, signature

_SHOWN_ERRORS = 100
_COVERS_ALL = 0.9

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one file. An "error" keeps the image out of use; a "warning" was handled as the message says."""

    level: Literal["error", "warning"]
    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.file}: {self.message}"


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
    """One decoded image: `image` float32 (H, W) in [0, 1], `mask` uint8 (H, W) in {0, 1}, and who it is."""

    image: np.ndarray
    mask: np.ndarray
    name: str
    case: str
    group: str
    label: str


@dataclass(frozen=True)
class Finding:
    """What decoding one record showed; `size` is (height, width), `area` the lesion's pixels; None where it failed.

    `signature` is what near-duplicates are found by, where it was asked for.
    """

    record: Record
    problems: tuple[Problem, ...]
    size: tuple[int, int] | None = None
    area: int | None = None
    mode: str = ""
    signature: Signature | None = None


def load_record(record: Record) -> tuple[Sample, list[str], str]:
    """Decode one record: the sample, warnings (each naming its file), and the image's colour mode.

    Raises:
        ImageError: a file of the record cannot be used.
    """
    pixels, mode = decode_image(record.image)
    image = to_grey(pixels, record.image)
    if record.regions:
        mask, warnings = draw_regions(record.regions, image.shape[:2], record.image)
    else:
        mask, warnings = read_mask(record.masks, image.shape[:2])
    return Sample(image, mask, record.name, record.case, record.group, record.label), warnings, mode


def draw_regions(
    regions: Iterable[Sequence[tuple[float, float]]], shape: tuple[int, int], name: object
) -> tuple[np.ndarray, list[str]]:
    """Fill polygons of (x, y) vertices, outline included, merged by OR: uint8 (H, W) in {0, 1}, and warnings."""
    mask = np.zeros(shape, np.uint8)
    outside = 0
    for region in regions:
        points = np.rint(np.asarray(region, np.float64)).astype(np.int32)
        outside += int(((points < 0) | (points >= (shape[1], shape[0]))).any(axis=1).sum())
        # One call for each: together, cv2 would fill by the even-odd rule and cut the overlap of two regions out.
        cv2.fillPoly(mask, [points], 1)
    if outside:
        return mask, [
            f"{name}: {outside} outline points lie outside the {shape[1]} x {shape[0]} image: cut at its border"
        ]
    return mask, []


@dataclass(frozen=True)
class SegmentationData(Sequence[Sample]):
    """The samples of a folder in natural order of their names; pixels are decoded on access, never before.

    Attributes:
        root: the folder the layout was found in.
        layout: the layout's name.
        records: one record for each usable image.
        problems: everything that was repaired, reported or left out.
        published: split lists that came with the data: list name -> record names.
        note: what the layout cannot tell, for instance which patient an image is of.
    """

    root: Path
    layout: str
    records: tuple[Record, ...]
    problems: tuple[Problem, ...] = ()
    published: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "SegmentationData": ...
    def __getitem__(self, index: int | slice) -> "Sample | SegmentationData":
        """Decode one sample (ImageError names a file that fails), or take a slice as a data set of its own."""
        if isinstance(index, slice):
            return replace(self, records=self.records[index])
        return load_record(self.records[index])[0]

    def __iter__(self) -> Iterator[Sample]:
        return (load_record(record)[0] for record in self.records)

    def subset(self, indices: Iterable[int]) -> "SegmentationData":
        """The data set of the records at `indices`, in that order."""
        return replace(self, records=tuple(self.records[index] for index in indices))

    def inspect(self, progress: bool = False, *, signatures: bool = False) -> list[Finding]:
        """Decode every record once, in threads; one finding a record, in order. `progress` shows a bar."""
        return list(
            threaded(partial(_inspect, signatures=signatures), self.records, "check", progress)
        )

    def check(self, progress: bool = False) -> list[Problem]:
        """Decode every record once and list what is wrong with it, by file. `progress` shows a bar."""
        return [problem for finding in self.inspect(progress) for problem in finding.problems]

    def checked(self, *, skip_bad: bool = False, progress: bool = False) -> "SegmentationData":
        """This data set after decoding everything once, with what was found added to `problems`.

        Raises:
            DataError: a file cannot be used, unless `skip_bad` leaves its record out (and `problems` says so); or none is left.
        """
        return accept(self.with_findings(self.inspect(progress)), skip_bad=skip_bad)

    def with_findings(self, findings: Iterable[Finding]) -> "SegmentationData":
        """The records that could be decoded, and the findings' problems added to `problems`."""
        findings = list(findings)
        sound = [finding.record for finding in findings if finding.size is not None]
        return self.with_records(
            sound, [problem for finding in findings for problem in finding.problems]
        )

    def with_records(
        self, records: Iterable[Record], problems: Iterable[Problem] = ()
    ) -> "SegmentationData":
        """The same data set with other records, for instance regrouped ones, and more problems."""
        return replace(self, records=tuple(records), problems=(*self.problems, *problems))

    def describe(self) -> str:
        """A table of what is known without decoding: layout, images, masks, classes, groups, problems."""
        return table(self.facts(), self.note)

    def facts(self) -> list[tuple[str, str]]:
        """The rows of `describe`: (what, value)."""
        several = sum(len(record.masks) > 1 or len(record.regions) > 1 for record in self.records)
        labels = Counter(record.label or "unknown" for record in self.records)
        levels = Counter(problem.level for problem in self.problems)
        return [
            ("folder", str(self.root)),
            ("layout", self.layout),
            ("images", str(len(self))),
            (
                "masks",
                str(sum(len(record.masks) or len(record.regions) for record in self.records)),
            ),
            ("images with several masks", str(several)),
            (
                "classes",
                ", ".join(f"{label} {labels[label]}" for label in sorted(labels, key=natural_key)),
            ),
            ("groups", str(len({record.group for record in self.records}))),
            (
                "published splits",
                ", ".join(f"{name} {len(names)}" for name, names in self.published.items())
                or "none",
            ),
            ("problems", f"{levels['error']} errors, {levels['warning']} warnings"),
        ]


def accept(data: SegmentationData, *, skip_bad: bool) -> SegmentationData:
    """`data` if it has no errors; with `skip_bad`, `data` with each error turned into a warning that says what was left out.

    Raises:
        DataError: there are errors and not `skip_bad`, or no record is left.
    """
    errors = [problem for problem in data.problems if problem.level == "error"]
    if errors and not skip_bad:
        listed = "\n".join(
            f"  {problem.file}: {problem.message}" for problem in errors[:_SHOWN_ERRORS]
        )
        more = f"\n  and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
        raise DataError(
            f"{data.root}: {len(errors)} files of this {data.layout} data set cannot be used:\n{listed}{more}\n"
            "Mend them, or leave them out explicitly with skip_bad (--skip-bad).",
            data.problems,
        )
    problems = tuple(
        Problem("warning", problem.file, f"left out: {problem.message}")
        if problem.level == "error"
        else problem
        for problem in data.problems
    )
    if not data.records:
        raise DataError(
            f"{data.root}: no usable image with its mask is left in this {data.layout} data set",
            data.problems,
        )
    return replace(data, problems=problems)


def threaded(
    function: Callable[[Item], Result], items: Sequence[Item], what: str, progress: bool
) -> Iterator[Result]:
    """`function` of each item, in threads and in order, with a bar on request; an interrupt drops what has not begun."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield from tqdm(
            pool.map(function, items),
            what,
            len(items),
            unit="image",
            disable=not progress,
            leave=False,
        )
    finally:
        pool.shutdown(cancel_futures=True)


def table(rows: Iterable[tuple[str, str]], note: str = "") -> str:
    """Two aligned columns, and a note below."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        [f"{name:<{width}}  {value}" for name, value in rows] + ([f"note: {note}"] if note else [])
    )


def _inspect(record: Record, signatures: bool) -> Finding:
    try:
        sample, warnings, mode = load_record(record)
    except ImageError as error:
        # The first fault ended the load; the other files of the record may have faults of their own.
        faults = list(dict.fromkeys([str(error), *_decoding_faults((record.image, *record.masks))]))
        return Finding(record, tuple(problem_of("error", text, record) for text in faults))
    height, width = sample.image.shape
    area = int(sample.mask.sum())
    if area > _COVERS_ALL * height * width:
        warnings.append(
            f"{record.image}: its mask covers {area / (height * width):.0%} of the image: is it inverted?"
        )
    if (record.label in ("benign", "malignant") and not area) or (
        record.label == "normal" and area
    ):
        warnings.append(
            f"{record.image}: class {record.label}, but its mask {'shows a lesion' if area else 'is empty'}"
        )
    problems = tuple(problem_of("warning", warning, record) for warning in warnings)
    seen = signature(sample.image, sample.mask) if signatures else None
    return Finding(record, problems, (height, width), area, mode, seen)


def _decoding_faults(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        try:
            decode_image(path)
        except ImageError as error:
            yield str(error)


def problem_of(level: Literal["error", "warning"], text: str, record: Record) -> Problem:
    """Split "FILE: MESSAGE" at the file of the record that the text begins with."""
    for path in (record.image, *record.masks):
        if text.startswith(f"{path}: "):
            return Problem(level, str(path), text[len(f"{path}: ") :])
    return Problem(level, str(record.image), text)
