"""What lets a row of the static table stand: the canonical syntax tree, or the Triton IR."""

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from tests.kernels import kernels_for_syntax as cases
from tests.proof.aot import Report
from tests.proof.frontend import normalised, ttir_digests
from tests.proof.jobs import CompileJob
from tests.proof.syntax import canonical_kernel, kernel_digest
from tests.proof.table import as_rows, fresh_reports, restamped_reports

OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True, "maxnreg": 255}


def job_of(name: str, **changes) -> CompileJob:
    parameters = tuple(getattr(cases, name).fn.__code__.co_varnames[:4])
    pointers, count = parameters[:2], parameters[2]
    job = CompileJob(
        kernel=f"{cases.__name__}:{name}",
        parameters=parameters,
        signature={**dict.fromkeys(pointers, "*fp32"), count: "i32"},
        constexprs={parameters[3]: 64},
        divisible=pointers,
        options=OPTIONS,
        target="sm_90",
        label="row",
    )
    return replace(job, **changes)


def table_of(job: CompileJob, ttir: str = "") -> dict:
    report = Report(job.name, job.target, job.label, job.key, registers=16, ttir=ttir)
    return {"rows": as_rows({job: report}), "bounds": []}


def test_names_comments_layout_and_how_helpers_are_called_do_not_count():
    assert canonical_kernel(cases.same) == canonical_kernel(cases.kernel)


@pytest.mark.parametrize("other", ("other_helper", "swapped", "unbounded", "rearranged"))
def test_what_a_kernel_does_counts(other):
    assert kernel_digest(getattr(cases, other)) != kernel_digest(cases.kernel)


def test_a_row_stands_while_tree_and_specialisation_are_the_stored_ones():
    job = job_of("kernel")
    table = table_of(job)
    assert fresh_reports([job], table)[job].registers == 16
    renamed = job_of("same")
    assert fresh_reports([renamed], table)[renamed].kernel == "same"
    for stale in (
        job_of("unbounded"),
        job_of("kernel", target="sm_80"),
        job_of("kernel", divisible=("X",)),
        job_of("kernel", constexprs={"SIZE": 128}),
        job_of("kernel", options={**OPTIONS, "num_stages": 2}),
        job_of("kernel", signature={"X": "*fp32", "Y": "*bf16", "n": "i32"}),
    ):
        assert not fresh_reports([stale], table), stale


def test_a_row_is_stamped_again_where_the_triton_ir_is_the_stored_one():
    job, changed = job_of("kernel"), job_of("rearranged")
    names = ("kernel", "same", "rearranged", "unbounded", "other_helper")
    jobs = [*map(job_of, names), job_of("kernel", target="sm_80")]
    digests = dict(zip(jobs, ttir_digests(jobs), strict=True))
    assert all(digests.values())
    assert len({digests[job_of(name)] for name in names[:3]}) == 1
    assert len(set(digests.values())) == 4
    ask = lambda asked: [digests[each] for each in asked]
    table = table_of(job, digests[job])
    assert not fresh_reports([changed], table)
    (stamped,) = restamped_reports([changed, job_of("unbounded")], table, ask).values()
    assert (stamped.kernel, stamped.registers, stamped.ttir) == ("rearranged", 16, digests[job])
    assert not restamped_reports([changed], table_of(job), ask)


def test_places_and_names_are_no_part_of_the_ir():
    one = """#loc1 = loc("a.py":3:4)
    tt.func public @kernel(%X: !tt.ptr<f32> loc("X"(#loc))) {
      %i = tt.get_program_id x : i32 loc(#loc1)
      %i_1 = arith.addi %i, %i : i32 loc(#loc1)
    } loc(#loc)"""
    other = """#loc7 = loc("b.py":30:4)
    tt.func public @renamed(%Y: !tt.ptr<f32> loc("Y"(#loc))) {
      %0 = tt.get_program_id x : i32 loc(#loc7)
      %1 = arith.addi %0, %0 : i32 loc(#loc7)
    } loc(#loc)"""
    assert normalised(one) == normalised(other)
    assert normalised(one) != normalised(other.replace("addi %0, %0", "muli %0, %0"))
    assert normalised(one) != normalised(other.replace("addi %0, %0", "addi %0, %Y"))
