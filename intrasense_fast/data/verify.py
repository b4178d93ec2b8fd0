"""Look at every file of a data set and say what is wrong with it."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intrasense_fast.data.duplicates import Duplicates, inspect_and_search, regrouped
from intrasense_fast.data.layouts import read_dataset
from intrasense_fast.data.reading import DEFAULT, ReadingOptions
from intrasense_fast.data.records import (
    DataError,
    Finding,
    Problem,
    SegmentationData,
    accept,
    table,
)
from intrasense_fast.files import check_place


@dataclass(frozen=True)
class Report:
    """What `verify` saw: the data set, a finding for each record, near-duplicates, problems;
    `str(report)` is printed."""

    data: SegmentationData
    findings: tuple[Finding, ...]
    duplicates: Duplicates

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.data.problems

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.level == "error")

    def __str__(self) -> str:
        rows = self.data.facts()
        problems = rows.pop()
        sizes = Counter(finding.size for finding in self.findings if finding.size)
        areas = [
            100 * finding.area / (finding.size[0] * finding.size[1])
            for finding in self.findings
            if finding.size and finding.area
        ]
        empty = Counter(
            finding.record.label or "unknown" for finding in self.findings if finding.area == 0
        )
        rows += [
            ("empty masks", _counts(empty) if empty else "0"),
            (
                "lesion area",
                f"median {np.median(areas):.1f} % of the image, {min(areas):.2f} to "
                f"{max(areas):.1f} %"
                if areas
                else "none",
            ),
            ("sizes (width x height)", _sizes(sizes)),
            (
                "colour modes",
                _counts(Counter(finding.mode for finding in self.findings if finding.size)),
            ),
            (
                "near-duplicates",
                f"{self.duplicates.images} images in {len(self.duplicates.clusters)} clusters",
            ),
            ("same view", self._views()),
            *self._reading(),
            problems,
        ]
        return "\n".join([table(rows, self.data.note), *map(str, self.problems)])

    def _views(self) -> str:
        views = self.duplicates.views
        return f"{sum(map(len, views))} images in {len(views)} clusters, near-duplicates included"

    def _reading(self) -> list[tuple[str, str]]:
        """Rows on how the files were read: mask values, orientation tags, low levels."""
        rows = []
        rule = self.data.masks.rule() if self.data.masks and self.data.masks.files else None
        if rule is not None:
            rows.append(("mask values", rule.describe()))
        images = {finding.record.image for finding in self.findings}
        turned = [path for finding in self.findings for path in finding.turned]
        pictures = sum(path in images for path in turned)
        if turned:
            counts = (
                f"{pictures} images and {len(turned) - pictures} masks, turned as people see them"
            )
            rows.append(("orientation tags", counts))
        low = sum(finding.low for finding in self.findings)
        if low:
            rows.append(("low levels", f"{low} images use less than a tenth of their range"))
        return rows


def verify(
    path: str | os.PathLike[str],
    layout: str = "auto",
    *,
    skip_bad: bool = False,
    progress: bool = False,
    options: ReadingOptions = DEFAULT,
) -> Report:
    """Open a data set, decode every file once, and report all problems; with `skip_bad`, what would
    be left out is a warning.

    Raises:
        DataError: the folder is missing, empty or of another layout; or `skip_bad` leaves nothing.
    """
    data = read_dataset(path, layout, options)
    listed, found = inspect_and_search(data, progress=progress)
    findings = tuple(listed)
    data = regrouped(data.with_findings(findings), found)
    return Report(accept(data, skip_bad=True) if skip_bad else data, findings, found)


def check_sheet(sheet: Path) -> None:
    """Find out before long work whether a contact sheet can be drawn there.

    Raises:
        DataError: it exists, or its name does not end in .png.
        OSError: no file can be made there.
    """
    if sheet.exists():
        raise DataError(
            f"--contact-sheet {sheet}: exists already, and nothing is overwritten: choose another "
            f"name"
        )
    if sheet.suffix.casefold() != ".png":
        raise DataError(
            f"--contact-sheet {sheet}: a name that ends in .png is needed: choose another name"
        )
    check_place(sheet)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counter.most_common()) or "none"


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "none"
    (height, width), number = sizes.most_common(1)[0]
    if len(sizes) == 1:
        return f"{width} x {height}"
    heights, widths = zip(*sizes, strict=True)
    return (
        f"{min(widths)} to {max(widths)} x {min(heights)} to {max(heights)}, {len(sizes)} "
        f"different, "
        f"most often {width} x {height} ({number})"
    )
