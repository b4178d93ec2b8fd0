"""Where the runs of a grid are trained: one small interface, and this machine.

A grid hands over tasks, each an ordinary run in a folder of its own, and asks how they ended.
`cluster` has the other executor.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TextIO

from intrasense_fast.console import command_line

_PROCESS = "intrasense_fast.training.cell_process"


@dataclass(frozen=True)
class Task:
    """One run of a grid.

    Attributes:
        name: its name, safe as that of a file.
        folder: where it trains; whoever trains there has its lock.
        log: the file that takes what it prints.
        arguments: those of `train` that begin it now, or go on with it.
        repeatable: those that do either, whenever they are used.
    """

    name: str
    folder: Path
    log: Path
    arguments: Callable[[], list[str]]
    repeatable: Callable[[], list[str]]


class Ending(NamedTuple):
    """How a task ended: its exit code (-N: signal N), the seconds it took, and why it ended where
    it could not say so itself."""

    code: int
    seconds: float
    reason: str | None = None


class Running(Protocol):
    """A task that was handed over."""

    @property
    def task(self) -> Task: ...

    def ending(self) -> Ending | None:
        """How it ended; None while it has not."""

    def stop(self) -> None:
        """Ask it to save itself and end."""

    def kill(self) -> None:
        """End it at once."""


class Executor(Protocol):
    """Trains tasks somewhere."""

    @property
    def outlives(self) -> bool:
        """Do tasks go on when this process ends?"""

    @property
    def pause(self) -> float:
        """Seconds to wait before tasks are asked again."""

    def room(self, running: int) -> int:
        """How many more tasks may be handed over while so many are."""

    def start(self, tasks: Sequence[Task]) -> list[Running]:
        """Hand tasks over.

        Raises:
            UsageError: they were refused; the message says why.
        """

    def adopt(self, tasks: Sequence[Task]) -> list[Running]:
        """Those of the tasks that an earlier process handed over and that may still be at work."""


class LocalExecutor:
    """This machine: one process a task, so many at a time, none of which outlives this one.

    Args:
        jobs: processes at a time.
        threads: of each.
    """

    outlives = False
    pause = 0.1

    def __init__(self, jobs: int, threads: int) -> None:
        self._jobs, self._threads = jobs, threads

    def room(self, running: int) -> int:
        return max(0, self._jobs - running)

    def start(self, tasks: Sequence[Task]) -> list[Running]:
        return [TaskProcess(task, task.arguments(), self._threads) for task in tasks]

    def adopt(self, tasks: Sequence[Task]) -> list[Running]:
        return []


class TaskProcess:
    """A process at work on a task; it saves and stops when this process ends.

    Args:
        task: it is begun.
        arguments: of `train`.
        threads: of the process.
    """

    def __init__(self, task: Task, arguments: Sequence[str], threads: int) -> None:
        self.task = task
        self._started = time.monotonic()
        self._log: TextIO = open(task.log, "a", encoding="utf-8")
        self._log.write(f"{command_line('train', *arguments)}\n")
        self._log.flush()
        self.process = subprocess.Popen(
            [sys.executable, "-m", _PROCESS, *arguments],
            env=_environment(threads),
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal reaches this process alone, which stops its runs.
            start_new_session=True,
        )

    def ending(self) -> Ending | None:
        code = self.process.poll()
        return None if code is None else Ending(code, self._close())

    def stop(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close()

    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._started

    def _close(self) -> float:
        self._log.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        return self.seconds()


def python_path() -> str:
    """The modules that this process finds, as PYTHONPATH."""
    return os.pathsep.join(folder for folder in sys.path if folder)


def _environment(threads: int) -> dict[str, str]:
    """Fixed threads, no progress bars in logs, and the modules that this process finds."""
    count = str(threads)
    changed = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TQDM_DISABLE": "1"}
    return {**os.environ, **changed, "PYTHONPATH": python_path()}
