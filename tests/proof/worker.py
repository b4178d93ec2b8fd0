"""The process that compiles: Triton's interpreter and its compiler cannot share one.

python -m tests.proof.worker compile|ttir JOBS.json RESULTS.jsonl
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.proof.jobs import CompileJob

ROOT = Path(__file__).resolve().parents[2]


def run_worker(task: str, jobs: list[CompileJob], timeout: float) -> list[Any]:
    """What the task answers for every job, in order.

    Raises:
        RuntimeError: the process died, with the job it died at and the end of its output.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": path}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "jobs.json")
        result = Path(folder, "results.jsonl")
        source.write_text(json.dumps([asdict(job) for job in jobs]))
        options = ["-W", "ignore", "-m", "tests.proof.worker", task, str(source), str(result)]
        process = subprocess.run(
            [sys.executable, *options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        lines = result.read_text().splitlines() if result.exists() else []
    if process.returncode or len(lines) != len(jobs):
        place = ""
        if len(lines) < len(jobs):
            place = f" at {jobs[len(lines)].kernel} {jobs[len(lines)].label}"
        output = process.stderr[-2000:]
        raise RuntimeError(f"the compiler ended with {process.returncode}{place}:\n{output}")
    return [json.loads(line) for line in lines]


def _compile(job: CompileJob) -> dict[str, Any]:
    from tests.proof.aot import compiled_report

    return asdict(compiled_report(job))


def _ttir(job: CompileJob) -> str:
    from tests.proof.frontend import ttir_digest

    return ttir_digest(job)


TASKS: dict[str, Callable[[CompileJob], Any]] = {"compile": _compile, "ttir": _ttir}


def main(task: str, source: str, result: str) -> None:
    """A line of JSON for every job, written as soon as it is known."""
    with open(result, "w") as out:
        for fields in json.loads(Path(source).read_text()):
            parameters, divisible = tuple(fields["parameters"]), tuple(fields["divisible"])
            job = CompileJob(**{**fields, "parameters": parameters, "divisible": divisible})
            out.write(json.dumps(TASKS[task](job)) + "\n")
            out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
