"""A process in place of one that trains: its first argument says what it does."""

import signal
import sys
import time


def main() -> int:
    """ends: exit code 0. saves: 143 once it is told to by SIGUSR1. fails: exit code 2."""
    what = sys.argv[1]
    if what == "saves":
        signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(143))
        print("ready", flush=True)
        time.sleep(60)
    return {"ends": 0, "fails": 2}.get(what, 1)


if __name__ == "__main__":
    sys.exit(main())
