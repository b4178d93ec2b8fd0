"""Measure a network on a data set with ground truth."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from intrasense_fast.console import progress
from intrasense_fast.data.images import ImageError
from intrasense_fast.data.layouts import open_dataset
from intrasense_fast.data.reading import DEFAULT, ReadingOptions
from intrasense_fast.data.records import Sample, SegmentationData
from intrasense_fast.errors import UsageError
from intrasense_fast.files import write_text
from intrasense_fast.inference import Segmenter, network_health, predict_probabilities
from intrasense_fast.metrics import image_metrics, summarize
from intrasense_fast.networks.health import StrideHealth, faults
from intrasense_fast.prediction import check_threshold, new_folder
from intrasense_fast.report.overlays import (
    WORST_TO_BEST,
    OverlayItem,
    save_overlays,
    worst_to_best,
)
from intrasense_fast.report.tables import summary_table, write_csv

_AT_A_TIME = 8
_DRAWN = 12


def evaluate_samples(
    net: nn.Module,
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


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate_data` measured: the table that is printed, faults of the network, and images
    that failed, with reasons.
    """

    table: str
    faults: tuple[str, ...]
    failures: tuple[str, ...]


def evaluate_data(
    path: str,
    checkpoint: str,
    out: str | os.PathLike[str],
    open_network: Callable[[], Segmenter],
    *,
    layout: str = "auto",
    skip_bad: bool = False,
    threshold: float = 0.5,
    empty: str = "nan",
    options: ReadingOptions = DEFAULT,
) -> Evaluated:
    """Measure a network on a data set, and write per_image.csv, summary.json, summary.txt and
    overlays.png.

    Args:
        path: folder of the data set.
        checkpoint: what the tables call the network.
        out: a new or empty folder.
        open_network: called once the data set is open.
        layout, skip_bad: as in `open_dataset`.
        threshold: probability above which a pixel is lesion.
        empty: the rule for empty masks; see `image_metrics`.
        options: how files are read; levels are the checkpoint's where none are given.

    Raises:
        UsageError, DataError: nothing could start, or no image could be measured.
    """
    check_threshold(threshold)
    data = open_dataset(path, layout, skip_bad=skip_bad, group_duplicates=False, options=options)
    data.decided()
    segmenter = open_network()
    levels = options.levels or segmenter.levels
    data = replace(data, options=replace(options, levels=levels))
    folder = new_folder(out)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    health: dict[int, StrideHealth] = {}
    with progress(len(data), "evaluate", "image") as bar:
        for samples, unreadable in _chunks(data):
            if samples and not rows:
                images = [sample.image for sample in samples]
                health = network_health(segmenter.net, images, segmenter.size)
            rows += evaluate_samples(
                segmenter.net, samples, segmenter.size, threshold=threshold, empty=empty
            )
            failures += unreadable
            bar.update(len(samples) + len(unreadable))
    if not rows:
        raise UsageError("\n".join([f"{path}: no image could be measured", *failures]))
    summary = summarize(rows, empty=empty)
    size = segmenter.size
    title = (
        f"{path} ({data.layout}), n = {len(rows)}, {checkpoint} at {size} x {size}, "
        "metrics on the original grid"
    )
    table = summary_table(summary, title)
    write_csv(folder / "per_image.csv", rows)
    record = {
        "checkpoint": checkpoint,
        "data": path,
        "layout": data.layout,
        "image_size": size,
        "threshold": threshold,
        **summary.as_dict(),
    }
    write_text(folder / "summary.json", json.dumps(record, indent=2) + "\n")
    write_text(folder / "summary.txt", table + "\n")
    save_overlays(
        folder / "overlays.png", _drawn(segmenter, data, rows, threshold), title=WORST_TO_BEST
    )
    return Evaluated(table, tuple(faults(health)), tuple(failures))


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
    segmenter: Segmenter, data: SegmentationData, rows: Sequence[dict[str, Any]], threshold: float
) -> list[OverlayItem]:
    """Images spread evenly from the worst to the best."""
    places = {record.name: index for index, record in enumerate(data.records)}
    items = []
    for index in worst_to_best(rows, _DRAWN):
        sample = data[places[rows[index]["name"]]]
        (probability,) = predict_probabilities(segmenter.net, [sample.image], segmenter.size)
        items.append(OverlayItem(sample.name, sample.image, sample.mask, probability > threshold))
    return items
