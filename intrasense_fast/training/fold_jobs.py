"""Cross-validation with its folds side by side: each is one run of a grid, in a process or a job of
its own that holds the lock of its folder; the run's own process holds that of the run."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from intrasense_fast.console import command_line
from intrasense_fast.training import run_folder
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.execution import Task
from intrasense_fast.training.grid import Grid
from intrasense_fast.training.place import Place

LOGS = "logs"
# Of the processes: the first start decides, for bits depend on it.
_THREADS = "threads"


def train_apart(
    run: Path,
    record: dict[str, Any],
    config: TrainConfig,
    numbers: Sequence[int],
    place: Place,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Train folds of a run that is written and whose lock is held.

    Args:
        record: what its config.json holds; it gets the threads of a fold.

    Returns:
        Why folds failed, by the names of their folders.

    Raises:
        Stopped: a signal stopped it; the folds are saved, or go on where they are.
        UsageError: the executor refuses them.
    """
    record.setdefault(_THREADS, place.threads())
    run_folder.write_record(run, record)
    (run / LOGS).mkdir(exist_ok=True)
    tasks = [_task(run, config, number) for number in numbers]
    for task in tasks:
        _open_again(task.folder, config, say)
    executor = place.executor(run, record[_THREADS])
    again = command_line("train", "--resume", run, *place.flags())
    return Grid(run, tasks, executor, again, say).run()


def _task(run: Path, config: TrainConfig, number: int) -> Task:
    trusted = ["--network", config.network] if ":" in config.network else []
    arguments = ["--resume", str(run), "--fold", str(number), *trusted]
    name = f"fold-{number}"
    return Task(name, run / name, run / LOGS / f"{name}.txt", lambda: arguments, lambda: arguments)


def _open_again(folder: Path, config: TrainConfig, say: Callable[[str], None]) -> None:
    """A fold that ended with fewer epochs than the run has now is not done."""
    done = folder / run_folder.DONE
    if not done.exists():
        return
    try:
        record = json.loads((folder / run_folder.CONFIG).read_text(encoding="utf-8"))
        epochs = record["config"]["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        epochs = None
    if epochs != config.epochs:
        say(f"{folder.name}: had {epochs} epochs, goes on to {config.epochs}")
        done.unlink()
