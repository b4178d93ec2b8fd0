"""The tables of a study, from its figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intrasense_fast.metrics import METRICS, PAPER_METRICS
from intrasense_fast.report.study.folder import Study
from intrasense_fast.report.study.summary import false_alarms, strata, summaries
from intrasense_fast.report.study.tables import Table, heading, ranks, shown_value, with_interval

Rows = Sequence[Mapping[str, Any]]
Marks = dict[tuple[int, int], str]

COUNTED = "images / groups / folds / seeds"
OTHER_METRICS = tuple(name for name in METRICS if name not in PAPER_METRICS)
_INTERVAL = (
    "In brackets: 95 % intervals by a cluster bootstrap over groups and seeds. "
    "Bold: best; underlined or in italics: second best, among the networks with all cells."
)


def metric_table(study: Study, rows: Rows, metrics: Sequence[str], title: str, key: str) -> Table:
    """Networks down, metrics across; `key` is "mean" or "pooled"."""
    prefix = "" if key == "mean" else f"{key}_"
    cell = lambda row: with_interval(row, key, prefix)
    return _filled(study, rows, metrics, title, key, cell, [_INTERVAL])


def fold_table(study: Study, rows: Rows) -> Table:
    """Mean and SD over folds, and the SD of the seeds' means."""

    def cell(row: Mapping[str, Any]) -> str:
        mean, sd, seed_sd = (
            shown_value(row[key], row["metric"]) for key in ("fold_mean", "fold_sd", "seed_sd")
        )
        return f"{mean} ± {sd} ({seed_sd})"

    notes = ["Mean ± SD over folds; in brackets the SD of the seeds' means."]
    return _filled(study, rows, PAPER_METRICS, "Over folds", "fold_mean", cell, notes)


def cost_table(rows: Rows, machine: str) -> Table:
    """Where the encoder comes from, parameters, GMAC, training time and speed."""
    lines = [
        [
            row["label"],
            row["network"],
            row["encoder"],
            _number(row["parameters"] / 1e6, 2),
            _number(row["gmac"], 2),
            _number(row["train_minutes"], 1),
            _number(row["milliseconds"], 1),
        ]
        for row in rows
    ]
    head = ["", "network", "encoder", "parameters (M)", "GMAC at 256", "training (min)", "ms/image"]
    notes = [
        "GMAC: convolutions and matrix products of one 256 x 256 image. Training: median wall "
        "clock of a cell, whatever else the machine did. ms/image: median of five forward passes "
        f"at the size of training on this machine ({machine}), resizing included.",
        *(f"{row['label']}: {row['note']}" for row in rows if row["note"]),
    ]
    return Table("Cost", head, lines, {}, notes)


def comparison_table(study: Study, rows: Rows) -> Table:
    """Differences from the reference, with their tests."""
    shown = [row for row in rows if row["metric"] in (*PAPER_METRICS, *OTHER_METRICS)]
    lines = [
        [
            row["label"],
            heading(row["metric"]),
            with_interval(row, "difference"),
            _p(row["p"]),
            _p(row["p_holm"]),
            _number(row["rank_biserial"], 2),
            _number(row["cohens_d"], 2),
            _counted(row),
        ]
        for row in shown
    ]
    head = ["", "metric", "difference", "p", "p (Holm)", "rank-biserial", "Cohen's d", COUNTED]
    notes = [
        f"Network minus {study.reference}, on the same images and seeds. Intervals: cluster "
        "bootstrap over groups and seeds. p: two-sided Wilcoxon signed-rank test of the groups' "
        "means over images and seeds; it knows nothing of the chance between seeds, the intervals "
        "do. Holm's correction is over the networks, within a metric. Cohen's d: mean over SD of "
        "the groups' differences."
    ]
    return Table(f"Paired differences from {study.reference}", head, lines, {}, notes)


