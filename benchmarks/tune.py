"""Time configurations of one kernel on a GPU: which row of its table a shape should use.

    python -m benchmarks.tune attention_forward decoupling_matrix ... --out FILE

A candidate takes the place of what the operator's configs.py answers; the launcher that starts the kernel is captured in a
CUDA graph and its replays are timed, L2 warm. Candidates compile in parallel, in processes of their own, into Triton's cache;
one that does not compile, does not fit, or spills is reported as such. "now" is what configs.py answers today.
"""

import argparse
import contextlib
import importlib
import itertools
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import provenance, write_json
from intrasense_fast.kernels._common.configs import KernelConfig

REPLAYS = 20


@dataclass(frozen=True)
class Subject:
    """A function of an operator's configs.py, what may answer in its place, and what starts the kernels that ask it."""

    operator: str
    function: str
    shapes: tuple[tuple[int, ...], ...]
    candidates: Callable[[tuple[int, ...]], Iterable[KernelConfig]]
    start: Callable[[tuple[int, ...]], Callable[[], object]]


@contextlib.contextmanager
def answering(subject: Subject, config: KernelConfig | None) -> Iterator[None]:
    """The operator's configs.py answers `config` to this question wherever it is asked."""
    folder = f"intrasense_fast.kernels.{subject.operator}"
    modules = [importlib.import_module(f"{folder}.{name}") for name in ("configs", "triton_impl")]
    if subject.operator == "channel_decoupling":
        modules.append(importlib.import_module(f"{folder}.launchers"))
    before = [(module, getattr(module, subject.function)) for module in modules if hasattr(module, subject.function)]
    if config is not None:
        for module, _ in before:
            setattr(module, subject.function, lambda *_args, **_options: config)
    try:
        yield
    finally:
        for module, function in before:
            setattr(module, subject.function, function)


