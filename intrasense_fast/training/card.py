"""The model card of a run, made from what stands in its folder."""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intrasense_fast.data.splits import Fold, Splits
from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.metrics import LABELS, METRICS
from intrasense_fast.networks.cards import LICENCE, NO_DEVICE, card_text, loading, write_card
from intrasense_fast.networks.checksums import digest_of
from intrasense_fast.provenance import TRAINED_ON
from intrasense_fast.report.statistics import cluster_interval
from intrasense_fast.training.checkpoint import BEST
from intrasense_fast.training.run_folder import CONFIG, DONE, SPLITS, read_record

_USE = (
    "Research on the segmentation of lesions in breast and thyroid ultrasound: to compare methods, "
    f"and to prepare annotations that a person checks. {NO_DEVICE}"
)
_LICENCE_OF_PHANTOMS = "MIT, as the code: the images are simulated."
_PHANTOMS = "**Phantom scores are not clinical scores**: the images are simulated."


def write_run_card(
    run: Path,
    groups: Mapping[str, str] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> bool:
    """Write RUN/best/README.md; False where one that is not ours is kept.

    Args:
        run: the folder of a run, or of one of its folds.
        groups: name -> group (patient or near-duplicates) of the images, for the intervals; each
            case is one where they are not given.
        summary: what summary.json will hold; None = it is there.

    Raises:
        UsageError: a file of the run is missing or damaged.
        OSError: the card cannot be written.
    """
    return write_card(run / BEST, run_card(run, groups, summary))


def run_card(
    run: Path,
    groups: Mapping[str, str] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> str:
    """The text of that card; arguments and errors as above."""
    record = read_record(run)
    try:
        found = summary or json.loads((run / DONE).read_text(encoding="utf-8"))
        best = json.loads((run / BEST / CONFIG).read_text(encoding="utf-8"))
        role = found["role"]
        summaries = {name: each for name, each in found.items() if name != "role"}
        title = next(iter(summaries))
        rows = _rows(run / "per_image.csv", role)
        table, footnote = _metrics(summaries[title]["metrics"], rows, groups or {})
        sections = [
            ("", f"`{best['architecture']}`, trained by intrasense-fast. {NO_DEVICE}"),
            ("Intended use", _USE),
            ("Data", _data(run, record, best)),
            ("Metrics", _results(summaries, role, table, footnote, record)),
            ("Training", _training(record, best)),
            ("Limits", _limits(record, best, role)),
            ("How to load it", loading(best["architecture"])),
            ("Licence", _LICENCE_OF_PHANTOMS if _simulated(record) else LICENCE),
        ]
        front = _front(title, summaries[title], role, record)
    except (OSError, ValueError, KeyError, TypeError, StopIteration, AttributeError) as error:
        raise UsageError(
            f"{run}: its model card cannot be made ({type(error).__name__}: {first_line(error)}); "
            f"remove {run / DONE} and resume the run: its results are made again"
        ) from error
    return card_text(front, f"{title}, {_source(record)}", sections)


def _front(title: str, found: Any, role: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Licence, metrics, and the results in the form that the Hub reads."""
    shown = {
        name: found["metrics"][name]
        for name in ("dice", "jaccard", "hd95")
        if found["metrics"][name]["mean"] is not None
    }
    results = [
        {
            "type": name,
            "name": f"{LABELS[name]}, mean of {each['n']} {role} images",
            "value": round(each["mean"], 4),
        }
        for name, each in shown.items()
    ]
    data = {"type": str(record.get("layout")), "name": _source(record)}
    index = {"task": {"type": "image-segmentation"}, "dataset": data, "metrics": results}
    return {
        "license": "mit" if _simulated(record) else "other",
        "metrics": list(shown),
        "model-index": [{"name": title, "results": [index]}],
    }


def _source(record: Mapping[str, Any]) -> str:
    """The data's name: that of its folder, for the path is nobody's business."""
    data = record["config"]["data"]
    return "simulated phantoms" if data is None else Path(data).resolve().name


def _simulated(record: Mapping[str, Any]) -> bool:
    return record["config"]["data"] is None


def _data(run: Path, record: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    config = record["config"]
    number = int(best["fold"])
    root = run if (run / SPLITS).exists() else run.parent
    folds = Splits.load(root / SPLITS).folds
    counts = dict(zip(Fold._fields, map(len, folds[number]), strict=True))
    lines = [
        f"- {_source(record)}: {record['images']} images, layout {record.get('layout')}, "
        f"subset {config['subset']}",
        f"- {counts['train']} images train, {counts['val']} select the checkpoint, "
        f"{counts['test']} test" + (f"; fold {number} of {len(folds)}" if len(folds) > 1 else ""),
        f"- splits: digest `{best['splits']}`, as in {SPLITS}",
    ]
    trained_on = run / BEST / TRAINED_ON
    if trained_on.exists():
        lines += [
            f"- images, by their bytes: {TRAINED_ON}, SHA-256 `{digest_of(trained_on)}`; "
            "`evaluate --held-out` leaves them out"
        ]
    return "\n".join(lines)


def _results(
    summaries: Mapping[str, Any], role: str, table: str, footnote: str, record: Mapping[str, Any]
) -> str:
    found = next(iter(summaries.values()))
    others = [
        f"{name} {each['metrics']['dice']['mean']:.3f}"
        for name, each in list(summaries.items())[1:]
        if each["metrics"]["dice"]["mean"] is not None
    ]
    parts = [
        f"{found['images']} {role} images, {found['lesion_images']} with a lesion, measured on "
        "their original grid at a threshold of 0.5; means over the images with a lesion.",
        table,
        footnote,
    ]
    if found["normal_images"]:
        parts += [
            f"Of {found['normal_images']} images without a lesion "
            f"{found['false_positive_rate']:.1%} have a predicted pixel."
        ]
    if others:
        parts += [f"Dice of trivial baselines on the same images: {', '.join(others)}."]
    if role != "test":
        parts += ["The checkpoint was selected on these very images: the figures are optimistic."]
    if _simulated(record):
        parts += [_PHANTOMS]
    return "\n\n".join(parts)


def _metrics(
    found: Mapping[str, Any], rows: Iterable[Mapping[str, str]], groups: Mapping[str, str]
) -> tuple[str, str]:
    """The table of means with 95 % intervals and n, and what is to be said of the intervals."""
    footnote = (
        "Intervals: bootstrap over patients or groups of near-duplicates. This is one training: "
        "they say nothing about the chance of another seed."
    )
    try:
        shown = _intervals(rows, groups)
    except UsageError as error:
        shown, footnote = {}, f"There are no intervals: {error}."
    lines = ["| Metric | Mean | 95 % interval | n |", "|---|---|---|---|"]
    for name in METRICS:
        each = found[name]
        mean = "undefined" if each["mean"] is None else f"{each['mean']:.3f}"
        interval = shown.get(name, "not given")
        lines.append(f"| {LABELS[name]} | {mean} | {interval} | {each['n']} |")
    return "\n".join(lines), footnote


def _intervals(rows: Iterable[Mapping[str, str]], groups: Mapping[str, str]) -> dict[str, str]:
    """Low to high of each metric's mean over lesion images, of groups drawn with replacement.

    Raises:
        UsageError: scipy is missing.
    """
    lesions = [row for row in rows if int(row["tp"]) + int(row["fn"])]
    of_rows = [groups.get(row["name"], row["case"]) for row in lesions]
    places = {group: place for place, group in enumerate(dict.fromkeys(of_rows))}
    totals, counts = np.zeros((2, len(METRICS), 1, max(1, len(places))))
    for row, group in zip(lesions, of_rows, strict=True):
        values = np.array([float(row[name]) for name in METRICS])
        known = ~np.isnan(values)
        totals[known, 0, places[group]] += values[known]
        counts[known, 0, places[group]] += 1
    found = cluster_interval(totals, counts, np.random.default_rng(0))
    return {
        name: "not given: one group" if math.isnan(se) else f"{low:.3f} to {high:.3f}"
        for name, low, high, se in zip(METRICS, found.low, found.high, found.se, strict=True)
    }


def _training(record: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    config = record["config"]
    versions = record.get("versions") or {}
    lines = [
        f"- images of {best['image_size']} x {best['image_size']} pixels, batches of "
        f"{config['batch_size']}, {config['epochs']} epochs, learning rate {config['lr']}, "
        f"seed {config['seed']}, augmentation {config['augment']}, loss {config['loss']}",
        f"- checkpoint of epoch {best['epoch']}, selected by its Dice",
        f"- commit {record.get('commit') or 'unknown'}, "
        + ", ".join(f"{name} {versions.get(name)}" for name in ("intrasense_fast", "torch")),
        "- options of the network: "
        + ", ".join(f"{name}={value}" for name, value in best["arguments"].items()),
    ]
    return "\n".join(lines)


def _limits(record: Mapping[str, Any], best: Mapping[str, Any], role: str) -> str:
    lines = [
        "- Other scanners, probes, organs and populations than those of the data were not tested.",
        f"- The network sees every image at {best['image_size']} x {best['image_size']} pixels: "
        "lesions of a few pixels there are lost.",
        "- It always answers: an image that is no ultrasound gets a mask as well.",
    ]
    if _simulated(record):
        lines += ["- It has seen simulated images only."]
    if role != "test":
        lines += ["- There was no test image."]
    return "\n".join(lines)


def _rows(file: Path, role: str) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["role"] == role]
