"""Segmentation metrics: one image at a time first, then summaries over images.

The table of single images is the source of truth. `summarize` averages over the images with a
lesion (the headline figures), pools their pixel counts (the micro figures beside them), and reports
the images without a lesion apart.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from intrasense_fast.measuring.lesion import checked_spacing
from intrasense_fast.measuring.surfaces import surface_distances

COUNTS = ("tp", "fp", "fn", "tn")
BOUNDARY_RATIO = 0.02

Mask = NDArray[np.bool_]


class Counts(NamedTuple):
    """Pixels of one image, or of several: predicted and true, predicted alone, true alone,
    neither."""

    tp: int
    fp: int
    fn: int
    tn: int


@dataclass(frozen=True)
class Metric:
    """One metric: its column, its title in tables, and how it is computed.

    Attributes:
        name: its column.
        label: its title.
        kind: what `function` takes and gives, and the rule for empty masks:
            "overlap", Counts -> (numerator, denominator); two empty masks are undefined, else 0
            over 0 is 0; "share", the same, undefined where the denominator is 0, whatever the masks
            are; "distance", the pooled surface distances of `surface_distances` -> pixels;
            undefined where a mask is empty; "band", (prediction, target), neither empty -> a ratio;
            two empty masks are undefined, one alone gives 0.
        function: see kind.
        in_paper: whether the paper's tables have it.
    """

    name: str
    label: str
    kind: Literal["overlap", "share", "distance", "band"]
    function: Callable[..., Any]
    in_paper: bool = False

    @property
    def is_distance(self) -> bool:
        return self.kind == "distance"

    @property
    def is_pooled(self) -> bool:
        """Can it be computed from the pixel counts of many images together?"""
        return self.kind in ("overlap", "share")


def _boundary_iou(prediction: Mask, target: Mask) -> float:
    bands = _boundary_band(prediction), _boundary_band(target)
    both = int(np.count_nonzero(bands[0] & bands[1]))
    return both / int(np.count_nonzero(bands[0] | bands[1]))


# One row a metric, in the order of every table.
TABLE = (
    Metric("dice", "Dice", "overlap", lambda n: (2 * n.tp, 2 * n.tp + n.fp + n.fn), True),
    Metric("jaccard", "Jaccard", "overlap", lambda n: (n.tp, n.tp + n.fp + n.fn), True),
    Metric("accuracy", "Accuracy", "share", lambda n: (n.tp + n.tn, sum(n)), True),
    Metric("recall", "Recall", "overlap", lambda n: (n.tp, n.tp + n.fn), True),
    Metric("precision", "Precision", "overlap", lambda n: (n.tp, n.tp + n.fp), True),
    Metric("specificity", "Specificity", "share", lambda n: (n.tn, n.tn + n.fp)),
    Metric("hd95", "HD95 (px)", "distance", lambda distances: np.percentile(distances, 95)),
    Metric("assd", "ASSD (px)", "distance", lambda distances: distances.mean()),
    Metric("boundary_iou", "Boundary IoU", "band", _boundary_iou),
)
METRICS = tuple(metric.name for metric in TABLE)
PAPER_METRICS = tuple(metric.name for metric in TABLE if metric.in_paper)
DISTANCES = tuple(metric.name for metric in TABLE if metric.is_distance)
LABELS = {metric.name: metric.label for metric in TABLE}


def image_metrics(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    empty: str = "nan",
    spacing: tuple[float, float] | None = None,
) -> dict[str, float]:
    """All METRICS of one image, and its pixel counts tp, fp, fn, tn.

    - dice = 2 tp / (2 tp + fp + fn); jaccard = tp / (tp + fp + fn); accuracy = (tp + tn) / all;
      recall = tp / (tp + fn); precision = tp / (tp + fp); specificity = tn / (tn + fp).
    - hd95 and assd, in pixels, or in millimetres where a spacing is given: the surface of a mask is
      its pixels that have a background pixel among their 4 neighbours or lie at the image's border.
      Take the Euclidean distance from every surface pixel of the prediction to the target's nearest
      surface pixel, and from every one of the target to the prediction's; both directions are
      pooled into one set, of which hd95 is the 95th percentile (linearly interpolated) and assd the
      mean.
    - boundary_iou: intersection over union of the two inner boundary bands. A band is the mask's
    pixels within d of its
      edge or of the image's border, in chessboard distance, d = max(1, round(0.02 * image
      diagonal)).

    Empty masks. Both empty: dice, jaccard, recall, precision and boundary_iou are nan (empty="nan")
    or 1 (empty="one"), hd95 and assd nan or 0. One empty: those overlaps are 0, whatever their own
    denominator, and hd95 and assd nan. accuracy always follows its formula, and so does
    specificity, except where the target leaves no background: then nan or 1.

    Args:
        prediction, target: (H, W), bool, or numbers that are all 0 or 1.
        empty: "nan" or "one".
        spacing: millimetres between rows and between columns, for hd95 and assd alone.

    Raises:
        ValueError: not two-dimensional, no pixels, shapes that differ, values other than 0 and 1,
            an unknown `empty`, or a spacing that is not two positive numbers.
    """
    undefined, no_distance = _empty_values(empty)
    p, t = _mask(prediction, "prediction"), _mask(target, "target")
    if p.shape != t.shape:
        raise ValueError(
            f"image_metrics: prediction is {p.shape} and target {t.shape} (H, W); resize the "
            f"prediction first"
        )
    tp = int(np.count_nonzero(p & t))
    fp, fn = int(np.count_nonzero(p)) - tp, int(np.count_nonzero(t)) - tp
    counts = Counts(tp, fp, fn, p.size - tp - fp - fn)
    checked_spacing(spacing)
    distances = surface_distances(p, t, spacing) if p.any() and t.any() else None
    row = {}
    for metric in TABLE:
        if metric.is_pooled:
            row[metric.name] = _from_counts(metric, counts, undefined)
        elif not p.any() and not t.any():
            row[metric.name] = no_distance if metric.is_distance else undefined
        elif distances is None:
            row[metric.name] = math.nan if metric.is_distance else 0.0
        elif metric.is_distance:
            row[metric.name] = float(metric.function(distances))
        else:
            row[metric.name] = metric.function(p, t)
    return row | counts._asdict()


@dataclass(frozen=True)
class Statistics:
    """One metric over the lesion images: `n` values entered, `nan` were undefined and left out. sd
    divides by n - 1."""

    mean: float
    sd: float
    median: float
    n: int
    nan: int


@dataclass(frozen=True)
class Summary:
    """What `summarize` found.

    `metrics` and `pooled` cover the lesion images; `false_positive_rate` and `false_positive_area`
    the normal ones: the share with any predicted pixel, and the mean of fp / pixels over all of
    them (nan without normal images). `missed_lesions` are lesion images whose prediction has no
    pixel in the lesion, `one_side_empty` those whose prediction has none at all.
    """

    metrics: dict[str, Statistics]
    pooled: dict[str, float]
    images: int
    lesion_images: int
    normal_images: int
    missed_lesions: int
    one_side_empty: int
    false_positive_rate: float
    false_positive_area: float
    empty: str

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries for JSON, with None for nan, which JSON cannot hold."""
        return _without_nan(asdict(self))


