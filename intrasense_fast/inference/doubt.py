"""How much an answer is to be doubted: a number an image, maps of its pixels, and whether the
number is any good.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

# Of the diagonal.
BORDER = 0.03

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
    """Mean entropy in bits of the pixels of a mask and of its border, 3 percent of the image's
    diagonal wide in chessboard distance.

    Of an image without a lesion pixel it is how near its largest probability comes to the
    threshold.

    Args:
        probability: (H, W) in [0, 1].
        threshold: of the mask, in [0, 1].

    Returns:
        In [0, 1].
    """
    mask = (probability > threshold).astype(np.uint8)
    if not mask.any():
        return float(probability.max()) / threshold if threshold > 0 else 0.0
    side = 2 * max(1, round(BORDER * math.hypot(*mask.shape))) + 1
    near = cv2.boxFilter(
        mask, cv2.CV_32S, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    return float(entropy(probability[near > 0]).mean(dtype=np.float64))


def entropy(probability: Map) -> Map:
    """Entropy of each pixel in bits, in [0, 1]: -p log2 p - (1 - p) log2 (1 - p), float32, of the
    shape of p."""
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
