"""While long work runs, signals wait for the end of its step: SIGINT, SIGTERM, SIGUSR1 and SIGUSR2
ask it to stop, SIGCHLD tells that a process which loads images died. A second SIGINT stops it at
once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# Schedulers send SIGUSR1 a while before the time is over, submitit SIGUSR2, to every process of the
# job; Windows has none.
TERMINATING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
_DEAD_LOADER = ("DataLoader worker", "Pin memory thread")
_SIGCHLD = getattr(signal, "SIGCHLD", None)


class Stopped(Exception):
    """A run that was asked to stop has saved itself; `signal_number` says by which signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM and the others."""
        number = signal.SIGTERM if self.signal_number in TERMINATING else self.signal_number
        return 128 + number


class StopRequest:
    """Which signal asked to stop, 0 for none."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __bool__(self) -> bool:
        return self.signal_number != 0


@contextlib.contextmanager
def collected(request: StopRequest) -> Iterator[None]:
    """Write SIGINT and those of TERMINATING into `request` while the block runs; the handlers
    before it come back afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_number = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, *TERMINATING)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_dead_loader(error: Exception) -> bool:
    """Does it tell that a process which loads images died? It may be raised anywhere."""
    return isinstance(error, RuntimeError) and str(error).startswith(_DEAD_LOADER)


class Children:
    """The death of a process that loads images, told between two steps.

    PyTorch's handler of SIGCHLD raises wherever the main thread is, even in the middle of an update
    of the weights.
    """

    def __init__(self) -> None:
        self._is_held = False
        self._is_pending = False
        self._handler: object = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Hold SIGCHLD back where the block asks for it, once a loader has set its handler."""
        is_main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(_SIGCHLD) if _SIGCHLD and is_main else None
        if _SIGCHLD is None or not callable(handler):
            yield
            return
        self._handler = handler
        signal.signal(_SIGCHLD, self._note)
        try:
            yield
        finally:
            signal.signal(_SIGCHLD, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No error of a child is raised in the block, but after it."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._is_pending:
            self._note(signal.SIGCHLD, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_pending = self._is_held
        if not self._is_held and callable(self._handler):
            self._handler(number, frame)