def summarize(rows: Iterable[Mapping[str, Any]], *, empty: str = "nan") -> Summary:
    """Summary of rows of `image_metrics`, which may carry further columns and may hold strings, as
    a CSV reader gives them.

    Args:
        rows: one mapping an image, with all METRICS and COUNTS.
        empty: the rule for empty masks that the rows were made with; it is recorded, and rules the
            pooled ratios.

    Raises:
        ValueError: a row without one of the columns or with text that is no number, or an unknown
            `empty`.
    """
    undefined, _ = _empty_values(empty)
    table = np.array(
        [[_number(row, name, i) for name in (*METRICS, *COUNTS)] for i, row in enumerate(rows)],
        dtype=np.float64,
    )
    table = table.reshape(-1, len(METRICS) + len(COUNTS))
    tp, fp, fn, tn = table[:, len(METRICS) :].T
    lesion = tp + fn > 0
    found = tp + fp > 0
    normal = ~lesion
    pixels = tp + fp + fn + tn
    counts = Counts(*(int(column[lesion].sum()) for column in (tp, fp, fn, tn)))
    pooled = {
        metric.name: _from_counts(metric, counts, undefined) if lesion.any() else math.nan
        for metric in TABLE
        if metric.is_pooled
    }
    return Summary(
        metrics={name: _statistics(table[lesion, i]) for i, name in enumerate(METRICS)},
        pooled=pooled,
        images=len(table),
        lesion_images=int(lesion.sum()),
        normal_images=int(normal.sum()),
        missed_lesions=int((lesion & (tp == 0)).sum()),
        one_side_empty=int((lesion & ~found).sum()),
        false_positive_rate=float(found[normal].mean()) if normal.any() else math.nan,
        false_positive_area=float((fp[normal] / pixels[normal]).mean())
        if normal.any()
        else math.nan,
        empty=empty,
    )


def _empty_values(empty: str) -> tuple[float, float]:
    """(overlap, distance) of two empty masks."""
    if empty not in ("nan", "one"):
        raise ValueError(f'empty must be "nan" or "one", got {empty!r}')
    return (math.nan, math.nan) if empty == "nan" else (1.0, 0.0)


def _mask(array: ArrayLike, name: str) -> NDArray[np.bool_]:
    values = np.asarray(array)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"image_metrics: {name} must be one image (H, W) with pixels, got shape {values.shape}"
        )
    if values.dtype == np.bool_:
        return values
    mask = values == 1
    if not np.all(mask | (values == 0)):
        odd = values[~(mask | (values == 0))].flat[0]
        raise ValueError(
            f"image_metrics: {name} must be bool or hold 0 and 1 only, got {odd}; threshold it "
            f"first"
        )
    return mask


def _from_counts(metric: Metric, counts: Counts, undefined: float) -> float:
    numerator, denominator = metric.function(counts)
    if metric.kind == "overlap" and counts.tp + counts.fp + counts.fn == 0:
        return undefined
    if denominator == 0:
        return 0.0 if metric.kind == "overlap" else undefined
    return numerator / denominator


def _boundary_band(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    width = max(1, round(BOUNDARY_RATIO * math.hypot(*mask.shape)))
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (inner == 0)


def _statistics(values: NDArray[np.float64]) -> Statistics:
    kept = values[~np.isnan(values)]
    nan = len(values) - len(kept)
    if len(kept) == 0:
        return Statistics(math.nan, math.nan, math.nan, 0, nan)
    sd = float(kept.std(ddof=1)) if len(kept) > 1 else math.nan
    return Statistics(float(kept.mean()), sd, float(np.median(kept)), len(kept), nan)


def _number(row: Mapping[str, Any], name: str, index: int) -> float:
    try:
        value = float(row[name])
    except KeyError:
        raise ValueError(
            f"summarize: row {index} has no column {name!r}; rows must come from image_metrics"
        ) from None
    except (TypeError, ValueError):
        raise ValueError(
            f"summarize: row {index} has {name} = {row[name]!r}, which is no number"
        ) from None
    return value


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
