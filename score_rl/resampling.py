"""Intervals from several samples a problem, and from several seeds; 0.95 two-sided.

Samples of one problem resemble each other, so problems are drawn anew and never single samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING

from score_rl.stats import Z95, Interval, paired_difference, wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

# With fewer problems than these apart from the most frequent outcome, most draws look alike.
FEW = 10


def clustered(
    values: Sequence[Sequence[float]], *, difference: bool = False, seed: int = 0, draws: int = 2000
) -> Interval:
    """Bootstrap interval over problems of the mean of all samples.

    For shares BCa (Efron 1987), which knows of skewness; for differences the symmetric studentised bootstrap (Hall
    1988), which knows how little is known of the spread where gains and losses are rare.

    Where all problems but a few have the same outcome there is nothing to draw from. Then the interval is the one for
    a single sample a problem with the same mean, which is never too narrow: Wilson's, or Tango's for differences.

    Args:
        values: a list for each problem with a number for each of its samples; problems may have different numbers of
            samples, also none. Shares: between 0 and 1.
        difference: the numbers are differences (after - before), between -1 and 1.
        seed: of the draws; equal data and seed give an equal interval.

    Raises:
        ValueError: no samples, or a number outside its range.
    """
    import numpy as np

    sizes = np.array([len(v) for v in values], int)
    flat = np.fromiter(chain.from_iterable(values), float, count=sizes.sum())
    if not len(flat):
        raise ValueError("a mean of nothing has no interval")
    _check_range(flat, difference)
    sums = np.bincount(np.repeat(np.arange(len(sizes)), sizes), flat, len(sizes))
    # Problems with equal sums and sizes are exchangeable: how many of each kind are drawn says all.
    kinds, numbers = np.unique(np.stack([sums, sizes], axis=1)[sizes > 0], axis=0, return_counts=True)
    problems = int(numbers.sum())
    if problems - _most_frequent(kinds[:, 0] / kinds[:, 1], numbers) >= FEW:
        return bootstrap(kinds, numbers, difference=difference, seed=seed, draws=draws)
    return _as_single(flat, problems, difference)


def bootstrap(
    kinds: Numbers, numbers: NDArray[np.int64], *, difference: bool, seed: int = 0, draws: int = 2000
) -> Interval:
    """The interval of `clustered` where problems differ.

    Args:
        kinds: [K, 2], sum and number of the samples of a problem.
        numbers: [K], how many problems are of each kind.
    """
    import numpy as np

    rng, problems = np.random.default_rng(seed), int(numbers.sum())
    rows = max(1, 4_000_000 // len(kinds))  # of weights at a time, for the memory's sake
    parts = []
    for start in range(0, draws, rows):
        weights = rng.multinomial(problems, numbers / problems, size=min(rows, draws - start))
        parts.append(_mean_and_error(kinds, weights))
    (mean,), (error,) = _mean_and_error(kinds, numbers[None])
    drawn, errors = np.concatenate(parts, axis=1)
    if difference:
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.nan_to_num(np.abs(drawn - mean) / errors, nan=0.0)
        half = min(float(np.quantile(distance, 0.95, method="higher") * error), 2.0)
        return Interval(float(mean), max(-1.0, float(mean) - half), min(1.0, float(mean) + half))
    below = (np.mean(drawn < mean - 1e-12) + np.mean(drawn < mean + 1e-12)) / 2
    bias = NormalDist().inv_cdf(min(max(float(below), 1 / draws), 1 - 1 / draws))
    influence = kinds[:, 0] - mean * kinds[:, 1]
    skew = float(numbers @ influence**3 / (6 * (numbers @ influence**2) ** 1.5))
    levels = [NormalDist().cdf(bias + (bias + z) / (1 - skew * (bias + z))) for z in (-Z95, Z95)]
    low, high = np.quantile(drawn, levels)
    return Interval(float(mean), min(float(mean), float(low)), max(float(mean), float(high)))


def _mean_and_error(kinds: Numbers, weights: NDArray[np.int64]) -> Numbers:
    """Mean of all samples and its standard error over problems, for each row of weights [D, K] -> [2, D]."""
    import numpy as np

    sums, sizes = kinds.T
    columns = np.stack([sums, sizes, sums**2, sums * sizes, sizes**2])
    total, number, squares, products, sizes_squared = columns @ weights.T.astype(float)
    mean = total / number
    residuals = squares - 2 * mean * products + mean**2 * sizes_squared
    return np.stack([mean, np.sqrt(np.where(residuals > 1e-9, residuals, 0.0)) / number])


def sign_flip(differences: Sequence[float], *, seed: int = 0, draws: int = 100_000) -> float:
    """Two-sided p-value of a mean difference of paired problems, from random exchanges of the two sides.

    With differences of -1, 0 and 1 it is the exact McNemar test, but for the luck of the draws; never below
    1 / (draws + 1).
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    sizes, numbers = np.unique(np.abs(np.array(differences, float)).round(12), return_counts=True)
    drawn = (2 * rng.binomial(numbers, 0.5, size=(draws, len(numbers))) - numbers) @ sizes
    return float((1 + np.sum(np.abs(drawn) >= abs(sum(differences)) - 1e-9)) / (draws + 1))


