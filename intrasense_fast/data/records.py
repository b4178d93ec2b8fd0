"""A data set: its records, what decoding them showed, and what is wrong with its files."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar, overload

from tqdm import tqdm

from intrasense_fast.data.budget import PixelBudget
from intrasense_fast.data.inspection import (
    Finding,
    Loaded,
    inspect_record,
    load_record,
)
from intrasense_fast.data.items import DataError, Problem, Record, Sample, problem_of
from intrasense_fast.data.mask_values import MaskRule, decide
from intrasense_fast.data.masks import MaskDecision
from intrasense_fast.data.order import natural_key
from intrasense_fast.data.reading import DEFAULT, ReadingOptions
from intrasense_fast.files import escaped

__all__ = [
    "DataError",
    "Finding",
    "Problem",
    "Record",
    "Sample",
    "SegmentationData",
    "accept",
    "load_record",
    "problem_of",
    "table",
    "threaded",
]

_SHOWN_ERRORS = 100

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class SegmentationData(Sequence[Sample]):
    """The samples of a folder in natural order of their names; pixels are decoded on access, never
    before.

    Attributes:
        root: the folder the layout was found in.
        layout: the layout's name.
        records: one record for each usable image.
        problems: everything that was repaired, reported or left out.
        published: split lists that came with the data: list name -> record names.
        note: what the layout cannot tell, for instance which patient an image is of.
        options: how files are read.
        masks: the one rule by which all mask files are read; None reads each record by its own.
        joins: a line for each table: which rows and images met, and which columns were used.
    """

    root: Path
    layout: str
    records: tuple[Record, ...]
    problems: tuple[Problem, ...] = ()
    published: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""
    options: ReadingOptions = DEFAULT
    masks: MaskDecision | None = None
    joins: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "SegmentationData": ...
    def __getitem__(self, index: int | slice) -> "Sample | SegmentationData":
        """Decode one sample (ImageError names a file that fails), or take a slice as a data set of
        its own."""
        if isinstance(index, slice):
            return replace(self, records=self.records[index])
        return self.load(self.records[index]).sample

    def __iter__(self) -> Iterator[Sample]:
        return (self.load(record).sample for record in self.records)

    def load(self, record: Record) -> Loaded:
        """Decode a record of this data set; the first time, the rule of its masks is decided.

        Raises:
            ImageError: a file of the record cannot be used.
            DataError: the rule is ambiguous.
        """
        return load_record(record, self.options, self.decided())

    def decided(self) -> MaskRule | None:
        """The one rule of the masks, decided over all of them the first time.

        Raises:
            DataError: it is ambiguous; the message says how to give it.
        """
        rule = self.masks.rule() if self.masks else None
        if self.masks is not None and self.masks.problem is not None:
            raise DataError(f"{self.root}: masks: {self.masks.problem}", self.problems)
        return rule

    def subset(self, indices: Iterable[int]) -> "SegmentationData":
        """The data set of the records at `indices`, in that order."""
        return replace(self, records=tuple(self.records[index] for index in indices))

    def inspect(self, progress: bool = False, *, signatures: bool = False) -> list[Finding]:
        """Decode every record once, in threads; one finding a record, in order.

        The rule of the masks is decided on the way where it was not yet, and the few records that
        it changes are decoded again. At most `options.max_pixels` pixels of images are in memory at
        once, or one picture. `progress` shows a bar.
        """
        budget = PixelBudget(self.options.max_pixels)
        known = self.masks.rule() if self.masks and not self._covers_all_masks() else None
        inspect = partial(
            inspect_record, options=self.options, budget=budget, signatures=signatures
        )
        first = list(threaded(partial(inspect, rule=known), self.records, "check", progress))
        if known is not None or self.masks is None:
            return first
        rule = self.masks.settle([each for finding in first for each in finding.masks])
        changed = [i for i, finding in enumerate(first) if self._reads_otherwise(finding, rule)]
        again = threaded(
            partial(inspect, rule=rule),
            [self.records[i] for i in changed],
            "masks",
            progress and bool(changed),
        )
        for i, finding in zip(changed, again, strict=True):
            first[i] = finding
        return first

    def _covers_all_masks(self) -> bool:
        """Is the rule of the masks unknown, and do the records hold every file it is decided
        over?"""
        if self.masks is None or self.masks.decided:
            return False
        return {path for record in self.records for path in record.masks} == set(self.masks.files)

    def _reads_otherwise(self, finding: Finding, rule: MaskRule) -> bool:
        """Does the rule of the data set read these masks otherwise than the record's own did?"""
        own, _ = decide(finding.masks, self.options.mask_values)
        return any(own.lesion(levels) != rule.lesion(levels) for _, levels in finding.masks)

    def check(self, progress: bool = False) -> list[Problem]:
        """Decode every record once and list what is wrong with it, by file. `progress` shows a
        bar."""
        return [problem for finding in self.inspect(progress) for problem in finding.problems]

    def checked(self, *, skip_bad: bool = False, progress: bool = False) -> "SegmentationData":
        """This data set after decoding everything once, with what was found added to `problems`.

        Raises:
            DataError: a file cannot be used, unless `skip_bad` leaves its record out (and
                `problems` says so); or none is left.
        """
        return accept(self.with_findings(self.inspect(progress)), skip_bad=skip_bad)

    def with_findings(self, findings: Iterable[Finding]) -> "SegmentationData":
        """The records that could be decoded, and the findings' problems added to `problems`."""
        findings = list(findings)
        sound = [finding.record for finding in findings if finding.size is not None]
        problems = [problem for finding in findings for problem in finding.problems]
        if self.masks is not None and self.masks.problem is not None:
            problems.insert(0, Problem("error", str(self.root), f"masks: {self.masks.problem}"))
        return self.with_records(sound, problems)

    def with_records(
        self, records: Iterable[Record], problems: Iterable[Problem] = ()
    ) -> "SegmentationData":
        """The same data set with other records, for instance regrouped ones, and more problems."""
        return replace(self, records=tuple(records), problems=(*self.problems, *problems))

    def describe(self) -> str:
        """A table of what is known without decoding: layout, images, masks, classes, groups,
        problems."""
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
            *(("table", line) for line in self.joins),
            ("problems", f"{levels['error']} errors, {levels['warning']} warnings"),
        ]


def accept(data: SegmentationData, *, skip_bad: bool) -> SegmentationData:
    """`data` if it has no errors; with `skip_bad`, `data` with each error turned into a warning
    that says what was left out.

    Raises:
        DataError: there are errors and not `skip_bad`, or no record is left.
    """
    if data.masks is not None and data.masks.decided:
        data.decided()
    errors = [problem for problem in data.problems if problem.level == "error"]
    if errors and not skip_bad:
        listed = "\n".join(
            f"  {escaped(problem.file)}: {escaped(problem.message)}"
            for problem in errors[:_SHOWN_ERRORS]
        )
        more = f"\n  and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
        raise DataError(
            f"{data.root}: {len(errors)} files of this {data.layout} data set cannot be "
            f"used:\n{listed}{more}\n"
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
    """`function` of each item, in threads and in order, with a bar on request; an interrupt drops
    what has not begun."""
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
