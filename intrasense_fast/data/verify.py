"""Look at every file of a data set and say what is wrong with it: `python -m intrasense_fast verify PATH`."""

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from intrasense_fast.data.contact_sheet import write_contact_sheet
from intrasense_fast.data.duplicates import Duplicates, find_duplicates, regrouped
from intrasense_fast.data.layouts import LAYOUTS, read_dataset
from intrasense_fast.data.records import (
    DataError,
    Finding,
    Problem,
    SegmentationData,
    accept,
    table,
)
from intrasense_fast.files import check_place, legible


@dataclass(frozen=True)
class Report:
    """What `verify` saw: the data set, a finding for each record, near-duplicates, problems; `str(report)` is printed."""

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
                f"median {np.median(areas):.1f} % of the image, {min(areas):.2f} to {max(areas):.1f} %"
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
            problems,
        ]
        return "\n".join([table(rows, self.data.note), *map(str, self.problems)])


def verify(
    path: str | os.PathLike[str],
    layout: str = "auto",
    *,
    skip_bad: bool = False,
    progress: bool = False,
) -> Report:
    """Open a data set, decode every file once, and report all problems; with `skip_bad`, what would be left out is a warning.

    Raises:
        DataError: the folder is missing, empty or of another layout; or `skip_bad` leaves nothing.
    """
    data = read_dataset(path, layout)
    findings = tuple(data.inspect(progress, signatures=True))
    found = find_duplicates(
        data.records, [finding.signature for finding in findings], progress=progress
    )
    data = regrouped(data.with_findings(findings), found)
    return Report(accept(data, skip_bad=True) if skip_bad else data, findings, found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of the data set")
    parser.add_argument(
        "--contact-sheet",
        metavar="FILE.png",
        help="draw the near-duplicates side by side, outlines of masks in colour",
    )
    add_reading_arguments(parser)


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that opens a data set: --layout and --skip-bad."""
    parser.add_argument(
        "--layout",
        default="auto",
        choices=["auto", *LAYOUTS],
        help="how the folder is organised (default: detect)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave files out that cannot be used, and list them"
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when every file can be used (warnings are shown), 1 with errors.

    Raises:
        DataError: there is no data set, or the contact sheet cannot be drawn where it should.
    """
    sheet = Path(args.contact_sheet) if args.contact_sheet else None
    if sheet and (sheet.exists() or sheet.suffix.casefold() != ".png"):
        reason = (
            "exists already, and nothing is overwritten"
            if sheet.exists()
            else "a name that ends in .png is needed"
        )
        raise DataError(f"--contact-sheet {sheet}: {reason}: choose another name")
    if sheet:
        check_place(sheet)
    report = verify(args.path, args.layout, skip_bad=args.skip_bad, progress=True)
    show(str(report))
    if sheet:
        write_contact_sheet(sheet, report.data, report.duplicates)
        show(f"{len(report.duplicates.clusters)} clusters of near-duplicates are drawn in {sheet}")
    return 1 if report.errors else 0


def show(text: str, stream: TextIO | None = None) -> None:
    """Print text that may hold file names the terminal's encoding does not know."""
    target = stream or sys.stdout
    encoding = getattr(target, "encoding", None) or "utf-8"
    print(legible(text).encode(encoding, "backslashreplace").decode(encoding), file=target)


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
        f"{min(widths)} to {max(widths)} x {min(heights)} to {max(heights)}, {len(sizes)} different, "
        f"most often {width} x {height} ({number})"
    )
