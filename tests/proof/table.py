"""The committed table of what every shipped configuration compiles to.

A row holds two witnesses of what was compiled: `source`, the digest of the kernel's canonical
syntax tree (syntax.py), and `ttir`, that of its Triton IR (frontend.py). It is fresh where key and
source agree; where only the IR agrees it may be stamped again without compiling.
"""

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from intrasense_fast.kernels._common.configs import SHARED_LIMIT
from tests.proof.aot import Report
from tests.proof.jobs import CompileJob
from tests.proof.records import Compilation
from tests.proof.syntax import kernel_digest

# Where a spill is an error; elsewhere it is recorded.
WITHOUT_SPILL = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


def violations(compilation: Compilation, job: CompileJob, report: Report) -> list[str]:
    """What is wrong with one compiled configuration, in words."""
    problems = _problems(report)
    if not report.error:
        needed = compilation.instructions(job)
        problems += [f"no {name}" for name in needed if not report.instructions.get(name)]
    return [f"{job.name} {job.label} {job.target}: {problem}" for problem in problems]


def _problems(report: Report) -> list[str]:
    if report.error:
        return [f"does not compile: {report.error}"]
    problems = []
    if report.stack and report.target in WITHOUT_SPILL:
        problems.append(f"spills: {report.stack} bytes of stack")
    limit = SHARED_LIMIT[report.target]
    if report.shared > limit:
        problems.append(f"{report.shared} bytes of shared memory, {limit} at most")
    if count := report.instructions.get("atomic"):
        problems.append(f"{count} atomic instructions")
    if count := report.instructions.get("overwritten operands"):
        problems.append(f"{count} operands are overwritten while a product reads them")
    return problems


def sources(jobs: list[CompileJob]) -> dict[str, str]:
    """The digest of every job's kernel, by "module:function"."""
    digests = {}
    for kernel in {job.kernel for job in jobs}:
        module, function = kernel.split(":")
        digests[kernel] = kernel_digest(getattr(importlib.import_module(module), function))
    return digests


def path_of(folder: Path, operator: str, triton: str) -> Path:
    return folder / f"{operator}-triton-{triton}.json"


def read(path: Path) -> dict[str, Any]:
    """A committed table, empty if there is none yet."""
    return json.loads(path.read_text()) if path.exists() else {"rows": [], "bounds": []}


def write(path: Path, table: dict[str, Any]) -> None:
    """Replace the table in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


def fresh_reports(jobs: list[CompileJob], table: dict[str, Any]) -> dict[CompileJob, Report]:
    """The table's reports of jobs whose kernel's syntax tree has not changed since."""
    rows = {(row["key"], row["source"]): row for row in table["rows"]}
    digests = sources(jobs)
    reports = {}
    for job in jobs:
        row = rows.get((job.key, digests[job.kernel]))
        if row is not None:
            reports[job] = _report(job, row)
    return reports


def restamped_reports(
    jobs: list[CompileJob],
    table: dict[str, Any],
    digests_of: Callable[[list[CompileJob]], list[str]],
) -> dict[CompileJob, Report]:
    """The table's reports of jobs whose Triton IR, target and options some row was compiled from.

    Args:
        digests_of: frontend.ttir_digests, or a stand-in; not asked where no row holds a digest.
    """
    rows = {row["ttir"]: row for row in table["rows"] if row.get("ttir")}
    digests = digests_of(jobs) if rows and jobs else []
    pairs = zip(jobs, digests, strict=False)
    return {job: _report(job, rows[digest]) for job, digest in pairs if digest in rows}


def as_rows(reports: dict[CompileJob, Report]) -> list[dict[str, Any]]:
    """The table's rows, in the reports' order; what is empty is left out."""
    digests = sources(list(reports))
    rows = []
    for job, report in reports.items():
        row = {**asdict(report), "source": digests[job.kernel]}
        rows.append({name: value for name, value in row.items() if value or name != "ttir"})
    return rows


def _report(job: CompileJob, row: dict[str, Any]) -> Report:
    known = {field.name for field in fields(Report)}
    report = Report(**{name: value for name, value in row.items() if name in known})
    return replace(report, kernel=job.name, label=job.label, key=job.key)
