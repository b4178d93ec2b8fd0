"""Host time of the operators' calls, with and without launch plans, against an empty Function.

    python -m benchmarks.host [--rounds N] [--out FILE] [--check] [--dry-run]

Without a GPU Triton's own JIT and launcher run on a CUDA driver whose launches do nothing
(tests/proof/fake_driver.py): what Python costs, without the driver and the hand-off between
autograd's threads. With a GPU: time until the call returns, the device's time not included while
its queue has room. The variants take turns in one process: the least time of all rounds, and the
median of the rounds' ratios.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# Of the whole call, forward and backward, over the empty Function's: issue goals, asserted by
# --check.
GOALS = {
    "attention": 3.0,
    "whitening, window 7": 3.0,
    "decoupling R = 512": 4.0,
    "decoupling R = 256": 4.0,
    "bce_dice": 3.0,
}
VARIANTS = ("without plans", "with plans", "empty Function")
BLOCK_SECONDS = 0.02


class Case(NamedTuple):
    """One operator's call on the model's shapes.

    inner: its kernels/<operator>/autograd.py. options: the public call's.
    """

    function: Callable[..., Any]
    inner: ModuleType
    inputs: list[Any]


def cases(device: str) -> dict[str, Case]:
    """The shapes of the network at 256 x 256, one image, bfloat16."""
    import torch

    from intrasense_fast.functional import (
        bce_dice,
        channel_decoupling,
        entropy_whitening,
        nonlocal_attention,
    )
    from intrasense_fast.kernels.bce_dice import autograd as bce_dice_inner
    from intrasense_fast.kernels.channel_decoupling import autograd as decoupling_inner
    from intrasense_fast.kernels.entropy_whitening import autograd as whitening_inner
    from intrasense_fast.kernels.nonlocal_attention import autograd as attention_inner

    channels, side = 512, 16

    def make(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, device=device)

    def maps(size: int) -> torch.Tensor:
        return make(1, channels, size, size).contiguous(memory_format=torch.channels_last)

    single = torch.float32
    rows = [make(1, side**2, width) for width in (64, 64, channels, channels)]
    gate = [make(1, side, side, dtype=single), make(1, side, side, dtype=single)]
    gate += [make(1, 2, 7, 7, dtype=single), make(1, dtype=single)]
    shapes = ((32, channels), (32,), (channels, 32), (channels,))
    mlp = [make(*shape, dtype=single) for shape in shapes]
    logits = make(1, 1, 64, 64)
    return {
        "attention": Case(nonlocal_attention, attention_inner, rows),
        "whitening, window 7": Case(entropy_whitening, whitening_inner, [maps(side), *gate]),
        "decoupling R = 512": Case(channel_decoupling, decoupling_inner, [maps(32), *mlp]),
        "decoupling R = 256": Case(channel_decoupling, decoupling_inner, [maps(side), *mlp]),
        "bce_dice": Case(bce_dice, bce_dice_inner, [logits, logits > 0]),
    }


def calls(case: Case) -> dict[str, Callable[[], object]]:
    """A forward and a backward in each variant."""
    import torch

    from intrasense_fast.kernels.runtime import use_launch_plans

    leaves = [
        t.detach().requires_grad_() if t.is_floating_point() else t.detach() for t in case.inputs
    ]
    wanted = [t for t in leaves if t.requires_grad]
    outputs = case.function(*leaves, fused=True)
    grads = [torch.ones_like(t) for t in outputs if t.requires_grad]

    def both() -> object:
        outputs = case.function(*leaves, fused=True)
        return torch.autograd.grad([t for t in outputs if t.requires_grad], wanted, grads)

    def plans(enabled: bool) -> Callable[[], object]:
        def turn() -> object:
            use_launch_plans(enabled)
            return both

        return turn

    return {
        "without plans": plans(False),
        "with plans": plans(True),
        "empty Function": _empty(case, leaves, wanted, grads),
    }


def _empty(case: Case, leaves: list, wanted: list, grads: list) -> Callable[[], object]:
    """An autograd.Function with the operator's inputs, outputs and as much saved: no work."""
    import torch

    taken: dict[str, Any] = {}
    forward, backward = case.inner._forward, case.inner._backward

    def note(name: str, function: Callable) -> Callable:
        def call(*args: Any) -> Any:
            taken[name] = function(*args)
            return taken[name]

        return call

    case.inner._forward, case.inner._backward = note("forward", forward), note("backward", backward)
    torch.autograd.grad(
        [t for t in case.function(*leaves, fused=True) if t.requires_grad], wanted, grads
    )
    case.inner._forward, case.inner._backward = forward, backward
    results = tuple(t.detach() for t in taken["forward"])
    shown = len(case.function(*case.inputs, fused=True))
    back = taken["backward"]
    back = (back,) if isinstance(back, torch.Tensor) else tuple(back)
    count = len(leaves)

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            ctx.save_for_backward(*inputs, *results[shown:])
            shown_results = results[:shown]
            ctx.mark_non_differentiable(*[t for t in shown_results if not t.is_floating_point()])
            return shown_results

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            _ = ctx.saved_tensors
            return (*back, *(None,) * (count - len(back)))

    def both() -> object:
        outputs = Empty.apply(*leaves)
        return torch.autograd.grad([t for t in outputs if t.requires_grad], wanted, grads)

    return lambda: both


