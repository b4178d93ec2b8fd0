"""Trains the cells of a study, one process a run, so many at a time, and goes on after any stop."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from intrasense_fast.console import command_line
from intrasense_fast.errors import UsageError
from intrasense_fast.files import exclusive, write_text
from intrasense_fast.training import logs, run_folder
from intrasense_fast.training import study_folder as folder_of
from intrasense_fast.training.signals import Stopped, StopRequest, collected
from intrasense_fast.training.step_guard import DIVERGED
from intrasense_fast.training.study import Cell, Study
from intrasense_fast.training.study_folder import CELLS, FAILED, LOGS

_PROCESS = "intrasense_fast.training.cell_process"
# Exit codes of a run that someone else stopped.
_STOPPED = {130: "SIGINT", 143: "SIGTERM"}
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass
class Grid:
    """The runs of a study in its folder.

    Attributes:
        out: the folder; study.json is there.
        study: what is in it.
        cells: all runs.
        jobs: so many processes at a time.
        threads: of each process.
        say: prints a line.
    """

    out: Path
    study: Study
    cells: Sequence[Cell]
    jobs: int
    threads: int
    say: Callable[[str], None] = print
    _waited_for: set[str] = field(default_factory=set)

    def run(self) -> dict[str, str]:
        """Train every cell that is neither done nor diverged.

        Returns:
            The reasons of all cells that failed, by name.

        Raises:
            Stopped: SIGINT or SIGTERM; the runs are saved.
            KeyboardInterrupt: a second SIGINT; the runs go on from their last checkpoints.
        """
        waiting = [cell for cell in self.cells if not folder_of.is_settled(self.out, cell)]
        if len(waiting) < len(self.cells):
            self.say(
                f"{len(self.cells) - len(waiting)} of {len(self.cells)} runs are there already"
            )
        running: list[_Run] = []
        request = StopRequest()
        with collected(request), _ended(running):
            while waiting or running:
                if request:
                    self._stop(running, request)
                self._fill(running, waiting)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    if request:
                        folder_of.add_time(self.out, run.cell, run.close())
                    else:
                        self._settle(run)
        failures = {cell.name: folder_of.failure_of(self.out, cell) for cell in self.cells}
        return {name: reason for name, reason in failures.items() if reason is not None}

    def _fill(self, running: list["_Run"], waiting: list[Cell]) -> None:
        """Start runs while there is room; a folder in which an orphan still works waits for it."""
        for cell in list(waiting):
            if len(running) >= self.jobs:
                return
            folder = self.out / CELLS / cell.name
            if _is_locked(folder):
                if cell.name not in self._waited_for:
                    self._waited_for.add(cell.name)
                    self.say(
                        f"{cell.name}: another process still works in {folder}; waiting for it"
                    )
                continue
            waiting.remove(cell)
            if not folder_of.is_settled(self.out, cell):
                running.append(self._start(cell, folder))

    def _start(self, cell: Cell, folder: Path) -> "_Run":
        (folder / FAILED).unlink(missing_ok=True)
        if folder.exists() and not (folder / run_folder.CONFIG).exists():
            # Stopped before it was a run: nothing is trained in it.
            shutil.rmtree(folder)
        arguments = folder_of.arguments_of(self.out, self.study, cell)
        going_on = arguments[0] == "--resume"
        log = open(self.out / LOGS / f"{cell.name}.txt", "a", encoding="utf-8")
        log.write(f"{command_line('train', *arguments)}\n")
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", _PROCESS, *arguments],
            env=_environment(self.threads),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal reaches this process alone, which stops its runs.
            start_new_session=True,
        )
        self.say(f"{self._place(cell)}: {'goes on' if going_on else 'begins'}")
        return _Run(cell, process, log, time.monotonic())

    def _settle(self, run: "_Run") -> None:
        """Record how a run ended."""
        cell, folder = run.cell, self.out / CELLS / run.cell.name
        seconds = run.close()
        folder_of.add_time(self.out, cell, seconds)
        reason = _failure(run.process.returncode, folder, self.out / LOGS / f"{cell.name}.txt")
        if reason is None:
            self.say(f"{self._place(cell)}: done in {seconds:.0f} s{_dice(folder)}")
            return
        folder.mkdir(exist_ok=True)
        write_text(folder / FAILED, reason + "\n")
        self.say(f"{self._place(cell)}: {reason}")

    def _stop(self, running: list["_Run"], request: StopRequest) -> None:
        for run in running:
            run.process.terminate()
        for run in running:
            run.process.wait()
            folder_of.add_time(self.out, run.cell, run.close())
        running.clear()
        again = command_line(self.study.kind, "--resume", self.out)
        self.say(f"stopped and saved; go on with: {again}")
        raise Stopped(request.signal_number)

    def _place(self, cell: Cell) -> str:
        return f"[{self.cells.index(cell) + 1}/{len(self.cells)}] {cell.name}"


@dataclass
class _Run:
    """A process at work on a cell."""

    cell: Cell
    process: "subprocess.Popen[bytes]"
    log: TextIO
    started: float

    def close(self) -> float:
        """Close its files; the seconds it took."""
        self.log.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        return time.monotonic() - self.started


@contextlib.contextmanager
def _ended(running: list[_Run]) -> Iterator[None]:
    """No process outlives the block, however it ends."""
    try:
        yield
    finally:
        for run in running:
            run.process.kill()
        for run in running:
            run.process.wait()
            run.close()


def _is_locked(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        with exclusive(folder):
            return False
    except UsageError:
        return True


def _environment(threads: int) -> dict[str, str]:
    """Fixed threads, no progress bars in logs, and the modules that this process finds."""
    count = str(threads)
    changed = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TQDM_DISABLE": "1"}
    path = os.pathsep.join(folder for folder in sys.path if folder)
    return {**os.environ, **changed, "PYTHONPATH": path}


def _failure(code: int, folder: Path, log: Path) -> str | None:
    """Why a run that ended did not succeed, or None."""
    if code == 0:
        epochs = logs.read_epochs(folder)
        if epochs and epochs[-1].get("train_loss", "").casefold() in ("", "nan"):
            advice = "lower --lr, or set --clip 1"
            return f"{folder_of.DIVERGED}: no step of the last epoch was finite; {advice}"
        return None
    if code in _STOPPED:
        return f"failed: stopped by {_STOPPED[code]} and saved; it goes on next time; see {log}"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    message = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    if DIVERGED in message:
        return f"{folder_of.DIVERGED}: {message}"
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
