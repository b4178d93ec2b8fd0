"""The arguments that several commands share."""

import argparse
import sys
from pathlib import Path

from intrasense_fast.console import show
from intrasense_fast.data.layouts import LAYOUTS
from intrasense_fast.data.reading import HELP
from intrasense_fast.errors import UsageError
from intrasense_fast.inference import AMPS
from intrasense_fast.inference.ensemble import AT_A_TIME, Ensemble
from intrasense_fast.inference.opening import TUNED, Named, named_checkpoints, open_ensemble
from intrasense_fast.measuring.components import CleanUp
from intrasense_fast.networks import list_networks, register_network
from intrasense_fast.networks.hub import locate
from intrasense_fast.precision import OFF


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that writes what checkpoints say."""
    add_ensemble_arguments(parser)
    parser.add_argument("--out", required=True, help="new folder for the results")
    parser.add_argument(
        "--threshold",
        type=_threshold,
        default=0.5,
        metavar="P",
        help="probability above which a pixel is lesion (default 0.5), or tuned: the one with the "
        "best Dice on the images that selected the checkpoint",
    )


def add_ensemble_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that runs checkpoints; see `ensemble_from`."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        action="append",
        metavar="RUN/best",
        help="folder with config.json and model.safetensors, or owner/name[@revision] on the "
        "Hugging Face Hub; a folder of that name comes first. Given several times, or a "
        "cross-validated RUN, all of them answer together",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="also ask for mirror images, the flips of the checkpoint's training, and average",
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=None,
        metavar="SIDE",
        help="see larger images in overlapping tiles of SIDE pixels, instead of whole and made "
        "smaller",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=AT_A_TIME,
        metavar="N",
        help=f"images at a time (default {AT_A_TIME})",
    )
    add_calibration_argument(parser)
    parser.add_argument(
        "--size", type=int, help="side the network sees (default: the checkpoint's image size)"
    )
    parser.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--fused",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="Triton kernels or eager operators",
    )
    parser.add_argument(
        "--amp",
        choices=AMPS,
        default=OFF,
        help="bf16: products in bfloat16, 1.6 to 1.8 times as fast on processors that have it "
        "(default off)",
    )
    add_network_argument(parser)


def add_network_argument(parser: argparse.ArgumentParser) -> None:
    """--network, of every command that opens a checkpoint; see `trust`."""
    parser.add_argument(
        "--network",
        metavar="MODULE:FACTORY",
        help="code of your own that the checkpoint names and that you trust",
    )


def add_calibration_argument(parser: argparse.ArgumentParser) -> None:
    """--calibration, of every command whose probabilities a checkpoint makes."""
    parser.add_argument(
        "--calibration",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="apply the temperatures in the checkpoints (default yes)",
    )


def checkpoint_flags(args: argparse.Namespace) -> list[str]:
    """The options above as they were given."""
    flags = [text for name in args.checkpoint for text in ("--checkpoint", name)]
    flags += ["--out", args.out, "--threshold", str(args.threshold)]
    flags += ["--amp", args.amp] if args.amp != OFF else []
    flags += ["--tta"] if args.tta else []
    flags += ["--batch", str(args.batch)] if args.batch != AT_A_TIME else []
    flags += [] if args.calibration else ["--no-calibration"]
    for name in ("size", "tile", "device", "network"):
        if getattr(args, name) is not None:
            flags += [f"--{name}", str(getattr(args, name))]
    if args.fused is not None:
        flags.append("--fused" if args.fused else "--no-fused")
    return flags


def ensemble_from(args: argparse.Namespace, known: Named | None = None) -> Ensemble:
    """The networks that `add_ensemble_arguments` describes; remarks on the checkpoints are
    printed.

    `known` is what `named_from` gave, where it was asked already.

    Raises:
        UsageError: an argument that cannot be used, or a checkpoint that is damaged.
    """
    trust(args.network)
    named = known or named_from(args)
    ensemble = open_ensemble(
        named.checkpoints,
        size=args.size,
        device=args.device,
        fused=args.fused,
        amp=args.amp,
        calibrate=args.calibration,
        tta=args.tta,
        tile=args.tile,
        batch=args.batch,
    )
    for remark in [*named.remarks, *(member.remark for member in ensemble.members)]:
        if remark:
            show(f"warning: {remark}", sys.stderr)
    return ensemble


def named_from(args: argparse.Namespace) -> Named:
    """The checkpoints of a command line, as folders.

    Raises:
        UsageError: the Hub cannot give one, or one is named twice.
    """
    return named_checkpoints([str(checkpoint_folder(one)) for one in args.checkpoint])


def checkpoint_folder(checkpoint: str) -> Path:
    """The folder of a --checkpoint; of a repository of the Hub that of its cache, which is said.

    Raises:
        UsageError: the Hub cannot give it.
    """
    try:
        located = locate(checkpoint)
    except ValueError as error:
        raise UsageError(f"--checkpoint {error}") from error
    if located.repository:
        show(f"checkpoint: {located}")
    return located.folder


def trust(network: str | None) -> None:
    """Let a network from outside be built and loaded: its code was named on the command line.

    Raises:
        UsageError: it cannot be imported.
    """
    if network is None or network in list_networks() or ":" not in network:
        return
    try:
        register_network(network)
    except ValueError as error:
        raise UsageError(f"--network {error}") from error


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that opens a data set: --layout, --skip-bad, how files read."""
    parser.add_argument(
        "--layout",
        default="auto",
        choices=["auto", *LAYOUTS],
        help="how the folder is organised (default: detect)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave files out that cannot be used, and list them"
    )
    parser.add_argument("--mask-values", metavar="VALUES", help=HELP["mask_values"])
    add_picture_arguments(parser)


