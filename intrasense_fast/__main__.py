"""`python -m intrasense_fast`."""

import sys

from intrasense_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
