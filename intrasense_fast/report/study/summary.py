"""The figures of a study: per network and metric with intervals, and against the reference."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intrasense_fast.metrics import DISTANCES, METRICS, TABLE, Counts
from intrasense_fast.report.statistics import cluster_interval, holm, wilcoxon
from intrasense_fast.report.study.folder import Study

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SIZES = ("small", "medium", "large")


def summaries(
    study: Study, rng: np.random.Generator, images: Mask | None = None
) -> list[dict[str, Any]]:
    """One row a network and metric, over lesion images: mean, pooled, folds, seeds, and how many of
    each.

    Args:
        study: complete or not.
        rng: of the bootstrap.
        images: (images,), which of them enter; all with a lesion by default.
    """
    chosen = study.lesion() if images is None else images & study.lesion()
    groups = _group_places(study)
    folds = study.fold_of()
    fold_places = np.array([study.folds.index(folds[name]) for name in study.names])
    rows = []
    for label in study.labels:
        values = np.where(chosen[:, None], study.values[label], math.nan)
        means = values[:, :, : len(METRICS)].transpose(2, 0, 1)
        mean = cluster_interval(*_sums(means, groups), rng)
        counts = Counts(*np.nan_to_num(values[:, :, len(METRICS) :]).transpose(2, 0, 1))
        for i, metric in enumerate(TABLE):
            defined = ~np.isnan(means[i])
            by_fold = _means_of(means[i], fold_places)
            by_seed = np.array([_mean(each) for each in means[i]])
            row = {
                "label": label,
                "metric": metric.name,
                "mean": float(mean.estimate[i]),
                **_bounds(mean.low[i], mean.high[i], metric.name),
                "pooled": math.nan,
                "pooled_low": math.nan,
                "pooled_high": math.nan,
                "fold_mean": _mean(by_fold),
                "fold_sd": _sd(by_fold),
                "seed_sd": _sd(by_seed),
                "images": int(defined.any(0).sum()),
                "groups": len(set(groups[defined.any(0)])),
                "folds": int((~np.isnan(by_fold)).sum()),
                "seeds": int(defined.any(1).sum()),
            }
            if metric.is_pooled:
                top, bottom = metric.function(counts)
                pooled = cluster_interval(
                    _added(np.asarray(top, float), groups),
                    _added(np.asarray(bottom, float), groups),
                    rng,
                )
                row |= {
                    "pooled": float(pooled.estimate),
                    **_bounds(pooled.low, pooled.high, metric.name, "pooled_"),
                }
            rows.append(row)
    return rows


def comparisons(study: Study, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Every network against the reference: paired differences of the same images and seeds.

    The interval is the cluster bootstrap's; the Wilcoxon test is of group means, averaged over
    seeds and images; Holm's correction is over the networks, for each metric by itself.
    """
    groups = _group_places(study)
    others = [label for label in study.labels if label != study.reference]
    lesion = study.lesion()
    rows = []
    for name in METRICS:
        tested: list[dict[str, Any]] = []
        for label in others:
            difference = study.metric(label, name) - study.metric(study.reference, name)
            difference = np.where(lesion, difference, math.nan)
            found = cluster_interval(*_sums(difference, groups), rng)
            defined = ~np.isnan(difference)
            means = _means_of(difference, groups)
            test = wilcoxon(means)
            tested.append(
                {
                    "label": label,
                    "reference": study.reference,
                    "metric": name,
                    "difference": float(found.estimate),
                    "low": float(found.low),
                    "high": float(found.high),
                    "p": test.p,
                    "p_holm": math.nan,
                    "rank_biserial": test.rank_biserial,
                    "cohens_d": test.cohens_d,
                    "images": int(defined.any(0).sum()),
                    "groups": test.n,
                    "folds": len(
                        {study.fold_of()[study.names[i]] for i in np.flatnonzero(defined.any(0))}
                    ),
                    "seeds": int(defined.any(1).sum()),
                }
            )
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = p
        rows += tested
    return rows


def _bounds(low: Any, high: Any, metric: str, prefix: str = "") -> dict[str, float]:
    """An interval within what the metric can be: a t interval of few seeds may reach beyond."""
    top = math.inf if metric in DISTANCES else 1.0
    names = (f"{prefix}low", f"{prefix}high")
    return dict(zip(names, (float(np.clip(each, 0, top)) for each in (low, high)), strict=True))


def strata(study: Study) -> dict[str, Mask]:
    """Which images are in each stratum: thirds of the lesion's share of the image, and classes."""
    areas = np.array([study.areas.get(name, 0.0) for name in study.names])
    lesion = study.lesion()
    found: dict[str, Mask] = {}
    if lesion.any():
        cuts = np.quantile(areas[lesion], (1 / 3, 2 / 3))
        third = np.searchsorted(cuts, areas, "right")
        found |= {size: lesion & (third == i) for i, size in enumerate(SIZES)}
    classes = np.array([study.classes.get(name, "") for name in study.names])
    for label in sorted(set(classes[lesion]) - {""}):
        found[str(label)] = lesion & (classes == label)
    return {name: images for name, images in found.items() if images.any()}


def false_alarms(study: Study) -> list[dict[str, Any]]:
    """Of the normal images of each network: how many, and the share with any predicted pixel."""
    normal = np.array([study.areas.get(name) == 0 for name in study.names], bool)
    rows = []
    for label in study.labels:
        predicted = study.metric(label, "tp") + study.metric(label, "fp")
        predicted = np.where(normal, predicted, math.nan)
        seen = ~np.isnan(predicted)
        rate = _mean(np.where(seen, predicted > 0, math.nan))
        rows.append({"label": label, "normal": int(seen.any(0).sum()), "false_positive_rate": rate})
    return rows


def image_means(study: Study, label: str, metric: str) -> Array:
    """(images,): the mean over seeds of one metric; nan where no seed tells."""
    values = study.metric(label, metric)
    seen = ~np.isnan(values)
    return np.where(seen.any(0), np.nansum(values, 0) / np.maximum(seen.sum(0), 1), math.nan)


def _group_places(study: Study) -> NDArray[np.int64]:
    """(images,): the number of each image's group."""
    members = [study.groups.get(name, name) for name in study.names]
    number = {group: i for i, group in enumerate(sorted(set(members)))}
    return np.array([number[group] for group in members], np.int64)


def _sums(values: Array, groups: NDArray[np.int64]) -> tuple[Array, Array]:
    """Sums and counts over the images of each group that are defined: (..., images) -> (...,
    groups)."""
    defined = ~np.isnan(values)
    return _added(np.nan_to_num(values), groups), _added(defined.astype(float), groups)


def _added(values: Array, groups: NDArray[np.int64]) -> Array:
    members = np.zeros((len(groups), int(groups.max(initial=-1)) + 1))
    members[np.arange(len(groups)), groups] = 1
    return values @ members


def _means_of(values: Array, places: NDArray[np.int64]) -> Array:
    """(seeds, images) -> mean of each place's values over images and seeds; nan where it has
    none."""
    top, bottom = (part.sum(0) for part in _sums(values, places))
    return np.where(bottom > 0, top / np.maximum(bottom, 1), math.nan)


def _mean(values: Array | Sequence[float]) -> float:
    numbers = np.asarray(values, float)
    numbers = numbers[~np.isnan(numbers)]
    return float(numbers.mean()) if len(numbers) else math.nan


def _sd(values: Array) -> float:
    numbers = values[~np.isnan(values)]
    return float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
