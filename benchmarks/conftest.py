"""Timing for every benchmark: accuracy first, synchronised, L2 flushed, device beside wall time."""

import os
import signal
import statistics
import time
from collections.abc import Callable

import pytest
import torch

from benchmarks.ceilings import measure
from benchmarks.common import CUDA, QUICK, kernels
from benchmarks.provenance import provenance
from intrasense_fast.kernels.runtime import use_launch_plans

ROUNDS = 20 if CUDA else 15
# A round of the model on a CPU takes seconds: fewer rounds of what is slow.
SECONDS = 1.0 if CUDA else 0.5
CLOCK_RATE = 2e9  # cycles a second of the GPU, at most
FLUSHED = 256 << 20  # bytes written before each round, more than any L2
L2 = (
    "flushed: 256 MiB written before each round, but where kernels are summed"
    if CUDA
    else "caches of the CPU as the round before left them"
)
_ceilings: dict[str, float] = {}


def now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-plans", action="store_true", help="time calls without launch plans")


def pytest_configure(config: pytest.Config) -> None:
    use_launch_plans(not config.getoption("--without-plans", default=False))
    # pytest-benchmark writes what it has on Ctrl-C; a time limit's SIGTERM must end the same way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    model = (
        machine_info["cpu"].get("brand_raw", machine_info["machine"])
        if isinstance(machine_info["cpu"], dict)
        else ""
    )
    machine_info.update(
        provenance(),
        l2=L2,
        launch_plans=not config.getoption("--without-plans", default=False),
        ceilings=_ceilings,
        dry_run=QUICK,
        node="",
        cpu={"brand_raw": model},
    )


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict) -> None:
    commit_info.update(project="intrasense-fast", branch="")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a GPU an operator's compiled paths come last: one takes as long as ten that are not."""
    if CUDA and not QUICK and not any("bench_model" in item.nodeid for item in items):
        items.sort(key=lambda item: "compiled" in item.nodeid or "Flex" in item.nodeid)


def pytest_runtest_setup(item: pytest.Item) -> None:
    limit = float(os.environ.get("INTRASENSE_BENCH_UNTIL", "inf"))
    if time.time() > limit:
        pytest.skip("the stage's time is used up: run its operator alone")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if CUDA else "cpu")


@pytest.fixture(scope="session")
def ceilings(request: pytest.FixtureRequest) -> dict[str, float]:
    """What this machine reaches in this run: every other figure is a fraction of it."""
    shared = hasattr(
        request.config, "workerinput"
    )  # a process of pytest-xdist, which times nothing
    _ceilings.update(measure(quick=QUICK or not CUDA or shared))
    return _ceilings


@pytest.fixture
def timed(benchmark, ceilings):
    """timed(function, group=, error=, allowed=, **info): time a call after its error is judged.

    error: relative error against float64. allowed: the most with which a speed is reported. rival:
    another call, timed in turns with the first, for a ratio that drifting clocks and neighbours
    touch alike; against: its name. busy: take as the GPU's time the sum over its kernels (torch's
    profiler), for calls of more launches than its queue holds.
    """
    benchmark._timer = now

    def run(
        function: Callable[[], object],
        *,
        group: str,
        error: float,
        allowed: float,
        rival: Callable[[], object] | None = None,
        against: str = "",
        busy: bool = False,
        useful_flops: int = 0,
        useful_bytes: int = 0,
        **info,
    ) -> None:
        benchmark.group = group
        if not error <= allowed:
            pytest.fail(
                f"error {error:.2e} against float64, {allowed:.2e} allowed: no speed is reported"
            )
        rounds = warm_up(function)
        flush = torch.empty(FLUSHED, dtype=torch.int8, device="cuda") if CUDA else None
        benchmark.pedantic(function, setup=lambda: clear(flush), rounds=rounds, iterations=1)
        if benchmark.disabled:
            return
        benchmark.extra_info.update(
            info, error=error, useful_flops=useful_flops, useful_bytes=useful_bytes
        )
        seconds = benchmark.stats.stats.median
        calls = [function] if rival is None else [function, rival]
        if CUDA:
            peak = peak_mib(function) or None  # a graph allocates nothing
            times, clock = busy_times(calls) if busy else device_times(calls, flush, rounds)
            seconds, spread = statistics.median(times[0]), max(times[0]) - min(times[0])
            benchmark.extra_info.update(
                device_ms=seconds * 1e3, device_ms_spread=spread * 1e3, peak_mib=peak
            )
            benchmark.extra_info.update(device_clock=clock)
        elif rival is not None:
            times = wall_times(calls, rounds)
        benchmark.extra_info.update(
            fractions(seconds, useful_flops, useful_bytes, info["dtype"], ceilings)
        )
        if rival is not None:
            benchmark.extra_info.update(ratio(*times), against=against)

    return run


