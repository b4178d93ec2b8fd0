"""`intrasense-fast predict`: segment images."""

import argparse
import sys

from intrasense_fast.commands.arguments import (
    add_checkpoint_arguments,
    add_picture_arguments,
    segmenter_of,
)
from intrasense_fast.console import show
from intrasense_fast.data.reading import options_of
from intrasense_fast.files import escaped
from intrasense_fast.prediction import predict_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="IMAGE|FOLDER", help="an image, or a folder whose images are all segmented"
    )
    add_checkpoint_arguments(parser)
    add_picture_arguments(parser)
    parser.add_argument(
        "--probabilities", action="store_true", help="also write NAME_probability.png, 16-bit"
    )


def run(args: argparse.Namespace) -> int:
    """Segment; 0 when all went well, 1 when some images failed and were named.

    Raises:
        UsageError: nothing could start.
    """
    predicted = predict_files(
        args.input,
        args.out,
        lambda: segmenter_of(args),
        threshold=args.threshold,
        probabilities=args.probabilities,
        options=options_of(args),
    )
    show(
        f"{predicted.written} of {predicted.images} images segmented; "
        f"masks, overlays and predictions.csv are in {args.out}"
    )
    for failure in predicted.failures:
        show(f"failed: {escaped(failure)}", sys.stderr)
    return 1 if predicted.failures else 0
