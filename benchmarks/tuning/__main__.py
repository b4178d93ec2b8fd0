"""python -m benchmarks.tuning: see search.py."""

import sys

from benchmarks.tuning.search import main

if __name__ == "__main__":
    sys.exit(main())
