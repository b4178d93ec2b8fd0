"""Plants faults in an operator's kernels, one at a time, and sees which ones its tests kill.

    python -m tests.kernels.mutants bce_dice [--only TEXT | --missing] [--write]

An operator's list is tests/kernels/mutants_<operator>.py: FAULTS, edits of the syntax tree (see
tests/proof/faults.py), and TESTS, pytest arguments. The work is done in a copy of the checkout.
--write puts the rows that were run into tests/kernels/mutants_<operator>.json. A survivor is a
missing test.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.proof.faults import Fault, planted

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 1200
# The extended rows too: an expression that does not name them leaves them out (conftest.py).
EVERY_ROW = "not slow and (extended or not extended)"


def copy_checkout(target: Path) -> None:
    """What the tests need, links kept."""
    for name in ("intrasense_fast", "kernels", "tests", "benchmarks", "examples"):
        shutil.copytree(
            ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, target)


def pytest_run(checkout: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    command += ["-m", EVERY_ROW, *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(checkout)}
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )


def outcome(checkout: Path, tests: list[str]) -> str:
    """The test that failed first, or nothing where all pass."""
    try:
        run = pytest_run(checkout, ["-x", *tests])
    except subprocess.TimeoutExpired:
        return f"no end within {TIMEOUT} s"
    if run.returncode < 0:
        return f"the process died of signal {-run.returncode}"
    if run.returncode not in (0, 1, 2):
        raise RuntimeError(
            f"pytest ended with {run.returncode}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
        )
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (
        failed[0].split(" ", 1)[1].split(" - ")[0]
        if failed
        else ("" if run.returncode == 0 else "collection")
    )


def killer(checkout: Path, operator: str, fault: Fault, attempts: list[list[str]]) -> str:
    """The test that fails first with the fault planted, or nothing; the source is put back."""
    path, text = planted(fault, checkout / "kernels" / operator)
    source = path.read_text()
    path.write_text(text)
    try:
        return next(filter(None, (outcome(checkout, tests) for tests in attempts)), "")
    finally:
        path.write_text(source)


def run(
    operator: str, tests: list[str], faults: list[Fault], known: dict[str, str]
) -> list[dict[str, str]]:
    """A row a fault, printed as soon as it is known.

    The test that killed a fault the last time, `known`, is tried before all others.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        copy_checkout(checkout)
        present = set(pytest_run(checkout, ["--collect-only", *tests]).stdout.splitlines())
        first = {fault.what: known.get(fault.what, "") for fault in faults}
        first = {what: test for what, test in first.items() if test in present}
        every = len(first) < len(faults)
        if broken := outcome(checkout, tests if every else sorted(set(first.values()))):
            raise SystemExit(f"the tests fail without a fault: {broken}")
        for fault in faults:
            attempts = [[first[fault.what]], tests] if fault.what in first else [tests]
            test = killer(checkout, operator, fault, attempts)
            rows.append({"fault": fault.what, "function": fault.function, "killed_by": test})
            print(f"{'killed  ' if test else 'SURVIVED'} {fault.what}: {test}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("operator")
    parser.add_argument("--only", default="", help="faults whose description contains this")
    parser.add_argument("--missing", action="store_true", help="faults that have no row yet")
    parser.add_argument("--write", action="store_true", help="write the result beside the list")
    options = parser.parse_args()
    plan = importlib.import_module(f"tests.kernels.mutants_{options.operator}")
    result = ROOT / f"tests/kernels/mutants_{options.operator}.json"
    known = {row["fault"]: row for row in json.loads(result.read_text())} if result.exists() else {}
    faults = [fault for fault in plan.FAULTS if options.only in fault.what]
    if options.missing:
        faults = [fault for fault in faults if fault.what not in known]
    killers = {fault: row["killed_by"] for fault, row in known.items()}
    rows = run(options.operator, plan.TESTS, faults, killers)
    survivors = [row["fault"] for row in rows if not row["killed_by"]]
    if options.write:
        known.update({row["fault"]: row for row in rows})
        ordered = [known[fault.what] for fault in plan.FAULTS if fault.what in known]
        result.write_text(json.dumps(ordered, indent=1) + "\n")
    print(f"{len(rows) - len(survivors)} of {len(rows)} killed")
    raise SystemExit(bool(survivors))


if __name__ == "__main__":
    main()
