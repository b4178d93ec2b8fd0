"""Faults planted in channel_decoupling (see mutants.py): at least one a kernel."""

# ruff: noqa: E501 (source lines, quoted as they are)

GRAM, INVERSE, MATRICES, VECTORS, APPLY, LAUNCHERS = (
    "gram.py", "inverse.py", "matrices.py", "vectors.py", "apply.py", "triton_impl.py",
)  # fmt: skip
TESTS = [
    "tests/contract/test_contract.py",
    "tests/kernels/test_channel_decoupling.py",
    "tests/kernels/test_channel_decoupling_accuracy.py",
    "-k",
    "channel_decoupling and not (opcheck or exports or compiles or autocast or memory_format or bad_input or gradcheck or derivative)",
]

MUTANTS = [
    ("gram: rows past the end", GRAM, "    j_in = i < R - tj * BLOCK_R\n    base = X", "    j_in = i < R - tj * BLOCK_R + 1\n    base = X"),
    ("gram: positions past the end", GRAM, "        k_in = k < L - start\n        a = tl", "        k_in = k < L - start + 1\n        a = tl"),
    ("gram: every tile of a row writes its sum", GRAM, "        if WITH_SUM and ti == tj:", "        if WITH_SUM:"),
    ("gram: trace of a column", GRAM, "tl.load(out + i * (R + 1), mask=i_in", "tl.load(out + i * R, mask=i_in"),
    ("gram: split starts where the first one does", GRAM, "base = X + batch * x_batch + split.to(tl.int64) * share * x_long", "base = X + batch * x_batch"),
    ("normalise: a zero trace divides", GRAM, "gh = gram / tl.where(trace == 0, 1.0, trace) * R", "gh = gram / trace * R"),
    ("normalise: an infinite trace passes", GRAM, 'gh = tl.where(tl.abs(trace) < float("inf"), gh, float("nan"))', "gh = gh"),
    ("normalise: the triangle that was not computed is read", GRAM, "(tl.maximum(i, j) * R + tl.minimum(i, j))", "(i * R + j)"),
    ("pull: weight forgotten", GRAM, "weighted = x.to(COMPUTE) * w[None, :]", "weighted = x.to(COMPUTE)"),
    ("pull: squeeze's product of the last block only", GRAM, "total += tl.sum(x.to(COMPUTE) * ds[None, :], 1)", "total = tl.sum(x.to(COMPUTE) * ds[None, :], 1)"),
    ("symmetrise: transposed half not transposed", GRAM, "part + split * R * R + (j[None, :] * R + i[:, None])", "part + split * R * R + there"),
    ("symmetrise: slope of the sigmoid", GRAM, "dw * w_i * (1.0 - w_i)", "dw * w_i"),
    ("inverse: pivot's own entry", INVERSE, "scaled = tl.where(i == p, 1.0, row) / pivot", "scaled = row / pivot"),
    ("inverse: zeros beyond the edge of a small matrix", INVERSE, "    a = tl.where(inside, a, tl.where(i[:, None] == i[None, :], 1.0, 0.0))\n", ""),
    ("panel: columns past the end", INVERSE, "            k_in = k < R - step * SIZE - start\n            a = tl", "            k_in = k < R - step * SIZE - start + 1\n            a = tl"),
    ("panel: no refinement", INVERSE, "tl.store(scratch + SIZE * SIZE + square, rest)", "tl.store(scratch + SIZE * SIZE + square, rest * 0.0)"),
    ("panel: the inverse of the next image's block", INVERSE, "scratch = SCRATCH + pid.to(tl.int64) * 2 * SIZE * SIZE", "scratch = SCRATCH + block * 2 * SIZE * SIZE"),
    ("update: row of the pivot keeps its block", INVERSE, "        acc = tl.where(bi == step, 0.0, acc)\n", ""),
    ("terms: S not taken off K", MATRICES, "tl.sum(tl.sum((shared - s) * gh, 1), 0)", "tl.sum(tl.sum(shared * gh, 1), 0)"),
    ("finish: rank after decoupling", MATRICES, "rank - slope * kept / R", "rank - slope * slope / R"),
    ("finish: sum of M over its first columns", MATRICES, "for start in range(0, R, BLOCK):\n            inside = (i < R)[:, None] & (j < R - start)", "for start in range(0, BLOCK, BLOCK):\n            inside = (i < R)[:, None] & (j < R - start)"),
    ("matrix gradient: sign of a term of the rank", MATRICES, "- a * slope * (s - twice)", "+ a * slope * (s - twice)"),
    ("matrix gradient: distance without its second term", MATRICES, "du * (3.0 * identity - 2.0 * m)", "du * identity"),
    ("matrix gradient: squeeze not symmetric", MATRICES, "+ mean_i[:, None] * ds_j[None, :])", "+ ds_i[:, None] * mean_j[None, :])"),
    ("product: first slice only", MATRICES, "    for start in range(0, R, BLOCK_K):\n        k_in", "    for start in range(0, BLOCK_K, BLOCK_K):\n        k_in"),
    ("gram gradient: lambda is a constant", MATRICES, "inner / R, 0.0) - acc / ridge", "0.0, 0.0) - acc / ridge"),
    ("gram gradient: a zero trace divides", MATRICES, "value = tl.where(trace == 0, 0.0, 2.0 * R * value / tl.where(trace == 0, 1.0, trace))", "value = 2.0 * R * value / trace"),
    ("operands: no unit", MATRICES, "    negative = tl.load(M + at", "    unit = top * 0.0 + 1.0\n    negative = tl.load(M + at"),
    ("operands: weight of the row", MATRICES, "negative * tl.load(W + batch * R + j, mask=j < R, other=0.0)[None, :]", "negative * tl.load(W + batch * R + i, mask=i < R, other=0.0)[:, None]"),
    ("matvec: first part only", VECTORS, "        for part in range(0, parts):\n            v +=", "        for part in range(0, 1):\n            v +="),
    ("matvec: no ReLU", VECTORS, "out = tl.where(out < 0, 0.0, out)", "out = out"),
    ("matvec: gradient where the ReLU is closed", VECTORS, "other=0.0) > 0, out, 0.0)", "other=0.0) >= 0, out, 0.0)"),
    ("outer: bias of the last image only", VECTORS, "        total += u\n", "        total = u\n"),
    ("apply: K not taken off the identity", APPLY, "(w * (x - acc)).to(OUT.dtype.element_ty)", "(w * x).to(OUT.dtype.element_ty)"),
    ("apply: M rounded, not K", APPLY, "        matrix = tl.load(MATRIX + start + (i[:, None] * R + k[None, :]), mask=i_in[:, None] & k_in[None, :], other=0.0)\n", "        matrix = tl.load(MATRIX + start + (i[:, None] * R + k[None, :]), mask=i_in[:, None] & k_in[None, :], other=0.0)\n        matrix = (matrix.to(COMPUTE) + 1.0).to(MATRIX.dtype.element_ty).to(COMPUTE) - 1.0\n        matrix = tl.where(i_in[:, None] & k_in[None, :], matrix, 0.0).to(MATRIX.dtype.element_ty)\n"),
    ("weight gradient: M rounded to the map's dtype", APPLY, "acc = tl.dot(m, x.to(COMPUTE), acc", "acc = tl.dot(m.to(X.dtype.element_ty), x, acc"),
    ("feature gradient: Gbar rounded to 16 bits", APPLY, "    if SPLIT:\n        acc = multiply(acc, LOW", "    if SPLIT and not SPLIT:\n        acc = multiply(acc, LOW"),
    ("feature gradient: squeeze of M' 1 is the mean", APPLY, "        if OUTER:\n            rise = rise *", "        if OUTER and not OUTER:\n            rise = rise *"),
    ("launcher: parts as large as the map", LAUNCHERS, ", max(1, long // (2 * rank)))", ")"),
    ("launcher: the blocked inverse ends one step early", LAUNCHERS, "    for step in range(blocks):\n", "    for step in range(blocks - 1):\n"),
    ("autograd: gradient for what did not ask", "autograd.py", "any(needed[1:5])", "False"),
]  # fmt: skip
