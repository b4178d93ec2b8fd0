"""What `compare` and `ablate` share: the arguments of a study, a new one or one that goes on."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from intrasense_fast.commands.places import add_place_arguments, place_of
from intrasense_fast.errors import UsageError
from intrasense_fast.fields import add_flags, flag_of
from intrasense_fast.fields import given as given_of
from intrasense_fast.signals import Stopped
from intrasense_fast.training import studies
from intrasense_fast.training.config import (
    DataConfig,
    NetworkConfig,
    OptimisationConfig,
    TrainConfig,
)
from intrasense_fast.training.study import Study

_SEEDS = 3
# Of one run, or decided by the recipe.
_LEFT_OUT = ("fold", "loss", "loss_weights")
_DATA = tuple(item.name for item in fields(DataConfig) if item.name not in _LEFT_OUT)
_TRAINING = tuple(item.name for item in fields(OptimisationConfig) if item.name not in _LEFT_OUT)
_SHARED = (*_DATA, *_TRAINING, "in_channels", "preset")


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both commands."""
    parser.add_argument("--out", help="new folder for the study, or that of the same study")
    parser.add_argument(
        "--resume",
        metavar="OUT",
        help="go on with a study; only --jobs, --executor, --slurm and --report may be given "
        "beside it",
    )
    parser.add_argument(
        "--seeds", type=int, help=f"runs of each network on each fold (default {_SEEDS})"
    )
    add_place_arguments(parser)
    parser.add_argument(
        "--report",
        action="store_true",
        help="with --resume: train nothing, write the report of the runs that have ended",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the runs and how long they would take; write nothing",
    )
    add_flags(parser.add_argument_group("data"), DataConfig, only=_DATA)
    training = parser.add_argument_group("training, the same for all")
    add_flags(training, OptimisationConfig, only=_TRAINING)
    add_flags(training, NetworkConfig, only=("in_channels",))
    add_flags(parser, TrainConfig, only=("preset",))


def run_study(
    args: argparse.Namespace, make: Callable[[argparse.Namespace], Study], own: Sequence[str]
) -> int:
    """A study from the arguments, or one that goes on; `own` names the command's other arguments.

    Raises:
        UsageError, DataError: bad usage or input.
    """
    try:
        if args.resume is not None:
            _check_alone(args, own)
            out = _folder(args.resume, "--resume")
            return studies.report(out) if args.report else studies.resume(out, place_of(args))
        if args.report:
            raise UsageError("--report is for a study that is there: give --resume OUT too")
        out = _folder(args.out, "--out")
        return studies.begin(make(args), out, place_of(args), dry_run=args.dry_run)
    except Stopped as stopped:
        return stopped.exit_code


def shared_values(args: argparse.Namespace) -> dict[str, Any]:
    """The values that all runs share, of those on the command line."""
    return {name: value for name, value in given_of(TrainConfig, args).items() if name in _SHARED}


def seeds(args: argparse.Namespace) -> int:
    return _SEEDS if args.seeds is None else args.seeds


def _folder(name: str | None, flag: str) -> Path:
    if not name:
        raise UsageError(f"{flag} must name a folder for the study")
    return Path(name)


def _check_alone(args: argparse.Namespace, own: Sequence[str]) -> None:
    names = [*shared_values(args), *("out seeds dry_run".split()), *own]
    refused = sorted(name for name in names if getattr(args, name) not in (None, False))
    if refused:
        flags = ", ".join(map(flag_of, dict.fromkeys(refused)))
        raise UsageError(
            f"--resume takes every value from {args.resume}/study.json; "
            f"not allowed beside it: {flags}"
        )