def timed(
    turns: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> list[dict[str, float]]:
    """Of every round, {variant: microseconds a call}: a block of calls of each in turn."""
    found = []
    for _ in range(rounds):
        found.append({name: _block(turn(), clock) for name, turn in turns.items()})
    return found


def _block(function: Callable[[], object], clock: Callable[[], float]) -> float:
    function(), function()
    start = clock()
    function()
    count = max(3, int(BLOCK_SECONDS / max(clock() - start, 1e-6)))
    start = clock()
    for _ in range(count):
        function()
    return (clock() - start) / count * 1e6


def counted(case: Case) -> dict[str, Any]:
    """Of a planned call: launches, allocations, bytes of workspace; forward and backward."""
    from intrasense_fast.kernels._common.plan import _planners

    turns = calls(case)
    turns["with plans"]()()
    operator = case.inner.__name__.split(".")[-2]
    found: dict[str, Any] = {}
    for direction in ("forward", "backward"):
        (plan,) = _planners[f"{operator}_{direction}"].plans.values()
        found[direction] = {
            "launches": len(plan.steps),
            "allocations": len(plan.outputs) + bool(plan.workspace),
            "workspace_bytes": plan.workspace,
        }
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the table; with --check the exit status says whether every goal is met."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="also as JSON")
    parser.add_argument("--check", action="store_true", help="fail where a goal is missed")
    parser.add_argument("--dry-run", action="store_true", help="one round: a walk, not a result")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        device = _prepared(Path(folder))
        return _report(options, device)


def _prepared(folder: Path) -> str:
    """The device: a GPU, or the CPU with the fake driver behind Triton."""
    os.environ["TRITON_INTERPRET"] = "0"
    import torch

    torch.set_num_threads(1)
    if torch.cuda.is_available():
        return "cuda"
    from tests.proof.fake_driver import install

    install(folder).only_count()
    return "cpu"


def _report(options: argparse.Namespace, device: str) -> int:
    from benchmarks.provenance import provenance, write_json

    # Another process's work is none of this thread's; with a GPU the backward has its own thread.
    clock = time.thread_time if device == "cpu" else time.perf_counter
    result = {**provenance(), "dry_run": options.dry_run, "device": device, "host": {}}
    names = ("launches", "allocations", *VARIANTS, "ratio before", "ratio", "goal")
    print(" | ".join((f"{'us':22}", *(f"{name:>14}" for name in names))))
    missed = []
    for label, case in cases(device).items():
        counts = counted(case)
        rounds = timed(calls(case), 1 if options.dry_run else options.rounds, clock)
        least = {name: min(each[name] for each in rounds) for name in VARIANTS}
        # Of one round: what slows the machine for a while slows all three.
        earlier, ratio = (
            statistics.median(each[name] / each[VARIANTS[2]] for each in rounds)
            for name in VARIANTS[:2]
        )
        row = {**counts, "us": least, "ratio_before": earlier, "ratio": ratio}
        row["goal"] = GOALS[label]
        result["host"][label] = row
        sums = ["+".join(str(counts[d][what]) for d in counts) for what in names[:2]]
        cells = [*sums, *(f"{least[name]:.0f}" for name in VARIANTS)]
        cells += [f"{earlier:.1f}", f"{ratio:.2f}", f"{GOALS[label]:.0f}"]
        print(" | ".join((f"{label:22}", *(f"{cell:>14}" for cell in cells))), flush=True)
        if ratio > GOALS[label]:
            missed.append(label)
    if options.out:
        write_json(options.out, result)
    if missed:
        print(f"above its goal: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