def microseconds(function: Callable[[], object]) -> float:
    """Median time of a replay of the call's CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPLAYS)]
    graph.replay()
    for start, stop in marks:
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in marks) * 1e3


def compile_one(name: str, shape: tuple[int, ...], config: KernelConfig | None) -> str:
    """In a process of its own: "" or what went wrong."""
    from intrasense_fast.kernels._common import launch

    spills: list[str] = []

    def start(kernel: Any, grid: tuple[int, ...], args: tuple, constexprs: dict, options: dict) -> None:
        compiled = kernel[grid](*args, **constexprs, **options)
        if compiled is not None and compiled.n_spills:
            spills.append(f"{kernel.__name__} spills {compiled.n_spills}")

    launch._start = start
    subject = subjects()[name]
    try:
        with answering(subject, config):
            subject.start(shape)()
        torch.cuda.synchronize()
    except Exception as failure:
        return f"{type(failure).__name__}: {str(failure).strip().splitlines()[0][:100] if str(failure) else ''}"
    return ", ".join(spills)


def attention(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    batch, positions, depth, channels = shape
    q, k, v = torch.randn(batch, positions, 2 * depth + channels, device="cuda").bfloat16().split([depth, depth, channels], -1)
    x, do = (torch.randn(batch, positions, channels, device="cuda").bfloat16() for _ in range(2))
    return {"q": q, "k": k, "v": v, "x": x, "do": do}


def attention_forward(shape: tuple[int, ...]) -> Callable[[], object]:
    from intrasense_fast.kernels.nonlocal_attention import triton_impl

    t = attention(shape)
    return lambda: triton_impl.forward(t["q"], t["k"], t["v"], t["x"], True)


def attention_backward(which: str) -> Callable[[tuple[int, ...]], Callable[[], object]]:
    def start(shape: tuple[int, ...]) -> Callable[[], object]:
        from intrasense_fast.kernels.nonlocal_attention import triton_impl

        t = attention(shape)
        lse = triton_impl.forward(t["q"], t["k"], t["v"], t["x"], False)[4]
        delta = torch.randn_like(lse)
        if which == "value":
            return lambda: triton_impl.value_gradient(t["q"], t["k"], t["do"], lse)
        return lambda: triton_impl.score_gradient(t["q"], t["k"], t["v"], t["do"], lse, delta)

    return start


def decoupling(backward: bool) -> Callable[[tuple[int, ...]], Callable[[], object]]:
    def start(shape: tuple[int, ...]) -> Callable[[], object]:
        from intrasense_fast.kernels.channel_decoupling import triton_impl

        channels, reduced = shape[1], max(1, shape[1] // 16)
        x, d = (torch.randn(*shape, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last) for _ in range(2))
        sizes = ((reduced, channels), (reduced,), (channels, reduced), (channels,))
        weights = [torch.randn(*size, device="cuda") / 8 for size in sizes]
        found = triton_impl.forward(x, *weights, 10.0, False)
        if not backward:
            return lambda: triton_impl.forward(x, *weights, 10.0, False)
        gap, distance = torch.ones_like(found[1]), torch.ones_like(found[2])
        return lambda: triton_impl.backward(x, *weights, *found[3:], d, gap, distance, 10.0, False, True, True)

    return start


def whitening(backward: bool) -> Callable[[tuple[int, ...]], Callable[[], object]]:
    def start(shape: tuple[int, ...]) -> Callable[[], object]:
        from intrasense_fast.kernels.entropy_whitening import triton_impl

        *size, window = shape
        x, d = (torch.randn(*size, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last) for _ in range(2))
        maps = x.float().mean(1), x.float().amax(1), torch.randn(1, 2, 7, 7, device="cuda") / 10, torch.zeros(1, device="cuda")
        _, mask, gate = triton_impl.forward(x, *maps, 0.5, "score", window, 1e-3, True)
        if not backward:
            return lambda: triton_impl.forward(x, *maps, 0.5, "score", window, 1e-3, True)
        return lambda: triton_impl.backward(x, *maps, mask, gate, d, window, 1e-3, True, True)

    return start


def subjects() -> dict[str, Subject]:
    from benchmarks.candidates import CANDIDATES

    starts = {
        "attention_forward": ("nonlocal_attention", "forward_config", attention_forward),
        "attention_value_gradient": ("nonlocal_attention", "value_gradient_config", attention_backward("value")),
        "attention_score_gradient": ("nonlocal_attention", "score_gradient_config", attention_backward("score")),
        "decoupling_gram": ("channel_decoupling", "gram_config", decoupling(False)),
        "decoupling_matrix": ("channel_decoupling", "matrix_config", decoupling(True)),
        "decoupling_inverse": ("channel_decoupling", "invert_config", decoupling(False)),
        "decoupling_apply": ("channel_decoupling", "apply_config", decoupling(True)),
        "decoupling_pull": ("channel_decoupling", "pull_config", decoupling(True)),
        "whiten": ("entropy_whitening", "whiten_config", whitening(False)),
        "whiten_gather": ("entropy_whitening", "gather_config", whitening(True)),
        "entropy_map": ("entropy_whitening", "entropy_config", whitening(False)),
    }
    return {name: Subject(*starts[name][:2], *CANDIDATES[name], starts[name][2]) for name in starts if name in CANDIDATES}


def sweep(names: list[str], out: Path, workers: int) -> None:
    known = subjects()
    cases = [
        (name, shape, config)
        for name in names
        for shape in known[name].shapes
        for config in itertools.chain([None], known[name].candidates(shape))
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        problems = list(pool.map(compile_one, *zip(*cases, strict=True)))
    result = {**provenance(), "rows": []}
    for (name, shape), rows in itertools.groupby(zip(cases, problems, strict=True), key=lambda row: row[0][:2]):
        begin = known[name].start(shape)
        timed = []
        for (_, _, config), problem in rows:
            time = float("inf")
            if not problem or "spills" in problem:
                with answering(known[name], config):
                    time = microseconds(begin)
            blocks = "now" if config is None else f"{config.blocks} warps {config.num_warps} stages {config.num_stages}"
            timed.append((time, blocks, problem))
        timed.sort()
        print(f"{name} {shape}")
        for time, blocks, problem in timed:
            print(f"  {time:8.1f} us  {blocks} {problem}")
            row = {"kernel": name, "shape": list(shape), "config": blocks, "us": time, "problem": problem}
            result["rows"].append(row)
        sys.stdout.flush()
        write_json(out, result)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="KERNEL", help="which; all if none is named")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/tune.json"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    known = list(subjects())
    if unknown := set(options.names) - set(known):
        parser.error(f"no kernel {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    sweep(options.names or known, options.out, options.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
