"""Measure a checkpoint on a data set with ground truth: `python -m intrasense_fast evaluate`."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from intrasense_fast.data.images import ImageError
from intrasense_fast.data.layouts import open_dataset
from intrasense_fast.data.records import Sample, SegmentationData
from intrasense_fast.data.verify import add_reading_arguments, show
from intrasense_fast.errors import UsageError
from intrasense_fast.files import write_text
from intrasense_fast.health import StrideHealth, faults
from intrasense_fast.metrics import image_metrics, summarize
from intrasense_fast.networks.intrasense import IntraSenseNet
from intrasense_fast.predict import (
    add_checkpoint_arguments,
    load_checkpoint,
    network_health,
    predict_probabilities,
)
from intrasense_fast.report.overlays import OverlayItem, save_overlays
from intrasense_fast.report.tables import summary_table, write_csv

_AT_A_TIME = 8
_DRAWN = 12


def evaluate_samples(
    net: IntraSenseNet,
    samples: Sequence[Sample],
    size: int,
    *,
    threshold: float = 0.5,
    empty: str = "nan",
) -> list[dict[str, Any]]:
    """One row an image: name, case, label, and `image_metrics` on the image's own grid.

    Args:
        net: a network with one class.
        samples: images with their masks.
        size: side the network sees.
        threshold: probability above which a pixel is lesion.
        empty: the rule for empty masks; see `image_metrics`.
    """
    probabilities = predict_probabilities(net, [sample.image for sample in samples], size)
    return [
        {
            "name": sample.name,
            "case": sample.case,
            "label": sample.label,
            **image_metrics(probability > threshold, sample.mask, empty=empty),
        }
        for sample, probability in zip(samples, probabilities, strict=True)
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="folder of a data set in any known layout")
    add_checkpoint_arguments(parser)
    add_reading_arguments(parser)
    parser.add_argument(
        "--empty",
        choices=("nan", "one"),
        default="nan",
        help="metrics of two empty masks (default nan)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate; 0 when every image was measured, 1 when some failed and were named.

    Raises:
        UsageError, DataError: nothing could start.
    """
    data = open_dataset(args.data, args.layout, skip_bad=args.skip_bad, group_duplicates=False)
    net, size = load_checkpoint(args)
    out = Path(args.out)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    health: dict[int, StrideHealth] = {}
    with tqdm(total=len(data), desc="evaluate", unit="image") as bar:
        for samples, unreadable in _chunks(data):
            if samples and not rows:
                health = network_health(net, [sample.image for sample in samples], size)
            rows += evaluate_samples(net, samples, size, threshold=args.threshold, empty=args.empty)
            failures += unreadable
            bar.update(len(samples) + len(unreadable))
    for fault in faults(health):
        show(f"warning: {fault}", sys.stderr)
    for failure in failures:
        show(f"failed: {failure}", sys.stderr)
    if not rows:
        raise UsageError(f"{args.data}: no image could be measured")
    summary = summarize(rows, empty=args.empty)
    title = f"{args.data} ({data.layout}), n = {len(rows)}, {args.checkpoint} at {size} x {size}, metrics on the original grid"
    table = summary_table(summary, title)
    write_csv(out / "per_image.csv", rows)
    record = {
        "checkpoint": str(args.checkpoint),
        "data": str(args.data),
        "layout": data.layout,
        "image_size": size,
    }
    record |= {"threshold": args.threshold, **summary.as_dict()}
    write_text(out / "summary.json", json.dumps(record, indent=2) + "\n")
    write_text(out / "summary.txt", table + "\n")
    save_overlays(out / "overlays.png", _drawn(net, data, rows, size, args.threshold))
    show(table)
    show(f"per_image.csv, summary.json, summary.txt and overlays.png (worst to best) are in {out}")
    return 1 if failures else 0


def _chunks(data: SegmentationData) -> Iterator[tuple[list[Sample], list[str]]]:
    for start in range(0, len(data), _AT_A_TIME):
        samples, unreadable = [], []
        for index in range(start, min(start + _AT_A_TIME, len(data))):
            try:
                samples.append(data[index])
            except ImageError as error:
                unreadable.append(str(error))
        yield samples, unreadable


def _drawn(
    net: IntraSenseNet,
    data: SegmentationData,
    rows: Sequence[dict[str, Any]],
    size: int,
    threshold: float,
) -> list[OverlayItem]:
    """Images spread evenly from the worst Dice to the best."""
    order = np.argsort([row["dice"] for row in rows], kind="stable")
    picked = order[np.linspace(0, len(order) - 1, min(_DRAWN, len(order))).round().astype(int)]
    places = {record.name: index for index, record in enumerate(data.records)}
    items = []
    for index in picked:
        sample = data[places[rows[index]["name"]]]
        (probability,) = predict_probabilities(net, [sample.image], size)
        items.append(OverlayItem(sample.name, sample.image, sample.mask, probability > threshold))
    return items
