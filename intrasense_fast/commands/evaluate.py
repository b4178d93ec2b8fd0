"""`intrasense-fast evaluate`: measure a checkpoint on a data set with ground truth."""

import argparse
import sys

from intrasense_fast.commands.arguments import (
    add_checkpoint_arguments,
    add_measuring_arguments,
    add_reading_arguments,
    clean_up_of,
    ensemble_from,
    named_from,
)
from intrasense_fast.console import show
from intrasense_fast.data.reading import options_of
from intrasense_fast.evaluation import evaluate_data
from intrasense_fast.files import escaped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="folder of a data set in any known layout")
    add_checkpoint_arguments(parser)
    add_reading_arguments(parser)
    add_measuring_arguments(parser)
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--held-out",
        action="store_true",
        help="leave out the images that trained or selected a checkpoint, by their bytes",
    )
    asked.add_argument(
        "--out-of-fold",
        action="store_true",
        help="ask of each image only the checkpoints that were neither trained nor selected on it",
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
    named = named_from(args)
    evaluated = evaluate_data(
        args.data,
        named.checkpoints,
        args.out,
        lambda: ensemble_from(args, named),
        layout=args.layout,
        skip_bad=args.skip_bad,
        threshold=args.threshold,
        empty=args.empty,
        options=options_of(args),
        held_out=args.held_out,
        out_of_fold=args.out_of_fold,
        clean_up=clean_up_of(args),
    )
    for fault in evaluated.faults:
        show(f"warning: {fault}", sys.stderr)
    for failure in evaluated.failures:
        show(f"failed: {escaped(failure)}", sys.stderr)
    show(evaluated.table)
    show(
        "per_image.csv, summary.json, summary.txt, doubt.png and overlays.png (worst to best) "
        f"are in {args.out}"
    )
    return 1 if evaluated.failures else 0
