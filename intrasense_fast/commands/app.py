"""`intrasense-fast app`: a page in the browser to try a checkpoint on."""

import argparse
import sys

from intrasense_fast.commands.arguments import checkpoint_folder, trust
from intrasense_fast.console import show
from intrasense_fast.errors import UsageError
from intrasense_fast.inference import NotFiniteError, open_segmenter

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN/best",
        help="folder with config.json and model.safetensors, or owner/name[@revision] on the "
        "Hugging Face Hub; a folder of that name comes first",
    )
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
    parser.add_argument(
        "--size", type=int, help="side the network sees (default: the checkpoint's image size)"
    )
    parser.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--network",
        metavar="MODULE:FACTORY",
        help="code of your own that the checkpoint names and that you trust",
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
    trust(args.network)
    segmenter = open_segmenter(
        checkpoint_folder(args.checkpoint), size=args.size, device=args.device
    )
    if segmenter.remark:
        show(f"warning: {segmenter.remark}", sys.stderr)

    def started(address: str) -> None:
        show(f"the page is at {address} (Ctrl-C ends it; pictures are not kept)")
        if args.host not in _LOOPBACK:
            show(f"warning: whoever reaches {args.host} can use it", sys.stderr)
        sys.stdout.flush()

    try:
        server.serve(
            segmenter,
            args.checkpoint,
            host=args.host,
            port=args.port,
            threshold=args.threshold,
            started=started,
        )
    except NotFiniteError as error:
        raise UsageError(f"--checkpoint {args.checkpoint}: {error}") from error
    return 0
