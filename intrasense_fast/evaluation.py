"""Measure a network on a data set with ground truth."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from intrasense_fast.console import progress
from intrasense_fast.data.images import ImageError
from intrasense_fast.data.inputs import record_chunks
from intrasense_fast.data.layouts import open_dataset
from intrasense_fast.data.opening import sha256_of
from intrasense_fast.data.reading import DEFAULT, ReadingOptions
from intrasense_fast.data.records import Sample, SegmentationData, threaded
from intrasense_fast.errors import UsageError
from intrasense_fast.files import write_text
from intrasense_fast.inference import (
    NOT_FINITE,
    NotFiniteError,
    Segmenter,
    network_health,
    predict_probabilities,
    probability_maps,
)
from intrasense_fast.metrics import image_metrics, summarize
from intrasense_fast.networks.health import StrideHealth, faults
from intrasense_fast.prediction import check_threshold
from intrasense_fast.prediction_table import new_folder
from intrasense_fast.provenance import TRAINED_ON, TrainedOn, read_trained_on
from intrasense_fast.report.overlays import (
    WORST_TO_BEST,
    OverlayItem,
    drawn_size,
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

    Raises:
        NotFiniteError: the network's output for an image is NaN or infinite.

    Args:
        net: a network with one class.
        samples: images with their masks.
        size: side the network sees.
        threshold: probability above which a pixel is lesion.
        empty: the rule for empty masks; see `image_metrics`.
    """
    rows, failures = _measured(Segmenter(net, size), samples, threshold, empty)
    if failures:
        raise NotFiniteError(failures[0])
    return rows


def _measured(
    segmenter: Segmenter, samples: Sequence[Sample], threshold: float, empty: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of `evaluate_samples`, and a line for each image that the network fails on."""
    images = [sample.image for sample in samples]
    maps = probability_maps(segmenter.net, images, segmenter.size, segmenter.amp)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for sample, probability in zip(samples, maps, strict=True):
        if probability is None:
            failures.append(f"{sample.name}: {NOT_FINITE}")
            continue
        identity = {"name": sample.name, "case": sample.case, "label": sample.label}
        metrics = image_metrics(probability > threshold, sample.mask, empty=empty)
        rows.append({**identity, **metrics})
    return rows, failures


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
    held_out: bool = False,
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
        held_out: leave out the images that trained or selected the checkpoint, by their bytes.

    Raises:
        UsageError, DataError: nothing could start, or no image could be measured.
    """
    check_threshold(threshold)
    trained_on = read_trained_on(checkpoint)
    if held_out and trained_on is None:
        raise UsageError(
            f"--held-out: {checkpoint} has no {TRAINED_ON}, which says what it was trained on: it "
            "is older, or was copied without it; put the file beside config.json, or leave "
            "--held-out out"
        )
    data = open_dataset(path, layout, skip_bad=skip_bad, group_duplicates=False, options=options)
    data.decided()
    segmenter = open_network()
    levels = options.levels or segmenter.levels
    data = replace(data, options=replace(options, levels=levels))
    seen = _seen(data, trained_on)
    said = _overlap(seen, held_out)
    if held_out:
        data = data.subset(i for i, name in enumerate(_names(data)) if seen[name] == "no")
    if not len(data):
        raise UsageError(f"--held-out: {said}: give other images")
    folder = new_folder(out)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    health: dict[int, StrideHealth] = {}
    with progress(len(data), "evaluate", "image") as bar:
        for samples, unreadable in _chunks(data):
            if samples and not rows:
                images = [sample.image for sample in samples]
                health = network_health(segmenter.net, images, segmenter.size, segmenter.amp)
            measured, failed = _measured(segmenter, samples, threshold, empty)
            rows += [{"seen": seen[row["name"]], **row} for row in measured]
            failures += [*unreadable, *failed]
            bar.update(len(samples) + len(unreadable))
    if not rows:
        raise UsageError("\n".join([f"{path}: no image could be measured", *failures]))
    summary = summarize(rows, empty=empty)
    size = segmenter.size
    title = (
        f"{path} ({data.layout}), n = {len(rows)}, {checkpoint} at {size} x {size}, "
        "metrics on the original grid"
    )
    table = f"{summary_table(summary, title)}\n{said}"
    write_csv(folder / "per_image.csv", rows)
    record = {
        "checkpoint": checkpoint,
        "data": path,
        "layout": data.layout,
        "image_size": size,
        "threshold": threshold,
        "seen": dict(Counter(seen.values())),
        "held_out": held_out,
        **summary.as_dict(),
    }
    write_text(folder / "summary.json", json.dumps(record, indent=2) + "\n")
    write_text(folder / "summary.txt", table + "\n")
    save_overlays(
        folder / "overlays.png", _drawn(segmenter, data, rows, threshold), title=WORST_TO_BEST
    )
    return Evaluated(table, tuple(faults(health)), tuple(failures))


def _names(data: SegmentationData) -> list[str]:
    return [record.name for record in data.records]


def _seen(data: SegmentationData, trained_on: TrainedOn | None) -> dict[str, str]:
    """Image name -> "train" or "val" where its bytes trained or selected the checkpoint, "no", or
    "unknown" where that is not recorded."""
    if trained_on is None:
        return dict.fromkeys(_names(data), "unknown")
    digests = threaded(sha256_of, [record.image for record in data.records], "SHA-256", False)
    roles = map(trained_on.role, digests)
    return dict(zip(_names(data), roles, strict=True))


def _overlap(seen: Mapping[str, str], held_out: bool) -> str:
    """One line on how many of the images the checkpoint knows."""
    counts = Counter(seen.values())
    if counts["unknown"]:
        return (
            f"The checkpoint has no {TRAINED_ON}: whether it was trained or selected on these "
            "images cannot be told."
        )
    if not counts["train"] + counts["val"]:
        return f"None of the {len(seen)} images trained or selected the checkpoint."
    known = f"{counts['train']} of the {len(seen)} images trained the checkpoint, {counts['val']}"
    known += " selected it"
    if held_out:
        return f"{known}; these are left out."
    return f"{known}: the figures are optimistic; --held-out leaves these images out."


def _chunks(data: SegmentationData) -> Iterator[tuple[list[Sample], list[str]]]:
    for records in record_chunks(data.records, _AT_A_TIME, data.options.max_pixels):
        samples, unreadable = [], []
        for record in records:
            try:
                samples.append(data.load(record).sample)
            except ImageError as error:
                unreadable.append(str(error))
        yield samples, unreadable


def _drawn(
    segmenter: Segmenter, data: SegmentationData, rows: Sequence[dict[str, Any]], threshold: float
) -> list[OverlayItem]:
    """Images spread evenly from the worst to the best."""
    places = {name: index for index, name in enumerate(_names(data))}
    items = []
    for index in worst_to_best(rows, _DRAWN):
        sample = data[places[rows[index]["name"]]]
        (probability,) = predict_probabilities(
            segmenter.net, [sample.image], segmenter.size, segmenter.amp
        )
        item = OverlayItem(sample.name, sample.image, sample.mask, probability > threshold)
        items.append(drawn_size(item))
    return items