def strata_table(study: Study, rng: np.random.Generator) -> tuple[Table, list[dict[str, Any]]]:
    """Dice by size and class, and the rows behind it."""
    parts = strata(study)
    rows = []
    for name, images in parts.items():
        found = summaries(study, rng, images)
        rows += [{"stratum": name, **row} for row in found if row["metric"] == "dice"]
    place = {(row["stratum"], row["label"]): row for row in rows}
    lines, marks = [], Marks()
    for label in study.labels:
        lines.append([label, *(with_interval(place[name, label]) for name in parts)])
    ranked = complete(study)
    for j, name in enumerate(parts):
        values = [
            place[name, each]["mean"] if each in ranked else math.nan for each in study.labels
        ]
        marks |= {(i, j + 1): mark for i, mark in ranks(values, "dice").items()}
    counts = "; ".join(f"{name} {_counted(place[name, study.reference])}" for name in parts)
    head = ["Dice (%)", *parts]
    notes = [
        "small, medium, large: thirds of the images by the lesion's share of the image.",
        f"{COUNTED} of {study.reference}: {counts}.",
        _INTERVAL,
    ]
    return Table("Strata", head, lines, marks, notes), rows


def false_alarm_table(study: Study) -> Table | None:
    """Normal images, where there are any."""
    rows = false_alarms(study)
    if not any(row["normal"] for row in rows):
        return None
    lines = [
        [row["label"], shown_value(row["false_positive_rate"]), str(row["normal"])] for row in rows
    ]
    notes = ["Images without a lesion enter no other table."]
    head = ["", "images with any predicted pixel (%)", "normal images"]
    return Table("Normal images", head, lines, {}, notes)


def calibration_table(curves: Mapping[str, Mapping[str, Any]]) -> Table:
    """Expected calibration error of each network."""
    lines = [[label, shown_value(c["ece"]), str(c["images"])] for label, c in curves.items()]
    notes = [
        "Over all pixels of the images named in the column, ten bins of equal width, the first "
        "seed of each fold. Most pixels are plain background, which makes every ECE small."
    ]
    return Table("Calibration", ["", "ECE (%)", "images"], lines, {}, notes)


def complete(study: Study) -> list[str]:
    """Networks whose cells are all done; only these are ranked, for only they saw the same
    images."""
    cells = len(study.seeds) * len(study.folds)
    return [label for label in study.labels if len(study.done(label)) == cells]


def _filled(
    study: Study,
    rows: Rows,
    metrics: Sequence[str],
    title: str,
    key: str,
    cell: Callable[[Mapping[str, Any]], str],
    notes: Sequence[str],
) -> Table:
    place = {(row["label"], row["metric"]): row for row in rows}
    lines, marks = [], Marks()
    ranked = complete(study)
    for label in study.labels:
        figures = [cell(place[label, metric]) for metric in metrics]
        encoder = study.row(label).get("encoder", "scratch")
        lines.append([label, encoder, *figures, _counted(place[label, metrics[0]])])
    for j, metric in enumerate(metrics):
        values = [place[each, metric][key] if each in ranked else math.nan for each in study.labels]
        marks |= {(i, j + 2): mark for i, mark in ranks(values, metric).items()}
    head = ["", "encoder", *map(heading, metrics), COUNTED]
    return Table(title, head, lines, marks, notes)


def _counted(row: Mapping[str, Any]) -> str:
    return f"{row['images']} / {row['groups']} / {row['folds']} / {row['seeds']}"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def picked_cases(
    dice: NDArray[np.float64], index: NDArray[np.float64], names: Sequence[str]
) -> list[tuple[str, str]]:
    """Rows of Figure 5 by rule: quantiles of the reference's Dice, then the lowest texture indices.

    Returns:
        (name, why it is there); an image that two rules name stands once.
    """
    found: dict[str, str] = {}
    order = [int(i) for i in np.argsort(dice, kind="stable") if not math.isnan(dice[i])]
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        if order:
            place = order[round(quantile * (len(order) - 1))]
            found.setdefault(names[place], f"{100 * quantile:.0f} % quantile")
    hardest = [int(i) for i in np.argsort(index, kind="stable") if not math.isnan(index[i])]
    added = 0
    for place in hardest:
        if added < 3 and names[place] not in found:
            found[names[place]] = f"texture index {index[place]:.2f}"
            added += 1
    return list(found.items())
