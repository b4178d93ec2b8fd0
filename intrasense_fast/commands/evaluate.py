"""`intrasense-fast evaluate`: measure a checkpoint on a data set with ground truth."""

import argparse
import sys

from intrasense_fast.commands.arguments import (
    add_checkpoint_arguments,
    add_reading_arguments,
    checkpoint_folder,
    segmenter_of,
)
from intrasense_fast.console import show
from intrasense_fast.data.reading import options_of
from intrasense_fast.evaluation import evaluate_data
from intrasense_fast.files import escaped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="folder of a data set in any known layout")
    add_checkpoint_arguments(parser)
    add_reading_arguments(parser)
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="leave out the images that trained or selected the checkpoint, by their bytes",
    )
    parser.add_argument(
        "--empty",
        choices=("nan", "one"),
        default="nan",
        help="metrics of two empty masks (default nan)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate; 0 when every image was measured, 1 when some failed and were named.

    Raises:
        UsageError, DataError: nothing could start.
    """
    folder = checkpoint_folder(args.checkpoint)
    evaluated = evaluate_data(
        args.data,
        str(folder),
        args.out,
        lambda: segmenter_of(args, folder),
        layout=args.layout,
        skip_bad=args.skip_bad,
        threshold=args.threshold,
        empty=args.empty,
        options=options_of(args),
        held_out=args.held_out,
    )
    for fault in evaluated.faults:
        show(f"warning: {fault}", sys.stderr)
    for failure in evaluated.failures:
        show(f"failed: {escaped(failure)}", sys.stderr)
    show(evaluated.table)
    show(
        "per_image.csv, summary.json, summary.txt and overlays.png (worst to best) "
        f"are in {args.out}"
    )
    return 1 if evaluated.failures else 0
