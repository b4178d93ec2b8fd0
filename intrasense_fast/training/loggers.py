"""Where the figures of a run go: its own files, TensorBoard, and loggers given from Python."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from intrasense_fast.errors import UsageError
from intrasense_fast.training.config import TENSORBOARD, TrainConfig
from intrasense_fast.training.logs import FileLogger

_NEEDED = "tensorboard"


class RunLogger(Protocol):
    """Takes the figures of one run, or of one fold.

    A run that goes on repeats the steps after its last checkpoint, with the same figures: `cut`
    says from where. An error in a logger ends the run.
    """

    def cut(self, step: int, epoch: int) -> None:
        """Forget what was logged after so many steps and so many epochs: the run goes on there."""

    def log_step(self, values: Mapping[str, Any]) -> None:
        """A line of history.jsonl: "step" and "epoch" from 1, then numbers, None for those that
        are not finite."""

    def log_epoch(self, values: Mapping[str, Any]) -> None:
        """A row of metrics.csv: "epoch" from 1, then numbers, NaN for those that are not known."""

    def flush(self) -> None:
        """A checkpoint will be saved: what was logged must outlive this process."""

    def close(self) -> None:
        """Training has ended or paused; more may be logged later."""


# Makes the logger of a run: its folder, which a fold has for itself, and its values.
LoggerFactory = Callable[[Path, TrainConfig], RunLogger]


class AllLoggers:
    """Several loggers as one."""

    def __init__(self, loggers: Sequence[RunLogger]) -> None:
        self._loggers = loggers

    def cut(self, step: int, epoch: int) -> None:
        for logger in self._loggers:
            logger.cut(step, epoch)

    def log_step(self, values: Mapping[str, Any]) -> None:
        for logger in self._loggers:
            logger.log_step(values)

    def log_epoch(self, values: Mapping[str, Any]) -> None:
        for logger in self._loggers:
            logger.log_epoch(values)

    def flush(self) -> None:
        for logger in self._loggers:
            logger.flush()

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()


def check_logs(config: TrainConfig) -> None:
    """Raise a UsageError where --log names what is not installed."""
    if config.log == TENSORBOARD and importlib.util.find_spec(_NEEDED) is None:
        raise UsageError(
            "--log tensorboard needs the package tensorboard: pip install "
            "'intrasense-fast[tensorboard]', or leave --log out"
        )


def loggers_of(
    run: Path,
    config: TrainConfig,
    say: Callable[[str], None],
    others: Sequence[LoggerFactory] = (),
) -> RunLogger:
    """The logger of a run: its files always, TensorBoard with --log, and those of `others`."""
    loggers: list[RunLogger] = [FileLogger(run, say)]
    if config.log == TENSORBOARD:
        from intrasense_fast.training.tensorboard_log import TensorBoardLogger

        loggers.append(TensorBoardLogger(run))
    loggers += [factory(run, config) for factory in others]
    return AllLoggers(loggers)
