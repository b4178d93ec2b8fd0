"""Ahead-of-time compilation of exactly the launches an operator makes, without a GPU."""

import contextlib
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.proof import frontend
from tests.proof.jobs import CompileJob
from tests.proof.worker import run_worker

PTX = {
    "cp.async": r"cp\.async(?!\.bulk)",
    "tma": r"cp\.async\.bulk",
    "atomic": r"\b(?:atom|red)\.\w*\.?global",
}
SASS = ("HGMMA", "HMMA", "UTCHMMA", "LDG.E.128", "STG.E.128")
AMDGCN = {
    "mfma": r"v_mfma",
    "LDG.E.128": r"(?:global|buffer)_load_dwordx4",
    "atomic": r"(?:global|buffer|flat)_atomic",
}


@dataclass
class Report:
    """What the compiler made of a job: stack in bytes a thread, shared in bytes a program.

    kernel: the function's name. key: of the job. ttir: the digest of its Triton IR (frontend.py).
    On AMD the stack is scratch memory.
    """

    kernel: str
    target: str
    label: str
    key: str
    registers: int = -1
    stack: int = -1
    shared: int = -1
    seconds: float = 0.0
    instructions: dict[str, int] = field(default_factory=dict)
    error: str = ""
    ttir: str = ""


def compile_jobs(jobs: list[CompileJob], *, timeout: float = 1800) -> list[Report]:
    """Compile one job after the other, in one subprocess; one that fails says so in `error`.

    Raises:
        RuntimeError: the subprocess itself died, with the end of its output.
    """
    return [Report(**fields) for fields in run_worker("compile", jobs, timeout)]


def compiled_report(job: CompileJob) -> Report:
    """Compile one job here: only where TRITON_INTERPRET is not set."""
    report = Report(job.name, job.target, job.label, job.key)
    started = time.perf_counter()
    try:
        compiled = frontend.compiled(job)
        report.seconds = round(time.perf_counter() - started, 2)
        _read(compiled, job, report)
    except Exception as error:
        lines = str(error).strip().splitlines() or [repr(error)]
        report.error = f"{type(error).__name__}: {lines[-1][:300]}"
    return report


def _read(compiled: Any, job: CompileJob, report: Report) -> None:
    report.shared = compiled.metadata.shared
    report.ttir = frontend.digest(compiled.asm["ttir"], job)
    if "cubin" in compiled.asm:
        _read_cubin(compiled.asm, report)
        if count := overwritten(compiled.asm["ttgir"], job.options["num_stages"]):
            report.instructions["overwritten operands"] = count
        return
    text = compiled.asm["amdgcn"]
    report.instructions = _counts(AMDGCN, text)
    (report.registers,) = _numbers(r"\.vgpr_count:\s+(\d+)", text)
    (report.stack,) = _numbers(r"\.private_segment_fixed_size:\s+(\d+)", text)


def _counts(patterns: dict[str, str], text: str) -> dict[str, int]:
    counts = {name: len(re.findall(pattern, text)) for name, pattern in patterns.items()}
    return {name: count for name, count in counts.items() if count}


def _cuobjdump() -> str:
    import triton

    with contextlib.suppress(ImportError, AttributeError):
        return triton.knobs.nvidia.cuobjdump.path
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return str(bundled) if bundled.exists() else shutil.which("cuobjdump") or "cuobjdump"


def overwritten(ttgir: str, stages: int) -> int:
    """Operands of asynchronous products in a ring of fewer buffers than the loop has stages.

    A product still reads its operands when the next tile is fetched. Triton 3.6 gives a tile one
    buffer too few where it is read into registers as well: the fetch overwrites it, and the result
    is wrong now and then.
    """
    rings = dict(
        re.findall(
            r"(%\w+) = ttg\.memdesc_(?:index|subview) .*?: !ttg\.memdesc<(\d+)x\d+x\d+x", ttgir
        )
    )
    products = re.findall(
        r"ttng\.warp_group_dot (%\w+), (%\w+),[^{\n]*\{[^}\n]*isAsync = true", ttgir
    )
    return sum(
        int(rings.get(operand, stages)) < stages for product in products for operand in product
    )


def _numbers(pattern: str, text: str) -> list[int]:
    """The groups of the first match."""
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's output holds no {pattern}")
    return [int(number) for number in found.groups()]


def _read_cubin(asm: dict[str, Any], report: Report) -> None:
    report.instructions = _counts(PTX, asm["ptx"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _dumped("--dump-resource-usage", file.name)
        sass = _dumped("-sass", file.name)
    report.registers, report.stack = _numbers(r"REG:(\d+) STACK:(\d+)", usage)
    report.instructions |= _counts({name: rf"\b{re.escape(name)}\b" for name in SASS}, sass)


def _dumped(option: str, path: str) -> str:
    command = [_cuobjdump(), option, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
