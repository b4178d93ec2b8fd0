"""Predictions of the trained cells for the report: the same few images for every network."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intrasense_fast.console import progress
from intrasense_fast.data.layouts import open_dataset
from intrasense_fast.data.order import natural_key
from intrasense_fast.data.records import DataError, Sample
from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.inference import open_segmenter, predict_probabilities
from intrasense_fast.report.study.folder import Cell, Study

# Images a fold that the calibration is measured on, spread evenly over the natural order.
CALIBRATED = 12
_TIMED = 5

Probability = NDArray[np.float32]


@dataclass
class Predicted:
    """`probabilities`: label -> name -> (H, W). `milliseconds` of one image by label. `faults`:
    what could not be."""

    probabilities: dict[str, dict[str, Probability]] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def open_samples(study: Study) -> tuple[dict[str, "LazySample"], str]:
    """The images of the study by name, and why there are none, or "".

    Phantoms that the study simulated lie in its folder.
    """
    source, layout = study.record.get("data"), study.record.get("layout", "auto")
    if source is None:
        source, layout = str(study.out / "data"), "generic"
    try:
        data = open_dataset(source, layout, skip_bad=True, group_duplicates=False)
    except (DataError, OSError) as error:
        return {}, f"the data set cannot be opened: {first_line(error)}"
    places = {record.name: i for i, record in enumerate(data.records)}
    lacking = [name for name in study.names if name not in places]
    if lacking:
        return {}, f"{source} lacks {len(lacking)} images of the study, such as {lacking[0]}"
    return {name: LazySample(data, place) for name, place in places.items()}, ""


@dataclass(frozen=True)
class LazySample:
    """An image that is decoded when it is asked for."""

    data: Sequence[Sample]
    place: int

    def load(self) -> Sample:
        """Raises ImageError where its file can no longer be read."""
        return self.data[self.place]


def calibrated_names(study: Study) -> list[str]:
    """Images that the calibration is measured on: CALIBRATED of every fold."""
    folds = study.fold_of()
    names = []
    for fold in study.folds:
        tested = sorted((name for name in study.names if folds[name] == fold), key=natural_key)
        places = np.linspace(0, len(tested) - 1, min(CALIBRATED, len(tested))).round()
        names += [tested[int(place)] for place in places]
    return names


def predict(study: Study, names: Sequence[str], samples: Mapping[str, LazySample]) -> Predicted:
    """Every network's probabilities of `names`, by the first seed whose cell of the image's fold is
    done.

    On the CPU with eager operators. A cell whose checkpoint cannot be used is a fault, not an
    error.
    """
    found = Predicted({label: {} for label in study.labels})
    folds = study.fold_of()
    work = [
        (cell, [name for name in names if folds[name] == cell.fold])
        for label in study.labels
        for cell in _first_seed(study, label)
    ]
    with progress(len(work), "predictions", "cell") as bar:
        for cell, wanted in work:
            _predict_cell(cell, wanted, samples, found)
            bar.update()
    return found


def _first_seed(study: Study, label: str) -> list[Cell]:
    """Of each fold the first cell that is done."""
    cells: dict[int, Cell] = {}
    for cell in study.done(label):
        cells.setdefault(cell.fold, cell)
    return list(cells.values())


def _predict_cell(
    cell: Cell, names: Sequence[str], samples: Mapping[str, LazySample], found: Predicted
) -> None:
    try:
        segmenter = open_segmenter(cell.run / "best", size=None, device="cpu", fused=False)
        for name in names:
            image = samples[name].load().image
            (probability,) = predict_probabilities(segmenter.net, [image], segmenter.size)
            found.probabilities[cell.label][name] = probability
    except (UsageError, ValueError, OSError) as error:
        found.faults.append(f"{cell.name}: no predictions ({first_line(error)})")
        return
    if cell.label not in found.milliseconds:
        found.milliseconds[cell.label] = _milliseconds(segmenter.net, segmenter.size)


def _milliseconds(net: Any, size: int) -> float:
    """Median wall time of one image through a network in eval mode on the CPU."""
    image = np.zeros((size, size), np.float32)
    times = []
    for _ in range(_TIMED):
        begun = time.perf_counter()
        predict_probabilities(net, [image], size)
        times.append(time.perf_counter() - begun)
    return 1000 * float(np.median(times))


def machine() -> str:
    """Where the milliseconds were measured."""
    return f"CPU, {torch.get_num_threads()} threads, eager, batch 1, float32"


def reliability(
    probabilities: Mapping[str, Probability], samples: Mapping[str, LazySample], bins: int = 10
) -> dict[str, Any]:
    """Reliability curve and expected calibration error over all pixels of the images.

    Returns:
        "confidence" and "frequency": (bins,) mean probability and share of lesion pixels of each
        bin of equal width, nan where empty; "share": (bins,) of the pixels; "ece": the mean
        absolute gap between both, weighted by share; "images".
    """
    count, total, positive = (np.zeros(bins) for _ in range(3))
    for name, probability in probabilities.items():
        mask = samples[name].load().mask.ravel() > 0
        values = probability.ravel().astype(np.float64)
        place = np.minimum((values * bins).astype(int), bins - 1)
        count += np.bincount(place, minlength=bins)
        total += np.bincount(place, values, minlength=bins)
        positive += np.bincount(place, mask, minlength=bins)
    seen = np.maximum(count, 1)
    confidence = np.where(count > 0, total / seen, np.nan)
    frequency = np.where(count > 0, positive / seen, np.nan)
    share = count / max(count.sum(), 1)
    ece = float(np.nansum(share * np.abs(confidence - frequency)))
    return {
        "confidence": confidence,
        "frequency": frequency,
        "share": share,
        "ece": ece,
        "images": len(probabilities),
    }
