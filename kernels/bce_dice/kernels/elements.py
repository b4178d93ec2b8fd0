"""What both directions do with an element: where it lies, and the sigmoid of its logit."""

import triton
import triton.language as tl


@triton.jit
def offsets(position, row, column, W, FLAT: tl.constexpr):
    """Element offsets of positions of a plane of width W.

    One stride (`column`) if FLAT, else one a row and one a column.
    """
    if FLAT:
        return position.to(tl.int64) * column
    return (position // W).to(tl.int64) * row + (position % W).to(tl.int64) * column


@triton.jit
def sigmoid(logit):
    """sigmoid(z) and e^-|z|, neither of which overflows."""
    exponential = tl.exp(-tl.abs(logit))
    return tl.where(logit >= 0, 1.0, exponential) / (1.0 + exponential), exponential
