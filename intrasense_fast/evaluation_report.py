"""What `evaluate` writes of the images that it measured: tables, calibration, and what doubt is
worth."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from intrasense_fast.calibration import PixelCounts
from intrasense_fast.doubt import Risk, risk_coverage
from intrasense_fast.ensemble import Ensemble
from intrasense_fast.files import write_text
from intrasense_fast.metrics import summarize
from intrasense_fast.networks.health import StrideHealth
from intrasense_fast.report.doubt import save_doubt
from intrasense_fast.report.tables import summary_table, write_csv


@dataclass
class Measured:
    """What was found so far: a row an image, lines of those that failed, how often pixels of each
    probability are lesion, and how the first network fares."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    counts: PixelCounts = field(default_factory=PixelCounts)
    health: dict[int, StrideHealth] = field(default_factory=dict)


class About(NamedTuple):
    """What was measured: the data and their layout, the checkpoints, the threshold, and what is
    said of images that they know."""

    data: str
    layout: str
    checkpoints: Sequence[str]
    ensemble: Ensemble
    threshold: float
    said: str


def write_report(
    folder: Path, about: About, measured: Measured, record: Mapping[str, Any], empty: str
) -> str:
    """Write per_image.csv, summary.json, summary.txt and doubt.png; returns the table to print.

    Args:
        folder: an existing one.
        about, measured: what was measured, and found.
        record: what summary.json begins with.
        empty: the rule for empty masks; see `image_metrics`.
    """
    summary = summarize(measured.rows, empty=empty)
    calibration = _calibration(about.ensemble, measured.counts)
    risk = _risk(measured.rows)
    lines = [summary_table(summary, _title(about, len(measured.rows))), about.said]
    lines += [_calibration_line(calibration), _doubt_line(risk)]
    table = "\n".join(lines)
    content = {
        **record,
        "temperatures": about.ensemble.temperatures,
        "opinions": about.ensemble.opinions,
        **summary.as_dict(),
        "calibration": calibration,
        "doubt": _doubt_record(risk),
    }
    write_csv(folder / "per_image.csv", measured.rows)
    write_text(folder / "summary.json", json.dumps(content, indent=2) + "\n")
    write_text(folder / "summary.txt", table + "\n")
    save_doubt(folder / "doubt.png", calibration, risk)
    return table


def _title(about: About, images: int) -> str:
    size = about.ensemble.size
    names = list(about.checkpoints)
    network = names[0] if len(names) == 1 else f"{len(names)} checkpoints ({', '.join(names)})"
    flips = len(about.ensemble.flips)
    network += f" with {flips} flips" if flips > 1 else ""
    tile = "" if about.ensemble.tile is None else f" in tiles of {about.ensemble.tile}"
    return (
        f"{about.data} ({about.layout}), n = {images}, {network} at {size} x {size}{tile}, "
        "metrics on the original grid"
    )


def _calibration(ensemble: Ensemble, counts: PixelCounts) -> dict[str, Any]:
    """Reliability of the answers; of a single opinion also of what it was before its
    temperature."""
    record: dict[str, Any] = {"ece": counts.ece(1.0), "reliability": counts.reliability(1.0)}
    (temperature, *others) = ensemble.temperatures
    if ensemble.opinions == 1 and not others and temperature != 1:
        # Dividing by 1 / T takes the temperature out again.
        record |= {
            "ece_before": counts.ece(1 / temperature),
            "reliability_before": counts.reliability(1 / temperature),
        }
    return record


def _calibration_line(calibration: Mapping[str, Any]) -> str:
    before = calibration.get("ece_before")
    without = "" if before is None else f", {before:.4f} without the temperature"
    return f"Expected calibration error of the pixels {calibration['ece']:.4f}{without}."


def _risk(rows: Sequence[Mapping[str, Any]]) -> Risk | None:
    """Of the images whose Dice is defined; None where there are none."""
    pairs = [(row["doubt"], row["dice"]) for row in rows if not math.isnan(row["dice"])]
    if not pairs:
        return None
    doubts, dices = np.array(pairs).T
    return risk_coverage(doubts, dices)


def _doubt_line(risk: Risk | None) -> str:
    if risk is None:
        return "Doubt: no image has a Dice to compare it with."
    correlation = "undefined" if math.isnan(risk.spearman) else f"{risk.spearman:.3f}"
    return (
        f"Doubt: rank correlation with Dice {correlation} over {len(risk.risk)} images; area under "
        f"the risk-coverage curve {risk.area:.4f}, {risk.least_area:.4f} in the best order, "
        f"{risk.mean_risk:.4f} in any."
    )


def _doubt_record(risk: Risk | None) -> dict[str, Any] | None:
    if risk is None:
        return None
    return {
        "images": len(risk.risk),
        "spearman": None if math.isnan(risk.spearman) else risk.spearman,
        "aurc": risk.area,
        "aurc_best_order": risk.least_area,
        "aurc_any_order": risk.mean_risk,
    }
