"""`intrasense-fast verify`: look through a data set and name every fault."""

import argparse
from pathlib import Path

from intrasense_fast.commands.arguments import add_reading_arguments, reading_flags
from intrasense_fast.console import show, show_next
from intrasense_fast.data.contact_sheet import write_contact_sheet
from intrasense_fast.data.reading import options_of
from intrasense_fast.data.verify import check_sheet, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of the data set")
    parser.add_argument(
        "--contact-sheet",
        metavar="FILE.png",
        help="draw near-duplicates and views side by side, with masks and conflicts in colour",
    )
    add_reading_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when every file can be used (warnings are shown), 1 with errors.

    Raises:
        DataError: there is no data set, or the contact sheet cannot be drawn where it should.
    """
    sheet = Path(args.contact_sheet) if args.contact_sheet else None
    if sheet:
        check_sheet(sheet)
    report = verify(
        args.path,
        args.layout,
        skip_bad=args.skip_bad,
        progress=True,
        options=options_of(args),
    )
    show(str(report))
    if sheet:
        write_contact_sheet(sheet, report.data, report.duplicates)
        clusters, views = len(report.duplicates.clusters), len(report.duplicates.views)
        show(f"{clusters} clusters of near-duplicates, {views} of one view, are drawn in {sheet}")
    if report.errors:
        args.skip_bad = True
        flags = reading_flags(args)
        show_next("verify", args.path, *flags, instead=", or put the files above right")
        return 1
    show_next("train", "--data", args.path, *reading_flags(args))
    return 0
