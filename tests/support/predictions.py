"""What `predict` left in a folder."""

import csv
from pathlib import Path


def rows(out: Path) -> list[dict[str, str]]:
    """Of predictions.csv."""
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """Place below the folder -> bytes, of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
