"""Intervals cover what they promise, and tests agree with scipy and with cases worked by hand."""

import builtins
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from intrasense_fast.errors import UsageError
from intrasense_fast.report.statistics import cluster_interval, holm, wilcoxon

SIZES = np.resize([1, 1, 2, 3, 1, 2, 5, 1], 64)


def studies(
    rng: np.random.Generator, count: int, seeds: int, group: float, seed: float, skewed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts (count, seeds, groups) of studies with mean 0 whose images lie in
    clusters."""
    shape = (count, len(SIZES))
    spread = 1 - rng.exponential(size=shape) if skewed else rng.standard_normal(shape)
    of_seeds = seed * rng.standard_normal((count, seeds, 1))
    of_both = 0.5 * rng.standard_normal((count, seeds, len(SIZES)))
    mean = group * spread[:, None] + of_seeds + of_both
    # Images differ within a group, the same in all seeds, and each training has noise of its own.
    image = 0.5 * np.sqrt(SIZES) * rng.standard_normal((count, 1, len(SIZES)))
    noise = 0.5 * np.sqrt(SIZES) * rng.standard_normal((count, seeds, len(SIZES)))
    return SIZES * mean + image + noise, np.broadcast_to(SIZES.astype(float), mean.shape)


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "skewed"), [(3, 0.1, False), (3, 0.1, True), (2, 0.05, False)]
)
def test_intervals_cover_95_percent(seed: int, seeds: int, seed_sd: float, skewed: bool) -> None:
    """Of 5,000 studies: the binomial's SD is 0.3 points, so that 93 to 97 % is six of them."""
    rng = np.random.default_rng(seed)
    covered = []
    for _ in range(20):
        numerator, denominator = studies(rng, 250, seeds, 1.0, seed_sd, skewed)
        found = cluster_interval(numerator, denominator, rng, draws=1000)
        assert found.low.shape == (250,) and np.isfinite(found.low).all()
        covered.append((found.low <= 0) & (found.high >= 0))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_images_taken_as_independent_would_cover_too_little(seed: int) -> None:
    """The simulation can fail: an interval that does not know the groups misses in most of its
    excess."""
    rng = np.random.default_rng(seed)
    numerator, denominator = studies(rng, 2000, 1, 1.0, 0.0, False)
    mean = numerator.sum((1, 2)) / denominator.sum((1, 2))
    # The SD of an image is sqrt(1 + 3 / 4): half of the width that 64 unequal groups need.
    half = 1.96 * np.sqrt(1.75 / SIZES.sum())
    assert (np.abs(mean) <= half).mean() < 0.9


def test_bootstrap_is_scipys_for_one_seed_and_single_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random(40)
    found = cluster_interval(values[None], np.ones((1, 40)), rng, draws=20_000)
    oracle = stats.bootstrap((values,), np.mean, n_resamples=20_000, random_state=rng)
    assert found.estimate == pytest.approx(values.mean(), abs=1e-12)
    assert found.df == 39
    # scipy's is the plug-in SE; ours is corrected by sqrt(n / (n - 1)). Both have 0.5 % of chance.
    assert found.se == pytest.approx(oracle.standard_error * math.sqrt(40 / 39), rel=0.04)
    half = stats.t.ppf(0.975, 39) * found.se
    assert found.high - found.estimate == pytest.approx(half, rel=1e-9)


def test_only_seeds_differ(seed: int) -> None:
    """All groups alike: the interval is the textbook's t interval of the seeds' means."""
    means = np.array([0.70, 0.74, 0.79])
    numerator = np.repeat(means[:, None], 30, 1)
    rng = np.random.default_rng(seed)
    found = cluster_interval(numerator, np.ones((3, 30)), rng, draws=40_000)
    assert found.se == pytest.approx(means.std(ddof=1) / math.sqrt(3), rel=0.05)
    assert found.df == pytest.approx(2, abs=1e-6)


def test_empty_clusters_and_one_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    denominator = np.ones((2, 30))
    denominator[:, 20:] = 0
    denominator[1] = 0
    numerator = rng.random((2, 30)) * denominator
    found = cluster_interval(numerator, denominator, rng)
    assert found.estimate == pytest.approx(numerator[0, :20].mean())
    assert np.isfinite(found.se)
    single = cluster_interval(np.ones((1, 1)), np.ones((1, 1)), rng)
    assert single.estimate == 1 and np.isnan(single.low)
    nothing = cluster_interval(np.zeros((1, 3)), np.zeros((1, 3)), rng)
    assert np.isnan(nothing.estimate) and np.isnan(nothing.high)


def test_bad_input_is_told() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="one shape"):
        cluster_interval(np.ones((2, 3)), np.ones((2, 4)), rng)
    with pytest.raises(ValueError, match="level"):
        cluster_interval(np.ones((2, 3)), np.ones((2, 3)), rng, level=1.0)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04: times 3, 2, 1, never falling.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    found = holm([0.02, math.nan, 0.03])
    assert found[::2] == pytest.approx([0.04, 0.04]) and math.isnan(found[1])
    assert holm([]) == []


def test_wilcoxon_by_hand() -> None:
    # Ranks 1 to 5, W- = 1: of the 32 signs 2 are as extreme on one side, so p = 4 / 32.
    found = wilcoxon([-1.0, 2.0, 3.0, 4.0, 5.0, math.nan])
    assert found.p == pytest.approx(0.125)
    assert found.rank_biserial == pytest.approx((14 - 1) / 15)
    differences = np.array([-1.0, 2, 3, 4, 5])
    assert found.cohens_d == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert found.n == 5
    same = wilcoxon([0.0, 0.0])
    assert same.p == 1 and same.rank_biserial == 0 and same.n == 2
    assert math.isnan(wilcoxon([math.nan]).p)


def test_wilcoxon_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences = np.round(rng.standard_normal(60) + 0.2, 1)
    found = wilcoxon(differences)
    moved = differences[differences != 0]
    assert found.p == pytest.approx(stats.wilcoxon(moved).pvalue, rel=1e-12)
    assert found.n == 60


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(
        name: str,
        scope: Mapping[str, Any] | None = None,
        local: Mapping[str, Any] | None = None,
        names: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if name.partition(".")[0] == "scipy":
            raise ImportError("No module named 'scipy'")
        return real(name, scope, local, names or (), level)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UsageError, match=r"intrasense-fast\[study\]"):
        wilcoxon([1.0, 2.0])
