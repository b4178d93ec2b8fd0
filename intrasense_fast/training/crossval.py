"""Summary of all folds: mean and SD over folds, over images, and pooled over the out-of-fold
predictions."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intrasense_fast.metrics import LABELS, METRICS, summarize
from intrasense_fast.report.tables import write_csv

COLUMNS = ("metric", "folds", "fold_mean", "fold_sd", "images", "image_mean", "image_sd", "pooled")


def write_summary(
    run: Path, folds: dict[int, list[dict[str, Any]]], subset: str, total: int
) -> str:
    """Write RUN/summary.csv and RUN/per_image.csv of the test images of all folds; returns the
    table that is printed."""
    images = [{"fold": number, **row} for number, rows in sorted(folds.items()) for row in rows]
    write_csv(run / "per_image.csv", images)
    overall = summarize(images)
    by_fold = [summarize(rows) for rows in folds.values()]
    table = []
    for name in METRICS:
        means = np.array([summary.metrics[name].mean for summary in by_fold])
        means = means[~np.isnan(means)]
        table.append(
            {
                "metric": name,
                "folds": len(means),
                "fold_mean": float(means.mean()) if len(means) else math.nan,
                "fold_sd": float(means.std(ddof=1)) if len(means) > 1 else math.nan,
                "images": overall.metrics[name].n,
                "image_mean": overall.metrics[name].mean,
                "image_sd": overall.metrics[name].sd,
                "pooled": overall.pooled.get(name, math.nan),
            }
        )
    write_csv(run / "summary.csv", table, COLUMNS)
    return _text(table, len(folds), len(images), overall.normal_images, subset, total)


def _text(
    table: Sequence[dict[str, Any]], folds: int, images: int, normal: int, subset: str, total: int
) -> str:
    head = (
        f"{folds} folds, n = {images} test images of {total} (subset {subset}); "
        f"{normal} normal, not in the means"
    )
    lines = [head, f"{'':<14}{'over folds':>20}{'over images':>20}{'pooled':>10}"]
    for row in table:
        pairs = [
            f"{row[f'{kind}_mean']:.4f} ± {row[f'{kind}_sd']:.4f}" for kind in ("fold", "image")
        ]
        pooled = "-" if math.isnan(row["pooled"]) else f"{row['pooled']:.4f}"
        lines.append(
            f"{LABELS[row['metric']]:<14}{pairs[0]:>20}{pairs[1]:>20}{pooled:>10}".replace(
                "nan", "-"
            )
        )
    return "\n".join(lines)
