"""Measure a network on a data set with ground truth."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from intrasense_fast.console import progress
from intrasense_fast.data.images import ImageError
from intrasense_fast.data.inputs import record_chunks
from intrasense_fast.data.layouts import open_dataset
from intrasense_fast.data.reading import DEFAULT, ReadingOptions
from intrasense_fast.data.records import Sample, SegmentationData
from intrasense_fast.errors import UsageError
from intrasense_fast.evaluation import known_images
from intrasense_fast.evaluation.report import DICE_BEFORE, About, Measured, write_report
from intrasense_fast.inference import NOT_FINITE, NotFiniteError, Segmenter, network_health
from intrasense_fast.inference.doubt import doubt
from intrasense_fast.inference.ensemble import Ensemble, ensemble_of
from intrasense_fast.inference.opening import check_threshold, chosen_threshold
from intrasense_fast.measuring.components import NO_CLEAN_UP, CleanUp
from intrasense_fast.measuring.lesion import MILLIMETRES, PIXELS
from intrasense_fast.metrics import image_metrics
from intrasense_fast.networks.health import StrideHealth, faults
from intrasense_fast.prediction.table import new_folder
from intrasense_fast.report.overlays import (
    WORST_TO_BEST,
    OverlayItem,
    drawn_size,
    save_overlays,
    worst_to_best,
)

_DRAWN = 12


Watch = Callable[[np.ndarray, np.ndarray], None]


def evaluate_samples(
    net: nn.Module,
    samples: Sequence[Sample],
    size: int,
    *,
    threshold: float = 0.5,
    empty: str = "nan",
    watch: Watch | None = None,
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
        watch: is shown each image's probability and mask.
    """
    answers = Ensemble((Segmenter(net, size),)).answers([sample.image for sample in samples])
    rows: list[dict[str, Any]] = []
    for sample, answer in zip(samples, answers, strict=True):
        if answer is None:
            raise NotFiniteError(f"{sample.name}: {NOT_FINITE}")
        rows.append(_row(sample, answer.probability, threshold, empty))
        if watch is not None:
            watch(answer.probability, sample.mask)
    return rows


def _row(sample: Sample, probability: np.ndarray, threshold: float, empty: str) -> dict[str, Any]:
    metrics = image_metrics(probability > threshold, sample.mask, empty=empty)
    return {**_identity(sample), **metrics}


def _identity(sample: Sample) -> dict[str, Any]:
    return {"name": sample.name, "case": sample.case, "label": sample.label}


def _measured_row(
    predicted: np.ndarray, sample: Sample, empty: str, clean_up: CleanUp
) -> dict[str, Any]:
    """Metrics of a mask after its clean-up, distances in `unit`, and Dice before it."""
    mask = clean_up(predicted)
    row: dict[str, Any] = image_metrics(mask, sample.mask, empty=empty, spacing=sample.spacing)
    row["unit"] = MILLIMETRES if sample.spacing else PIXELS
    if clean_up:
        row[DICE_BEFORE] = image_metrics(predicted, sample.mask, empty=empty)["dice"]
    return row


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
    checkpoint: str | Sequence[str],
    out: str | os.PathLike[str],
    open_network: Callable[[], Segmenter | Ensemble],
    *,
    layout: str = "auto",
    skip_bad: bool = False,
    threshold: float | str = 0.5,
    empty: str = "nan",
    options: ReadingOptions = DEFAULT,
    held_out: bool = False,
    out_of_fold: bool = False,
    clean_up: CleanUp = NO_CLEAN_UP,
) -> Evaluated:
    """Measure a network, or several together, on a data set, and write per_image.csv, summary.json,
    summary.txt, overlays.png and doubt.png.

    Args:
        path: folder of the data set.
        checkpoint: the folder of the network, or of each of several.
        out: a new or empty folder.
        open_network: called once the data set is open.
        layout, skip_bad: as in `open_dataset`.
        threshold: probability above which a pixel is lesion, or "tuned".
        empty: the rule for empty masks; see `image_metrics`.
        options: how files are read; levels are the checkpoint's where none are given.
        held_out: leave out the images that trained or selected a checkpoint, by their bytes.
        out_of_fold: ask of each image only the checkpoints that do not know it.
        clean_up: what is done to each predicted mask before it is measured.

    Raises:
        UsageError, DataError: nothing could start, or no image could be measured.
    """
    check_threshold(threshold)
    checkpoints = [checkpoint] if isinstance(checkpoint, str) else list(checkpoint)
    flag = "--held-out" if held_out else "--out-of-fold" if out_of_fold else None
    records = known_images.trained_on(checkpoints, flag)
    data = open_dataset(path, layout, skip_bad=skip_bad, group_duplicates=False, options=options)
    data.decided()
    ensemble = ensemble_of(open_network())
    cut = chosen_threshold(threshold, ensemble)
    levels = options.levels or ensemble.levels
    data = replace(data, options=replace(options, levels=levels))
    roles = known_images.roles_of(data, records)
    said = known_images.overlap(roles, held_out)
    asked: dict[str, list[int]] | None = None
    if out_of_fold:
        asked, said = known_images.askable(roles), known_images.out_of_fold(roles)
        data = data.subset(i for i, name in enumerate(_names(data)) if asked[name])
    if held_out:
        kept = [i for i, name in enumerate(_names(data)) if known_images.seen(roles[name]) == "no"]
        data = data.subset(kept)
    if not len(data):
        raise UsageError(f"{flag}: no image is left. {said} Give other images")
    folder = new_folder(out)
    measured = Measured()
    with progress(len(data), "evaluate", "image") as bar:
        for samples, unreadable in _chunks(data, ensemble.batch):
            if samples and not measured.health:
                measured.health = _health(ensemble, [sample.image for sample in samples])
            _measure(ensemble, samples, cut, empty, roles, asked, measured, clean_up)
            measured.failures += unreadable
            bar.update(len(samples) + len(unreadable))
    if not measured.rows:
        raise UsageError("\n".join([f"{path}: no image could be measured", *measured.failures]))
    about = About(path, data.layout, checkpoints, ensemble, cut, said, clean_up)
    record = {
        "checkpoint": checkpoints[0] if len(checkpoints) == 1 else checkpoints,
        "data": path,
        "layout": data.layout,
        "image_size": ensemble.size,
        "threshold": cut,
        "seen": dict(Counter(map(known_images.seen, roles.values()))),
        "held_out": held_out,
        "out_of_fold": out_of_fold,
    }
    table = write_report(folder, about, measured, record, empty)
    drawn = _drawn(ensemble, data, measured.rows, cut, asked, clean_up)
    save_overlays(folder / "overlays.png", drawn, title=WORST_TO_BEST)
    return Evaluated(table, tuple(faults(measured.health)), tuple(measured.failures))


