"""The two logs of a run: history.jsonl, a line a step, and metrics.csv, a row an epoch."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intrasense_fast.files import write_text
from intrasense_fast.report.tables import write_csv

HISTORY, METRICS = "history.jsonl", "metrics.csv"
# What stands for bytes that are no UTF-8.
_REPLACED = "\ufffd"


class FileLogger:
    """The two files of a run as a `loggers.RunLogger`.

    Args:
        run: the folder of the run, or of a fold.
        say: is told of damaged lines.
    """

    def __init__(self, run: Path, say: Callable[[str], None]) -> None:
        self._run, self._say = run, say

    def cut(self, step: int, epoch: int) -> None:
        cut(self._run, step=step, epoch=epoch, say=self._say)

    def log_step(self, values: Mapping[str, Any]) -> None:
        append_step(self._run, values)

    def log_epoch(self, values: Mapping[str, Any]) -> None:
        append_epoch(self._run, values)

    def flush(self) -> None:
        """Every line is in its file already."""

    def close(self) -> None:
        """No file stays open."""


def append_step(run: Path, line: Mapping[str, Any]) -> None:
    """Add a line to history.jsonl; it must have "step".

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    try:
        with open(run / HISTORY, "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(line)) + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(run / HISTORY)) from error


def append_epoch(run: Path, row: Mapping[str, Any]) -> None:
    """Add a row to metrics.csv; it must have "epoch"."""
    write_csv(run / METRICS, [*read_epochs(run), dict(row)])


def read_epochs(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, as text; none where there is no file. Damaged rows are left out."""
    return _epochs(run)[0]


def cut(run: Path, *, step: int, epoch: int, say: Callable[[str], None]) -> None:
    """Keep the first `step` steps and the first `epoch` epochs; what came after the restored
    checkpoint will be redone.

    Damaged lines and rows are left out, which `say` is told; a last line that a kill cut in two is
    no damage.
    """
    if (run / HISTORY).exists():
        kept, damaged = [], 0
        for line in (
            (run / HISTORY).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        ):
            number = _step(line)
            if number is None:
                damaged += line.endswith("\n")
            elif number <= step:
                kept.append(line.rstrip("\n") + "\n")
        _tell(say, run / HISTORY, damaged)
        write_text(run / HISTORY, "".join(kept))
    rows, damaged = _epochs(run)
    _tell(say, run / METRICS, damaged)
    if rows:
        write_csv(run / METRICS, [row for row in rows if int(row["epoch"]) <= epoch], list(rows[0]))
    elif damaged:
        (run / METRICS).unlink()


def _step(line: str) -> int | None:
    """The step of a line of history.jsonl; None where it is damaged."""
    try:
        number = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return number if type(number) is int and _REPLACED not in line else None


def _epochs(run: Path) -> tuple[list[dict[str, str]], int]:
    """The sound rows of metrics.csv, and how many others there are."""
    if not (run / METRICS).exists():
        return [], 0
    rows: list[dict[str, str]] = []
    damaged = 0
    with open(run / METRICS, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                sound = _is_sound(row)
                rows += [row] if sound else []
                damaged += not sound
        except csv.Error:
            damaged += 1
    return rows, damaged


def _is_sound(row: dict[str, str]) -> bool:
    """An epoch that is an integer, numbers or nothing in all other columns, as many as the header
    has."""
    try:
        int(row["epoch"])
        for value in row.values():
            float(value if value != "" else 0)
        return not any(_REPLACED in name for name in row)
    except (ValueError, KeyError, TypeError):
        return False


def _tell(say: Callable[[str], None], file: Path, damaged: int) -> None:
    if damaged:
        say(
            f"{file}: {damaged} damaged line{'s are' if damaged > 1 else ' is'} left out; the "
            f"weights do not depend on it"
        )
