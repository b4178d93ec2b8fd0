"""The kernels of bce_dice, functions of Triton and nothing else (names: README.md)."""
