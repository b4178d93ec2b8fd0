"""Triton's front end on a compile job: its IR after inlining, and a digest of it.

Code is decided by that IR, the target and the options alone: two jobs of one digest compile to the
same. Making it runs no LLVM and no ptxas.
"""

import hashlib
import importlib
import json
import re
from typing import Any

from tests.proof.jobs import CompileJob
from tests.proof.worker import run_worker


def ttir_digests(jobs: list[CompileJob], *, timeout: float = 1800) -> list[str]:
    """The digest of every job, in one subprocess; "" where the front end fails.

    Raises:
        RuntimeError: the subprocess itself died, with the end of its output.
    """
    return run_worker("ttir", jobs, timeout)


def digest(ttir: str, job: CompileJob) -> str:
    """Of the IR without places in files, names of values and functions; of target and options."""
    options = json.dumps([job.target, job.options], sort_keys=True)
    return hashlib.sha256((options + normalised(ttir)).encode()).hexdigest()[:16]


def normalised(ttir: str) -> str:
    """The IR's text with nothing that only names or locates."""
    lines = [line for line in ttir.splitlines() if not line.startswith("#loc")]
    text = re.sub(r"\s*loc\((?:[^()]|\([^()]*\))*\)", "", "\n".join(lines))
    for mark, pattern in (("%v", r"%[\w$.-]+"), ("@f", r"@[\w$.-]+")):
        numbers: dict[str, str] = {}
        rename = lambda match: numbers.setdefault(match[0], f"{mark}{len(numbers)}")  # noqa: B023
        text = re.sub(pattern, rename, text)
    return text


def compiled(job: CompileJob) -> Any:
    """The whole of Triton's compiler."""
    import triton

    return triton.compile(_source(job), target=_target(job.target), options=_options(job))


def ttir_digest(job: CompileJob) -> str:
    """The front end and the passes of the first stage only; "" where they fail."""
    try:
        return digest(_ttir(job), job)
    except Exception:
        return ""


def _ttir(job: CompileJob) -> str:
    from triton._C.libtriton import ir
    from triton.compiler.compiler import make_backend

    target = _target(job.target)
    source = _source(job)
    backend = make_backend(target)
    options = backend.parse_options({**_options(job), **source.parse_options()})
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    generators = backend.get_codegen_implementation(options)
    module = source.make_ir(target, options, generators, backend.get_module_map(), context)
    return str(stages["ttir"](module, {"target": target, **options.__dict__}))


def _source(job: CompileJob) -> Any:
    import triton.language as tl
    from triton.compiler import ASTSource

    module, function = job.kernel.split(":")
    kernel = getattr(importlib.import_module(module), function)
    constexprs = {
        name: getattr(tl, value[3:]) if str(value).startswith("tl.") else value
        for name, value in job.constexprs.items()
    }
    signature = {name: job.signature.get(name, "constexpr") for name in kernel.arg_names}
    places = [(kernel.arg_names.index(name),) for name in job.divisible]
    attributes = {place: [["tt.divisibility", 16]] for place in places}
    return ASTSource(kernel, signature, constexprs, attributes)


def _target(name: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if name.startswith("gfx"):
        return GPUTarget("hip", name, 64)
    return GPUTarget("cuda", int(name[3:]), 32)


def _options(job: CompileJob) -> dict[str, Any]:
    if job.target.startswith("gfx"):
        return {name: value for name, value in job.options.items() if name != "maxnreg"}
    return job.options
