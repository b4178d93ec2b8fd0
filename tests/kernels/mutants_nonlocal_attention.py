"""Faults planted in nonlocal_attention (see mutants.py): at least one a kernel."""

FORWARD, BACKWARD, RESIDENT, LAUNCHERS = (
    "forward.py",
    "backward.py",
    "resident.py",
    "triton_impl.py",
)
TESTS = [
    "tests/kernels/test_nonlocal_attention.py",
    "tests/contract/test_contract.py",
    "tests/contract/test_bounds.py",
    "-k",
    "nonlocal_attention",
]

MUTANTS = [
    (
        "forward: keys past the end take part",
        FORWARD,
        's = tl.where(key_in[None, :], s * scale_log2, float("-inf"))',
        "s = s * scale_log2",
    ),
    (
        "forward: queries past the end are stored",
        FORWARD,
        "row_in = row < N - tile * BLOCK_M",
        "row_in = row < N - tile * BLOCK_M + 1",
    ),
    (
        "forward: accumulator not rescaled when the maximum rises",
        FORWARD,
        "acc = acc * alpha[:, None]",
        "acc = acc",
    ),
    (
        "forward: maximum not subtracted",
        FORWARD,
        "p = tl.exp2(s - shift[:, None])",
        "p = tl.exp2(s)",
    ),
    (
        "forward: -inf scores not shifted by 0",
        FORWARD,
        'shift = tl.where(higher == float("-inf"), 0.0, higher)',
        "shift = higher",
    ),
    (
        "forward: values stepped by the keys' stride",
        FORWARD,
        "v_base += BLOCK_N * v_row",
        "v_base += BLOCK_N * k_row",
    ),
    (
        "forward: log-sum-exp rounded to float16",
        FORWARD,
        "m + tl.log2(weight)",
        "m + tl.log2(weight.to(tl.float16))",
    ),
    (
        "statistics: columns past the end in the sum",
        FORWARD,
        "total += tl.sum(out if EVEN_C else tl.where(column_in[None, :], out, 0.0), 1)",
        "total += tl.sum(out, 1) + tl.sum(tl.where(column_in[None, :], 0.0, 1.0), 1)",
    ),
    (
        "statistics: columns past the end in the maximum",
        FORWARD,
        'shown = out if EVEN_C else tl.where(column_in[None, :], out, float("-inf"))',
        "shown = out",
    ),
    (
        "statistics: last of a tie wins",
        FORWARD,
        "at = tl.min(tl.where(shown == best[:, None], column[None, :], 2147483647), 1)",
        "at = tl.max(tl.where(shown == best[:, None], column[None, :], 0), 1)",
    ),
    (
        "statistics: NaN not carried into the maximum",
        FORWARD,
        'best = tl.where(first_nan < 2147483647, float("nan"), best)',
        "best = best",
    ),
    (
        "merge: later chunk wins a tie",
        FORWARD,
        "        better = (best > top) | ((best != best) & (top == top))\n        top =",
        "        better = (best >= top) | ((best != best) & (top == top))\n        top =",
    ),
    (
        "merge: last chunk left out",
        FORWARD,
        "for _ in range(1, chunks):",
        "for _ in range(1, chunks - 1):",
    ),
    ("prepare: mean not divided by C", BACKWARD, ".to(COMPUTE) / C", ".to(COMPUTE)"),
    (
        "prepare: maximum's gradient to the wrong chunk",
        BACKWARD,
        "tl.where(column[None, :] + start == arg[:, None], g_max[:, None], 0.0)",
        "tl.where(column[None, :] == arg[:, None], g_max[:, None], 0.0)",
    ),
    (
        "prepare: Delta without the statistics' gradient",
        BACKWARD,
        "delta += tl.sum(tl.where(mask, do.to(COMPUTE) * a, 0.0), 1)",
        "delta += tl.sum(tl.where(mask, g * a, 0.0), 1)",
    ),
    (
        "Delta from the output minus the residual",
        FORWARD,
        "    out += tl.load(R + (row[:, None] * r_row + column[None, :]), mask=mask, other=0.0).to(COMPUTE)\n",
        "    res = tl.load(R + (row[:, None] * r_row + column[None, :]), mask=mask, other=0.0).to(COMPUTE)\n    out += res\n"
        "    if SAVE:\n        rounded = out.to(A.dtype.element_ty).to(COMPUTE) - res\n"
        "        tl.store(A + (row[:, None] * a_row + column[None, :]), rounded.to(A.dtype.element_ty), mask=mask)\n",
    ),
    (
        "value gradient: queries past the end take part",
        BACKWARD,
        'lse = tl.load(lse_base + row, mask=row_in, other=float("inf"))',
        "lse = tl.load(lse_base + row, mask=row_in)",
    ),
    ("value gradient: log-sum-exp not advanced", BACKWARD, "        lse_base += BLOCK_M\n", ""),
    (
        "score gradient: keys past the end overflow",
        BACKWARD,
        'p = tl.exp2(tl.where(key_in[:, None], s, float("-inf")) - lse[None, :])',
        "p = tl.exp2(s - lse[None, :])",
    ),
    (
        "score gradient: Delta forgotten",
        BACKWARD,
        "ds = operand(p * (dp - delta[None, :]), Q.dtype.element_ty, PRECISION)\n                dk",
        "ds = operand(p * dp, Q.dtype.element_ty, PRECISION)\n                dk",
    ),
    (
        "score gradient: partial dQ of the first tile not masked",
        BACKWARD,
        "before = tl.load(dq_tile, mask=dq_mask & (step > 0), other=0.0)",
        "before = tl.load(dq_tile, mask=dq_mask, other=0.0)",
    ),
    (
        "wide score gradient: keys past the end overflow",
        BACKWARD,
        'p = tl.exp2(tl.where(key_in[:, None], s * scale_log2, float("-inf")) - lse[None, :])',
        "p = tl.exp2(s * scale_log2 - lse[None, :])",
    ),
    (
        "wide score gradient: only the first slice of the depth",
        BACKWARD,
        "                s = tl.zeros([BLOCK_N, BLOCK_M], COMPUTE)\n                for d in range(0, D, BLOCK_S):",
        "                s = tl.zeros([BLOCK_N, BLOCK_M], COMPUTE)\n                for d in range(0, BLOCK_S, BLOCK_S):",
    ),
    (
        "wide score gradient: partial dK of the first tile not masked",
        BACKWARD,
        "before = tl.load(part, mask=mask & (offset > 0), other=0.0)",
        "before = tl.load(part, mask=mask, other=0.0)",
    ),
    (
        "resident score gradient: keys past the end overflow",
        RESIDENT,
        'p = tl.exp2(tl.where(key_in[:, None], s * scale_log2, float("-inf")) - lse[None, :])',
        "p = tl.exp2(s * scale_log2 - lse[None, :])",
    ),
    (
        "resident score gradient: partial dQ of the first tile not masked",
        RESIDENT,
        "before = tl.load(dq_at, mask=dq_mask & (step > 0), other=0.0)",
        "before = tl.load(dq_at, mask=dq_mask, other=0.0)",
    ),
    (
        "resident score gradient: left half of the values twice",
        RESIDENT,
        "v_right = tl.load(v_tile + HALF + v_offsets",
        "v_right = tl.load(v_tile + v_offsets",
    ),
    (
        "resident score gradient: Delta not advanced",
        RESIDENT,
        "                delta_tile += BLOCK_M\n",
        "",
    ),
    (
        "reduce: last query split left out",
        BACKWARD,
        "for _ in range(1, query_splits):",
        "for _ in range(2, query_splits):",
    ),
    (
        "reduce: dK not scaled",
        BACKWARD,
        "tl.store(DK + batch * size + index, (total * scale)",
        "tl.store(DK + batch * size + index, (total)",
    ),
    (
        "score gradient: key splits race for one partial",
        BACKWARD,
        "dq_tile = DQ + ((batch * key_splits + key_split) * N",
        "dq_tile = DQ + ((batch * key_splits) * N",
    ),
    (
        "launcher: last tile of keys not started",
        LAUNCHERS,
        'tiles, chunks = cdiv(positions, config.blocks["BLOCK_N"]),',
        'tiles, chunks = max(1, positions // config.blocks["BLOCK_N"]),',
    ),
    (
        "launcher: A V saved for the value's gradient too",
        "autograd.py",
        "query.requires_grad or key.requires_grad)",
        "True)",
    ),
]
