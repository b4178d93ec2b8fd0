"""The index of identical texture: its AUC against scikit-learn, its extremes, and the phantom's
knob."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from intrasense_fast.data.phantom import phantom
from intrasense_fast.data.records import Sample
from intrasense_fast.data.splits import Fold, Splits
from intrasense_fast.data.texture import (
    FEATURES,
    auc,
    fit_classifier,
    texture_features,
    texture_index,
)


def sample(name: str, image: np.ndarray, mask: np.ndarray) -> Sample:
    return Sample(image.astype(np.float32), mask.astype(np.uint8), name, name, name, "")


def halves(names: list[str]) -> Splits:
    first, second = tuple(names[::2]), tuple(names[1::2])
    return Splits((Fold(second, (), first), Fold(first, (), second)), {})


def test_auc_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few levels, so that there are ties.
    positive, negative = rng.integers(0, 9, 40).astype(float), rng.integers(0, 7, 60).astype(float)
    truth = np.repeat([1, 0], [40, 60])
    expected = roc_auc_score(truth, np.concatenate([positive, negative]))
    assert auc(positive, negative) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(auc(positive, np.empty(0)))


def test_classifier_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lesion = rng.standard_normal((150, FEATURES)) + np.linspace(-0.6, 0.6, FEATURES)
    background = rng.standard_normal((100, FEATURES))
    score = fit_classifier([(lesion[:80], background[:50]), (lesion[80:], background[50:])])
    both = np.concatenate([lesion, background])
    z = ((both - both.mean(0)) / both.std(0)).clip(-4, 4)
    design = np.concatenate([z, z * z], 1)
    truth = np.repeat([1, 0], [150, 100])
    oracle = LogisticRegression(C=1.0, class_weight="balanced", tol=1e-10, max_iter=10_000)
    oracle.fit(design, truth)
    np.testing.assert_allclose(score(both), oracle.decision_function(design), atol=1e-4)


def test_features_know_no_position_and_no_gain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.random((64, 80)).astype(np.float32)
    features = texture_features(image)
    assert features.shape == (64, 80, FEATURES) and features.dtype == np.float32
    assert np.isfinite(features).all()
    np.testing.assert_allclose(texture_features(0.25 + 0.5 * image), features, atol=2e-3)
    shifted = texture_features(np.roll(image, 7, 1))
    np.testing.assert_allclose(shifted[:, 40:50], features[:, 33:43], atol=2e-3)
    assert np.isfinite(texture_features(np.zeros((40, 300), np.float32))).all()


def test_index_is_high_where_texture_differs_and_half_where_it_does_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    told, alike = [], []
    for i in range(160):
        mask = np.zeros((96, 96), np.uint8)
        # Any ninth of the image: a lesion meets the border, where features differ, as often as not.
        row, column = 32 * rng.integers(0, 3, 2)
        mask[row : row + 32, column : column + 32] = 1
        noise = rng.random((96, 96))
        told.append(sample(f"{i}", np.where(mask > 0, 0.3 * noise, noise), mask))
        alike.append(sample(f"{i}", noise, mask))
    splits = halves([str(i) for i in range(160)])
    high, half = texture_index(told, splits), texture_index(alike, splits)
    assert min(high.values()) > 0.95
    # Five deviations of the mean of 160 images.
    assert np.mean(list(half.values())) == pytest.approx(0.5, abs=0.06)


def test_images_without_lesion_have_no_index(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 1
    images = [sample(f"{i}", rng.random((64, 64)), mask if i < 4 else 0 * mask) for i in range(5)]
    index = texture_index(images, halves([image.name for image in images]))
    assert [math.isnan(index[image.name]) for image in images] == [False] * 4 + [True]
    bare = [sample(f"{i}", rng.random((64, 64)), 0 * mask) for i in range(2)]
    with pytest.raises(ValueError, match="0 lesion"):
        texture_index(bare, halves(["0", "1"]))


def test_isoechoic_phantoms_are_harder_for_texture(seed: int) -> None:
    """The knob of the phantom is what the index measures."""
    means = {}
    for echo in ("hypoechoic", "isoechoic"):
        images = [sample(f"{i}", *phantom((seed, i), 96, lesions=1, echo=echo)) for i in range(32)]
        index = texture_index(images, halves([image.name for image in images]))
        means[echo] = np.nanmean(list(index.values()))
    assert means["isoechoic"] < means["hypoechoic"]
