"""Calibration by temperature, and a threshold beside 0.5: both fitted on the images that select a
checkpoint, and kept in its folder.

A temperature T makes sigmoid(z / T) of a pixel's logit z (Guo et al. 2017, On Calibration of Modern
Neural Networks). Its fixed point is 1/2: a mask at the threshold 0.5 is the same before and after.
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intrasense_fast.data.opening import read_text
from intrasense_fast.errors import UsageError
from intrasense_fast.files import atomic_path, write_text
from intrasense_fast.networks.checksums import (
    CHECKSUM_FILE,
    check_files,
    digest_of,
    read_checksums,
)

CALIBRATION_FILE = "calibration.json"
# Beyond these a temperature says that the images are too few, not how sure the network is.
COLDEST, HOTTEST = 0.1, 10.0
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 0.05, 0.95
_FORMAT = 1
# float32 probabilities tell nothing apart beyond.
LARGEST_LOGIT = 16.0
_BINS = 3200
_CONFIDENCES = 15
# In float64 the whole of a large picture would be many times its memory.
_ROWS_AT_ONCE = 256

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What was fitted on the selection images of a checkpoint.

    Attributes:
        temperature: divides the logits.
        threshold: of the calibrated probability, with the best mean Dice.
        images: how many it was fitted on.
        ece_before, ece_after: expected calibration error without and with the temperature.
        nll_before, nll_after: mean negative log-likelihood of a pixel, in nats.
        dice_at_half, dice_at_threshold: mean Dice over the images with a lesion.
        weights_sha256: digest of the weights that it is of, in hexadecimal.
    """

    temperature: float
    threshold: float
    images: int
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    dice_at_half: float
    dice_at_threshold: float
    weights_sha256: str = ""

    def line(self) -> str:
        """What a run prints of it."""
        return (
            f"Calibration on the {self.images} selection images: temperature "
            f"{self.temperature:.3f}, expected calibration error {self.ece_before:.4f} before and "
            f"{self.ece_after:.4f} after; Dice {self.dice_at_half:.4f} at the threshold 0.5, "
            f"{self.dice_at_threshold:.4f} at {self.threshold:.3f}"
        )


