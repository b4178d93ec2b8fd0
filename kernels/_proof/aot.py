"""Ahead-of-time compilation of exactly the launches an operator makes, without a GPU.

`recorded_jobs` runs launchers on meta tensors and turns each launch into a `CompileJob`: pointer types, alignment and integer
specialisation as Triton's JIT would choose them. `compile_jobs` compiles them in a subprocess (the interpreter and the
compiler cannot share one) and returns a `Report` each.
"""

import contextlib
import hashlib
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels._common import launch as launching
from intrasense_fast.kernels._common.configs import assume

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
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


@dataclass(frozen=True)
class CompileJob:
    """One compilation: a kernel, what its arguments are, and for which target.

    kernel: "module:function". signature: run-time argument -> Triton type. constexprs: name -> value, dtypes as "tl.float32";
    an integer argument equal to 1 is one of them, as in Triton's JIT. divisible: arguments divisible by 16. options:
    num_warps, num_stages, enable_fp_fusion, maxnreg. label: the operator's name for the row.
    """

    kernel: str
    signature: dict[str, str] = field(hash=False)
    constexprs: dict[str, Any] = field(hash=False)
    divisible: tuple[str, ...]
    options: dict[str, Any] = field(hash=False)
    target: str
    label: str = ""

    @property
    def key(self) -> str:
        """A hash of everything that decides the compiled code, the kernel's source aside."""
        text = json.dumps({**asdict(self), "label": ""}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Report:
    """What the compiler made of a job: stack in bytes a thread (AMD: scratch), shared in bytes a program."""

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


def _name(kernel: Any) -> str:
    return f"{kernel.fn.__module__}:{kernel.fn.__name__}"


def _constexpr(value: Any) -> Any:
    import triton.language as tl

    names = {
        tl.float64: "tl.float64",
        tl.float32: "tl.float32",
        tl.float16: "tl.float16",
        tl.bfloat16: "tl.bfloat16",
    }
    return names[value] if isinstance(value, tl.dtype) else value


def _job(
    kernel: Any,
    args: tuple,
    constexprs: dict[str, Any],
    options: dict[str, Any],
    target: str,
    label: str,
) -> CompileJob:
    import triton.language as tl

    parameters = inspect.signature(kernel.fn).parameters
    runtime = [
        name for name, parameter in parameters.items() if parameter.annotation is not tl.constexpr
    ]
    if len(runtime) != len(args):
        raise TypeError(
            f"{_name(kernel)} takes {len(runtime)} run-time arguments ({', '.join(runtime)}), got {len(args)}"
        )
    signature, fixed, divisible = (
        {},
        {name: _constexpr(value) for name, value in constexprs.items()},
        [],
    )
    for name, value in zip(runtime, args, strict=True):
        if isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            # A fresh allocation is aligned: only a view's offset can break it.
            if value.storage_offset() * value.element_size() % 16 == 0:
                divisible.append(name)
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            if value == 1:
                fixed[name] = 1
                continue
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                divisible.append(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value is None:
            fixed[name] = None
        else:
            raise TypeError(f"{_name(kernel)}: argument {name} is a {type(value).__name__}")
    return CompileJob(_name(kernel), signature, fixed, tuple(divisible), options, target, label)


@contextlib.contextmanager
def _recording(target: str, label: str) -> Iterator[list[CompileJob]]:
    jobs: list[CompileJob] = []

    def record(kernel, grid, args, constexprs, options):
        jobs.append(_job(kernel, args, constexprs, options, target, label))

    original, launching._start = launching._start, record
    try:
        with assume(target):
            yield jobs
    finally:
        launching._start = original


def recorded_jobs(run: Callable[[], Any], target: str, label: str) -> list[CompileJob]:
    """The compilations that the launches of `run` would cause on `target`; nothing is executed.

    Args:
        run: calls launchers (the plain functions of triton_impl.py, not the registered operators) on meta tensors.
        target: one of configs.ARCHITECTURES; the launchers choose that architecture's tables.
        label: the row's name in reports, e.g. "C=512 bfloat16".
    """
    with _recording(target, label) as jobs:
        run()
    return unique(jobs)


def unique(jobs: Iterable[CompileJob]) -> list[CompileJob]:
    """Without repetitions, in order."""
    found: dict[str, CompileJob] = {}
    for job in jobs:
        found.setdefault(job.key, job)
    return list(found.values())


def source_hash(kernel: str, *tables: str) -> str:
    """A hash of the module that holds the kernel, of the modules named in `tables`, and nothing else."""
    digest = hashlib.sha256()
    for module in (kernel.split(":")[0], *tables):
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise LookupError(f"{module} has no file to hash")
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()[:16]


def compile_jobs(
    jobs: list[CompileJob], *, timeout: float = 1800, progress: Callable[[str], None] | None = None
) -> list[Report]:
    """Compile in one subprocess, one job after the other; a job that fails has its last line in `error`.

    Raises:
        RuntimeError: the subprocess itself died, with the end of its output.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "jobs.json"), Path(folder, "reports.jsonl")
        source.write_text(json.dumps([asdict(job) for job in jobs]))
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "intrasense_fast.kernels._proof.aot",
            str(source),
            str(result),
        ]
        process = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout
        )
        reports = (
            [Report(**json.loads(line)) for line in result.read_text().splitlines()]
            if result.exists()
            else []
        )
    if process.returncode or len(reports) != len(jobs):
        at = (
            f" at {jobs[len(reports)].kernel} {jobs[len(reports)].label}"
            if len(reports) < len(jobs)
            else ""
        )
        raise RuntimeError(
            f"the compiler process ended with {process.returncode}{at}:\n{process.stderr[-2000:]}"
        )
    return reports


def _target(name: str):
    from triton.backends.compiler import GPUTarget

    return (
        GPUTarget("hip", name, 64)
        if name.startswith("gfx")
        else GPUTarget("cuda", int(name[3:]), 32)
    )


def _cuobjdump() -> str:
    import triton

    with contextlib.suppress(ImportError, AttributeError):
        return triton.knobs.nvidia.cuobjdump.path
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return str(bundled) if bundled.exists() else shutil.which("cuobjdump") or "cuobjdump"


def _compile(job: CompileJob) -> Report:
    import triton
    import triton.language as tl
    from triton.compiler import ASTSource

    module, function = job.kernel.split(":")
    kernel = getattr(importlib.import_module(module), function)
    constexprs = {
        name: getattr(tl, value[3:])
        if isinstance(value, str) and value.startswith("tl.")
        else value
        for name, value in job.constexprs.items()
    }
    signature = {
        name: "constexpr" if name in constexprs else job.signature[name]
        for name in kernel.arg_names
    }
    attributes = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in job.divisible
    }
    options = {
        k: v
        for k, v in job.options.items()
        if not (k == "maxnreg" and job.target.startswith("gfx"))
    }
    started = time.perf_counter()
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs, attributes),
        target=_target(job.target),
        options=options,
    )
    report = Report(job.kernel, job.target, job.label, job.key, shared=compiled.metadata.shared)
    report.seconds = round(time.perf_counter() - started, 2)
    if "cubin" in compiled.asm:
        _read_cubin(compiled.asm, report)
        if count := overwritten(compiled.asm["ttgir"], job.options["num_stages"]):
            report.instructions["overwritten operands"] = count
    else:
        text = compiled.asm["amdgcn"]
        report.instructions = {
            name: count
            for name, pattern in AMDGCN.items()
            if (count := len(re.findall(pattern, text)))
        }
        (report.registers,) = _numbers(r"\.vgpr_count:\s+(\d+)", text)
        (report.stack,) = _numbers(r"\.private_segment_fixed_size:\s+(\d+)", text)
    return report


def overwritten(ttgir: str, stages: int) -> int:
    """Operands of asynchronous products that lie in a ring of fewer buffers than the loop has stages.

    A product still reads its operands when the next tile is fetched. Triton 3.6 gives a tile one buffer too few where it is
    read into registers as well: the fetch overwrites it, and the result is wrong now and then.
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
    report.instructions = {
        name: count
        for name, pattern in PTX.items()
        if (count := len(re.findall(pattern, asm["ptx"])))
    }
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        run = lambda *options: (
            subprocess.run(
                [_cuobjdump(), *options, file.name], capture_output=True, text=True, check=True
            ).stdout
        )
        report.registers, report.stack = _numbers(
            r"REG:(\d+) STACK:(\d+)", run("--dump-resource-usage")
        )
        sass = run("-sass")
    for name in SASS:
        if count := len(re.findall(rf"\b{re.escape(name)}\b", sass)):
            report.instructions[name] = count


def main(source: str, result: str) -> None:
    """The subprocess: jobs from one file, a report a line into the other."""
    with open(result, "w") as out:
        for fields in json.loads(Path(source).read_text()):
            job = CompileJob(**{**fields, "divisible": tuple(fields["divisible"])})
            try:
                report = _compile(job)
            except Exception as error:
                lines = str(error).strip().splitlines() or [repr(error)]
                report = Report(
                    job.kernel,
                    job.target,
                    job.label,
                    job.key,
                    error=f"{type(error).__name__}: {lines[-1][:300]}",
                )
            out.write(json.dumps(asdict(report)) + "\n")
            out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