def warm_up(function: Callable[[], object]) -> int:
    """Call until warm; returns how many rounds are affordable."""
    if QUICK:
        return 1
    for _ in range(2 if CUDA else 1):
        function()
    start = now()
    function()
    return max(3, min(ROUNDS, int(SECONDS / max(now() - start, 1e-9))))


def clear(flush: torch.Tensor | None) -> None:
    if flush is not None:
        flush.zero_()


def ratio(mine: list[float], theirs: list[float]) -> dict[str, object]:
    """How many times as long as the rival the call takes: median and range over rounds in turns."""
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return {
        "times_as_long": statistics.median(ratios),
        "times_as_long_range": [min(ratios), max(ratios)],
        "rival_ms": statistics.median(theirs) * 1e3,
    }


def fractions(
    seconds: float, flops: int, size: int, dtype: str, ceilings: dict[str, float]
) -> dict[str, float]:
    """Rates on useful work, and the share of this run's ceilings on copies and products."""
    rate, found = ceilings[f"{dtype}_tflops"], {}
    if flops:
        found.update(
            tflops=flops / seconds / 1e12, fraction_of_product=flops / seconds / 1e12 / rate
        )
    if size:
        found.update(
            gb_per_s=size / seconds / 1e9,
            fraction_of_copy=size / seconds / 1e9 / ceilings["copy_gb_per_s"],
        )
    if flops or size:
        least = max(flops / (rate * 1e12), size / (ceilings["copy_gb_per_s"] * 1e9))
        found["fraction_of_floor"] = least / seconds
    return found


def wall_times(calls: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each round of each call, the calls in turns."""
    found: list[list[float]] = [[] for _ in calls]
    for call in calls[1:]:
        call()
    for _ in range(rounds):
        for call, times in zip(calls, found, strict=True):
            start = now()
            call()
            times.append(now() - start)
    return found


def device_times(
    calls: list[Callable[[], object]], flush: torch.Tensor, rounds: int
) -> tuple[list[list[float]], str]:
    """Seconds of each round of each call by events, the calls in turns; and how they were queued.

    "queued", or "events" where the GPU waited for Python.

    Before each call the GPU sleeps for as long as Python takes to queue it: else it waits for
    Python wherever kernels take less than their launches. In vain where a call waits for the GPU
    itself, or has more launches than the queue holds (about 1000).
    """
    pair = lambda: (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
    events = [[pair() for _ in range(rounds)] for _ in calls]
    ahead = [min(0.2, 1.5 * queueing(call) + 2e-4) for call in calls]
    late = [0] * len(calls)
    for index in range(rounds):
        for number, (call, wait, marks) in enumerate(zip(calls, ahead, events, strict=True)):
            flush.zero_()
            torch.cuda._sleep(int(wait * CLOCK_RATE))
            marks[index][0].record()
            call()
            marks[index][1].record()
            late[number] += marks[index][0].query()
            torch.cuda.synchronize()
    clock = "queued" if max(late) <= rounds // 4 else "events"
    return [[start.elapsed_time(stop) * 1e-3 for start, stop in marks] for marks in events], clock


def queueing(call: Callable[[], object]) -> float:
    """Seconds until Python has queued a call."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    found = time.perf_counter() - start
    torch.cuda.synchronize()
    return found


def busy_times(calls: list[Callable[[], object]], rounds: int = 3) -> tuple[list[list[float]], str]:
    """Seconds that the GPU's kernels of each call take in sum, the calls in turns; and "busy"."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, found, strict=True):
            times.append(sum(time for time, _ in kernels(call).values()) * 1e-6)
            if not times[-1]:
                pytest.fail(
                    "torch's profiler saw no kernel: is another profiler attached, or CUPTI "
                    "missing?"
                )
    return found, "busy"


def peak_mib(function: Callable[[], object]) -> float:
    """Device memory of one call beyond what is there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
