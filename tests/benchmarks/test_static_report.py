"""The static table is brought up to date with as little compiling as its witnesses allow."""

import json

import pytest

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

import triton

from benchmarks.static_report import FOLDER, updated_reports
from tests.proof import aot
from tests.proof.table import path_of

OPERATOR = "bce_dice"


@pytest.fixture
def table(tmp_path):
    committed = path_of(FOLDER, OPERATOR, triton.__version__)
    if not committed.exists():
        pytest.skip(f"no committed table for triton {triton.__version__}")
    path = tmp_path / committed.name
    path.write_text(committed.read_text())
    return path


@pytest.mark.extended
def test_a_changed_tree_with_the_same_triton_ir_compiles_nothing(table, capsys, monkeypatch):
    before = json.loads(table.read_text())
    changed = json.loads(table.read_text())
    for row in changed["rows"][:2]:
        row["source"] = "of another tree"
    table.write_text(json.dumps(changed))
    monkeypatch.setattr(aot, "compile_jobs", lambda jobs: pytest.fail(f"compiled {jobs}"))
    reports = updated_reports(OPERATOR, table)
    rows = len(before["rows"])
    said = f"{rows} configurations: {rows - 2} unchanged, 2 with the same Triton IR, 0 to compile"
    assert said in capsys.readouterr().err
    assert len(reports) == rows
    assert json.loads(table.read_text())["rows"] == before["rows"]


@pytest.mark.extended
def test_what_no_witness_vouches_for_is_compiled(table, monkeypatch):
    content = json.loads(table.read_text())
    lost = content["rows"].pop()
    table.write_text(json.dumps(content))
    compiled = []

    def compile_jobs(jobs):
        compiled.extend(jobs)
        return [
            aot.Report(job.name, job.target, job.label, job.key, registers=1, ttir="made")
            for job in jobs
        ]

    monkeypatch.setattr(aot, "compile_jobs", compile_jobs)
    updated_reports(OPERATOR, table)
    assert [job.key for job in compiled] == [lost["key"]]
    rows = json.loads(table.read_text())["rows"]
    assert rows[:-1] == content["rows"]
    assert (rows[-1]["key"], rows[-1]["registers"]) == (lost["key"], 1)
