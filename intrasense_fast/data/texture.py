"""How hard "identical texture, distinct semantics" is in an image: what local texture alone tells.

A logistic regression learns lesion against everything else, a pixel at a time, from a few filters
of the pixel's neighbourhood and without its position. Its AUC on an image it has not seen is the
index of that image: near 1 texture gives the lesion away, at 0.5 it says nothing, below 0.5 it
misleads.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from intrasense_fast.data.records import Sample
from intrasense_fast.data.splits import Splits

Array = NDArray[np.float64]

# Longer side in pixels of the image that the filters see.
SIDE = 128
# Standard deviations of the filters' windows, in pixels of that image.
SCALES = (1.5, 4.0)
FEATURES = 2 * 5 + 2
_TRAINED = 200
_SCORED = 1000
_RIDGE = 1.0
_STEPS = 12


def texture_features(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Local texture of every pixel: float32 (h, w, FEATURES), the longer side SIDE or smaller.

    At both scales: mean, standard deviation, gradient magnitude, difference of Gaussians and its
    magnitude; then the energy of Gabor filters along both axes. The image is standardised first,
    so that gain and contrast of the device do not matter.

    Args:
        image: float32 (H, W) in [0, 1].
    """
    small = _shrunk(image, cv2.INTER_AREA)
    spread = float(small.std())
    grey = (small - float(small.mean())) / np.float32(spread if spread > 0 else 1)
    maps = []
    for scale in SCALES:
        mean = _blurred(grey, scale)
        deviation = np.sqrt(np.maximum(_blurred(grey * grey, scale) - mean * mean, 0))
        gradient = cv2.magnitude(
            cv2.Sobel(mean, cv2.CV_32F, 1, 0), cv2.Sobel(mean, cv2.CV_32F, 0, 1)
        )
        difference = mean - _blurred(grey, 1.6 * scale)
        maps += [mean, deviation, gradient, difference, np.abs(difference)]
    for angle in (0.0, math.pi / 2):
        waves = [
            cv2.filter2D(grey, cv2.CV_32F, cv2.getGaborKernel((13, 13), 2.5, angle, 6, 1, phase))
            for phase in (0.0, math.pi / 2)
        ]
        maps.append(_blurred(cv2.magnitude(*waves), SCALES[0]))
    return np.stack(maps, -1).astype(np.float32)


def texture_index(
    samples: Iterable[Sample],
    splits: Splits,
    *,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, float]:
    """AUC of every tested image by a classifier trained on the other images of its fold.

    Where a fold tests nothing, the images that select the checkpoint take the place of the tested.
    Up to 200 + 200 pixels an image train, up to 1000 + 1000 are scored.

    Args:
        samples: the images of the splits; decoded one at a time, in this order.
        splits: its groups do not part, so that no patient trains its own classifier.
        seed: of which pixels are taken.
        progress: called with the number of images that are done.

    Returns:
        name -> AUC in [0, 1]; nan where an image has no lesion, or nothing but lesion.
    """
    pixels: dict[str, tuple[Array, Array]] = {}
    for i, sample in enumerate(samples):
        pixels[sample.name] = _drawn(sample, np.random.default_rng((seed, i)))
        progress(i + 1)
    found: dict[str, float] = {}
    for fold in splits.folds:
        scored = fold.test or fold.val
        others = [name for role in (fold.train, fold.val) for name in role if name not in scored]
        classifier = fit_classifier([pixels[name] for name in others if name in pixels])
        for name in scored:
            if name in pixels:
                lesion, background = (classifier(part) for part in pixels[name])
                found[name] = auc(lesion, background)
    return found


def fit_classifier(pixels: Sequence[tuple[Array, Array]]) -> Callable[[Array], Array]:
    """Ridge-regularised logistic regression on features and their squares, both classes of equal
    weight.

    Args:
        pixels: of each image the features of lesion and of background, (n, FEATURES) each.

    Returns:
        A function (n, FEATURES) -> (n,), larger where lesion is likelier.

    Raises:
        ValueError: there is no lesion, or no background, to learn from.
    """
    lesion, background = (
        np.concatenate([each[part][:_TRAINED] for each in pixels] or [np.empty((0, FEATURES))])
        for part in (0, 1)
    )
    if len(lesion) == 0 or len(background) == 0:
        raise ValueError(
            f"texture index: {len(lesion)} lesion and {len(background)} background pixels to "
            "train on; both are needed"
        )
    both = np.concatenate([lesion, background])
    centre, spread = both.mean(0), both.std(0) + 1e-9

    def design(features: Array) -> Array:
        z = ((features - centre) / spread).clip(-4, 4)
        return np.concatenate([np.ones((len(z), 1)), z, z * z], 1)

    x = design(both)
    y = np.repeat([1.0, 0.0], [len(lesion), len(background)])
    weight = np.repeat([0.5 / len(lesion), 0.5 / len(background)], [len(lesion), len(background)])
    weight *= len(both)
    penalty = np.full(x.shape[1], _RIDGE)
    penalty[0] = 0
    beta = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        # Newton's step of the penalised likelihood.
        p = 1 / (1 + np.exp(-(x @ beta).clip(-30, 30)))
        gradient = x.T @ (weight * (y - p)) - penalty * beta
        curvature = (x * (weight * np.maximum(p * (1 - p), 1e-6))[:, None]).T @ x
        beta += np.linalg.solve(curvature + np.diag(penalty), gradient)
    return lambda features: design(features) @ beta


def auc(positive: Array, negative: Array) -> float:
    """Chance that a positive score exceeds a negative one, ties half; nan where there are none."""
    if len(positive) == 0 or len(negative) == 0:
        return math.nan
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left").mean()
    not_above = np.searchsorted(ordered, positive, "right").mean()
    return float((below + not_above) / 2 / len(negative))


def _drawn(sample: Sample, rng: np.random.Generator) -> tuple[Array, Array]:
    """Features of lesion and of background pixels in random order, at most _SCORED each."""
    features = texture_features(sample.image)
    mask = _shrunk(sample.mask, cv2.INTER_NEAREST) > 0
    parts = []
    for part in (mask, ~mask):
        rows = features[part]
        parts.append(rows[rng.permutation(len(rows))[:_SCORED]].astype(np.float64))
    return parts[0], parts[1]


def _shrunk(image: np.ndarray, interpolation: int) -> np.ndarray:
    height, width = image.shape
    times = SIDE / max(height, width)
    if times >= 1:
        return image
    size = (max(1, round(width * times)), max(1, round(height * times)))
    return cv2.resize(image, size, interpolation=interpolation)


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
