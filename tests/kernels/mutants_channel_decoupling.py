"""Faults planted in channel_decoupling (see mutants.py): at least one a kernel."""

from tests.proof.faults import Fault

TESTS = [
    "tests/contract/test_contract.py::test_values_and_gradients",
    "tests/kernels/test_channel_decoupling.py",
    "tests/kernels/test_channel_decoupling_accuracy.py",
    "-k",
    "channel_decoupling and not (blocks or gradcheck or ill_conditioned or above_the_largest)",
]

FAULTS = [
    Fault(
        "gram: rows past the end",
        "gram_tile",
        ("i_in = i < R - ti * BLOCK_R\nj_in = i < R - tj * BLOCK_R"),
        ("i_in = i < R - ti * BLOCK_R\nj_in = i < R - tj * BLOCK_R + 1"),
    ),
    Fault(
        "gram: positions past the end",
        "gram_tile",
        "end - start",
        "end - start + 1",
    ),
    Fault(
        "gram: trace of a column",
        "gram_tile",
        "R + 1",
        "R",
    ),
    Fault(
        "gram: split starts where the first one does",
        "decoupling_gram",
        "split.to(tl.int64) * share * x_long",
        "0",
    ),
    Fault(
        "squeeze: a column past the end",
        "squeeze_tile",
        "end - start",
        "end - start + 1",
    ),
    Fault(
        "squeeze: rows past the end",
        "squeeze_tile",
        "R - tile * BLOCK_R",
        "R - tile * BLOCK_R + 1",
    ),
    Fault(
        "squeeze: a tile's sums in another's place",
        "squeeze_tile",
        "SUM + tile * BLOCK_R",
        "SUM",
    ),
    Fault(
        "normalise: a zero trace divides",
        "gram_block",
        "tl.where(trace == 0, 1.0, trace)",
        "trace",
    ),
    Fault(
        "normalise: the triangle that was not computed is read",
        "gram_block",
        "tl.maximum(i, j) * R + tl.minimum(i, j)",
        "i * R + j",
    ),
    Fault(
        "pull: weight forgotten",
        "decoupling_pull",
        "weighted = x.to(COMPUTE) * w[None, :]",
        "weighted = x.to(COMPUTE)",
    ),
    Fault(
        "symmetrise: transposed half not transposed",
        "decoupling_symmetrise",
        "j[None, :] * R + i[:, None]",
        "there",
        given=("M + matrix + there",),
    ),
    Fault(
        "inverse: pivot's own entry",
        "invert_tile",
        "tl.where(on_column, 1.0, row)",
        "row",
    ),
    Fault(
        "inverse: the sign of rows that are done",
        "invert_tile",
        "tl.where((i < p)[None, :], -row, row)",
        "row",
    ),
    Fault(
        "step: zeros beyond the edge",
        "eliminated",
        "tl.where(mask, block, identity)",
        "tl.where(mask, block, 0.0)",
    ),
    Fault(
        "normalise: the layer's last rows are another image's",
        "decoupling_normalise",
        "(index % images).to(tl.int64)",
        "(index // images).to(tl.int64)",
    ),
    Fault(
        "normalise: the diagonal block that scales the panel is the panel's own",
        "decoupling_normalise",
        "gram_block(parts, trace, 0, 0, R, splits, SIZE, COMPUTE)",
        "gram_block(parts, trace, bi, bi, R, splits, SIZE, COMPUTE)",
        given=("gram_block(parts, trace, bi, bj, R, splits, SIZE, COMPUTE)",),
    ),
    Fault(
        "step: one scratch for all blocks",
        "invert_step",
        "(batch * blocks + bi) * 2 * SIZE * SIZE",
        "batch * blocks * 2 * SIZE * SIZE",
    ),
    Fault(
        "step: the next panel in this one's place",
        "invert_step",
        "NEXT_PANEL + batch * R * SIZE + bi * SIZE * SIZE",
        "PANEL + batch * R * SIZE + bi * SIZE * SIZE",
        given=("panel = PANEL + batch * R * SIZE",),
    ),
    Fault(
        "step: the matrix is changed in place",
        "invert_step",
        "OUT + batch * R * R + bi * SIZE * R + bj * SIZE",
        "MATRIX + batch * R * R + bi * SIZE * R + bj * SIZE",
        given=("matrix = MATRIX + batch * R * R",),
    ),
    Fault(
        "step: the diagonal block as it was before the step",
        "invert_step",
        (
            "diagonal = eliminated(matrix, panel, bj, bj, step, R, SIZE, BLOCK_K, "
            "PRECISION, COMPUTE)"
        ),
        (
            "square = bj * SIZE * (R + 1) + (i[:, None] * R + i[None, :])\n"
            "diagonal = tl.load(matrix + square, mask=j_in[:, None] & j_in[None, :], other=0.0)"
        ),
        given=("i = tl.arange(0, SIZE)", "i_in[:, None] & j_in[None, :]"),
    ),
    Fault(
        "launch: the panel of the step before",
        "normalised_inverse",
        "shifted, other, panel, next_panel = other, shifted, next_panel, panel",
        "shifted, other = other, shifted",
    ),
    Fault(
        "launch: M is left in the other buffer",
        "normalised_inverse",
        "blocks % 2 == 0",
        "blocks % 2 == 1",
    ),
    Fault(
        "panel: no refinement",
        "store_panel",
        (
            "rest = multiplied(rest, PANEL, SCRATCH, SIZE, i_in, SIZE, True, SIZE, BLOCK_K, "
            "PRECISION, COMPUTE)"
        ),
        "rest = tl.zeros([SIZE, SIZE], COMPUTE)",
        given=("rest = load_strided(TILE, i, i, R, 1, i_in, i < columns)",),
    ),
    Fault(
        "halves: no refinement",
        "invert_halves",
        'rest = tl.dot(-panel, pivots, below, input_precision="ieee", out_dtype=COMPUTE)',
        "rest = tl.zeros([HALF, HALF], COMPUTE)",
        given=("i = tl.arange(0, HALF)",),
    ),
    Fault(
        "halves: the row of the pivot keeps its block",
        "invert_halves",
        'tl.dot(-inverse, beside, input_precision="ieee", out_dtype=COMPUTE)',
        'tl.dot(-inverse, beside, beside, input_precision="ieee", out_dtype=COMPUTE)',
    ),
    Fault(
        "step: row of the pivot keeps its block",
        "eliminated",
        "block = tl.where(bi == step, 0.0, block)",
        "",
    ),
    Fault(
        "terms: S not taken off K",
        "decoupling_terms",
        "(shared - s) * gh",
        "shared * gh",
    ),
    Fault(
        "terms: sums of M's rows over the last columns only",
        "decoupling_terms",
        "sent += scale * tl.sum(matrix_rows, 1)",
        "sent = scale * tl.sum(matrix_rows, 1)",
    ),
    Fault(
        "terms: the mean of the first part only",
        "decoupling_terms",
        "sum_of_parts(part, parts, R, k, k_in, BLOCK_K, COMPUTE)",
        "sum_of_parts(part, 1, R, k, k_in, BLOCK_K, COMPUTE)",
    ),
    Fault(
        "finish: a term of the part before",
        "decoupling_finish",
        "tl.load(part + 2 * tiles, mask=part_in, other=0.0)",
        "tl.load(part + tiles, mask=part_in, other=0.0)",
    ),
    Fault(
        "matrix gradient: sign of a term of the rank",
        "decoupling_matrix_gradient",
        "a * (identity - 2.0 * m) - a * slope * (s - twice)",
        "a * (identity - 2.0 * m) + a * slope * (s - twice)",
    ),
    Fault(
        "product: first slice only",
        "product",
        "range(0, R, BLOCK_K)",
        "range(0, BLOCK_K, BLOCK_K)",
    ),
    Fault(
        "gram gradient: lambda is a constant",
        "decoupling_gram_gradient",
        "tl.where(on_diagonal, inner, 0.0)",
        "tl.where(on_diagonal, 0.0, 0.0)",
    ),
    Fault(
        "product: the smallest of a tile for its largest",
        "decoupling_product",
        "tl.max(tl.max(tl.abs(out), 1), 0)",
        "tl.min(tl.min(tl.abs(out), 1), 0)",
    ),
    Fault(
        "sums of parts: first one only",
        "sum_of_parts",
        "range(0, parts, BLOCK_P)",
        "range(0, 1, BLOCK_P)",
    ),
    Fault(
        "sums of parts: a part past the end",
        "sum_of_parts",
        "p < parts - start",
        "p < parts - start + 1",
    ),
    Fault(
        "matvec: every image's vector is the first one's",
        "decoupling_matvec",
        "VECTOR + batch * COLUMNS",
        "VECTOR",
        place=(2, 3),
    ),
    Fault(
        "layer: the first slice's columns for all",
        "layer",
        "MATRIX += BLOCK_C * matrix_column",
        "MATRIX += 0",
    ),
    Fault(
        "hidden part: channels past the end",
        "store_hidden_part",
        "row_in[:, None] & h_in[None, :]",
        "h_in[None, :]",
    ),
    Fault(
        "symmetrise: the hidden layer's part in another's place",
        "decoupling_symmetrise",
        (
            "part = HIDDEN_PARTS + (batch * blocks + bi) * C_R\n"
            "store_hidden_part(EXPAND_WEIGHT, part, grad_logit, i, i_in, C_R, BLOCK_H, COMPUTE)"
        ),
        (
            "part = HIDDEN_PARTS + batch * blocks * C_R\n"
            "store_hidden_part(EXPAND_WEIGHT, part, grad_logit, i, i_in, C_R, BLOCK_H, COMPUTE)"
        ),
    ),
    Fault(
        "mlp gradient: ds through units that ReLU shut",
        "decoupling_mlp_gradient",
        "grad_hidden = tl.where(hidden > 0, grad_hidden, 0.0)",
        "",
    ),
    Fault(
        "outer: bias of the last image only",
        "outer_tile",
        "grad_bias += u",
        "grad_bias = u",
    ),
    Fault(
        "outer: the ReLU's gate forgotten",
        "outer_tile",
        "u = tl.where(gate > 0, u, 0.0)",
        "",
    ),
    Fault(
        "weight gradient: M rounded to the map's dtype",
        "decoupling_weight_gradient",
        (
            "matrix = load_strided(rows + start, i, k, R, 1, i_in, k_in)\n"
            "x = load_strided(panel, k, column, x_rank, x_long, k_in, l_in).to(COMPUTE)"
        ),
        (
            "matrix = load_strided(rows + start, i, k, R, 1, i_in, k_in).to(X.dtype.element_ty)\n"
            "x = load_strided(panel, k, column, x_rank, x_long, k_in, l_in)"
        ),
        given=("panel = X + batch * x_batch + tile.to(tl.int64) * BLOCK_L * x_long",),
    ),
    Fault(
        "apply: mask of the positions dropped",
        "decoupling_apply",
        "tl.store(out, (w * (x - acc)).to(OUT.dtype.element_ty), mask=inside)",
        "tl.store(out, (w * (x - acc)).to(OUT.dtype.element_ty), mask=i_in[:, None])",
        given=("i_in[:, None] & l_in[None, :]",),
    ),
    Fault(
        "gram gradient: weight of the row",
        "decoupling_gram_gradient",
        "tl.load(WEIGHT + batch * R + j, mask=j < R, other=0.0)[None, :]",
        "tl.load(WEIGHT + batch * R + i, mask=i < R, other=0.0)[:, None]",
        given=("i < R",),
    ),
    Fault(
        "gram gradient: no unit",
        "decoupling_gram_gradient",
        "tl.minimum(tl.maximum(exponent, -60.0), 60.0) - HEADROOM",
        "exponent * 0.0",
    ),
    Fault(
        "gram gradient: no room for what M's rows may sum to",
        "decoupling_gram_gradient",
        "row_sum * tl.max(largest, 0) / ridge",
        "1e-6 * tl.max(largest, 0) / ridge",
    ),
    Fault(
        "feature gradient: Gbar rounded to 16 bits",
        "decoupling_feature_gradient",
        (
            "if SPLIT:\n"
            "    acc = multiply(acc, LOW + matrix, x_panel, x_rank, x_long, i_in, l_in, R, "
            "BLOCK_R, BLOCK_L, BLOCK_K, PRECISION, COMPUTE)"
        ),
        (
            "if False:\n"
            "    acc = multiply(acc, LOW + matrix, x_panel, x_rank, x_long, i_in, l_in, R, "
            "BLOCK_R, BLOCK_L, BLOCK_K, PRECISION, COMPUTE)"
        ),
    ),
    Fault(
        "apply: M rounded, not K",
        "multiply",
        "matrix = load_strided(MATRIX + start, i, k, R, 1, i_in, k_in)",
        (
            "matrix = load_strided(MATRIX + start, i, k, R, 1, i_in, k_in)\n"
            "matrix = (matrix.to(COMPUTE) + 1.0).to(MATRIX.dtype.element_ty).to(COMPUTE) - 1.0\n"
            "matrix = tl.where(i_in[:, None] & k_in[None, :], matrix, "
            "0.0).to(MATRIX.dtype.element_ty)"
        ),
        given=("tl.dot(matrix, x, acc, input_precision=PRECISION, out_dtype=COMPUTE)",),
    ),
    Fault(
        "feature gradient: dOut read with the map's strides",
        "decoupling_feature_gradient",
        (
            "acc = tl.zeros([BLOCK_R, BLOCK_L], COMPUTE)\n"
            "acc = multiply(acc, K + matrix, d_panel, d_rank, d_long, i_in, l_in, R, BLOCK_R, "
            "BLOCK_L, BLOCK_K, PRECISION, COMPUTE)"
        ),
        (
            "acc = tl.zeros([BLOCK_R, BLOCK_L], COMPUTE)\n"
            "acc = multiply(acc, K + matrix, d_panel, x_rank, x_long, i_in, l_in, R, BLOCK_R, "
            "BLOCK_L, BLOCK_K, PRECISION, COMPUTE)"
        ),
        given=(
            "X + batch * x_batch + tile.to(tl.int64) * BLOCK_L * x_long",
            (
                "multiply(acc, LOW + matrix, x_panel, x_rank, x_long, i_in, l_in, R, BLOCK_R, "
                "BLOCK_L, BLOCK_K, PRECISION, COMPUTE)"
            ),
        ),
    ),
    Fault(
        "pull: dOut's images at the map's",
        "decoupling_pull",
        (
            "x_tile = X + batch * x_batch + first * x_long\n"
            "d_tile = D + batch * d_batch + first * d_long"
        ),
        (
            "x_tile = X + batch * x_batch + first * x_long\n"
            "d_tile = D + batch * x_batch + first * d_long"
        ),
    ),
    Fault(
        "autograd: gradient for what did not ask",
        "_ChannelDecoupling.backward",
        "any(needed[1:])",
        "False",
    ),
]
