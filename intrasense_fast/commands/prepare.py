"""`intrasense-fast prepare`: write a clean copy of a data set."""

import argparse

from intrasense_fast.commands.arguments import add_reading_arguments
from intrasense_fast.console import show, show_next
from intrasense_fast.data.prepare import left_out_or_repaired, prepare
from intrasense_fast.data.reading import options_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of the data set")
    parser.add_argument(
        "--out", required=True, help="folder to write; it must not exist, or be empty"
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=256,
        help="pixels of the square copy, or 'original' (default: 256)",
    )
    add_reading_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the copy and print its table and what was left out or repaired; 0 done. Errors as in
    `prepare`.
    """
    copy = prepare(
        args.path,
        args.out,
        args.size,
        args.layout,
        skip_bad=args.skip_bad,
        progress=True,
        options=options_of(args),
    )
    show("\n".join([copy.describe(), *left_out_or_repaired(args.out)]))
    show_next("train", "--data", args.out)
    return 0


def _size(text: str) -> int | None:
    if text == "original":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a positive number of pixels, or 'original'")
    return int(text)
