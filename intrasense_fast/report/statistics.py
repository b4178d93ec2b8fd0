"""Statistics of a study: intervals that know which images and trainings belong together, and paired
tests.

Values come as sums of clusters: seeds x groups, where a group is a patient or a cluster of
near-duplicates. A mean over images is the ratio of summed values and counts, a pooled Dice the
ratio of summed pixels; so one function serves both.
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from intrasense_fast.errors import UsageError

Array = NDArray[np.float64]

DRAWS = 2000
# Draws taken at a time, so that many studies at once fit into memory.
_CHUNK = 250


class Interval(NamedTuple):
    """A ratio of sums with its interval; `se` and `df` are nan where fewer than two groups have
    data.

    All fields have the leading shape of what `cluster_interval` was given.
    """

    estimate: Array
    low: Array
    high: Array
    se: Array
    df: Array


class PairedTest(NamedTuple):
    """A Wilcoxon signed-rank test of `n` group means, with two effect sizes.

    Attributes:
        p: two-sided; 1 where all differences are zero, nan where there are none.
        rank_biserial: (W+ - W-) / (W+ + W-), in [-1, 1]; zeros are left out.
        cohens_d: mean over standard deviation of the group means (d_z).
        n: groups that entered.
    """

    p: float
    rank_biserial: float
    cohens_d: float
    n: int


def cluster_interval(
    numerator: Array,
    denominator: Array,
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
) -> Interval:
    """sum(numerator) / sum(denominator) with a t interval whose standard error is bootstrapped over
    groups and seeds.

    Groups, seeds and both at once are drawn with replacement. The three variances tell apart what
    groups, seeds and their interaction add; each is corrected for its small number, and

        V = V_groups G / (G - 1) + V_seeds S / (S - 1) - V_interaction G S / ((G - 1) (S - 1)),

    for the interaction stands in both of the first two. V is at least the larger of these. The
    degrees of freedom are Satterthwaite's. Percentile intervals of a joint bootstrap cover too
    little: with three seeds they miss a third of the seeds' variance. With one seed the interval
    says nothing about the chance of training.

    Args:
        numerator, denominator: (..., S, G), sums over the images of a seed and a group;
            denominator >= 0, and 0 where there is no data. Seeds and groups that are empty
            everywhere do not count.
        rng: of the draws.
        level: of the interval, in (0, 1).
        draws: of each bootstrap.

    Raises:
        ValueError: shapes that differ, fewer than two axes, or a level outside (0, 1).
        UsageError: scipy is missing.
    """
    if numerator.shape != denominator.shape or numerator.ndim < 2:
        raise ValueError(
            f"cluster_interval: numerator {numerator.shape} and denominator {denominator.shape} "
            "must have one shape (..., seeds, groups)"
        )
    if not 0 < level < 1:
        raise ValueError(f"cluster_interval: level must lie in (0, 1), got {level}")
    stats = _stats()
    groups = _used(denominator, -2)
    seeds = _used(denominator, -1)
    estimate = _ratio(numerator.sum((-2, -1)), denominator.sum((-2, -1)))
    of_groups, of_seeds, of_both = _variances(numerator, denominator, estimate, rng, draws)
    v_groups = of_groups * _correction(groups)
    v_seeds = np.where(seeds > 1, of_seeds * _correction(seeds), 0.0)
    v_both = np.where(seeds > 1, of_both * _correction(groups) * _correction(seeds), 0.0)
    variance = np.maximum(v_groups + v_seeds - v_both, np.maximum(v_groups, v_seeds))
    parts = v_groups**2 / np.maximum(groups - 1, 1) + v_seeds**2 / np.maximum(seeds - 1, 1)
    df = np.where(parts > 0, variance**2 / np.where(parts > 0, parts, 1), groups - 1)
    known = groups > 1
    se = np.where(known, np.sqrt(variance), math.nan)
    df = np.where(known, df, math.nan)
    half = stats.t.ppf(0.5 + level / 2, df) * se
    return Interval(estimate, estimate - half, estimate + half, se, df)


def wilcoxon(differences: Sequence[float] | Array) -> PairedTest:
    """Wilcoxon's signed-rank test of one difference a group, against 0, and effect sizes.

    Groups are independent, their images are not: hence group means and not images. nan entries
    are left out.

    Raises:
        UsageError: scipy is missing.
    """
    stats = _stats()
    values = np.asarray(differences, np.float64)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return PairedTest(math.nan, math.nan, math.nan, 0)
    sd = float(values.std(ddof=1)) if n > 1 else math.nan
    d = float(values.mean()) / sd if sd > 0 else math.nan
    moved = values[values != 0]
    if len(moved) == 0:
        return PairedTest(1.0, 0.0, d, n)
    ranks = stats.rankdata(np.abs(moved))
    positive = float(ranks[moved > 0].sum())
    negative = float(ranks[moved < 0].sum())
    p = float(stats.wilcoxon(moved, zero_method="wilcox").pvalue)
    return PairedTest(p, (positive - negative) / (positive + negative), d, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values as they may be compared with the level of the whole
    family.

    nan stays nan and is no member of the family.
    """
    corrected = [math.nan] * len(p_values)
    family = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    largest = 0.0
    for rank, i in enumerate(sorted(family, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(family) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _variances(
    numerator: Array, denominator: Array, estimate: Array, rng: np.random.Generator, draws: int
) -> tuple[Array, Array, Array]:
    """Bootstrap variances of the ratio: over groups, over seeds, and what drawing both adds."""
    seeds, groups = numerator.shape[-2:]
    sums = np.zeros((3, *estimate.shape))
    for start in range(0, draws, _CHUNK):
        count = min(_CHUNK, draws - start)
        w_groups = _counts(rng, count, groups)
        w_seeds = _counts(rng, count, seeds)
        # (..., S, draws): every seed's sums over the drawn groups.
        top, bottom = numerator @ w_groups.T, denominator @ w_groups.T
        by_groups = _ratio(top.sum(-2), bottom.sum(-2))
        by_both = _ratio((top * w_seeds.T).sum(-2), (bottom * w_seeds.T).sum(-2))
        by_seeds = _ratio(numerator.sum(-1) @ w_seeds.T, denominator.sum(-1) @ w_seeds.T)
        centre = estimate[..., None]
        moves = (
            by_groups - centre,
            by_seeds - centre,
            by_both - by_groups - by_seeds + centre,
        )
        for i, move in enumerate(moves):
            # A draw without any data says nothing.
            sums[i] += np.nan_to_num(move**2).sum(-1)
    return sums[0] / draws, sums[1] / draws, sums[2] / draws


def _counts(rng: np.random.Generator, draws: int, members: int) -> Array:
    """How often each member is drawn: (draws, members), rows sum to `members`."""
    return rng.multinomial(members, np.full(members, 1 / members), size=draws).astype(np.float64)


def _used(denominator: Array, over: int) -> Array:
    """How many rows along the other axis hold any data."""
    return ((denominator > 0).any(axis=over)).sum(-1).astype(np.float64)


def _correction(members: Array) -> Array:
    """n / (n - 1); 1 where there is one."""
    return np.where(members > 1, members / np.maximum(members - 1, 1), 1.0)


def _ratio(top: Array, bottom: Array) -> Array:
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), math.nan)


def _stats() -> ModuleType:
    try:
        from scipy import stats
    except ImportError as error:
        raise UsageError(
            f"the statistics of a study need scipy ({error}); "
            "install it with: pip install 'intrasense-fast[study]'"
        ) from error
    return stats