def reading_flags(args: argparse.Namespace) -> list[str]:
    """The flags above that were given, for the command that comes next."""
    flags = ["--skip-bad"] if args.skip_bad else []
    if args.mask_values is not None:
        flags += ["--mask-values", args.mask_values]
    return [*flags, *picture_flags(args)]


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that reads pictures: --max-pixels, --levels and --pairs."""
    parser.add_argument("--max-pixels", type=int, metavar="N", help=HELP["max_pixels"])
    parser.add_argument("--levels", type=int, metavar="N", help=HELP["levels"])
    parser.add_argument("--pairs", nargs=2, metavar=("IMAGE", "MASK"), help=HELP["pairs"])


def picture_flags(args: argparse.Namespace) -> list[str]:
    """The flags above that were given."""
    flags: list[str] = []
    for name in ("max_pixels", "levels"):
        if getattr(args, name) is not None:
            flags += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return [*flags, *(["--pairs", *args.pairs] if args.pairs else [])]


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that measures masks: --spacing and the clean-up."""
    parser.add_argument("--spacing", metavar="MM", help=HELP["spacing"])
    parser.add_argument(
        "--fill-holes", action="store_true", help="fill holes of predicted masks (default: no)"
    )
    parser.add_argument(
        "--min-area",
        type=int,
        default=0,
        metavar="N",
        help="remove components of fewer than N pixels from predicted masks (default 0: none)",
    )
    parser.add_argument(
        "--keep-largest",
        action="store_true",
        help="remove all components but the largest from predicted masks (default: no)",
    )


def clean_up_of(args: argparse.Namespace) -> CleanUp:
    """The clean-up that the arguments above ask for.

    Raises:
        UsageError: --min-area is below 0.
    """
    return CleanUp(args.fill_holes, args.min_area, args.keep_largest)


def measuring_flags(args: argparse.Namespace) -> list[str]:
    """The flags above that were given."""
    flags = ["--spacing", args.spacing] if args.spacing is not None else []
    flags += ["--fill-holes"] if args.fill_holes else []
    flags += ["--min-area", str(args.min_area)] if args.min_area else []
    return [*flags, *(["--keep-largest"] if args.keep_largest else [])]


def _threshold(text: str) -> float | str:
    try:
        return text if text == TUNED else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: a number from 0 to 1, or {TUNED}, is needed"
        ) from error
