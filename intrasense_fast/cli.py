"""`intrasense-fast COMMAND`: one place that turns errors into a line and an exit code."""

import argparse
import contextlib
import difflib
import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

from intrasense_fast.version import __version__

PROGRAM = "intrasense-fast"
COMMANDS = {
    "train": "train a network on a folder, or on simulated phantoms",
    "compare": "train several networks on the same splits, images and seeds",
    "ablate": "train IntraSense-Net without and with each of its modules",
    "evaluate": "measure a checkpoint on a data set with ground truth",
    "predict": "segment images",
    "app": "open a page in the browser to try a checkpoint on",
    "export": "write a checkpoint as one ONNX, PyTorch or TorchScript file",
    "verify": "look through a data set and name every fault",
    "prepare": "write a clean copy of a data set",
    "phantom": "write simulated images, in the layout of any data set",
}


class _Terminated(BaseException):
    """SIGTERM or SIGUSR1, raised where the command has no handler of its own."""


class Parser(argparse.ArgumentParser):
    """A parser whose flags are never abbreviated, and whose errors about a value are one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        version = f"{PROGRAM} {__version__}"
        self.add_argument("--version", action="version", version=version)

    def error(self, message: str) -> NoReturn:
        """Exit with 2: a bad value is told in one line, bad usage below the usage."""
        is_value = message.startswith("argument ")
        if not is_value:
            self.print_usage(sys.stderr)
        hint = f"; see {self.prog} --help" if is_value else ""
        self.exit(2, f"{self.prog}: error: {message}{self._nearest(message)}{hint}\n")

    def _nearest(self, message: str) -> str:
        """Of an unknown flag, the known one that is most like it."""
        _, unknown, flags = message.partition("unrecognized arguments: ")
        known = list(self._option_string_actions)
        near = difflib.get_close_matches(flags.split("=")[0].split(" ")[0], known, 1)
        return f", did you mean {near[0]}?" if unknown and near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 1 done with named failures, 2 bad usage or input, 130 or 143 stopped by SIGINT or
        by SIGTERM or SIGUSR1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print(f"\n{arguments[0] if arguments else PROGRAM}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments and arguments[0] in COMMANDS else None
    try:
        if name is None:
            root = _root()
            wanted = root.parse_args(arguments).command
            near = difflib.get_close_matches(wanted, COMMANDS, 1)
            hint = f", did you mean {near[0]}?" if near else f"; known: {', '.join(COMMANDS)}"
            root.error(f"there is no command {wanted!r}{hint}")
        # Only the chosen command is imported: `verify` needs no plotting, `--help` needs nothing.
        command = importlib.import_module(f"intrasense_fast.commands.{name}")
        summary = COMMANDS[name]
        parser = Parser(
            prog=f"{PROGRAM} {name}", description=summary[0].upper() + summary[1:] + "."
        )
        command.add_arguments(parser)
        parsed = parser.parse_args(arguments[1:])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return _guarded(name, command, parsed)


def _root() -> Parser:
    """The parser of everything that is no command's: help, the version, and errors."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    parser = Parser(
        prog=PROGRAM,
        description="IntraSense-Net for ultrasound segmentation.",
        epilog="\n".join(["commands:", *lines, "", f"{PROGRAM} COMMAND --help says more."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    return parser


def _guarded(name: str, command: Any, args: argparse.Namespace) -> int:
    from intrasense_fast.console import show
    from intrasense_fast.data.records import DataError
    from intrasense_fast.errors import UsageError
    from intrasense_fast.kernels.runtime import FusedUnavailableError
    from intrasense_fast.networks.encoder_weights import EncoderWeightsError
    from intrasense_fast.signals import TERMINATING

    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread
        before = {number: signal.signal(number, _terminate) for number in TERMINATING}
    try:
        return command.run(args)
    except (UsageError, DataError, EncoderWeightsError, FusedUnavailableError) as error:
        show(f"{name}: {error}", sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        show(f"{name}: {place}{error.strerror or error}", sys.stderr)
        return 2
    except _Terminated:
        return 128 + signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated
