"""The committed table of what every shipped configuration compiles to: which rows are stale, which break a rule."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from intrasense_fast.kernels._common.configs import SHARED_LIMIT
from intrasense_fast.kernels._proof.aot import CompileJob, Report, source_hash
from intrasense_fast.kernels._proof.registry import OperatorProof

# Where a spill is an error; elsewhere it is recorded.
WITHOUT_SPILL = ("sm_80", "sm_86", "sm_90")


def violations(proof: OperatorProof, job: CompileJob, report: Report) -> list[str]:
    """What is wrong with one compiled configuration, in words."""
    if report.error:
        return [f"does not compile: {report.error}"]
    found = []
    if report.stack and report.target in WITHOUT_SPILL:
        found.append(f"spills: {report.stack} bytes of stack")
    if report.shared > SHARED_LIMIT[report.target]:
        found.append(
            f"{report.shared} bytes of shared memory, {SHARED_LIMIT[report.target]} at most"
        )
    if report.instructions.get("atomic"):
        found.append(f"{report.instructions['atomic']} atomic instructions")
    if report.instructions.get("overwritten operands"):
        found.append(
            f"{report.instructions['overwritten operands']} operands are overwritten while a product reads them"
        )
    found += [f"no {name}" for name in proof.instructions(job) if not report.instructions.get(name)]
    return [f"{job.kernel.split(':')[1]} {job.label} {job.target}: {what}" for what in found]


def row_hash(proof: OperatorProof, job: CompileJob) -> str:
    """Changes with the kernel's source and the operator's configuration tables."""
    return source_hash(job.kernel, *proof.tables)


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


def fresh_reports(
    proof: OperatorProof, jobs: list[CompileJob], table: dict[str, Any]
) -> dict[str, Report]:
    """The table's reports, by key, of jobs whose source has not changed since."""
    rows = {row["key"]: row for row in table["rows"]}
    hashes: dict[str, str] = {}
    fresh = {}
    for job in jobs:
        row = rows.get(job.key)
        current = hashes.setdefault(job.kernel, row_hash(proof, job))
        if row is not None and row["source"] == current:
            fresh[job.key] = Report(
                **{name: value for name, value in row.items() if name != "source"}
            )
    return fresh


def as_row(proof: OperatorProof, job: CompileJob, report: Report) -> dict[str, Any]:
    return {**asdict(report), "label": job.label, "source": row_hash(proof, job)}
