"""What `evaluate` writes of the images that it measured: tables, calibration, and what doubt is
worth."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from intrasense_fast.files import write_text
from intrasense_fast.inference.calibration import PixelCounts
from intrasense_fast.inference.doubt import Risk, risk_coverage
from intrasense_fast.inference.ensemble import Ensemble
from intrasense_fast.measuring.components import NO_CLEAN_UP, CleanUp
from intrasense_fast.measuring.lesion import PIXELS
from intrasense_fast.metrics import DISTANCES, summarize
from intrasense_fast.networks.health import StrideHealth
from intrasense_fast.report.doubt import save_doubt
from intrasense_fast.report.tables import summary_table, write_csv

# Column of the Dice that a mask had before its clean-up.
DICE_BEFORE = "dice_before"


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
    clean_up: CleanUp = NO_CLEAN_UP


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
    units = Counter(row["unit"] for row in measured.rows)
    summary = summarize(_of_one_unit(measured.rows, units), empty=empty)
    cleaned = _cleaned(measured.rows) if about.clean_up else None
    calibration = _calibration(about.ensemble, measured.counts)
    risk = _risk(measured.rows)
    unit = next(iter(units)) if len(units) == 1 else "?"
    lines = [summary_table(summary, _title(about, len(measured.rows)), unit)]
    lines += [_units_line(units)] if len(units) > 1 else []
    lines += [about.said]
    lines += [_clean_up_line(about.clean_up, cleaned)] if cleaned else []
    lines += [_calibration_line(calibration), _doubt_line(risk)]
    table = "\n".join(lines)
    content = {
        **record,
        "temperatures": about.ensemble.temperatures,
        "opinions": about.ensemble.opinions,
        "units": dict(units),
        "clean_up": {"flags": str(about.clean_up), **cleaned} if cleaned else None,
        **summary.as_dict(),
        "calibration": calibration,
        "doubt": _doubt_record(risk),
    }
    write_csv(folder / "per_image.csv", measured.rows)
    write_text(folder / "summary.json", json.dumps(content, indent=2) + "\n")
    write_text(folder / "summary.txt", table + "\n")
    save_doubt(folder / "doubt.png", calibration, risk)
    return table


def _of_one_unit(
    rows: Sequence[Mapping[str, Any]], units: Mapping[str, int]
) -> Sequence[Mapping[str, Any]]:
    """The rows; where their units differ, without distances, which cannot be averaged."""
    if len(units) == 1:
        return rows
    return [{**row, **dict.fromkeys(DISTANCES, math.nan)} for row in rows]


def _units_line(units: Mapping[str, int]) -> str:
    counts = " and ".join(f"{count} in {unit}" for unit, count in sorted(units.items()))
    return (
        f"HD95 and ASSD are {counts}: each image has its own in per_image.csv, and they are not "
        f"averaged; --spacing gives the millimetres of the {units[PIXELS]}."
    )


def _cleaned(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Dice before and after the clean-up, over the images that have both."""
    pairs = [(row[DICE_BEFORE], row["dice"], row["name"]) for row in rows]
    pairs = [pair for pair in pairs if not math.isnan(pair[0] + pair[1])]
    if not pairs:
        return None
    worst = min(pairs, key=lambda pair: pair[1] - pair[0])
    return {
        "images": len(pairs),
        "dice_before": float(np.mean([before for before, _, _ in pairs])),
        "dice_after": float(np.mean([after for _, after, _ in pairs])),
        "better": sum(after > before for before, after, _ in pairs),
        "worse": sum(after < before for before, after, _ in pairs),
        "largest_loss": max(0.0, worst[0] - worst[1]),
        "largest_loss_of": worst[2] if worst[1] < worst[0] else None,
    }


def _clean_up_line(clean_up: CleanUp, cleaned: Mapping[str, Any]) -> str:
    loss = ""
    if cleaned["largest_loss_of"]:
        loss = f", the largest loss {cleaned['largest_loss']:.4f} ({cleaned['largest_loss_of']})"
    return (
        f"Clean-up ({clean_up}): mean Dice {cleaned['dice_before']:.4f} before, "
        f"{cleaned['dice_after']:.4f} after, over {cleaned['images']} images; {cleaned['better']} "
        f"better, {cleaned['worse']} worse{loss}."
    )


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
