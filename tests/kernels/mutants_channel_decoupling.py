"""Faults planted in channel_decoupling (see mutants.py)."""

GRAM, INVERSE, MATRICES, VECTORS, APPLY, LAUNCHERS = (
    "gram.py", "inverse.py", "matrices.py", "vectors.py", "apply.py", "launchers.py",
)  # fmt: skip
TESTS = [
    "tests/contract/test_contract.py::test_values_and_gradients",
    "tests/kernels/test_channel_decoupling.py",
    "tests/kernels/test_channel_decoupling_accuracy.py",
    "-k",
    "channel_decoupling and not (blocks or gradcheck or ill_conditioned or above_the_largest)",
]

MUTANTS = [
    ("gram: rows past the end", GRAM, "    j_in = i < R - tj * BLOCK_R\n    a_tile = X", "    j_in = i < R - tj * BLOCK_R + 1\n    a_tile = X"),
    ("gram: positions past the end", GRAM, "        k_in = k < end - start\n        a = tl", "        k_in = k < end - start + 1\n        a = tl"),
    ("gram: trace of a column", GRAM, "tl.load(out + i * (R + 1), mask=i_in", "tl.load(out + i * R, mask=i_in"),
    ("gram: split starts where the first one does", GRAM, "split.to(tl.int64) * share * x_long\n    part", "0\n    part"),
    ("squeeze: a column past the end", GRAM, "        k_in = k < end - start\n        x = tl", "        k_in = k < end - start + 1\n        x = tl"),
    ("squeeze: rows past the end", GRAM, "    i_in = i < R - tile * BLOCK_R", "    i_in = i < R - tile * BLOCK_R + 1"),
    ("squeeze: a tile's sums in another's place", GRAM, "tl.store(SUM + tile * BLOCK_R + i", "tl.store(SUM + i"),
    ("normalise: a zero trace divides", GRAM, "gh = gram / tl.where(trace == 0, 1.0, trace) * R", "gh = gram / trace * R"),
    ("normalise: the triangle that was not computed is read", GRAM, "(tl.maximum(i, j) * R + tl.minimum(i, j))", "(i * R + j)"),
    ("pull: weight forgotten", GRAM, "weighted = x.to(COMPUTE) * w[None, :]", "weighted = x.to(COMPUTE)"),
    ("symmetrise: transposed half not transposed", GRAM, "part + split * R * R + (j[None, :] * R + i[:, None])", "part + split * R * R + there"),
    ("inverse: pivot's own entry", INVERSE, "scaled = tl.where(i == p, 1.0, row) / pivot", "scaled = row / pivot"),
    ("inverse: zeros beyond the edge of a small matrix", INVERSE, "    a = tl.where(inside, a, tl.where(i[:, None] == i[None, :], 1.0, 0.0))\n", ""),
    ("panel: the inverse of the next image's block", INVERSE, "scratch = SCRATCH + pid.to(tl.int64) * 2 * SIZE * SIZE", "scratch = SCRATCH + block * 2 * SIZE * SIZE"),
    ("update: row of the pivot keeps its block", INVERSE, "        acc = tl.where(bi == step, 0.0, acc)\n", ""),
    ("terms: S not taken off K", MATRICES, "tl.sum(tl.sum((shared - s) * gh, 1), 0)", "tl.sum(tl.sum(shared * gh, 1), 0)"),
    ("finish: sum of M over its first columns", MATRICES, "for start in range(0, R, BLOCK):\n            inside = (i < R)[:, None] & (j < R - start)", "for start in range(0, BLOCK, BLOCK):\n            inside = (i < R)[:, None] & (j < R - start)"),
    ("matrix gradient: sign of a term of the rank", MATRICES, "- a * slope * (s - twice)", "+ a * slope * (s - twice)"),
    ("product: first slice only", MATRICES, "    for start in range(0, R, BLOCK_K):\n        k_in", "    for start in range(0, BLOCK_K, BLOCK_K):\n        k_in"),
    ("gram gradient: lambda is a constant", MATRICES, "inner / R, 0.0) - acc / ridge", "0.0, 0.0) - acc / ridge"),
    ("matvec: first part only", VECTORS, "        for part in range(0, parts):\n            v +=", "        for part in range(0, 1):\n            v +="),
    ("outer: bias of the last image only", VECTORS, "        total += u\n", "        total = u\n"),
    ("weight gradient: M rounded to the map's dtype", APPLY, "acc = tl.dot(m, x.to(COMPUTE), acc", "acc = tl.dot(m.to(X.dtype.element_ty), x, acc"),
    ("apply: mask of the positions dropped", APPLY, "(w * (x - acc)).to(OUT.dtype.element_ty), mask=inside)", "(w * (x - acc)).to(OUT.dtype.element_ty), mask=i_in[:, None])"),
    ("operands: weight of the row", MATRICES, "tl.load(W + batch * R + j, mask=j < R, other=0.0)[None, :]", "tl.load(W + batch * R + i, mask=i < R, other=0.0)[:, None]"),
    ("operands: no unit", MATRICES, "unit = tl.exp2(tl.minimum(tl.maximum(tl.floor(tl.log2(tl.where(top > 0, top, 1.0))), -60.0), 60.0))", "unit = tl.exp2(top * 0.0)"),
    ("feature gradient: Gbar rounded to 16 bits", APPLY, "    if SPLIT:\n        acc = multiply(acc, LOW", "    if False:\n        acc = multiply(acc, LOW"),
    ("apply: M rounded, not K", APPLY, "        matrix = tl.load(MATRIX + start + (i[:, None] * R + k[None, :]), mask=i_in[:, None] & k_in[None, :], other=0.0)\n", "        matrix = tl.load(MATRIX + start + (i[:, None] * R + k[None, :]), mask=i_in[:, None] & k_in[None, :], other=0.0)\n        matrix = (matrix.to(COMPUTE) + 1.0).to(MATRIX.dtype.element_ty).to(COMPUTE) - 1.0\n        matrix = tl.where(i_in[:, None] & k_in[None, :], matrix, 0.0).to(MATRIX.dtype.element_ty)\n"),
    ("feature gradient: dOut read with the map's strides", APPLY, "acc = multiply(acc, K + matrix, d_panel, d_rank, d_long,", "acc = multiply(acc, K + matrix, d_panel, x_rank, x_long,"),
    ("pull: dOut's images at the map's", GRAM, "d_tile = D + batch * d_batch + first", "d_tile = D + batch * x_batch + first"),
    ("autograd: gradient for what did not ask", "autograd.py", "any(needed[1:5])", "False"),
]  # fmt: skip
