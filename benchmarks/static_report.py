"""What every kernel compiles to and asks of memory: no GPU needed.

    python -m benchmarks.static_report                     the committed table
    python -m benchmarks.static_report --json              the same, as JSON
    python -m benchmarks.static_report --write [operator]  recompile what is stale, measure, and commit-ready JSON

Registers a thread, stack (spills) in bytes a thread, shared memory in bytes a program, instructions, and per call: launches,
passes over the floor's bytes, dot FLOPs over the useful ones.
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

    from intrasense_fast.kernels._proof.registry import OPERATORS, proof_of, proofs
    from intrasense_fast.kernels._proof.table import path_of, read

    unknown = set(options.operators) - set(OPERATORS)
    if unknown:
        print(
            f"no operator {', '.join(sorted(unknown))}; there are {', '.join(OPERATORS)}",
            file=sys.stderr,
        )
        return 2
    chosen = [proof_of(name) for name in options.operators] if options.operators else proofs()
    tables, missing = {}, []
    for proof in chosen:
        path = path_of(FOLDER, proof.name, triton.__version__)
        if options.write:
            update(proof, path)
        tables[proof.name] = read(path)
        if not path.exists():
            missing.append(proof.name)
    if options.json:
        print(
            json.dumps(
                {"triton": triton.__version__, "operators": tables}, indent=1, sort_keys=True
            )
        )
    else:
        for name, table in tables.items():
            print_table(name, table)
    if missing:
        print(
            f"no table for triton {triton.__version__}: {', '.join(missing)}; make it with --write",
            file=sys.stderr,
        )
    return 1 if missing else 0


def update(proof, path: Path) -> None:
    """Compile the stale rows of one operator, measure its bounds, write its table."""
    import torch
    import triton

    from benchmarks.provenance import commit
    from intrasense_fast.kernels._proof.aot import compile_jobs, unique
    from intrasense_fast.kernels._proof.interpreter import install
    from intrasense_fast.kernels._proof.measure import measured
    from intrasense_fast.kernels._proof.table import as_row, fresh_reports, read, violations, write

    install()
    jobs = unique([*proof.jobs("gate"), *proof.jobs("full")])
    reports = fresh_reports(proof, jobs, read(path))
    stale = [job for job in jobs if job.key not in reports]
    print(
        f"{proof.name}: {len(stale)} of {len(jobs)} configurations to compile with triton {triton.__version__}",
        file=sys.stderr,
    )
    for start in range(0, len(stale), BATCH):
        batch = stale[start : start + BATCH]
        reports |= {job.key: report for job, report in zip(batch, compile_jobs(batch), strict=True)}
        rows = [as_row(proof, job, reports[job.key]) for job in jobs if job.key in reports]
        # What is compiled is kept, whatever ends this run.
        write(
            path,
            {
                "triton": triton.__version__,
                "torch": torch.__version__,
                "rows": rows,
                "bounds": read(path)["bounds"],
            },
        )
    rows = [as_row(proof, job, reports[job.key]) for job in jobs]
    bounds = []
    for bound in proof.bounds():
        found = measured(proof, bound, torch.Generator().manual_seed(0))
        bounds.append({
            "mode": bound.mode, "shape": list(bound.row.shape), "dtype": str(bound.row.dtype)[6:],
            "options": dict(bound.options), "architecture": bound.architecture, "launches": found.launches,
            "passes": round(found.passes, 3), "flops": round(found.flops, 3), "requested": round(found.requested, 2),
        })  # fmt: skip
    versions = {"triton": triton.__version__, "torch": torch.__version__, "commit": commit()}
    write(path, {**versions, "rows": rows, "bounds": bounds})
    print(
        f"{path.name} written: python -m benchmarks.report renders README from it", file=sys.stderr
    )
    for job in jobs:
        for problem in violations(proof, job, reports[job.key]):
            print(f"VIOLATION {problem}", file=sys.stderr)


def print_table(name: str, table: dict) -> None:
    print(f"\n{name}")
    print(
        f"{'kernel':34} {'shape':34} {'target':7} {'regs':>4} {'stack':>5} {'shared':>7}  instructions"
    )
    for row in table["rows"]:
        shown = ", ".join(f"{key} {count}" for key, count in sorted(row["instructions"].items()))
        print(
            f"{row['kernel'].split(':')[1]:34} {row['label']:34} {row['target']:7} {row['registers']:4} {row['stack']:5} "
            f"{row['shared']:7}  {row['error'] or shown}"
        )
    print(
        f"{'mode':10} {'shape':24} {'tables':7} {'launches':>8} {'passes':>7} {'flops':>6} {'requested':>9}  options"
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
