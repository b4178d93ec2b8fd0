"""Timing for every benchmark: synchronised, L2 flushed, device time beside wall time, accuracy checked before speed."""

import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

CUDA = torch.cuda.is_available()
ROUNDS = 20 if CUDA else 5
FLUSHED = 256 << 20  # bytes written before each round, more than any L2


def now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in ("torch", "triton") if _installed(name)}
    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    machine_info.update(versions, commit=commit or "unknown", gpu=torch.cuda.get_device_name() if CUDA else None)
    if CUDA:
        machine_info["cuda"] = torch.version.cuda
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        machine_info["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip() or "unknown"


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if CUDA else "cpu")


@pytest.fixture
def timed(benchmark):
    """timed(function, useful_flops=, useful_bytes=, error=, **info): time a call after its error has been judged.

    error: relative error against float64; allowed: the most that may be reported as speed.
    """
    benchmark._timer = now

    def run(
        function: Callable[[], object], *, error: float, allowed: float, useful_flops: int = 0, useful_bytes: int = 0, **info
    ):
        if not error <= allowed:
            pytest.fail(f"error {error:.2e} against float64, {allowed:.2e} allowed: no speed is reported")
        for _ in range(3):
            function()
        flush = torch.empty(FLUSHED, dtype=torch.int8, device="cuda") if CUDA else None
        setup = (lambda: flush.zero_() and None) if flush is not None else None
        benchmark.pedantic(function, setup=_silent(setup), rounds=ROUNDS, iterations=1)
        benchmark.extra_info.update(info, error=error)
        if not CUDA:
            return
        times, peak = device_times(function, flush)
        median = statistics.median(times)
        benchmark.extra_info.update(
            device_ms=median * 1e3, device_ms_spread=(max(times) - min(times)) * 1e3, peak_mib=peak / 2**20, l2="flushed"
        )
        if useful_flops:
            benchmark.extra_info["tflops"] = useful_flops / median / 1e12
        if useful_bytes:
            benchmark.extra_info["gb_per_s"] = useful_bytes / median / 1e9

    return run


def _silent(setup: Callable | None) -> Callable[[], None] | None:
    if setup is None:
        return None

    def prepare() -> None:
        setup()

    return prepare


def device_times(function: Callable[[], object], flush: torch.Tensor) -> tuple[list[float], int]:
    """(seconds of each round by events, peak bytes allocated beyond what was there)."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(ROUNDS)]
    for start, stop in events:
        flush.zero_()
        start.record()
        function()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) * 1e-3 for start, stop in events], torch.cuda.max_memory_allocated() - before
