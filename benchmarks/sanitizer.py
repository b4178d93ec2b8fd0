"""NVIDIA's compute-sanitizer on small cases of every operator, and CUDA graphs against plain calls.

    python -m benchmarks.sanitizer --out FILE

For each operator: forward and backward on its contract shapes in float32 and bfloat16 under
memcheck, racecheck and initcheck, and a CUDA graph of both, captured on one set of inputs and
replayed on another, which must equal a plain call bit for bit. The file is rewritten after every
check. A check that could not run is written as such and makes the exit code 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cuda_graphs import captured
from benchmarks.provenance import ROOT, provenance, write_json
from tests.proof.records import Contract, Row
from tests.proof.registry import OPERATORS, contract_of

TOOLS = ("memcheck", "racecheck", "initcheck")
# What the sanitizer multiplies: the shapes of most elements are left to the plain tests.
LARGEST = 2**15


def shapes(contract: Contract, dry: bool) -> list[tuple[int, int, int, int]]:
    small = [
        shape
        for shape in contract.shapes.values()
        if shape[0] and torch.Size(shape).numel() <= LARGEST
    ]
    return [contract.shapes["one position"]] if dry else small


def make(contract: Contract, shape: tuple, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return contract.make_inputs(
        Row(shape, dtype, torch.channels_last, device), torch.Generator().manual_seed(seed)
    )


def both(contract: Contract, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Outputs and gradients of one fused call."""
    leaves = {
        key: t.detach().requires_grad_(key in contract.differentiable) for key, t in inputs.items()
    }
    outputs = contract.public(**leaves, fused=True, **contract.option_sets[0])
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    smooth = [t for t in outputs if t.requires_grad]
    grads = torch.autograd.grad(
        smooth,
        [leaves[key] for key in contract.differentiable],
        [torch.ones_like(t) for t in smooth],
    )
    return [*(t.detach() for t in outputs), *grads]


def run_small(operator: str, dry: bool) -> None:
    """What runs under the sanitizer: every small shape of one operator, forward and backward."""
    contract = contract_of(operator)
    for shape in shapes(contract, dry):
        for dtype in (torch.float32,) if dry else (torch.float32, torch.bfloat16):
            both(contract, make(contract, shape, dtype, 0))
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def graph_differs(contract: Contract) -> str:
    """Capture on one set of inputs, replay on another; what differs from a plain call, or ""."""
    for shape in shapes(contract, dry=False):
        inputs, others = (make(contract, shape, torch.float32, seed) for seed in (0, 1))
        replay, results = captured(partial(both, contract, inputs))
        for key, t in inputs.items():
            t.copy_(others[key])
        replay()
        torch.cuda.synchronize()
        for index, (one, other) in enumerate(zip(results, both(contract, others), strict=True)):
            if not torch.equal(one, other):
                return f"shape {shape}: result {index} of the graph differs from the plain call's"
    return ""


def check(command: list[str], environment: dict[str, str], seconds: float) -> str:
    """ "passed", or what went wrong, with the last lines of the output."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return f"not finished in {seconds:.0f} s"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return (
        "passed"
        if done.returncode == 0
        else f"exit code {done.returncode}: " + " | ".join(lines[-8:])[:2000]
    )


def sanitizer() -> str | None:
    """Path of compute-sanitizer: on PATH, or in the CUDA toolkit's usual places."""
    folders = [
        Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ
    ]
    folders += [Path("/usr/local/cuda/bin"), Path("/usr/local/cuda/compute-sanitizer")]
    return shutil.which("compute-sanitizer") or next(
        (
            found
            for folder in folders
            if (found := shutil.which("compute-sanitizer", path=str(folder)))
        ),
        None,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sanitizer", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/sanitizer.json"))
    parser.add_argument("--seconds", type=float, default=550, help="begin no check after this time")
    parser.add_argument(
        "--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="checks at a time"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="one tiny case an operator, without the sanitizer"
    )
    parser.add_argument("--one", metavar="OPERATOR", help=argparse.SUPPRESS)
    parser.add_argument("--graph", metavar="OPERATOR", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        if not options.dry_run:
            parser.error("torch sees no GPU; --dry-run walks through the cases without one")
        os.environ.setdefault("TRITON_INTERPRET", "1")
    if options.one:
        run_small(options.one, options.dry_run)
        return 0
    if options.graph:
        problem = graph_differs(contract_of(options.graph))
        print(problem or "equal")
        return 1 if problem else 0
    tool = sanitizer()
    result = {**provenance(), "dry_run": options.dry_run, "sanitizer": tool, "checks": []}
    begin = time.monotonic()
    own = [sys.executable, "-m", "benchmarks.sanitizer"]
    # Freed blocks must not be handed out again from torch's pool, or an access to them would pass.
    plain = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTORCH_NO_HIP_MEMORY_CACHING": "1"}
    names = list(OPERATORS)
    work = [(name, "dry run", [*own, "--dry-run", "--one", name], {}) for name in names]
    if not options.dry_run:
        work = [(name, "graph", [*own, "--graph", name], {}) for name in names]
        for kind in TOOLS:
            run = [tool or "", "--tool", kind, "--error-exitcode", "9", "--print-limit", "5", *own]
            work += [(name, kind, [*run, "--one", name], plain) for name in names]

    def outcome_of(row: tuple[str, str, list[str], dict[str, str]]) -> str:
        _, kind, command, environment = row
        rest = options.seconds - (time.monotonic() - begin)
        if kind in TOOLS and tool is None:
            return "not run: compute-sanitizer is neither on PATH nor in CUDA_HOME/bin"
        return "not run: the time was used up" if rest < 5 else check(command, environment, rest)

    with ThreadPoolExecutor(options.jobs) as pool:
        for (operator, kind, _, _), outcome in zip(work, pool.map(outcome_of, work), strict=True):
            print(f"{operator:20} {kind:10} {outcome}", flush=True)
            result["checks"].append({"operator": operator, "check": kind, "outcome": outcome})
            write_json(options.out, result)
    return 0 if all(row["outcome"] == "passed" for row in result["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
