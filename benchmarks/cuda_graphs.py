"""A call as a CUDA graph: to replay it, and to time what the GPU alone takes."""

import statistics
from collections.abc import Callable
from typing import TypeVar

import torch

REPLAYS = 20
Result = TypeVar("Result")


def captured(function: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
    """The replay of the call's CUDA graph, and what the captured call returned.

    Every replay fills the latter. For calls of the kernels: after a capture that fails, torch
    before 2.12 takes no other in this process.
    """
    # One stream for warm-up and capture: autograd remembers where a leaf was first used.
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
        with torch.cuda.graph(graph, stream=stream):
            result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, result


def microseconds(function: Callable[[], object]) -> float:
    """Median time of a replay of the call's CUDA graph."""
    replay, _ = captured(function)
    replay()
    marks = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(REPLAYS)
    ]
    for begin, end in marks:
        begin.record()
        replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks) * 1e3
