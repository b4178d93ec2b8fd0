"""Train IntraSense-Net: `python train.py` alone simulates phantoms and trains on them."""

import sys

from intrasense_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
