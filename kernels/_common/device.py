"""What every kernel repeats: a program's share of the grid, tiles."""

import triton
import triton.language as tl


@triton.jit
def block_of_image(blocks):
    """The block a program owns and its image (int64), on a grid of (blocks * B,)."""
    pid = tl.program_id(0)
    return pid % blocks, (pid // blocks).to(tl.int64)


@triton.jit
def part_of_image(inner, outer):
    """A program's place along two axes of an image, and the image (int64).

    Grid: (inner * outer * B,).
    """
    pid = tl.program_id(0)
    return pid % inner, (pid // inner) % outer, (pid // (inner * outer)).to(tl.int64)


@triton.jit
def load_strided(START, row, column, row_stride, column_stride, row_in, column_in):
    """The tile (rows, columns) at START with two strides, 0 where it does not exist."""
    return tl.load(
        START + (row[:, None] * row_stride + column[None, :] * column_stride),
        mask=row_in[:, None] & column_in[None, :],
        other=0.0,
    )
