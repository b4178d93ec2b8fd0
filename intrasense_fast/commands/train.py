"""`intrasense-fast train`: a new run, or a run that goes on."""

import argparse
from typing import Any

from intrasense_fast.commands.arguments import trust
from intrasense_fast.commands.places import add_place_arguments, place_of
from intrasense_fast.data.records import DataError
from intrasense_fast.errors import UsageError
from intrasense_fast.fields import flag_of
from intrasense_fast.signals import Stopped
from intrasense_fast.training import config as configuration
from intrasense_fast.training import runs
from intrasense_fast.training.distributed import Ranks
from intrasense_fast.training.joining import joined
from intrasense_fast.training.place import ONE_BY_ONE, Place
from intrasense_fast.training.step_guard import DivergedError

_QUICK = "quick"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", help="new folder for the run (default runs/DATE-TIME)")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run; only --epochs, --workers, --device, --save-every, --log, "
        "--cuda-graph, --jobs, --executor and --slurm may be given beside it, and --fold to train "
        "this fold alone",
    )
    parser.add_argument(
        "--resume-or-start",
        action="store_true",
        help="go on with the run at --out if there is one, else begin it: for schedulers",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="with --resume: go on although images or masks are not those the run began with",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        default=None,
        help="every file within 90 seconds, no promise on Dice",
    )
    add_place_arguments(parser)
    configuration.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done, 130 or 143 when a signal stopped and saved it.

    Raises:
        UsageError, DataError: bad usage or input.
    """
    trust(args.network)
    if args.accept_changes and args.resume is None and not args.resume_or_start:
        raise UsageError("--accept-changes is for a run that goes on: give --resume RUN too")
    with joined() as ranks:
        try:
            if not ranks.is_first:
                return _follow(ranks)
            with ranks.ending_together():
                _lead(args, ranks)
        except Stopped as stopped:
            return stopped.exit_code
    return 0


def _lead(args: argparse.Namespace, ranks: Ranks) -> None:
    place = place_of(args)
    options: dict[str, Any] = {"place": place, "ranks": ranks}
    if args.resume_or_start:
        options["accept_changes"] = args.accept_changes
        runs.resume_or_start(_given(args), _out(args), **options)
    elif args.resume is None:
        runs.begin(_given(args), args.out, **options)
    elif args.fold is not None:
        _resume_fold(args, place, ranks)
    else:
        options["accept_changes"] = args.accept_changes
        runs.resume(runs.existing_run(args.resume), _changes(args), **options)


def _follow(ranks: Ranks) -> int:
    """What another process than the first does; its errors say which it is."""
    try:
        return runs.follow(ranks)
    except DivergedError:
        # All processes found it; the first one tells.
        return 2
    except (UsageError, DataError) as error:
        raise UsageError(f"process {ranks.rank}: {error}") from error


def _resume_fold(args: argparse.Namespace, place: Place, ranks: Ranks) -> None:
    """Train one fold of a run that began, and nothing else of it.

    Raises:
        UsageError: something is given that is of the whole run.
    """
    if args.accept_changes or place != ONE_BY_ONE:
        raise UsageError(
            "--resume RUN --fold N trains this fold alone, here: --accept-changes, --jobs, "
            "--executor and --slurm are of the whole run; leave them out, or --fold"
        )
    changes = _changes(args)
    runs.resume_fold(runs.existing_run(args.resume), args.fold, changes, ranks)


def _out(args: argparse.Namespace) -> str:
    """Where --resume-or-start finds its run, or begins it.

    Raises:
        UsageError: nothing says where, or --resume does too.
    """
    if args.resume is not None or not args.out:
        raise UsageError("--resume-or-start needs --out RUN, and no --resume")
    return str(args.out)


def _given(args: argparse.Namespace) -> dict[str, object]:
    """The values on the command line, --quick as the preset that it is.

    Raises:
        UsageError: --quick beside another preset.
    """
    given = configuration.given(args)
    if not args.quick:
        return given
    if given.get("preset", _QUICK) != _QUICK:
        raise UsageError(f"--quick and --preset {given['preset']} exclude each other")
    return given | {"preset": _QUICK}


def _changes(args: argparse.Namespace) -> dict[str, object]:
    """What is given beside --resume.

    Raises:
        UsageError: something that only a new run may be given.
    """
    given = configuration.given(args)
    given.pop("fold", None)
    refused = [name for name in given if name not in configuration.RESUMABLE]
    refused += [name for name in ("out", "quick") if getattr(args, name) is not None]
    if ":" in given.get("network", ""):
        # The run's own network; naming it says that its code is trusted.
        refused.remove("network")
    if refused:
        flags = ", ".join(map(flag_of, sorted(refused)))
        raise UsageError(
            f"--resume takes every value from {args.resume}/config.json; not allowed beside it: "
            f"{flags}"
        )
    return given
