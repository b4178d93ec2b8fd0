"""Faults planted in nonlocal_attention (see mutants.py): at least one a kernel."""

from tests.proof.faults import Fault

TESTS = [
    "tests/kernels/test_nonlocal_attention.py",
    "tests/contract/test_contract.py",
    "tests/contract/test_bounds.py",
    "-k",
    "nonlocal_attention",
]

FAULTS = [
    Fault(
        "forward: keys past the end take part",
        "attention_forward",
        "tl.where(key_in[None, :], s * scale_log2, float('-inf'))",
        "s * scale_log2",
    ),
    Fault(
        "forward: queries past the end are stored",
        "attention_forward",
        "row < N - tile * BLOCK_M",
        "row < N - tile * BLOCK_M + 1",
    ),
    Fault(
        "forward: accumulator not rescaled when the maximum rises",
        "attention_forward",
        "acc * alpha[:, None]",
        "acc",
    ),
    Fault(
        "forward: maximum not subtracted",
        "attention_forward",
        "s - shift[:, None]",
        "s",
    ),
    Fault(
        "forward: -inf scores not shifted by 0",
        "attention_forward",
        "tl.where(higher == float('-inf'), 0.0, higher)",
        "higher",
    ),
    Fault(
        "forward: values stepped by the keys' stride",
        "attention_forward",
        ("k_base += BLOCK_N * k_row\nv_base += BLOCK_N * v_row"),
        ("k_base += BLOCK_N * k_row\nv_base += BLOCK_N * k_row"),
    ),
    Fault(
        "forward: log-sum-exp rounded to float16",
        "attention_forward",
        "tl.log2(weight)",
        "tl.log2(weight.to(tl.float16))",
    ),
    Fault(
        "statistics: columns past the end in the sum",
        "finish_slice",
        "tl.sum(out if EVEN_C else tl.where(column_in[None, :], out, 0.0), 1)",
        "tl.sum(out, 1) + tl.sum(tl.where(column_in[None, :], 0.0, 1.0), 1)",
    ),
    Fault(
        "statistics: columns past the end in the maximum",
        "finish_slice",
        "out if EVEN_C else tl.where(column_in[None, :], out, float('-inf'))",
        "out",
    ),
    Fault(
        "statistics: last of a tie wins",
        "finish_slice",
        "tl.min(tl.where(shown == best[:, None], column[None, :], 2147483647), 1)",
        "tl.max(tl.where(shown == best[:, None], column[None, :], 0), 1)",
    ),
    Fault(
        "statistics: NaN not carried into the maximum",
        "finish_slice",
        "tl.where(first_nan < 2147483647, float('nan'), best)",
        "best",
    ),
    Fault(
        "merge: later chunk wins a tie",
        "leads",
        "challenger > highest",
        "challenger >= highest",
    ),
    Fault(
        "merge: last chunk left out",
        "merge_statistics",
        "range(1, chunks)",
        "range(1, chunks - 1)",
    ),
    Fault(
        "prepare: mean not divided by C",
        "attention_prepare",
        "tl.load(GMEAN + at, mask=row_in, other=0.0).to(COMPUTE) / C",
        "tl.load(GMEAN + at, mask=row_in, other=0.0).to(COMPUTE)",
    ),
    Fault(
        "prepare: maximum's gradient to the wrong chunk",
        "attention_prepare",
        "column[None, :] + start",
        "column[None, :]",
    ),
    Fault(
        "prepare: Delta without the statistics' gradient",
        "attention_prepare",
        "do.to(COMPUTE)",
        "g",
        given=("g + share[:, None]",),
    ),
    Fault(
        "Delta from the output minus the residual",
        "finish_slice",
        "f += x.to(COMPUTE)",
        (
            "f += x.to(COMPUTE)\n"
            "if SAVE:\n"
            "    rounded = f.to(Y.dtype.element_ty).to(COMPUTE) - x\n"
            "    tl.store(y_tile, rounded.to(Y.dtype.element_ty), mask=mask)"
        ),
        given=(
            (
                "if SAVE:\n"
                "    y_tile = Y + (row[:, None] * y_row + column[None, :])\n"
                "    tl.store(y_tile, y.to(Y.dtype.element_ty), mask=mask)"
            ),
        ),
    ),
    Fault(
        "value gradient: queries past the end take part",
        "attention_value_gradient",
        "tl.load(lse_base + row, mask=row_in, other=float('inf'))",
        "tl.load(lse_base + row, mask=row_in)",
    ),
    Fault(
        "value gradient: log-sum-exp not advanced",
        "attention_value_gradient",
        "lse_base += BLOCK_M",
        "",
    ),
    Fault(
        "score gradient: keys past the end overflow",
        "score_slope",
        "tl.where(key_in[:, None], s * scale_log2, float('-inf'))",
        "s * scale_log2",
    ),
    Fault(
        "score gradient: Delta forgotten",
        "score_slope",
        "dp - delta[None, :]",
        "dp",
    ),
    Fault(
        "score gradient: partial dQ of the first tile not masked",
        "attention_score_gradient",
        "dq_mask & (step > 0)",
        "dq_mask",
    ),
    Fault(
        "wide score gradient: only the first slice of the depth",
        "attention_score_gradient_wide",
        "range(0, D, BLOCK_S)",
        "range(0, BLOCK_S, BLOCK_S)",
        place=(1, 2),
    ),
    Fault(
        "wide score gradient: partial dK of the first tile not masked",
        "attention_score_gradient_wide",
        "offset > 0",
        "offset >= 0",
        place=(1, 2),
    ),
    Fault(
        "resident score gradient: partial dQ of the first tile not masked",
        "attention_score_gradient_resident",
        "dq_mask & (step > 0)",
        "dq_mask",
    ),
    Fault(
        "resident score gradient: left half of the values twice",
        "attention_score_gradient_resident",
        "load_tile(v_tile + HALF, key, column, v_row, key_in, right_in, EVEN_C)",
        "load_tile(v_tile, key, column, v_row, key_in, right_in, EVEN_C)",
        place=(1, 2),
    ),
    Fault(
        "resident score gradient: Delta not advanced",
        "attention_score_gradient_resident",
        ("lse_tile += BLOCK_M\ndelta_tile += BLOCK_M"),
        "lse_tile += BLOCK_M",
    ),
    Fault(
        "reduce: last query split left out",
        "sum_parts",
        "range(1, parts)",
        "range(2, parts)",
    ),
    Fault(
        "reduce: dK not scaled",
        "sum_parts",
        "total * scale",
        "total",
    ),
    Fault(
        "score gradient: key splits race for one partial",
        "attention_score_gradient",
        "DQ + ((batch * key_splits + key_split) * N + start) * D + dq_offsets",
        "DQ + (batch * key_splits * N + start) * D + dq_offsets",
    ),
    Fault(
        "launcher: last tile of keys not started",
        "value_gradient",
        "cdiv(positions, config.blocks['BLOCK_N'])",
        "max(1, positions // config.blocks['BLOCK_N'])",
    ),
    Fault(
        "launcher: A V saved for the value's gradient too",
        "nonlocal_attention_fused",
        "query.requires_grad or key.requires_grad",
        "True",
    ),
]
