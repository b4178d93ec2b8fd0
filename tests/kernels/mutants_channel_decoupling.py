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
        "decoupling_normalise",
        "tl.where(trace == 0, 1.0, trace)",
        "trace",
    ),
    Fault(
        "normalise: the triangle that was not computed is read",
        "decoupling_normalise",
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
        "tl.where(i == p, 1.0, row)",
        "row",
    ),
    Fault(
        "inverse: zeros beyond the edge of a small matrix",
        "invert_small",
        "a = tl.where(inside, a, tl.where(i[:, None] == i[None, :], 1.0, 0.0))",
        "",
    ),
    Fault(
        "panel: the inverse of the next image's block",
        "invert_panel",
        "pid.to(tl.int64)",
        "block",
        given=("block == step",),
    ),
    Fault(
        "update: row of the pivot keeps its block",
        "invert_update",
        "acc = tl.where(bi == step, 0.0, acc)",
        "",
    ),
    Fault(
        "terms: S not taken off K",
        "decoupling_terms",
        "(shared - s) * gh",
        "shared * gh",
    ),
    Fault(
        "finish: sum of M over its first columns",
        "decoupling_finish",
        (
            "for start in range(0, R, BLOCK):\n"
            "    mask = (i < R)[:, None] & (j < R - start)[None, :]\n"
            "    element = MATRIX + batch * R * R + start + (i[:, None] * R + j[None, :])\n"
            "    rows += tl.load(element, mask=mask, other=0.0)"
        ),
        (
            "for start in range(0, BLOCK, BLOCK):\n"
            "    mask = (i < R)[:, None] & (j < R - start)[None, :]\n"
            "    element = MATRIX + batch * R * R + start + (i[:, None] * R + j[None, :])\n"
            "    rows += tl.load(element, mask=mask, other=0.0)"
        ),
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
        "tl.where(i[:, None] == j[None, :], inner / R, 0.0)",
        "tl.where(i[:, None] == j[None, :], 0.0, 0.0)",
    ),
    Fault(
        "matvec: first part only",
        "decoupling_matvec",
        "range(0, parts)",
        "range(0, 1)",
    ),
    Fault(
        "outer: bias of the last image only",
        "decoupling_outer",
        "total += u",
        "total = u",
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
        "operands: weight of the row",
        "decoupling_operands",
        "tl.load(W + batch * R + j, mask=j < R, other=0.0)[None, :]",
        "tl.load(W + batch * R + i, mask=i < R, other=0.0)[:, None]",
        given=("i < R",),
    ),
    Fault(
        "operands: no unit",
        "decoupling_operands",
        "tl.minimum(tl.maximum(exponent, -60.0), 60.0)",
        "exponent * 0.0",
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
