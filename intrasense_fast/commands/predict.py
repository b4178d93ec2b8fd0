"""`intrasense-fast predict`: segment images."""

import argparse
import sys
from pathlib import Path

from intrasense_fast.commands.arguments import (
    add_checkpoint_arguments,
    add_measuring_arguments,
    add_picture_arguments,
    checkpoint_flags,
    clean_up_of,
    ensemble_from,
    measuring_flags,
    picture_flags,
)
from intrasense_fast.console import command_line, show
from intrasense_fast.data.joining import few
from intrasense_fast.data.reading import options_of
from intrasense_fast.prediction import Predicted, predict_files
from intrasense_fast.prediction.table import SETTINGS
from intrasense_fast.signals import Stopped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IMAGE|CLIP|FOLDER",
        help="an image or a clip, or a folder whose images and clips are all segmented",
    )
    add_checkpoint_arguments(parser)
    add_picture_arguments(parser)
    add_measuring_arguments(parser)
    parser.add_argument(
        "--probabilities", action="store_true", help="also write NAME_probability.png, 16-bit"
    )
    parser.add_argument(
        "--maps",
        action="store_true",
        help="also write NAME_entropy.png and, of several opinions, NAME_disagreement.png, 16-bit",
    )
    parser.add_argument(
        "--contours",
        action="store_true",
        help="also write contours.json, all outlines in COCO's format, and NAME_contour.png",
    )
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help="also write NAME_seg.dcm, a DICOM Segmentation, of each DICOM file of one frame",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="threads that read images ahead (default 0: read when needed)",
    )
    parser.add_argument(
        "--continue",
        dest="go_on",
        action="store_true",
        help="go on in the folder of an earlier call: do what is missing, failed or changed",
    )


def run(args: argparse.Namespace) -> int:
    """Segment; 0 when all went well, 1 when some images failed and were named, 130 or 143 when a
    signal stopped it.

    Raises:
        UsageError: nothing could start.
    """
    try:
        predicted = predict_files(
            args.input,
            args.out,
            lambda: ensemble_from(args),
            threshold=args.threshold,
            probabilities=args.probabilities,
            maps=args.maps,
            workers=args.workers,
            contours=args.contours,
            dicom_seg=args.dicom_seg,
            clean_up=clean_up_of(args),
            options=options_of(args),
            go_on=args.go_on,
        )
    except Stopped as stopped:
        show(f"\nstopped; what is written is whole. Go on with: {_going_on(args)}")
        return stopped.exit_code
    except (KeyboardInterrupt, OSError):
        if (Path(args.out) / SETTINGS).exists():
            show(f"\nstopped; predictions.csv is whole. Go on with: {_going_on(args)}", sys.stderr)
        raise
    _show(predicted, args.out)
    return 1 if predicted.failures else 0


def _show(predicted: Predicted, out: str) -> None:
    before = f", {predicted.kept} were segmented before" if predicted.kept else ""
    frames = f", {predicted.frames} frames of clips among them" if predicted.frames else ""
    show(
        f"{predicted.written} of {predicted.images} images segmented{before}{frames}; "
        f"masks, overlays and predictions.csv are in {out}"
    )
    if predicted.answered:
        rate = predicted.answered / max(predicted.seconds, 1e-9)
        show(f"{predicted.answered} images in {predicted.seconds:.1f} s: {rate:.3g} a second")
    if len(predicted.doubted) > 1:
        names = ", ".join(f"{name} ({doubt:.2f})" for name, doubt in predicted.doubted)
        show(f"look at these first, the most doubted: {names}")
    if predicted.remarks:
        names = few([text.partition(": ")[0] for text in predicted.remarks])
        show(
            f"warning: look at the column message of {len(predicted.remarks)} inputs ({names}); "
            f"of the first: {predicted.remarks[0]}",
            sys.stderr,
        )
    for failure in predicted.failures:
        show(f"failed: {failure}", sys.stderr)


def _going_on(args: argparse.Namespace) -> str:
    flags = [*checkpoint_flags(args), *picture_flags(args), *measuring_flags(args)]
    flags += ["--probabilities"] if args.probabilities else []
    flags += ["--maps"] if args.maps else []
    flags += ["--contours"] if args.contours else []
    flags += ["--dicom-seg"] if args.dicom_seg else []
    flags += ["--workers", str(args.workers)] if args.workers else []
    return command_line("predict", args.input, *flags, "--continue")
