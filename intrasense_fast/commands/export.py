"""`intrasense-fast export`: a checkpoint as one file for other programs."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from intrasense_fast.commands.arguments import (
    add_calibration_argument,
    add_network_argument,
    checkpoint_folder,
    trust,
)
from intrasense_fast.console import show
from intrasense_fast.errors import UsageError
from intrasense_fast.export.model import OUTPUTS, PROBABILITIES
from intrasense_fast.export.onnx import FLOAT32, PRECISIONS
from intrasense_fast.export.write import (
    SUFFIXES,
    Exported,
    ExportOptions,
    check_options,
    export_checkpoint,
)
from intrasense_fast.inference import open_segmenter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        required=True,
        action="append",
        metavar="RUN/best",
        help="folder with config.json and model.safetensors; one, since a file holds one network",
    )
    parser.add_argument("--format", required=True, choices=SUFFIXES, help="what is written")
    parser.add_argument("--out", required=True, metavar="FILE", help="new file")
    parser.add_argument(
        "--output",
        choices=OUTPUTS,
        default=PROBABILITIES,
        help="what the file gives (default probabilities)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=FLOAT32,
        help="of an ONNX file; below float32 the Dice that is lost on the images of --calibrate "
        "is printed (default float32)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="images like those that the file will see, a data set or not: at most 64 are used",
    )
    add_calibration_argument(parser)
    parser.add_argument(
        "--keep-operators",
        action="store_true",
        help="pt2 only: keep the Triton kernels as custom operators; the file then needs this "
        "package and such a GPU",
    )
    parser.add_argument(
        "--check-all",
        action="store_true",
        help="check every size at batches 1, 3 and 16 (default: every size alone, batches at the "
        "smallest)",
    )
    add_network_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Export; 0 when the file was written and gives what the network gives.

    Raises:
        UsageError: nothing was written.
    """
    if len(args.checkpoint) > 1:
        raise UsageError(
            f"--checkpoint: a file holds one network, got {len(args.checkpoint)} checkpoints: "
            "export each to a file of its own"
        )
    options = ExportOptions(
        args.format,
        args.output,
        args.precision,
        args.calibrate,
        args.keep_operators,
        args.check_all,
    )
    out = Path(args.out)
    check_options(options, out)
    trust(args.network)
    device = None if options.keep_operators else "cpu"
    fused = options.keep_operators or None
    checkpoint = checkpoint_folder(args.checkpoint[0])
    try:
        segmenter = open_segmenter(checkpoint, device=device, fused=fused)
    except UsageError as error:
        # Said of the flag that this command has.
        raise UsageError(str(error).replace("--fused:", "--keep-operators:", 1)) from error
    if segmenter.remark:
        show(f"warning: {segmenter.remark}", sys.stderr)
    if not args.calibration:
        segmenter = replace(segmenter, calibration=None)
    _show(export_checkpoint(segmenter, checkpoint, out, options), out)
    return 0


def _show(exported: Exported, out: Path) -> None:
    checked = exported.checked
    shapes = ", ".join("x".join(map(str, shape)) for shape in checked.shapes)
    again = f"; {checked.ties} images drawn again, undecided in Eq. 6" if checked.ties else ""
    show(
        f"{out}: {out.stat().st_size / 2**20:.1f} MB, any batch, sizes {exported.sizes}; within "
        f"{checked.deviation:.1g} of the network in probability at {shapes}{again}"
    )
    if exported.lost is not None:
        show(str(exported.lost))
    for remark in exported.remarks:
        show(f"note: {remark}")
