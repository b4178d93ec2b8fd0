"""`intrasense-fast phantom`: write simulated images, in the layout of any data set."""

import argparse
from pathlib import Path

from intrasense_fast.console import show, show_next
from intrasense_fast.data.fake import LAYOUTS, write_tree


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layout",
        default="generic",
        choices=LAYOUTS,
        help="the data set to imitate (default generic)",
    )
    parser.add_argument(
        "--out", required=True, help="folder to write; it must not exist, or be empty"
    )
    parser.add_argument(
        "-n", "--count", type=int, default=60, help="images, at least 30 (default 60)"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=256,
        help="about the sides of the images in pixels (default 256)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default 0)")
    parser.add_argument(
        "--broken", action="store_true", help="also plant files that cannot be used"
    )


def run(args: argparse.Namespace) -> int:
    """Write the data set and say what was planted; 0 done.

    Raises:
        UsageError: as in `write_tree`.
    """
    planted = write_tree(
        args.layout, args.out, args.count, size=args.size, seed=args.seed, broken=args.broken
    )
    out = Path(args.out)
    for problem in planted:
        show(f"planted {problem.level}: {out / problem.file}: {problem.says}")
    show(
        f"{args.count} simulated images in the layout {args.layout} are in {out}. "
        "Phantom scores are not clinical scores."
    )
    show_next("verify", out)
    return 0
