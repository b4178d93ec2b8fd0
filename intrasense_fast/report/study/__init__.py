"""The report of a study: report.html, tables.md, tables.tex and CSV files, from complete and
incomplete grids."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intrasense_fast.console import progress
from intrasense_fast.data.images import ImageError
from intrasense_fast.data.texture import texture_index
from intrasense_fast.errors import first_line
from intrasense_fast.files import write_text
from intrasense_fast.metrics import METRICS, PAPER_METRICS
from intrasense_fast.report.study import contents, figures, words
from intrasense_fast.report.study.cost import costs
from intrasense_fast.report.study.folder import Study, read_study
from intrasense_fast.report.study.page import page, paragraphs, picture
from intrasense_fast.report.study.predictions import (
    LazySample,
    Predicted,
    calibrated_names,
    machine,
    open_samples,
    predict,
    reliability,
)
from intrasense_fast.report.study.summary import comparisons, image_means, summaries
from intrasense_fast.report.study.tables import Table
from intrasense_fast.report.tables import write_csv

__all__ = ["write_report"]

# Of the bootstrap: the same folder gives the same figures.
_SEED = 0
_FAILURES = 6
_TEXTURE = "texture.json"

Array = NDArray[np.float64]


def write_report(out: Path) -> list[Path]:
    """Write every table and picture of a study beside its study.json, and name what is missing.

    Cells that failed or are not done are listed; networks that lack a cell are not ranked. Where
    the images or a checkpoint cannot be opened, the parts that need them say so. Where all cells
    failed, the report is the list of reasons and the protocol.

    Args:
        out: the folder of a compare or ablate.

    Returns:
        The files written; report.html first.

    Raises:
        UsageError: no cell is done and none failed, a record is damaged, or scipy is missing.
        DataError: splits.json is missing or damaged.
    """
    study = read_study(out)
    if not any(cell.done for cell in study.cells):
        sections = [
            (
                "Results",
                [paragraphs([words.without_results(study), *words.missing(study)], "fault")],
            ),
            ("Protocol", [paragraphs(words.protocol(study, []))]),
        ]
        return _written(out, study, [], sections, {}, [words.without_results(study)])
    rng = np.random.default_rng(_SEED)
    rows = summaries(study, rng)
    paired = comparisons(study, rng)
    samples, fault = open_samples(study)
    failed = [f"Left out: {fault}."] if fault else []
    index = _texture(study, samples, failed)
    cases, worst = _cases(study, index)
    predicted = Predicted({label: {} for label in study.labels})
    calibrated = calibrated_names(study)
    if samples:
        named = list(dict.fromkeys([*(name for name, _ in (*cases, *worst)), *calibrated]))
        predicted = predict(study, named, samples)
    failed += predicted.faults
    cost = costs(study, predicted.milliseconds)
    by_stratum, stratum_rows = contents.strata_table(study, rng)
    curves = {
        label: reliability({name: maps[name] for name in calibrated if name in maps}, samples)
        for label, maps in predicted.probabilities.items()
        if maps
    }
    tables = [
        contents.metric_table(study, rows, PAPER_METRICS, "Mean over images", "mean"),
        contents.cost_table(cost, machine()),
        contents.metric_table(study, rows, PAPER_METRICS, "Pooled over images", "pooled"),
        contents.fold_table(study, rows),
        contents.metric_table(
            study, rows, contents.OTHER_METRICS, "Boundary metrics and specificity", "mean"
        ),
    ]
    tables += [contents.comparison_table(study, paired)] if paired else []
    tables += [by_stratum]
    normal = contents.false_alarm_table(study)
    tables += [normal] if normal else []
    tables += [contents.calibration_table(curves)] if curves else []

    sections = _sections(study, tables, failed)
    sections += _pictures(study, samples, predicted, index, curves, cases, worst)
    lists = {
        "summary.csv": rows,
        "differences.csv": paired,
        "strata.csv": stratum_rows,
        "cost.csv": cost,
        "per_image.csv": _per_image(study, index),
    }
    return _written(out, study, tables, sections, lists, failed)


def _sections(
    study: Study, tables: Sequence[Table], failed: Sequence[str]
) -> list[tuple[str, list[str]]]:
    lacking = words.missing(study)
    first = (
        [paragraphs([f"{len(lacking)} cells are missing:", *lacking], "fault")] if lacking else []
    )
    printed = paragraphs(words.printed(study), "note")
    return [
        ("Results", [*first, tables[0].html(), printed]),
        ("Protocol", [paragraphs(words.protocol(study, failed))]),
        ("Tables", [table.html() for table in tables[1:]]),
    ]


def _pictures(
    study: Study,
    samples: dict[str, LazySample],
    predicted: Predicted,
    index: dict[str, float],
    curves: dict[str, dict[str, Any]],
    cases: list[tuple[str, str]],
    worst: list[tuple[str, str]],
) -> list[tuple[str, list[str]]]:
    """The sections with pictures."""
    lesion = study.lesion()
    means = {
        metric: {
            label: np.where(lesion, image_means(study, label, metric), math.nan)
            for label in study.labels
        }
        for metric in METRICS
    }
    boxes = "Every lesion image, mean over seeds: quartiles, and 1.5 quartile distances."
    sections = [("Distributions", [picture(figures.box_plots(means), boxes, large=True)])]
    aucs = np.array([index.get(name, math.nan) for name in study.names])
    if (~np.isnan(aucs)).any():
        caption = (
            f"Dice against the texture index of {int((~np.isnan(aucs)).sum())} images: dots are "
            f"images, "
            "lines the means of fifths. The index is the AUC of a pixel classifier of local "
            "texture, "
            "without position, trained on the other folds: 0.5 is identical texture, below it "
            "texture misleads."
        )
        drawn = picture(figures.texture_plot(means["dice"], aucs), caption, large=True)
        sections.append(("Identical texture, distinct semantics", [drawn]))
    if curves:
        caption = "Reliability of the predicted probabilities, a dot a bin; dotted: perfect."
        drawn = picture(figures.reliability_plot(curves), caption, large=True)
        sections.append(("Calibration", [drawn]))
    if samples:
        dice = _shown_dice(study)
        rule = (
            f"Rows by rule: quantiles of {study.reference}'s Dice (mean over seeds), then the "
            f"lowest "
            "texture indices. Green: true positive, vermillion: false positive, blue: false "
            "negative. "
            "Predictions and Dice of the first seed."
        )
        hard = f"The {len(worst)} images with the lowest Dice, averaged over networks and seeds."
        for heading, shown, caption in (
            ("The same cases for every network (the form of Figure 5)", cases, rule),
            ("Failure cases", worst, hard),
        ):
            grid = figures.case_grid(shown, samples, predicted.probabilities, dice)
            sections.append((heading, [picture(grid, caption, large=True)]))
    return sections


def _texture(study: Study, samples: dict[str, LazySample], failed: list[str]) -> dict[str, float]:
    """The texture index of every image; kept in texture.json, for splits and images do not
    change."""
    file = study.out / _TEXTURE
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["splits"] == study.splits.digest:
            return {name: math.nan if v is None else v for name, v in kept["auc"].items()}
    except (OSError, ValueError, KeyError):
        pass
    if not samples:
        return {}
    names = sorted({name for fold in study.splits.folds for role in fold for name in role})
    try:
        with progress(len(names), "texture index", "image") as bar:
            images = (samples[name].load() for name in names if name in samples)
            index = texture_index(images, study.splits, progress=lambda done: bar.update())
    except (ImageError, ValueError) as error:
        failed.append(f"No texture index: {first_line(error)}.")
        return {}
    plain = {name: None if math.isnan(value) else value for name, value in index.items()}
    write_text(file, json.dumps({"splits": study.splits.digest, "auc": plain}, indent=1) + "\n")
    return index


def _cases(
    study: Study, index: dict[str, float]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Rows of Figure 5, and the failure cases."""
    lesion = study.lesion()
    dice = {label: image_means(study, label, "dice") for label in study.labels}
    reference = np.where(lesion, dice[study.reference], math.nan)
    aucs = np.array([index.get(name, math.nan) for name in study.names])
    cases = contents.picked_cases(reference, aucs, study.names)
    table = np.stack(list(dice.values()))
    seen = ~np.isnan(table) & lesion
    mean = np.where(seen, table, 0).sum(0) / np.maximum(seen.sum(0), 1)
    order = [int(i) for i in np.argsort(mean, kind="stable") if seen[:, i].any()]
    worst = [(study.names[i], f"mean Dice {mean[i]:.2f}") for i in order[:_FAILURES]]
    return cases, worst


