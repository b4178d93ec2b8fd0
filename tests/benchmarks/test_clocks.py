"""The benchmarks' clocks, on a GPU made of two numbers: what Python and the GPU have reached."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd.profiler import DeviceType

from benchmarks import common, conftest


class Gpu:
    """Python's time and the end of the GPU's queue, in seconds."""

    def __init__(self) -> None:
        self.now = self.end = 0.0

    def queue(self, device: float, host: float = 0.0) -> None:
        self.now += host
        self.end = max(self.now, self.end) + device

    def synchronize(self) -> None:
        self.now = max(self.now, self.end)

    def event(self, enable_timing: bool) -> "Event":
        return Event(self)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.gpu.queue(0.0)
        self.at = self.gpu.end

    def query(self) -> bool:
        return self.at <= self.gpu.now

    def elapsed_time(self, other: "Event") -> float:
        return (other.at - self.at) * 1e3


class Flush:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def zero_(self) -> None:
        self.gpu.queue(1e-4)


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
    monkeypatch.setattr(
        torch.cuda, "_sleep", lambda cycles: gpu.queue(cycles / conftest.CLOCK_RATE)
    )
    monkeypatch.setattr(conftest.time, "perf_counter", lambda: gpu.now)
    return gpu


def test_the_gpus_time_is_measured_where_python_takes_longer(gpu):
    short, long = lambda: gpu.queue(1e-3, host=3e-3), lambda: gpu.queue(8e-3, host=2e-3)
    (one, other), clock = conftest.device_times([short, long], Flush(gpu), 5)
    assert clock == "queued"
    assert one == pytest.approx([1e-3] * 5) and other == pytest.approx([8e-3] * 5)
    assert conftest.ratio(one, other)["times_as_long"] == pytest.approx(0.125)


def test_one_call_in_time_does_not_hide_that_the_other_was_late(gpu):
    calls = iter(range(1000))
    sometimes = lambda: gpu.queue(1e-3, host=3e-3 if next(calls) % 2 else 1.0)
    _, clock = conftest.device_times([lambda: gpu.queue(1e-3), sometimes], Flush(gpu), 20)
    assert clock == "events"


def test_a_call_that_waits_for_the_gpu_is_said_to_be_timed_with_python(gpu):
    def waits() -> None:
        gpu.queue(1e-3)
        gpu.synchronize()
        gpu.queue(1e-3, host=2e-3)

    (times,), clock = conftest.device_times([waits], Flush(gpu), 5)
    assert clock == "events"
    assert times == pytest.approx([4e-3] * 5)


def test_kernels_of_one_beginning_are_told_apart(monkeypatch):
    """The names of a library's kernels differ after a hundred letters only; annotations span
    kernels that count themselves."""
    event = lambda key, time, annotation=False: SimpleNamespace(
        key=key,
        self_cpu_time_total=time,
        count=5,
        device_type=DeviceType.CPU,
        is_user_annotation=annotation,
    )
    events = [
        event("k" * 120 + "a", 50.0),
        event("k" * 120 + "b", 100.0),
        event("k" * 120 + "a", 25.0),
        event("step", 175.0, True),
    ]
    monkeypatch.setattr(common, "CUDA", False)
    monkeypatch.setattr(torch.profiler.profile, "key_averages", lambda profile: events)
    assert common.kernels(lambda: None) == {
        "k" * 120 + "b": [20.0, 1.0],
        "k" * 120 + "a": [15.0, 2.0],
    }
