"""Three trivial predictors, made from the training images alone: what any network must beat."""

from collections.abc import Callable

import numpy as np

from intrasense_fast.data.torch_dataset import SegmentationDataset
from intrasense_fast.data.transforms import resize_probability

Predictor = Callable[[np.ndarray], np.ndarray]
_LEVELS = np.linspace(0.02, 0.98, 49).astype(np.float32)


def fit_baselines(train: SegmentationDataset) -> dict[str, Predictor]:
    """The predictors by name: each takes an image float32 (H, W) in [0, 1] and gives a mask bool
    (H, W).

    "empty mask"; "mean mask": the mean training mask above a level; "intensity": the image below a
    level, or at and above it. Levels are the ones of best mean Dice over the training images with a
    lesion. Images are held one at a time.
    """
    mean = np.zeros((train.size, train.size))
    for index in train.indices:
        mean += train.pixels(index)[1]
    mean = (mean / max(1, len(train))).astype(np.float32)
    predictors: dict[str, Predictor] = {"empty mask": lambda image: np.zeros(image.shape, bool)}
    if not mean.any():
        return predictors
    levels = _LEVELS * mean.max()
    of_mean, bright, dark = np.zeros(len(levels)), np.zeros(len(_LEVELS)), np.zeros(len(_LEVELS))
    for index in train.indices:
        image, mask = train.pixels(index)
        if mask.any():
            of_mean += _dice_at_or_above(mean, mask, levels)
            bright += _dice_at_or_above(image, mask, _LEVELS)
            dark += _dice_at_or_above(-image, mask, np.nextafter(-_LEVELS, np.float32(1))[::-1])[
                ::-1
            ]
    level, below = levels[of_mean.argmax()], bool(dark.max() > bright.max())
    cut = _LEVELS[(dark if below else bright).argmax()]
    predictors["mean mask"] = lambda image: resize_probability(mean, image.shape) >= level
    predictors[f"intensity {'<' if below else '>='} {cut:.2f}"] = lambda image: (
        (image < cut) == below
    )
    return predictors


def _dice_at_or_above(values: np.ndarray, mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Dice of `values >= level` with a mask that is not empty, for each of the ascending levels."""
    place = np.searchsorted(levels, values.ravel(), side="right")
    found, both = (
        np.bincount(places, minlength=len(levels) + 1)[::-1].cumsum()[::-1][1:]
        for places in (place, place[mask.ravel() == 1])
    )
    return 2 * both / (found + mask.sum())
