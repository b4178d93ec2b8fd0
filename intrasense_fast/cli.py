"""`python -m intrasense_fast COMMAND`: one place that turns errors into a line and an exit code."""

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from intrasense_fast.version import __version__

COMMANDS = {
    "train": (
        "intrasense_fast.training.command",
        "train a network on a folder, or on simulated phantoms",
    ),
    "evaluate": (
        "intrasense_fast.evaluate",
        "measure a checkpoint on a data set with ground truth",
    ),
    "predict": ("intrasense_fast.predict", "segment images"),
    "verify": ("intrasense_fast.data.verify", "look through a data set and name every fault"),
    "prepare": ("intrasense_fast.data.prepare", "write a clean copy of a data set"),
    "phantom": (
        "intrasense_fast.data.fake",
        "write simulated images, in the layout of any data set",
    ),
}


class _Terminated(BaseException):
    """SIGTERM, raised where the command has no handler of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 1 done with named failures, 2 bad usage or input, 130 or 143 stopped by SIGINT or SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print(f"\n{arguments[0] if arguments else 'intrasense_fast'}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments and arguments[0] in COMMANDS else None
    parser = argparse.ArgumentParser(
        prog="python -m intrasense_fast", description="IntraSense-Net for ultrasound segmentation."
    )
    parser.add_argument("--version", action="version", version=f"intrasense-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, (_, summary) in COMMANDS.items():
        sub = commands.add_parser(
            command, help=summary, description=summary[0].upper() + summary[1:] + "."
        )
        if command == name:
            # Only the chosen command is imported: `verify` needs no plotting, `--help` needs nothing.
            importlib.import_module(COMMANDS[command][0]).add_arguments(sub)
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return _guarded(parsed)


def _guarded(args: argparse.Namespace) -> int:
    from intrasense_fast.data.records import DataError
    from intrasense_fast.data.verify import show
    from intrasense_fast.encoder import EncoderWeightsError
    from intrasense_fast.errors import UsageError
    from intrasense_fast.kernels.runtime import FusedUnavailableError

    try:
        before = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not the main thread
        before = None
    try:
        return importlib.import_module(COMMANDS[args.command][0]).run(args)
    except (UsageError, DataError, EncoderWeightsError, FusedUnavailableError) as error:
        show(f"{args.command}: {error}", sys.stderr)
        return 2
    except OSError as error:
        show(
            f"{args.command}: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}",
            sys.stderr,
        )
        return 2
    except _Terminated:
        return 128 + signal.SIGTERM
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated
