"""What every kernel compiles to and asks of memory: no GPU needed.

    python -m benchmarks.static_report                     the committed table
    python -m benchmarks.static_report --json              the same, as JSON
    python -m benchmarks.static_report --write [operator]  recompile what is stale, and measure

Registers a thread, stack (spills) in bytes a thread, shared memory in bytes a program,
instructions, and per call: launches, passes over the floor's bytes, dot FLOPs over the useful ones.
A row whose Triton IR did not change is not compiled again.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# Configurations compiled before the table is written again.
BATCH = 40
FOLDER = Path(__file__).parent / "results" / "static"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.static_report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("operators", nargs="*", help="operators to report, all by default")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--write",
        action="store_true",
        help="recompile stale rows with the installed triton and write the table",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    # Launches are counted in the interpreter; the compiler runs in a subprocess without it.
    os.environ["TRITON_INTERPRET"] = "1"
    import triton

    from tests.proof.registry import OPERATORS
    from tests.proof.table import path_of, read

    unknown = set(options.operators) - set(OPERATORS)
    if unknown:
        names = ", ".join(sorted(unknown))
        print(f"no operator {names}; there are {', '.join(OPERATORS)}", file=sys.stderr)
        return 2
    tables, missing = {}, []
    for operator in options.operators or OPERATORS:
        path = path_of(FOLDER, operator, triton.__version__)
        if options.write:
            update(operator, path)
        tables[operator] = read(path)
        if not path.exists():
            missing.append(operator)
    if options.json:
        content = {"triton": triton.__version__, "operators": tables}
        print(json.dumps(content, indent=1, sort_keys=True))
    else:
        for name, table in tables.items():
            print_table(name, table)
    if missing:
        print(
            f"no table for triton {triton.__version__}: {', '.join(missing)}; make it with --write",
            file=sys.stderr,
        )
    return 1 if missing else 0


def update(operator: str, path: Path) -> None:
    """Bring one operator's table up to date: rows, then bounds.

    A row whose kernel's syntax tree is the stored one is kept; one whose Triton IR is the stored
    one is stamped again; the others are compiled.
    """
    from benchmarks.provenance import commit
    from tests.proof.registry import compilation_of
    from tests.proof.table import read, violations, write

    reports = updated_reports(operator, path)
    table = read(path)
    write(path, {**table, "commit": commit(), "bounds": measured_bounds(operator)})
    print(
        f"{path.name} written: python -m benchmarks.report renders README from it", file=sys.stderr
    )
    for job, report in reports.items():
        for problem in violations(compilation_of(operator), job, report):
            print(f"VIOLATION {problem}", file=sys.stderr)


def updated_reports(operator: str, path: Path) -> dict:
    """The report of every job, in the jobs' order; the table's rows are written on the way."""
    from tests.proof.aot import compile_jobs
    from tests.proof.frontend import ttir_digests
    from tests.proof.jobs import unique
    from tests.proof.registry import compilation_of
    from tests.proof.table import fresh_reports, read, restamped_reports

    compilation = compilation_of(operator)
    jobs = unique([*compilation.jobs("gate"), *compilation.jobs("full")])
    table = read(path)
    fresh = fresh_reports(jobs, table)
    changed = [job for job in jobs if job not in fresh]
    restamped = restamped_reports(changed, table, ttir_digests)
    stale = [job for job in changed if job not in restamped]
    print(
        f"{operator}: {len(jobs)} configurations: {len(fresh)} unchanged, {len(restamped)} with "
        f"the same Triton IR, {len(stale)} to compile",
        file=sys.stderr,
    )
    reports = {**fresh, **restamped}
    for start in range(0, len(stale), BATCH):
        batch = stale[start : start + BATCH]
        reports |= dict(zip(batch, compile_jobs(batch), strict=True))
        # What is compiled is kept, whatever ends this run.
        write_rows(path, reports)
    reports = {job: reports[job] for job in jobs}
    complete_digests(reports)
    write_rows(path, reports)
    return reports


def complete_digests(reports: dict) -> None:
    """Rows from before digests were stored get theirs."""
    from tests.proof.frontend import ttir_digests

    missing = [job for job, report in reports.items() if not report.ttir]
    if missing:
        print(f"{len(missing)} digests of Triton IR to make", file=sys.stderr)
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        for job, digest in zip(batch, ttir_digests(batch), strict=True):
            reports[job].ttir = digest
    if failed := [job for job in missing if not reports[job].ttir]:
        print(f"no Triton IR of {len(failed)}: they compile whenever they change", file=sys.stderr)


def write_rows(path: Path, reports: dict) -> None:
    import torch
    import triton

    from tests.proof.table import as_rows, read, write

    versions = {"triton": triton.__version__, "torch": torch.__version__}
    write(path, {**read(path), **versions, "rows": as_rows(reports)})


def measured_bounds(operator: str) -> list[dict]:
    """Launches, passes, FLOPs and requested bytes of every bound, counted in the interpreter."""
    import torch

    from tests.proof.guard import install
    from tests.proof.measure import measured
    from tests.proof.registry import contract_of, cost_of

    install()
    rows = []
    for bound in cost_of(operator).bounds():
        counts = measured(contract_of(operator), bound, torch.Generator().manual_seed(0))
        row = {
            "mode": bound.mode,
            "shape": list(bound.row.shape),
            "dtype": str(bound.row.dtype)[6:],
            "options": dict(bound.options),
            "architecture": bound.architecture,
            "launches": counts.launches,
            "passes": round(counts.passes, 3),
            "flops": round(counts.flops, 3),
            "requested": round(counts.requested, 2),
        }
        rows.append(row)
    return rows


def print_table(name: str, table: dict) -> None:
    print(f"\n{name}")
    print(
        f"{'kernel':34} {'shape':34} {'target':7} {'regs':>4} {'stack':>5} {'shared':>7}  "
        "instructions"
    )
    for row in table["rows"]:
        shown = ", ".join(f"{key} {count}" for key, count in sorted(row["instructions"].items()))
        print(
            f"{row['kernel']:34} {row['label']:34} {row['target']:7} {row['registers']:4} "
            f"{row['stack']:5} "
            f"{row['shared']:7}  {row['error'] or shown}"
        )
    print(
        f"{'mode':10} {'shape':24} {'tables':7} {'launches':>8} {'passes':>7} {'flops':>6} "
        f"{'requested':>9}  options"
    )
    for row in table["bounds"]:
        shape = "x".join(map(str, row["shape"])) + " " + row["dtype"]
        figures = (
            f"{row[key]:.2f}" if row[key] else "-" for key in ("passes", "flops", "requested")
        )
        passes, flops, requested = figures
        options = ", ".join(f"{key}={value}" for key, value in row["options"].items())
        left = f"{row['mode']:10} {shape:24} {row['architecture']:7} {row['launches']:8}"
        print(f"{left} {passes:>7} {flops:>6} {requested:>9}  {options}")


if __name__ == "__main__":
    sys.exit(main())
