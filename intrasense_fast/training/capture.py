"""Work of a training step, recorded once as a CUDA graph and replayed from then on."""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from intrasense_fast.errors import UsageError, first_line

Result = TypeVar("Result")

_TORCH = Path(torch.__file__).parent


class CaptureError(UsageError):
    """A step that no CUDA graph can hold; the message names the flag and the operation."""


class Capture(Protocol):
    """Where a step's work runs, and how it is recorded."""

    def running(self) -> contextlib.AbstractContextManager[None]:
        """The place of all work, recorded or not; what follows the block waits for it."""

    def record(self, function: Callable[[], Result]) -> Callable[[], Result]:
        """What repeats the function's work; `function` reads and writes the same tensors each time.

        Recording computes nothing. Each replay fills and returns the tensors of the recording.

        Raises:
            CaptureError: the work cannot be recorded.
            torch.OutOfMemoryError: the GPU's memory is full.
        """


class CudaCapture:
    """CUDA graphs on one stream of their own, with one pool of memory.

    They share memory, so that they are to be replayed in the order of their recording.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One stream for all: autograd remembers where a leaf was first used.
        self._stream = torch.cuda.Stream(device)
        self._pool: object = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outside.wait_stream(self._stream)

    def record(self, function: Callable[[], Result]) -> Callable[[], Result]:
        graph = torch.cuda.CUDAGraph()
        try:
            # Of one thread: the one that pins the next images calls CUDA meanwhile.
            with torch.cuda.graph(
                graph,
                pool=self._pool,  # type: ignore[arg-type]
                stream=self._stream,
                capture_error_mode="thread_local",
            ):
                result = function()
        except Exception as error:
            raise _refused(error) from error
        self._pool = graph.pool()

        def replay() -> Result:
            graph.replay()
            return result

        return replay


class RepeatedCalls:
    """The same without a GPU, for tests: a replay calls the function again."""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        yield

    def record(self, function: Callable[[], Result]) -> Callable[[], Result]:
        return function


def capture_on(device: torch.device) -> Capture:
    return CudaCapture(device) if device.type == "cuda" else RepeatedCalls()


def _refused(error: Exception) -> Exception:
    """What to raise for an error within a recording."""
    first = _first(error)
    if isinstance(first, torch.OutOfMemoryError):
        return first
    return CaptureError(
        f"--cuda-graph: the training step cannot be recorded as a CUDA graph: {_place(first)}"
        f"{first_line(first)}. Something there waits for the GPU or works on the host; leave "
        f"--cuda-graph out, or give --no-cuda-graph beside --resume"
    )


def _first(error: BaseException) -> BaseException:
    """The error that came first: the end of a broken recording raises one of its own."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _place(error: BaseException) -> str:
    """The line outside torch that was running, in words."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if not Path(frame.filename).is_relative_to(_TORCH)]
    if not lines:
        return ""
    last = lines[-1]
    return f"{last.filename}:{last.lineno}, in {last.name}, {(last.line or '').strip()!r}: "
