"""What every kernel repeats, as functions of Triton."""

import triton
import triton.language as tl


@triton.jit
def block_of_image(blocks):
    """The block a program owns and its image (int64), on a grid of (blocks * B,)."""
    pid = tl.program_id(0)
    return pid % blocks, (pid // blocks).to(tl.int64)


@triton.jit
def part_of_image(inner, outer):
    """A program's index along two axes of an image, and the image (int64).

    Grid: (inner * outer * B,).
    """
    pid = tl.program_id(0)
    return pid % inner, (pid // inner) % outer, (pid // (inner * outer)).to(tl.int64)
