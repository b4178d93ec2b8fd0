"""Metric tables as aligned text, and CSV files."""

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from intrasense_fast.files import atomic_path, legible
from intrasense_fast.metrics import TABLE, Summary


def summary_table(summary: Summary, title: str, unit: str = "px") -> str:
    """One summary as text: the paper's five metrics first; ratios as fractions, distances in
    `unit`, "-" where undefined."""
    lines = [["", "mean ± SD", "median", "pooled", "n"]]
    for metric in TABLE:
        values = summary.metrics[metric.name]
        digits = 2 if metric.is_distance else 4
        lines.append(
            [
                metric.label.replace("(px)", f"({unit})"),
                f"{_text(values.mean, digits)} ± {_text(values.sd, digits)}",
                _text(values.median, digits),
                _text(summary.pooled.get(metric.name, math.nan), digits),
                f"{values.n}",
            ]
        )
    text = [
        title,
        *_aligned(lines),
        f"Over {_count(summary.lesion_images, 'image')} with a lesion; {_misses(summary)}.",
    ]
    if summary.normal_images:
        text.append(
            f"{_count(summary.normal_images, 'normal image')} apart: false-positive rate "
            f"{_text(summary.false_positive_rate)}, "
            f"mean false-positive area {_text(summary.false_positive_area)} of the image."
        )
    return "\n".join(text)


def comparison_table(rows: Mapping[str, Summary]) -> str:
    """Several summaries under each other: the mean over lesion images of the paper's five metrics,
    and pooled Dice."""
    metrics = [metric for metric in TABLE if metric.in_paper]
    lines = [["", *(metric.label for metric in metrics), "pooled Dice", "images"]]
    for name, summary in rows.items():
        means = [_text(summary.metrics[metric.name].mean) for metric in metrics]
        lines.append([name, *means, _text(summary.pooled["dice"]), f"{summary.lesion_images}"])
    return "\n".join(_aligned(lines))


def write_csv(
    path: str | os.PathLike[str],
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
) -> None:
    """Write `rows` to `path` atomically, in UTF-8; floats keep all their digits, and a missing
    value is an empty field.

    Bytes of a file name that are no UTF-8 stand as %E9 or the like.

    Columns are in the order in which the rows first name them, or as `columns` lists them.

    Raises:
        ValueError: no rows and no `columns`, or a row with a key that `columns` lacks.
    """
    table = list(rows)
    names = (
        list(columns)
        if columns is not None
        else list(dict.fromkeys(key for row in table for key in row))
    )
    if not names:
        raise ValueError(f"write_csv: no rows for {path}; give columns= to write the header alone")
    unknown = sorted({key for row in table for key in row} - set(names))
    if unknown:
        raise ValueError(f"write_csv: rows hold columns that columns= lacks: {', '.join(unknown)}")
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: legible(v) if isinstance(v, str) else v for key, v in row.items()}
            for row in table
        )


def _text(value: float, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _misses(summary: Summary) -> str:
    undefined = summary.metrics["hd95"].nan
    missed = _count(summary.missed_lesions, "lesion")
    text = f"{missed} missed, {_count(summary.one_side_empty, 'image')} with one mask empty"
    return text + (f", {_count(undefined, 'distance')} undefined" if undefined else "")


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """First column to the left, the others to the right, a rule below the head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return [rows[0], "-" * len(rows[0]), *rows[1:]]
