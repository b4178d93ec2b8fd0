"""What every kernel repeats: a program's share of the grid, tiles of rows, operands."""

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
def tile_mask(row_in, column_in, EVEN: tl.constexpr):
    """Which elements of a tile (rows, columns) exist. EVEN: every column does."""
    if EVEN:
        mask = row_in[:, None]
    else:
        mask = row_in[:, None] & column_in[None, :]
    return mask


@triton.jit
def load_tile(START, row, column, stride, row_in, column_in, EVEN: tl.constexpr):
    """The tile (rows, columns) at START, rows `stride` elements apart; 0 where none exists."""
    mask = tile_mask(row_in, column_in, EVEN)
    return tl.load(START + (row[:, None] * stride + column[None, :]), mask=mask, other=0.0)


@triton.jit
def load_transposed(START, row, column, stride, row_in, column_in, EVEN: tl.constexpr):
    """The same tile as (columns, rows)."""
    if EVEN:
        mask = row_in[None, :]
    else:
        mask = row_in[None, :] & column_in[:, None]
    return tl.load(START + (row[None, :] * stride + column[:, None]), mask=mask, other=0.0)


@triton.jit
def load_strided(START, row, column, row_stride, column_stride, row_in, column_in):
    """The tile (rows, columns) at START with two strides, 0 where it does not exist."""
    return tl.load(
        START + (row[:, None] * row_stride + column[None, :] * column_stride),
        mask=row_in[:, None] & column_in[None, :],
        other=0.0,
    )


@triton.jit
def store_tile(START, tile, row, column, stride, row_in, column_in, EVEN: tl.constexpr):
    """Store a tile (rows, columns) at START in its dtype."""
    mask = tile_mask(row_in, column_in, EVEN)
    offsets = row[:, None] * stride + column[None, :]
    tl.store(START + offsets, tile.to(START.dtype.element_ty), mask=mask)


@triton.jit
def operand(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """x as an operand of a product in DTYPE; for TF32 to nearest: tensor cores cut it off."""
    x = x.to(DTYPE)
    if PRECISION == "tf32":
        rounded = ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
        # The bits of a NaN may overflow.
        x = tl.where(x == x, rounded, x)
    return x
