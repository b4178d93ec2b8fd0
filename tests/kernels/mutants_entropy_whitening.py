"""Faults planted in entropy_whitening (see mutants.py): at least one a kernel."""

from tests.proof.faults import Fault

TESTS = ["tests/kernels/test_entropy_whitening.py", "-k", "not gradcheck"]

FAULTS = [
    Fault(
        "gate: a column past the right side",
        "gate_map",
        "inside & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)",
        "inside & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx <= W)",
    ),
    Fault(
        "gate: the maximum takes the mean's weights",
        "gate_map",
        "tap + side * side",
        "tap",
    ),
    Fault(
        "gate: the sigmoid's side swapped",
        "sigmoid",
        "x >= 0",
        "x < 0",
    ),
    Fault(
        "gate logit gradient: the first chunk every time",
        "gate_logit_gradient",
        "source += plane",
        "",
    ),
    Fault(
        "gate logit gradient: slope of the sigmoid",
        "gate_logit_gradient",
        "total * gate * (1.0 - gate)",
        "total * gate",
    ),
    Fault(
        "gate gradient: weights not mirrored",
        "gate_gradient",
        "WEIGHT + side * side + tap",
        "WEIGHT + 2 * side * side - 1 - tap",
    ),
    Fault(
        "gate gradient: taps a stride apart",
        "gate_gradient",
        "tap.to(tl.int64) * programs",
        "tap.to(tl.int64)",
    ),
    Fault(
        "gate weight gradient: the first blocks only",
        "gate_weight_gradient",
        "range(0, programs, BLOCK)",
        "range(0, BLOCK, BLOCK)",
    ),
    Fault(
        "entropy: the past keeps its maximum",
        "row_entropy",
        "moment + shift * total",
        "moment",
    ),
    Fault(
        "entropy: channels past the end counted",
        "row_entropy",
        "tl.where(known, tl.exp(z - best[:, None]), 0.0)",
        "tl.exp(z - best[:, None])",
    ),
    Fault(
        "entropy map: a position past the end",
        "channel_entropy",
        "row < N - block * BLOCK_P",
        "row < N - block * BLOCK_P + 1",
    ),
    Fault(
        "entropy map: lanes past the end counted",
        "channel_entropy",
        "tl.where(row_in, entropy - first, 0.0)",
        "entropy - first",
    ),
    Fault(
        "entropy statistics: what separates the blocks",
        "entropy_statistics",
        "tl.where(there < blocks, held * apart * apart, 0.0)",
        "0.0",
    ),
    Fault(
        "entropy statistics: the first blocks only",
        "entropy_statistics",
        "low = tl.full([BLOCK], float('inf'), COMPUTE)",
        ("low = tl.full([BLOCK], float('inf'), COMPUTE)\nblocks = tl.minimum(blocks, BLOCK)"),
        given=("there < blocks",),
    ),
    Fault(
        "entropy statistics: equal entropies are told apart",
        "entropy_statistics",
        "tl.where(unit > least, shift, float('nan'))",
        "shift",
    ),
    Fault(
        "a row past the end",
        "columns_inside",
        "y < H",
        "y <= H",
    ),
    Fault(
        "row sums: columns outside counted",
        "apart",
        "(x >= 0) & (x < W)",
        "x >= 0",
    ),
    Fault(
        "strips: a home outside the windows",
        "home_of",
        "tl.minimum(x + (STRIP - 1) // 2, W - 1)",
        "W - 1",
    ),
    Fault(
        "strips: a home past the map",
        "home_of",
        "tl.minimum((TILE_H - 1) // 2, H - 1 - top)",
        "(TILE_H - 1) // 2",
    ),
    Fault(
        "row sums: one-pass variance",
        "apart",
        "f.to(COMPUTE) * tl.load(GATE + at)[:, None] - pivot",
        "f.to(COMPUTE) * tl.load(GATE + at)[:, None]",
    ),
    Fault(
        "row sums: a column less",
        "row_sums",
        ("tl.range(STRIP - 1 - R, R + 1, loop_unroll_factor=2 * R + 2 - STRIP if R <= 3 else 4)"),
        "tl.range(STRIP - 1 - R, R, loop_unroll_factor=2 * R + 2 - STRIP if R <= 3 else 4)",
    ),
    Fault(
        "row sums: the left from the wrong column",
        "row_sums",
        "STRIP - 2",
        "STRIP - 1",
    ),
    Fault(
        "row sums: the right added to the wrong window",
        "row_sums",
        ("square += d * d\nwholes = wholes + (firsts[i] + right,)"),
        ("square += d * d\nwholes = wholes + (firsts[i - 1] + right,)"),
    ),
    Fault(
        "window sums: the last row left out",
        "upper_sums",
        "top + R + 1",
        "top + R",
    ),
    Fault(
        "window sums: a row above the map",
        "upper_sums",
        "top + start >= 0",
        "top + start >= -1",
    ),
    Fault(
        "window sums: a row below the map",
        "lower_sums",
        "top + row < H",
        "top + row <= H",
    ),
    Fault(
        "window sums: rows above in the wrong order",
        "upper_sums",
        "sums = last + sums",
        "sums = sums + last",
    ),
    Fault(
        "normal: rows outside counted",
        "mean_and_rstd",
        "inside_count(y, H, R, COMPUTE)",
        "2 * R + 1",
        place=(2, 2),
    ),
    Fault(
        "normal: the mean's square left in",
        "mean_and_rstd",
        "second * share - mean * mean",
        "second * share",
    ),
    Fault(
        "whitening: eps beside the root",
        "mean_and_rstd",
        "tl.rsqrt(tl.where(variance < 0, 0.0, variance) + EPS)",
        "1.0 / (tl.sqrt(tl.where(variance < 0, 0.0, variance)) + EPS)",
    ),
    Fault(
        "whiten: images as if dense",
        "whiten",
        "image * f_batch + origin * C + chunk * BLOCK_C",
        "image * H * W * C + origin * C + chunk * BLOCK_C",
        given=(
            "image * H",
            "i * W",
        ),
    ),
    Fault(
        "whiten: every chunk writes its columns from the first",
        "whiten",
        "OUT += first * C + chunk * BLOCK_C",
        "OUT += first * C",
    ),
    Fault(
        "entropy whiten: the threshold is not exclusive",
        "entropy_whiten",
        "entropy / unit < threshold",
        "entropy / unit <= threshold",
    ),
    Fault(
        "moments: the sign of y",
        "whiten_moments",
        "centre - pivot - shift",
        "pivot + shift - centre",
    ),
    Fault(
        "moments recomputed: taps outside counted",
        "tap_moments",
        "tl.where(ok[:, None], v - centre, 0.0)",
        "v - centre",
    ),
    Fault(
        "gather: a pivot that is not finite",
        "whiten_gather",
        "finite(attended(maps, start + x, x < W, column, known, C, COMPUTE))",
        "attended(maps, start + x, x < W, column, known, C, COMPUTE)",
    ),
    Fault(
        "gather: positions that are not masked send",
        "row_sent",
        "ok = ok & (tl.load(MASK + at, mask=ok, other=0) != 0)",
        "",
    ),
    Fault(
        "gather: a neighbour's own gradient",
        "row_sent",
        "dx == 0",
        "dx == R",
        given=("-R",),
    ),
    Fault(
        "gather: the count of the wrong window",
        "row_sent",
        "inside_count(x + dx, W, R, COMPUTE)",
        "inside_count(x, W, R, COMPUTE)",
    ),
    Fault(
        "gather: no slope",
        "whiten_gather",
        "total + slope * (values[i] - pivot)",
        "total",
    ),
    Fault(
        "gather: a row less",
        "whiten_gather",
        "row <= top + i + R",
        "row < top + i + R",
    ),
    Fault(
        "gather: masked positions pass their gradient on",
        "whiten_gather",
        "inside & (tl.load(MASK + at, mask=inside, other=1) == 0)",
        "inside",
    ),
    Fault(
        "gather: gradients read with the map's stride",
        "whiten_gather",
        (
            "F += image * f_batch + origin * C + chunk * BLOCK_C\n"
            "DOUT += image * d_batch + origin * C + chunk * BLOCK_C"
        ),
        (
            "F += image * f_batch + origin * C + chunk * BLOCK_C\n"
            "DOUT += image * f_batch + origin * C + chunk * BLOCK_C"
        ),
    ),
    Fault(
        "gather: chunks share the gate's gradient",
        "whiten_gather",
        "(image * chunks + chunk) * H",
        "image * chunks * H",
    ),
    Fault(
        "launcher: the window cut to the smaller side",
        "radius_of",
        "max(height, width)",
        "min(height, width)",
    ),
    Fault(
        "launcher: moments stored in the map's dtype",
        "backward",
        "torch.empty_like(rows, dtype=gate.dtype, memory_format=torch.contiguous_format)",
        "torch.empty_like(rows, dtype=rows.dtype, memory_format=torch.contiguous_format)",
    ),
    Fault(
        "launcher: one channel has a unit",
        "_unit",
        "math.nan",
        "1.0",
    ),
    Fault(
        "autograd: the gate's gradient only with the mean's",
        "_EntropyWhitening.backward",
        "any(needed[1:])",
        "needed[1]",
    ),
]
