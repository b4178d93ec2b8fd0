"""Trains the runs of a grid wherever its executor does, and goes on after any stop."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from intrasense_fast.errors import UsageError
from intrasense_fast.files import exclusive, write_text
from intrasense_fast.signals import Stopped, StopRequest, collected
from intrasense_fast.training import logs, run_folder
from intrasense_fast.training.execution import Ending, Executor, Running, Task
from intrasense_fast.training.step_guard import DIVERGED as WORDS_OF_DIVERGENCE

FAILED, TIMES = "failed.txt", "times.json"
DIVERGED = "diverged"
# Exit codes of a run that someone else stopped.
_STOPPED = {130: "SIGINT", 143: "SIGTERM"}


@dataclass
class Grid:
    """Runs and where they are trained.

    Attributes:
        out: the folder that holds them; times.json is written there.
        tasks: all runs.
        executor: trains them.
        again: the command that goes on after a stop.
        say: prints a line.
        settled: is there nothing more to compute for a task?
    """

    out: Path
    tasks: Sequence[Task]
    executor: Executor
    again: str
    say: Callable[[str], None] = print
    settled: Callable[[Task], bool] = lambda task: is_settled(task.folder)
    _waited_for: set[str] = field(default_factory=set)

    def run(self) -> dict[str, str]:
        """Train every run that is neither done nor diverged.

        Returns:
            The reasons of all runs that failed, by name.

        Raises:
            Stopped: SIGINT or SIGTERM; the runs are saved, or go on where they are.
            UsageError: the executor refuses runs.
            KeyboardInterrupt: a second SIGINT; the runs go on from their last checkpoints.
        """
        # Also those that are done: how long they took is not known yet.
        running = self.executor.adopt(self.tasks)
        for run in running:
            self.say(f"{self._place(run.task)}: was handed over before")
        adopted = [run.task for run in running]
        waiting = [task for task in self.tasks if task not in adopted and not self.settled(task)]
        there = len(self.tasks) - len(waiting) - len(adopted)
        if there:
            self.say(f"{there} of {len(self.tasks)} runs are there already")
        request = StopRequest()
        with collected(request), self._ended(running):
            while waiting or running:
                if request:
                    self._stop(running, request)
                running += self._begun(waiting, len(running))
                time.sleep(self.executor.pause)
                self._look(running, is_stopping=bool(request))
        failures = {task.name: failure_of(task.folder) for task in self.tasks}
        return {name: reason for name, reason in failures.items() if reason is not None}

    def _begun(self, waiting: list[Task], running: int) -> list[Running]:
        """Start runs while there is room; a folder in which an orphan still works waits for it."""
        ready: list[Task] = []
        for task in list(waiting):
            if len(ready) >= self.executor.room(running):
                break
            if is_locked(task.folder):
                if task.name not in self._waited_for:
                    self._waited_for.add(task.name)
                    self.say(
                        f"{task.name}: another process still works in {task.folder}; waiting for it"
                    )
                continue
            waiting.remove(task)
            if not self.settled(task):
                ready.append(task)
        words = [self._prepare(task) for task in ready]
        begun = self.executor.start(ready) if ready else []
        for task, word in zip(ready, words, strict=True):
            self.say(f"{self._place(task)}: {word}")
        return begun

    def _prepare(self, task: Task) -> str:
        """Take away what an earlier failure left; whether the run begins or goes on."""
        folder = task.folder
        (folder / FAILED).unlink(missing_ok=True)
        is_begun = (folder / run_folder.CONFIG).exists()
        if folder.exists() and not is_begun:
            # Stopped before it was a run: nothing is trained in it.
            shutil.rmtree(folder)
        return "goes on" if is_begun else "begins"

    def _look(self, running: list[Running], *, is_stopping: bool) -> None:
        """Take out the runs that have ended, and record how."""
        for run in list(running):
            ending = run.ending()
            if ending is None:
                continue
            running.remove(run)
            add_time(self.out, run.task.name, ending.seconds)
            if not is_stopping:
                self._settle(run.task, ending)

    def _settle(self, task: Task, ending: Ending) -> None:
        """Record how a run ended."""
        reason = failure_in_words(ending, task.folder, task.log)
        if reason is None:
            dice = _dice(task.folder)
            self.say(f"{self._place(task)}: done in {ending.seconds:.0f} s{dice}")
            return
        task.folder.mkdir(exist_ok=True)
        write_text(task.folder / FAILED, reason + "\n")
        self.say(f"{self._place(task)}: {reason}")

    def _stop(self, running: list[Running], request: StopRequest) -> None:
        if self.executor.outlives and running:
            names = ", ".join(run.task.name for run in running)
            self.say(f"no longer watched; these go on: {names}. Collect them with: {self.again}")
            running.clear()
            raise Stopped(request.signal_number)
        for run in running:
            run.stop()
        while running:
            self._look(running, is_stopping=True)
            time.sleep(self.executor.pause)
        self.say(f"stopped and saved; go on with: {self.again}")
        raise Stopped(request.signal_number)

    @contextlib.contextmanager
    def _ended(self, running: list[Running]) -> Iterator[None]:
        """No process outlives the block, however it ends, unless the executor's do."""
        try:
            yield
        finally:
            for run in running:
                if not self.executor.outlives:
                    run.kill()

    def _place(self, task: Task) -> str:
        return f"[{self.tasks.index(task) + 1}/{len(self.tasks)}] {task.name}"


def failure_of(folder: Path) -> str | None:
    """Why the run of a folder failed, or None where it did not."""
    file = folder / FAILED
    return file.read_text(encoding="utf-8").strip() if file.exists() else None


def is_settled(folder: Path) -> bool:
    """Is there nothing more to compute? A run that diverged would do so again."""
    failure = failure_of(folder)
    if failure is not None:
        return failure.startswith(DIVERGED)
    return (folder / run_folder.DONE).exists()


def add_time(out: Path, name: str, seconds: float) -> None:
    """Add to the seconds that a run has taken, in times.json."""
    file = out / TIMES
    times = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    times[name] = round(times.get(name, 0.0) + seconds, 3)
    write_text(file, json.dumps(times, indent=1) + "\n")


def is_locked(folder: Path) -> bool:
    """Does another process work in a folder?"""
    if not folder.exists():
        return False
    try:
        with exclusive(folder):
            return False
    except UsageError:
        return True


def failure_in_words(ending: Ending, folder: Path, log: Path) -> str | None:
    """Why a run that ended did not succeed, or None."""
    code = ending.code
    if code == 0:
        epochs = logs.read_epochs(folder)
        if epochs and epochs[-1].get("train_loss", "").casefold() in ("", "nan"):
            advice = "lower --lr, or set --clip 1"
            return f"{DIVERGED}: no step of the last epoch was finite; {advice}"
        return None
    if ending.reason is not None:
        return f"failed: {ending.reason}"
    if code in _STOPPED:
        return f"failed: stopped by {_STOPPED[code]} and saved; it goes on next time; see {log}"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    message = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    if WORDS_OF_DIVERGENCE in message:
        return f"{DIVERGED}: {message}"
    if code < 0:
        return f"failed: ended by signal {-code} (9: often too little memory); see {log}"
    return f"failed: {message}; see {log}"


def _dice(folder: Path) -> str:
    """The mean test Dice of a run, for its line on the screen."""
    try:
        summary = json.loads((folder / run_folder.DONE).read_text(encoding="utf-8"))
        network = next(name for name in summary if name != "role")
        return f", {summary['role']} Dice {summary[network]['metrics']['dice']['mean']:.4f}"
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return ""
