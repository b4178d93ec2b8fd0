"""How much an answer is to be doubted: a number an image, maps of its pixels, and whether the
number is any good.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
Array = NDArray[np.float64]


class Risk(NamedTuple):
    """How well the doubt of images predicts their Dice.

    Attributes:
        spearman: rank correlation of doubt with Dice, -1 is best; nan where one of them is
            constant.
        coverage: (n,), share of the images that are kept, the least doubted first.
        risk: (n,), mean of 1 - Dice over the images that are kept.
        area: mean of `risk`, the area under the risk-coverage curve.
        least_area: what `area` would be were the images kept in the order of their Dice.
        mean_risk: what it is in any order that knows nothing, on average.
    """

    spearman: float
    coverage: Array
    risk: Array
    area: float
    least_area: float
    mean_risk: float


def doubt(probability: Map, threshold: float = 0.5) -> float:
    """1 - the Dice to expect of a mask, if its pixels were lesion independently with their
    probabilities.

    That is 1 - 2 sum_M p / (|M| + sum p), M the pixels above the threshold: the ratio of
    expectations. Of an image without such pixels, which has no Dice where it is normal, it is how
    near its largest probability comes to the threshold.

    Args:
        probability: (H, W) in [0, 1].
        threshold: of the mask, in [0, 1].

    Returns:
        In [0, 1].
    """
    mask = probability > threshold
    area = np.count_nonzero(mask)
    if not area:
        return float(probability.max()) / threshold if threshold > 0 else 0.0
    inside = float(probability.sum(where=mask, dtype=np.float64))
    return 1 - 2 * inside / (area + float(probability.sum(dtype=np.float64)))


def entropy(probability: Map) -> Map:
    """Entropy of each pixel in bits, in [0, 1]: -p log2 p - (1 - p) log2 (1 - p), float32."""
    total = np.zeros_like(probability)
    for p in (probability, 1 - probability):
        # 0 log 0 is 0.
        total -= p * np.log2(p, where=p > 0, out=np.zeros_like(p))
    return total


def rank_correlation(first: Array, second: Array) -> float:
    """Spearman's, with mean ranks for ties; nan where one is constant or there are fewer than
    two."""
    if len(first) < 2:
        return math.nan
    ranks = [_ranks(values) for values in (first, second)]
    moved = [each - each.mean() for each in ranks]
    size = math.sqrt(float((moved[0] ** 2).sum() * (moved[1] ** 2).sum()))
    return float((moved[0] * moved[1]).sum()) / size if size else math.nan


def risk_coverage(doubts: Array, dices: Array) -> Risk:
    """How well doubt sorts images by their Dice (Geifman and El-Yaniv 2017, Selective
    Classification for Deep Neural Networks).

    Images of the same doubt are kept in the order that they come in.

    Args:
        doubts: (n,).
        dices: (n,), without nan.

    Raises:
        ValueError: no images, or lengths that differ.
    """
    if len(doubts) != len(dices) or not len(dices):
        raise ValueError(
            f"risk_coverage: needs a doubt and a Dice of each image, got {len(doubts)} and "
            f"{len(dices)}"
        )
    losses = 1 - np.asarray(dices, np.float64)
    kept = np.arange(1, len(losses) + 1)
    risk = losses[np.argsort(doubts, kind="stable")].cumsum() / kept
    least = np.sort(losses).cumsum() / kept
    return Risk(
        rank_correlation(np.asarray(doubts, np.float64), np.asarray(dices, np.float64)),
        kept / len(losses),
        risk,
        float(risk.mean()),
        float(least.mean()),
        float(losses.mean()),
    )


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]