class PixelCounts:
    """How often pixels of each logit are lesion, over images that count the same whatever their
    size; memory does not grow with the images.

    Logits are told apart to a hundredth, which moves a temperature by less than a thousandth.
    """

    def __init__(self) -> None:
        self.images = 0
        self.lesion_images = 0
        self.edges = np.linspace(-LARGEST_LOGIT, LARGEST_LOGIT, _BINS + 1)
        self.logits = (self.edges[1:] + self.edges[:-1]) / 2
        self._lesion, self._background = np.zeros(_BINS), np.zeros(_BINS)
        # Of each edge, the sum of Dice over lesion images when the threshold lies there.
        self._dice = np.zeros(_BINS + 1)

    def add(self, probability: NDArray[np.float32], mask: NDArray[np.generic]) -> None:
        """Count an image.

        Args:
            probability: (H, W) in [0, 1], lesion, not calibrated.
            mask: (H, W), nonzero where lesion.
        """
        lesion, background = np.zeros(_BINS), np.zeros(_BINS)
        for start in range(0, len(probability), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            places, truth = _places(probability[rows]), np.asarray(mask[rows]) != 0
            lesion += np.bincount(places[truth], minlength=_BINS)
            background += np.bincount(places[~truth], minlength=_BINS)
        self.images += 1
        self._lesion += lesion / probability.size
        self._background += background / probability.size
        if lesion.any():
            self.lesion_images += 1
            above = [np.append(each[::-1].cumsum()[::-1], 0) for each in (lesion, background)]
            self._dice += 2 * above[0] / (above[0] + above[1] + lesion.sum())

    def fit(self) -> float:
        """The temperature with the smallest negative log-likelihood, in [0.1, 10].

        In 1 / T that is convex; its derivative is brought to zero by bisection.
        """
        coldest, hottest = math.log(COLDEST), math.log(HOTTEST)
        for _ in range(60):
            middle = (coldest + hottest) / 2
            # The derivative in 1 / T.
            slope = self.logits @ (self._errors(math.exp(middle)))
            if slope < 0:
                hottest = middle
            else:
                coldest = middle
        # exp(log(10)) may lie a hair beyond 10.
        return min(max(math.exp((coldest + hottest) / 2), COLDEST), HOTTEST)

    def nll(self, temperature: float) -> float:
        """Mean negative log-likelihood of a pixel, in nats."""
        scaled = self.logits / temperature
        loss = self._lesion @ np.logaddexp(0, -scaled) + self._background @ np.logaddexp(0, scaled)
        return float(loss / self._total())

    def reliability(self, temperature: float) -> list[dict[str, float]]:
        """Of each of 15 equal ranges of the probability that holds pixels: their share, their mean
        probability, and the share of lesion among them."""
        probability = _sigmoid(self.logits / temperature)
        place = np.minimum((probability * _CONFIDENCES).astype(int), _CONFIDENCES - 1)
        both = self._lesion + self._background
        columns = [
            np.bincount(place, weights, _CONFIDENCES)
            for weights in (both, both * probability, self._lesion)
        ]
        return [
            {
                "share": float(pixels / self._total()),
                "probability": float(mass / pixels),
                "lesion": float(lesion / pixels),
            }
            for pixels, mass, lesion in zip(*columns, strict=True)
            if pixels > 0
        ]

    def ece(self, temperature: float) -> float:
        """Expected calibration error of the lesion probability: sum over its ranges of share times
        |mean probability - share of lesion|."""
        rows = self.reliability(temperature)
        return sum(row["share"] * abs(row["probability"] - row["lesion"]) for row in rows)

    def best_logit(self) -> float:
        """The uncalibrated logit above which pixels are lesion where mean Dice is best, nearest to
        0 of several, among those of probabilities from 0.05 to 0.95."""
        low, high = (math.log(p / (1 - p)) for p in (LOWEST_THRESHOLD, HIGHEST_THRESHOLD))
        allowed = np.flatnonzero((self.edges >= low) & (self.edges <= high))
        best = allowed[self._dice[allowed] >= self._dice[allowed].max() - 1e-12]
        return float(self.edges[best[np.abs(self.edges[best]).argmin()]])

    def dice(self, at: float) -> float:
        """Mean Dice over lesion images, pixels above the logit `at` being lesion."""
        edge = int(np.abs(self.edges - at).argmin())
        return float(self._dice[edge] / self.lesion_images)

    def _errors(self, temperature: float) -> Array:
        """Of each logit: its probability times its pixels, less those that are lesion."""
        both = self._lesion + self._background
        return both * _sigmoid(self.logits / temperature) - self._lesion

    def _total(self) -> float:
        return float(self._lesion.sum() + self._background.sum())


def calibrated(counts: PixelCounts, weights_sha256: str = "") -> Calibration:
    """Fit a temperature and a threshold.

    Raises:
        ValueError: no image with a lesion was counted.
    """
    if not counts.lesion_images:
        raise ValueError("calibrated: needs an image with a lesion, got none")
    temperature, best = counts.fit(), counts.best_logit()
    return Calibration(
        temperature=temperature,
        threshold=float(_sigmoid(np.array(best / temperature))),
        images=counts.images,
        ece_before=counts.ece(1.0),
        ece_after=counts.ece(temperature),
        nll_before=counts.nll(1.0),
        nll_after=counts.nll(temperature),
        dice_at_half=counts.dice(0.0),
        dice_at_threshold=counts.dice(best),
        weights_sha256=weights_sha256,
    )


def tempered(probability: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """sigmoid(logit(p) / T) of each pixel, float32; on the same side of 1/2 as p, bit by bit."""
    if temperature == 1:
        return probability
    half = np.float32(0.5)
    least = np.nextafter(half, np.float32(1))
    changed = np.empty_like(probability)
    for start in range(0, len(probability), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        part = _sigmoid(logit(probability[rows]) / temperature).astype(np.float32)
        is_lesion = probability[rows] > half
        changed[rows] = np.where(is_lesion, np.maximum(part, least), np.minimum(part, half))
    return changed


def logit(probability: NDArray[np.float32]) -> Array:
    """log(p / (1 - p)), in float64, within -16 and 16."""
    with np.errstate(divide="ignore"):
        p = probability.astype(np.float64)
        return (np.log(p) - np.log1p(-p)).clip(-LARGEST_LOGIT, LARGEST_LOGIT)


def _places(probability: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of each pixel's logit."""
    logits = logit(probability)
    places = ((logits + LARGEST_LOGIT) * (_BINS / (2 * LARGEST_LOGIT))).astype(np.int64)
    # A pixel of exactly 1/2 is no lesion at the threshold 0.5, and lies below its edge.
    places[logits == 0] = _BINS // 2 - 1
    return places.clip(0, _BINS - 1)


def write_calibration(folder: str | os.PathLike[str], calibration: Calibration) -> None:
    """Write calibration.json of a checkpoint, and its digest into checksums.json where there is
    one."""
    file = Path(folder) / CALIBRATION_FILE
    write_text(file, json.dumps({"format": _FORMAT, **asdict(calibration)}, indent=1) + "\n")
    digests = read_checksums(folder)
    if digests is not None:
        digests = dict(sorted({**digests, CALIBRATION_FILE: digest_of(file)}.items()))
        with atomic_path(Path(folder) / CHECKSUM_FILE) as temporary:
            temporary.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def read_calibration(folder: str | os.PathLike[str], weights_sha256: str) -> Calibration | None:
    """The calibration of a checkpoint; None of one that has none.

    Args:
        folder: of the checkpoint.
        weights_sha256: digest of its weights.

    Raises:
        UsageError: it is damaged, or of other weights.
    """
    file = Path(folder) / CALIBRATION_FILE
    if not file.exists():
        return None
    remedy = f"copy the checkpoint again, or remove {CALIBRATION_FILE} to go without calibration"
    try:
        check_files(folder, (CALIBRATION_FILE,))
        calibration = _checked(json.loads(read_text(file)))
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise UsageError(f"--checkpoint {file}: is damaged ({error}); {remedy}") from error
    if calibration.weights_sha256 != weights_sha256:
        raise UsageError(f"--checkpoint {file}: is of other weights; {remedy}")
    return calibration


def _checked(content: dict[str, Any]) -> Calibration:
    if content.pop("format") != _FORMAT:
        raise ValueError("of another version")
    calibration = Calibration(**content)
    if not COLDEST <= calibration.temperature <= HOTTEST:
        raise ValueError(f"temperature {calibration.temperature}")
    if not 0 < calibration.threshold < 1:
        raise ValueError(f"threshold {calibration.threshold}")
    return calibration


def _sigmoid(logits: Array) -> Array:
    # Of logits within 160 nothing overflows.
    return 1 / (1 + np.exp(-logits))