def _names(data: SegmentationData) -> list[str]:
    return [record.name for record in data.records]


def _health(ensemble: Ensemble, images: Sequence[np.ndarray]) -> dict[int, StrideHealth]:
    """Of the first network."""
    first = ensemble.members[0]
    return network_health(first.net, images, first.size, first.amp)


def _measure(
    ensemble: Ensemble,
    samples: Sequence[Sample],
    threshold: float,
    empty: str,
    roles: known_images.Roles,
    asked: Mapping[str, list[int]] | None,
    measured: Measured,
    clean_up: CleanUp,
) -> None:
    """Add a row for each image, or a line for one that a network fails on."""
    chosen = None if asked is None else [asked[sample.name] for sample in samples]
    answers = ensemble.answers([sample.image for sample in samples], chosen=chosen)
    for sample, answer in zip(samples, answers, strict=True):
        if answer is None:
            measured.failures.append(f"{sample.name}: {NOT_FINITE}")
            continue
        predicted = answer.probability > threshold
        row = {**_identity(sample), **_measured_row(predicted, sample, empty, clean_up)}
        known = "no" if asked is not None else known_images.seen(roles[sample.name])
        doubted = doubt(answer.probability, threshold)
        measured.rows.append({"seen": known, **row, "doubt": doubted})
        measured.counts.add(answer.probability, sample.mask)


def _chunks(data: SegmentationData, batch: int) -> Iterator[tuple[list[Sample], list[str]]]:
    for records in record_chunks(data.records, batch, data.options.max_pixels):
        samples, unreadable = [], []
        for record in records:
            try:
                samples.append(data.load(record).sample)
            except ImageError as error:
                unreadable.append(str(error))
        yield samples, unreadable


def _drawn(
    ensemble: Ensemble,
    data: SegmentationData,
    rows: Sequence[dict[str, Any]],
    threshold: float,
    asked: Mapping[str, list[int]] | None,
    clean_up: CleanUp,
) -> list[OverlayItem]:
    """Images spread evenly from the worst to the best."""
    places = {name: index for index, name in enumerate(_names(data))}
    items = []
    for index in worst_to_best(rows, _DRAWN):
        sample = data[places[rows[index]["name"]]]
        chosen = None if asked is None else [asked[sample.name]]
        (answer,) = ensemble.answers([sample.image], chosen=chosen)
        if answer is None:
            raise NotFiniteError(f"{sample.name}: {NOT_FINITE}")
        mask = clean_up(answer.probability > threshold)
        items.append(drawn_size(OverlayItem(sample.name, sample.image, sample.mask, mask)))
    return items