def hierarchical(values: Sequence[Sequence[float]], *, difference: bool = False) -> Interval:
    """Interval of the mean over seeds and problems, for fresh seeds and fresh problems.

    The spread of the seeds' means counts with Student's t for so many seeds, what else problems differ by with the
    normal distribution; the two half widths add as squares. Resampling two or three seeds would be far too narrow.

    Args:
        values: a list for each seed with a number for each problem, the same problems in the same order; ranges as for
            `clustered`.

    Raises:
        ValueError: fewer than two seeds or problems, seeds with different numbers of problems, or a number outside its
            range.
    """
    table = _table(values)
    _check_range(table, difference)
    mean, half = float(table.mean()), _half_width(table, 0.05)
    low, high = max(mean - half, -1.0 if difference else 0.0), min(mean + half, 1.0)
    if table.shape[1] - _most_frequent(table.mean(axis=0)) < FEW:
        single = _as_single(table, table.shape[1], difference)
        low, high = min(low, single.low), max(high, single.high)
    return Interval(mean, low, high)


def hierarchical_p(differences: Sequence[Sequence[float]]) -> float:
    """Two-sided p-value of the mean: one minus the level at which the interval of `hierarchical` just reaches 0.

    Never below 1e-12. Raises as `hierarchical` does.
    """
    from scipy.optimize import brentq

    table = _table(differences)
    mean, least = abs(float(table.mean())), 1e-12
    if mean >= _half_width(table, least):
        return least if mean else 1.0
    return float(brentq(lambda p: _half_width(table, p) - mean, least, 1.0))


def _table(values: Sequence[Sequence[float]]) -> Numbers:
    import numpy as np

    problems = {len(seed) for seed in values}
    if len(values) < 2 or len(problems) != 1 or min(problems) < 2:
        raise ValueError(f"{len(values)} seeds of {sorted(problems)} problems; expected two or more, equally many each")
    return np.array(values, float)


def _half_width(table: Numbers, p: float) -> float:
    """Half the width at level 1 - `p`, from the mean squares of seeds, of problems and of what is left."""
    from scipy.stats import t

    seeds, problems = table.shape
    by_seed, by_problem = table.mean(axis=1), table.mean(axis=0)
    left = table - by_seed[:, None] - by_problem + table.mean()
    rest = (left**2).sum() / ((seeds - 1) * (problems - 1)) / seeds
    shared = max(0.0, float(by_problem.var(ddof=1) - rest)) / problems
    spread = float(by_seed.var(ddof=1)) / seeds
    return sqrt(t.isf(p / 2, seeds - 1) ** 2 * spread + NormalDist().inv_cdf(1 - p / 2) ** 2 * shared)


def _check_range(values: Numbers, difference: bool) -> None:
    if values.min() < (-1 if difference else 0) or values.max() > 1:
        raise ValueError(f"{values.min():g} to {values.max():g} are no shares; differences need difference=True")


def _as_single(values: Numbers, problems: int, difference: bool) -> Interval:
    """The interval as if the mean were that of one sample a problem."""
    mean = float(values.mean())
    if difference:
        gained, lost = float(values.clip(min=0).mean()), -float(values.clip(max=0).mean())
        return Interval(mean, *paired_difference(gained * problems, lost * problems, problems)[1:])
    return Interval(mean, *wilson(mean * problems, problems)[1:])


def _most_frequent(outcomes: Numbers, numbers: NDArray[np.int64] | None = None) -> int:
    """How many problems share the most frequent outcome."""
    import numpy as np

    _, place = np.unique(outcomes.round(12), return_inverse=True)
    return int(np.bincount(place, numbers).max())
