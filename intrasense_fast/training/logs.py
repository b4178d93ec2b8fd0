"""The two logs of a run: history.jsonl, a line a step, and metrics.csv, a row an epoch."""

import csv
import json
from pathlib import Path
from typing import Any

from intrasense_fast.files import atomic_path
from intrasense_fast.report.tables import write_csv

HISTORY, METRICS = "history.jsonl", "metrics.csv"


def append_step(run: Path, line: dict[str, Any]) -> None:
    """Add a line to history.jsonl; it must have "step"."""
    with open(run / HISTORY, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def append_epoch(run: Path, row: dict[str, Any]) -> None:
    """Add a row to metrics.csv; it must have "epoch"."""
    write_csv(run / METRICS, [*read_epochs(run), row])


def read_epochs(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, as text; none where there is no file."""
    if not (run / METRICS).exists():
        return []
    with open(run / METRICS, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cut(run: Path, *, step: int, epoch: int) -> None:
    """Keep the first `step` steps and the first `epoch` epochs; what came after the restored checkpoint will be redone."""
    if (run / HISTORY).exists():
        kept = []
        for line in (run / HISTORY).read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError, TypeError):
                break  # the line that a kill cut in two
        with atomic_path(run / HISTORY) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    rows = read_epochs(run)
    if rows:
        write_csv(run / METRICS, [row for row in rows if int(row["epoch"]) <= epoch], list(rows[0]))
