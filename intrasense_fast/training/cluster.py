"""Trains the runs of a grid as jobs of a cluster, through submitit.

jobs/ in the folder of the grid holds submitit's files, and jobs/jobs.json which run is which job:
a grid that is started again takes up the jobs of the one before it.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.files import write_text
from intrasense_fast.training.cluster_job import TrainingJob
from intrasense_fast.training.execution import Ending, Running, Task, python_path

SLURM, SUBMITIT_LOCAL = "slurm", "submitit-local"
FOLDER, JOBS = "jobs", "jobs.json"
# Shorter names of options that submitit calls otherwise.
_NAMES = {"gpus": "gpus_per_node", "cpus": "cpus_per_task"}
_TIME = "time"
# A run saves itself within a step; loading data and results are to fit too.
_SECONDS_TO_SAVE = 120
_MINUTES_WITHOUT_LIMIT = 60 * 24 * 365
# A run goes on however often its job's time is over.
_MOST_JOBS = 1000


def check_cluster(kind: str, options: Sequence[str]) -> None:
    """Raise a UsageError where jobs cannot be submitted from here, or an option cannot be."""
    parameters = _parameters(options)
    if importlib.util.find_spec("submitit") is None:
        raise UsageError(
            f"--executor {kind} needs the package submitit: pip install 'intrasense-fast[slurm]'"
        )
    if kind != SLURM:
        return
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UsageError(
            "--executor slurm: there is no sbatch or no srun on this machine; start it on a login "
            "node of the cluster, or leave --executor out to train here"
        )
    if _TIME not in parameters:
        raise UsageError(
            "--executor slurm needs --slurm time=MINUTES or time=H:MM:SS, the limit of a job; a "
            "run that takes longer goes on in the next one"
        )


def cpus_of(options: Sequence[str]) -> int:
    """CPUs of a job; SLURM gives one where none are asked for."""
    return int(_parameters(options).get(_NAMES["cpus"], 1))


class ClusterExecutor:
    """Jobs of SLURM, or of submitit's stand-in for it on this machine.

    Args:
        kind: SLURM or SUBMITIT_LOCAL.
        out: the folder of the grid, on a disk that all nodes see.
        options: KEY=VALUE of sbatch.
        jobs: at work at a time; None = as many as the cluster lets.
        threads: of each run.
    """

    outlives = True

    def __init__(
        self, kind: str, out: Path, options: Sequence[str], jobs: int | None, threads: int
    ) -> None:
        # Each look asks a file system that all nodes share, once a run.
        self.pause = 5.0 if kind == SLURM else 0.2
        self._kind, self._folder = kind, (out / FOLDER).absolute()
        self._jobs, self._threads = jobs, threads
        self._options = _parameters(options)

    def room(self, running: int) -> int:
        # SLURM holds the other jobs of an array back itself.
        if self._jobs is None or self._kind == SLURM:
            return 10**9
        return max(0, self._jobs - running)

    def start(self, tasks: Sequence[Task]) -> list[Running]:
        self._folder.mkdir(exist_ok=True)
        work = [
            TrainingJob(
                task.name,
                task.folder.absolute(),
                task.log.absolute(),
                task.repeatable(),
                self._threads,
            )
            for task in tasks
        ]
        try:
            executor = self._executor()
            with _jobs_inherit():
                jobs = executor.submit_array(work)
        # What submitit raises where sbatch refuses is of several types.
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[-1] if lines else type(error).__name__
            raise UsageError(f"--executor {self._kind}: no job was submitted: {reason}") from error
        known = self._known()
        known |= {
            task.name: {"executor": self._kind, "job": job.job_id}
            for task, job in zip(tasks, jobs, strict=True)
        }
        write_text(self._folder / JOBS, json.dumps(known, indent=1) + "\n")
        pairs = zip(tasks, jobs, strict=True)
        return [_ClusterRun(task, job, self, is_adopted=False) for task, job in pairs]

    def adopt(self, tasks: Sequence[Task]) -> list[Running]:
        entries = {name: one for name, one in self._known().items() if self._is_own(one)}
        handed = [task for task in tasks if task.name in entries]
        if not handed:
            return []
        job_class = self._executor().job_class
        runs: list[Running] = []
        for task in handed:
            job = job_class(self._folder, entries[task.name]["job"])
            run = _ClusterRun(task, job, self, is_adopted=True)
            if run.is_at_work() or run.has_result():
                runs.append(run)
            else:
                # Ended by hand, or with its node: it is handed over again.
                self.forget(task)
        return runs

    def forget(self, task: Task) -> None:
        """The job of a task is over."""
        known = self._known()
        if known.pop(task.name, None) is not None:
            write_text(self._folder / JOBS, json.dumps(known, indent=1) + "\n")

    def _is_own(self, entry: Any) -> bool:
        return isinstance(entry, dict) and entry.get("executor") == self._kind and "job" in entry

    def _executor(self) -> Any:
        import submitit

        executor: Any
        if self._kind == SLURM:
            executor = submitit.SlurmExecutor(self._folder, max_num_timeout=_MOST_JOBS)
            values = {"signal_delay_s": _SECONDS_TO_SAVE, "job_name": "intrasense-fast"}
            values |= {} if self._jobs is None else {"array_parallelism": self._jobs}
            own = {*submitit.SlurmExecutor._valid_parameters()}
            values |= {key: value for key, value in self._options.items() if key in own}
            others = {key: value for key, value in self._options.items() if key not in own}
            # Whatever the cluster's default is: jobs go on after their time, and after a node's
            # failure.
            values["additional_parameters"] = {"requeue": True, **others}
            executor.update_parameters(**values)
            return executor
        executor = submitit.LocalExecutor(self._folder, max_num_timeout=_MOST_JOBS)
        executor.update_parameters(
            timeout_min=self._options.get(_TIME, _MINUTES_WITHOUT_LIMIT),
            signal_delay_s=self._options.get("signal_delay_s", _SECONDS_TO_SAVE),
            gpus_per_node=self._options.get(_NAMES["gpus"], 0),
        )
        return executor

    def _known(self) -> dict[str, dict[str, str]]:
        try:
            return dict(json.loads((self._folder / JOBS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}


@dataclass
class _ClusterRun:
    """A job at work on a task, or in the queue."""

    task: Task
    job: Any
    executor: ClusterExecutor
    is_adopted: bool

    def has_result(self) -> bool:
        return self.job.paths.result_pickle.exists()

    def is_at_work(self) -> bool:
        if self.has_result():
            return False
        if self.is_adopted and type(self.job).__name__ == "LocalJob":
            # submitit knows a local job by the process that this one is not the parent of.
            return _is_controller(int(self.job.job_id))
        return not self.job.done()

    def ending(self) -> Ending | None:
        if self.is_at_work():
            return None
        self.executor.forget(self.task)
        place = f"see {self.job.paths.stderr}"
        if not self.has_result():
            state = f"the job {self.job.job_id} ended without a result"
            return Ending(1, 0.0, f"{state} (state {self.job.state}); {place}")
        try:
            code, seconds = self.job.result()
        # What a job raised comes as a RuntimeError of submitit with its traceback.
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = next((line for line in reversed(lines) if "Error" in line), first_line(error))
            return Ending(1, 0.0, f"the job {self.job.job_id}: {reason}; {place}")
        return Ending(code, seconds)

    def stop(self) -> None:
        """Jobs go on."""

    def kill(self) -> None:
        """Jobs go on."""


def _parameters(options: Sequence[str]) -> dict[str, Any]:
    """The options under submitit's names, the time in minutes."""
    values: dict[str, Any] = {}
    for text in options:
        key, mark, value = text.partition("=")
        key = key.strip().lstrip("-").replace("-", "_")
        if not mark or not key or not value:
            raise UsageError(f"--slurm must be KEY=VALUE, such as partition=gpu, got {text!r}")
        key = _NAMES.get(key, key)
        if key == _TIME:
            values[key] = _minutes(value)
        else:
            values[key] = int(value) if value.isdecimal() else value
    for key in (*_NAMES.values(), "signal_delay_s"):
        if key in values and not isinstance(values[key], int):
            raise UsageError(f"--slurm {key} must be an integer, got {values[key]!r}")
    return values


def _minutes(text: str) -> int:
    """MINUTES, H:MM:SS or D-HH:MM:SS, rounded up."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + minutes + bool(seconds)
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(f"--slurm time must be MINUTES, H:MM:SS or D-HH:MM:SS, got {text!r}")


def _is_controller(process: int) -> bool:
    """Is this process one that watches a local job of submitit?"""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        return b"submitit" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return not Path("/proc/self").exists()


@contextlib.contextmanager
def _jobs_inherit() -> Iterator[None]:
    """Jobs find the modules that this process does, and Ctrl-C in its terminal is not for them."""
    before = os.environ.get("PYTHONPATH")
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    os.environ["PYTHONPATH"] = python_path()
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
