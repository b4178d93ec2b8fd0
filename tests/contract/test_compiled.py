"""What the kernels compile to: a gate in every run, and the committed table of what is shipped."""

import json
import re

import pytest

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from benchmarks.provenance import ROOT
from benchmarks.static_report import FOLDER
from tests.proof.aot import compile_jobs, overwritten
from tests.proof.jobs import recorded_jobs
from tests.proof.registry import OPERATORS, compilation_of
from tests.proof.table import fresh_reports, path_of, violations

GATE = 220
TABLES = sorted(FOLDER.glob("*.json"))


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_gate(operator):
    compilation = compilation_of(operator)
    jobs = compilation.jobs("gate")
    problems = [
        problem
        for job, report in zip(jobs, compile_jobs(jobs), strict=True)
        for problem in violations(compilation, job, report)
    ]
    assert not problems, "\n".join(problems)


def test_the_gate_stays_small():
    counts = {name: len(compilation_of(name).jobs("gate")) for name in OPERATORS}
    assert all(counts.values()) and sum(counts.values()) <= GATE, counts


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_gate_compiles_every_kernel(operator):
    jobs = compilation_of(operator).jobs
    assert {job.kernel for job in jobs("gate")} == {job.kernel for job in jobs("full")}


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_committed_table_is_fresh_and_clean(path):
    table = json.loads(path.read_text())
    operator = path.stem.split("-triton-")[0]
    compilation = compilation_of(operator)
    jobs = compilation.jobs("full")
    reports = fresh_reports(jobs, table)
    stale = [f"{job.name} {job.label} {job.target}" for job in jobs if job not in reports]
    assert not stale, (
        f"stale; run python -m benchmarks.static_report --write {operator}: {stale[:5]}"
    )
    problems = [
        problem
        for job, report in reports.items()
        for problem in violations(compilation, job, report)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("constraints", ("constraints.txt", "constraints-triton36.txt"))
def test_every_operator_has_its_table_of_both_tritons(constraints):
    (triton,) = re.findall(r"^triton==(\S+)", (ROOT / constraints).read_text(), re.MULTILINE)
    missing = {
        operator for operator in OPERATORS if path_of(FOLDER, operator, triton) not in TABLES
    }
    assert not missing, (
        f"with triton {triton} run python -m benchmarks.static_report --write "
        f"{' '.join(sorted(missing))}"
    )


def test_a_recorded_job_is_what_the_launch_would_compile():
    import torch
    import triton
    import triton.language as tl

    from intrasense_fast.kernels._common.launch import launch

    @triton.jit
    def kernel(X, Y, n, one, stride, scale, SIZE: tl.constexpr, COMPUTE: tl.constexpr):
        pass

    x = torch.empty(64, dtype=torch.bfloat16, device="meta")
    arguments = (x, x[3:], 48, 1, 2**31, 0.5)
    run = lambda: launch(
        kernel, (4,), *arguments, SIZE=32, COMPUTE=tl.float32, num_warps=4, num_stages=2
    )
    (job,) = recorded_jobs(lambda: (run(), run()), "sm_80", "row")
    assert job.signature == {
        "X": "*bf16",
        "Y": "*bf16",
        "n": "i32",
        "stride": "i64",
        "scale": "fp32",
    }
    assert job.constexprs == {"SIZE": 32, "COMPUTE": "tl.float32", "one": 1}
    assert job.divisible == ("X", "n", "stride")
    assert job.options == {
        "num_warps": 4,
        "num_stages": 2,
        "enable_fp_fusion": True,
        "maxnreg": 255,
    }
    assert (
        recorded_jobs(
            lambda: launch(
                kernel, (0,), *arguments, SIZE=32, COMPUTE=tl.float32, num_warps=4, num_stages=2
            ),
            "sm_80",
            "",
        )
        == []
    )


def test_an_operand_that_is_overwritten_while_a_product_reads_it_is_found():
    """A loop whose tile went into a product and, from registers, into a sum (3.6, sm_90)."""
    one, other = "128x64xbf16", "64x128xbf16"
    memory = "#shared, #smem, mutable"
    loop = f"""
      %a_1 = ttg.memdesc_index %a_7[%x] : !ttg.memdesc<BUFFERSx{one}, {memory}> -> memdesc
      %a_2 = ttg.local_load %a_1 token %t : !ttg.memdesc<{one}, {memory}> -> tensor<{one}, #blocked>
      %b_1 = ttg.memdesc_index %b_7[%y] : !ttg.memdesc<3x{other}, {memory}> -> !ttg.memdesc<{other}>
      %acc = ttng.warp_group_dot %a_1, %b_1, %c {{isAsync = true}} : !ttg.memdesc<{one}> -> tensor
    """
    assert overwritten(loop.replace("BUFFERS", "2"), stages=3) == 1
    assert overwritten(loop.replace("BUFFERS", "3"), stages=3) == 0
    assert overwritten(loop.replace("BUFFERS", "2"), stages=2) == 0
