"""The process of a run of a grid: `train`, which stops and saves when its starter is gone."""

import os
import signal
import sys
import threading


def main() -> int:
    """Train as `intrasense-fast train` does; standard input is a pipe from the starter."""
    threading.Thread(target=_follow_starter, daemon=True).start()
    from intrasense_fast.cli import main as run

    return run(["train", *sys.argv[1:]])


def _follow_starter() -> None:
    # The pipe ends with the process that holds its other end, whatever ended it.
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
