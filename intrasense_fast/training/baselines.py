"""Three trivial predictors, made from the training images alone: what any network must beat."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from intrasense_fast.data.records import Sample
from intrasense_fast.data.torch_dataset import SegmentationDataset
from intrasense_fast.data.transforms import resize_probability
from intrasense_fast.metrics import image_metrics

Predictor = Callable[[np.ndarray], np.ndarray]
_LEVELS = np.linspace(0.02, 0.98, 49)


def fit_baselines(train: SegmentationDataset) -> dict[str, Predictor]:
    """The predictors by name: each takes an image float32 (H, W) in [0, 1] and gives a mask bool (H, W).

    "empty mask"; "mean mask": the mean training mask above the threshold, and "intensity": the image below (or above) the
    threshold, with the threshold of best mean Dice over the training images with a lesion.
    """
    pairs = [train.pixels(index) for index in train.indices]
    images, masks = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    lesions = masks.any((1, 2))
    if not lesions.any():
        return {"empty mask": lambda image: np.zeros(image.shape, bool)}
    images, masks, mean = images[lesions], masks[lesions].astype(bool), masks.mean(0, dtype=np.float64).astype(np.float32)
    level = max(_LEVELS * mean.max(), key=lambda cut: _dice(np.broadcast_to(mean > cut, masks.shape), masks))
    scores = {(cut, dark): _dice((images < cut) == dark, masks) for cut in _LEVELS for dark in (True, False)}
    cut, dark = max(scores, key=lambda key: scores[key])
    return {
        "empty mask": lambda image: np.zeros(image.shape, bool),
        "mean mask": lambda image: resize_probability(mean, image.shape) > level,
        f"intensity {'<' if dark else '>='} {cut:.2f}": lambda image: (image < cut) == dark,
    }


def measure_baselines(baselines: Mapping[str, Predictor], samples: Sequence[Sample]) -> dict[str, list[dict[str, Any]]]:
    """Rows of `image_metrics` on the images' own grids, by baseline."""
    return {name: [image_metrics(predict(s.image), s.mask) for s in samples] for name, predict in baselines.items()}


def _dice(found: np.ndarray, truth: np.ndarray) -> float:
    both = (found & truth).sum((1, 2))
    return float((2 * both / (found.sum((1, 2)) + truth.sum((1, 2)))).mean())
