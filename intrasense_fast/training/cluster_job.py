"""What a job of a cluster does: it trains one run in a process of its own, and has that saved
before the job's time is over."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intrasense_fast.training.execution import Task, TaskProcess
from intrasense_fast.training.grid import is_locked

_SECONDS_BETWEEN_LOOKS, _SECONDS_BETWEEN_TRIES = 0.2, 2.0
# After SIGTERM to all processes of a job its end follows, and the queue has it again.
_SECONDS_OF_GRACE = 60


class TrainingJob:
    """A callable for submitit, which calls `checkpoint` when the time is nearly over and puts what
    it returns into the queue again.

    Args:
        name, folder, log: of the task.
        arguments: of `train`, which begin the run or go on with it.
        threads: of the process that trains.
        seconds: that the run has taken in jobs before this one.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        log: Path,
        arguments: Sequence[str],
        threads: int,
        seconds: float = 0.0,
    ) -> None:
        self._name, self._folder, self._log = name, folder, log
        self._arguments, self._threads = list(arguments), threads
        self._seconds = seconds
        self._work: TaskProcess | None = None

    def __call__(self) -> tuple[int, float]:
        """Train; the exit code, and the seconds of all jobs of the run."""
        while is_locked(self._folder):
            # Another job of this run, or an orphan: once it has ended there is little left to do.
            time.sleep(_SECONDS_BETWEEN_TRIES)
        task = Task(
            self._name, self._folder, self._log, lambda: self._arguments, lambda: self._arguments
        )
        self._work = TaskProcess(task, self._arguments, self._threads)
        ending = None
        # No wait(): `checkpoint` interrupts it, and would wait for its lock.
        while ending is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            ending = self._work.ending()
        if ending.code == 128 + signal.SIGTERM:
            time.sleep(_SECONDS_OF_GRACE)
        return ending.code, self._seconds + ending.seconds

    def checkpoint(self) -> Any:
        """Have the run saved, wait until it is, and return what goes on with it."""
        from submitit.helpers import DelayedSubmission

        seconds = self._seconds
        if self._work is not None:
            process = self._work.process
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(process.pid, signal.SIGUSR1)
                # Without taking its exit code away from `__call__`.
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            seconds += self._work.seconds()
        again = TrainingJob(
            self._name, self._folder, self._log, self._arguments, self._threads, seconds
        )
        return DelayedSubmission(again)
