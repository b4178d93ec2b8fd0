"""`intrasense-fast compare`: several networks on the same images, splits, epochs and seeds."""

import argparse

import torch

from intrasense_fast.commands.studies import add_study_arguments, run_study, seeds, shared_values
from intrasense_fast.errors import UsageError
from intrasense_fast.training.study import RECIPES, Study, comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--networks",
        nargs="+",
        metavar="NAME",
        help="networks by name, or module:factory of your own; options follow as "
        "NAME,OPTION=VALUE, pretrained encoders as NAME,encoder_weights=FILE",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="paper (default): cross-entropy and Dice on every output; own: each network's own",
    )
    parser.add_argument(
        "--reference", metavar="NAME", help="the row others are compared with (default intrasense)"
    )
    add_study_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Compare; 0 when done, 1 where runs failed, 130 or 143 when a signal stopped and saved it.

    Raises:
        UsageError, DataError: bad usage or input.
    """
    return run_study(args, _study, ("networks", "recipe", "reference"))


def _study(args: argparse.Namespace) -> Study:
    if args.networks is None:
        raise UsageError("--networks must name the networks to compare, such as intrasense unet")
    return comparison(
        args.networks,
        shared_values(args),
        recipe=args.recipe or RECIPES[0],
        seeds=seeds(args),
        reference=args.reference,
        gpu=torch.cuda.is_available(),
    )
