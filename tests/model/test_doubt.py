"""Doubt, its maps, and what it is worth, against scipy and cases worked out by hand."""

import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.stats import spearmanr

from intrasense_fast.inference.doubt import doubt, entropy, rank_correlation, risk_coverage


@pytest.mark.parametrize("shape", [(64, 80), (30, 200)])
def test_doubt_is_the_entropy_of_the_mask_and_its_border(shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.2, 4, shape).astype(np.float32)
    probability[5:20, 10:24] = rng.beta(4, 1, (15, 14))
    width = round(0.03 * math.hypot(*shape))
    square = np.ones((2 * width + 1, 2 * width + 1), bool)
    for threshold in (0.3, 0.9):
        near = binary_dilation(probability > threshold, square)
        p = probability[near].astype(np.float64).clip(1e-30, 1 - 1e-16)
        wanted = np.mean(-p * np.log2(p) - (1 - p) * np.log2(1 - p))
        assert doubt(probability, threshold) == pytest.approx(wanted, abs=1e-5)


def test_doubt_of_cases_by_hand() -> None:
    sure = np.zeros((4, 4), np.float32)
    sure[1:3, 1:3] = 1
    assert doubt(sure) == 0
    assert doubt(np.full((3, 3), 0.5, np.float32), 0.4) == 1
    # The border is one pixel wide here: the corner is far from the lesion.
    far = np.array([[1, 0, 0.5]], np.float32)
    assert doubt(far) == 0
    near = np.array([[1, 0.5, 0]], np.float32)
    assert doubt(near) == pytest.approx(0.5)
    # No lesion: how near the largest probability comes to the threshold.
    assert doubt(np.full((3, 3), 0.125, np.float32)) == pytest.approx(0.25)
    assert doubt(np.full((3, 3), 0.5, np.float32)) == 1
    assert doubt(np.zeros((3, 3), np.float32)) == 0
    assert doubt(np.zeros((3, 3), np.float32), 0.0) == 0


def test_entropy_in_bits(seed: int) -> None:
    p = np.random.default_rng(seed).random((9, 7)).astype(np.float32)
    exact = p.astype(np.float64)
    wanted = -(exact * np.log2(exact) + (1 - exact) * np.log2(1 - exact))
    found = entropy(p)
    assert found.shape == p.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert entropy(np.array([[0, 0.5, 1]], np.float32)).tolist() == [[0, 1, 0]]


def test_rank_correlation_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for ties in (False, True):
        first, second = rng.random(40), rng.random(40)
        if ties:
            first, second = first.round(1), second.round(1)
        second += first
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert math.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
    assert math.isnan(rank_correlation(np.ones(1), np.ones(1)))


def test_risk_coverage_by_hand() -> None:
    dices = np.array([0.9, 0.1, 0.5, 1.0])
    risk = risk_coverage(np.array([0.2, 0.9, 0.5, 0.1]), dices)
    assert risk.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(risk.risk, [0, 0.05, 0.2, 0.375])
    assert risk.area == pytest.approx(np.mean([0, 0.05, 0.2, 0.375])) == risk.least_area
    assert risk.mean_risk == pytest.approx(0.375)
    assert risk.spearman == pytest.approx(-1)
    reverse = risk_coverage(-np.array([0.2, 0.9, 0.5, 0.1]), dices)
    assert reverse.area > reverse.mean_risk > reverse.least_area
    for doubts in (np.array([]), np.array([1.0])):
        with pytest.raises(ValueError, match="risk_coverage: needs a doubt and a Dice"):
            risk_coverage(doubts, dices if len(doubts) else np.array([]))
