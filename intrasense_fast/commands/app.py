"""`intrasense-fast app`: a page in the browser to try a checkpoint on."""

import argparse
import sys

from intrasense_fast.commands.arguments import add_ensemble_arguments, ensemble_from
from intrasense_fast.console import show
from intrasense_fast.errors import UsageError
from intrasense_fast.inference import NotFiniteError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_ensemble_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve at (default 127.0.0.1: this computer alone)",
    )
    parser.add_argument("--port", type=int, default=7860, help="port (default 7860)")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="where the page's threshold stands first (default 0.5)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, which ends it with 130.

    Raises:
        UsageError: nothing could start.
    """
    from intrasense_fast.app import server

    if not 0.01 <= args.threshold <= 0.99:
        raise UsageError(f"--threshold must lie in [0.01, 0.99], got {args.threshold}")
    server.check_address(args.host, args.port)
    ensemble = ensemble_from(args)
    checkpoint = ", ".join(args.checkpoint)

    def started(address: str) -> None:
        show(f"the page is at {address} (Ctrl-C ends it; pictures are not kept)")
        if args.host not in _LOOPBACK:
            show(f"warning: whoever reaches {args.host} can use it", sys.stderr)
        sys.stdout.flush()

    try:
        server.serve(
            ensemble,
            checkpoint,
            host=args.host,
            port=args.port,
            threshold=args.threshold,
            started=started,
        )
    except NotFiniteError as error:
        raise UsageError(f"--checkpoint {checkpoint}: {error}") from error
    return 0