def _shown_dice(study: Study) -> dict[str, dict[str, float]]:
    """Dice of the cell that the pictures show: the first seed that is done of each fold."""
    found: dict[str, dict[str, float]] = {label: {} for label in study.labels}
    for cell in study.cells:
        for row in cell.rows:
            found[cell.label].setdefault(row["name"], float(row["dice"] or "nan"))
    return found


def _per_image(study: Study, index: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "network": cell.label,
            "seed": cell.seed,
            "fold": cell.fold,
            **row,
            "group": study.groups[row["name"]],
            "texture_auc": index.get(row["name"], math.nan),
        }
        for cell in study.cells
        for row in cell.rows
    ]


def _written(
    out: Path,
    study: Study,
    tables: Sequence[Table],
    sections: Sequence[tuple[str, Sequence[str]]],
    lists: Mapping[str, Sequence[dict[str, Any]]],
    failed: Sequence[str],
) -> list[Path]:
    title = words.title(study)
    lacking = words.missing(study)
    notes = [*(f"Missing: {line}" for line in lacking), *words.printed(study)]
    markdown = [f"# {title}", *notes, "## Protocol", *words.protocol(study, failed)]
    markdown += [table.markdown() for table in tables]
    write_text(out / "report.html", page(title, sections))
    write_text(out / "tables.md", "\n\n".join(markdown))
    comments = "".join(f"% {line}\n" for line in [title, *notes])
    write_text(out / "tables.tex", comments + "\n".join(table.latex() for table in tables))
    files = [out / "report.html", out / "tables.md", out / "tables.tex"]
    for name, rows in lists.items():
        if rows:
            write_csv(out / name, rows)
            files.append(out / name)
    return files
