"""The benchmarks' clocks, on a GPU made of two numbers: what Python and the GPU have reached."""

import pytest
import torch

from benchmarks import conftest


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
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: gpu.queue(cycles / conftest.CLOCK_RATE))
    monkeypatch.setattr(conftest.time, "perf_counter", lambda: gpu.now)
    return gpu


def test_the_gpus_time_is_measured_where_python_takes_longer(gpu):
    short, long = lambda: gpu.queue(1e-3, host=3e-3), lambda: gpu.queue(8e-3, host=2e-3)
    (one, other), clock = conftest.device_times([short, long], Flush(gpu), 5)
    assert clock == "queued"
    assert one == pytest.approx([1e-3] * 5) and other == pytest.approx([8e-3] * 5)
    assert conftest.ratio(one, other)["times_as_long"] == pytest.approx(0.125)


def test_a_call_that_waits_for_the_gpu_is_said_to_be_timed_with_python(gpu):
    def waits() -> None:
        gpu.queue(1e-3)
        gpu.synchronize()
        gpu.queue(1e-3, host=2e-3)

    (times,), clock = conftest.device_times([waits], Flush(gpu), 5)
    assert clock == "events"
    assert times == pytest.approx([4e-3] * 5)
