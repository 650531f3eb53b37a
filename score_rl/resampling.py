"""Intervals from several samples a problem, and from several seeds; 0.95 two-sided.

Samples of one problem resemble each other, so problems are drawn anew and never single samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from score_rl.stats import Interval, paired_difference, wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Values = Sequence[Sequence[float]]


def clustered(values: Values, *, difference: bool = False, seed: int = 0, draws: int = 2000) -> Interval:
    """Bootstrap interval over problems of the mean of all samples.

    Args:
        values: a list for each problem with a number for each of its samples; problems may have different numbers of
            samples, also none. Shares: between 0 and 1.
        difference: the numbers are differences, between -1 and 1 (after - before, for each sample).
        seed: of the draws; equal data and seed give an equal interval.

    Raises:
        ValueError: no samples, or a number outside its range.
    """
    import numpy as np

    sums, sizes = np.array([sum(v) for v in values], float), np.array([len(v) for v in values])
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    if not len(sizes):
        raise ValueError("a mean of nothing has no interval")
    low = -1.0 if difference else 0.0
    if min(min(v, default=low) for v in values) < low or max(max(v, default=low) for v in values) > 1:
        raise ValueError(f"numbers must lie between {low:g} and 1; pass difference=True for differences")
    mean = float(sums.sum() / sizes.sum())
    drawn = _drawn_means(sums, sizes, np.random.default_rng(seed), draws)
    if drawn.max() - drawn.min() < 1e-12:
        return _without_spread(mean, len(sizes), difference=difference)
    ends = np.quantile(drawn, (0.025, 0.975))
    return Interval(mean, min(mean, float(ends[0])), max(mean, float(ends[1])))


def _drawn_means(
    sums: NDArray[np.float64], sizes: NDArray[np.int64], rng: np.random.Generator, draws: int
) -> NDArray[np.float64]:
    import numpy as np

    # Problems with equal counts are exchangeable: how many of each kind are drawn says all.
    kinds, number = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    weights = rng.multinomial(len(sums), number / len(sums), size=draws)
    return (weights @ kinds[:, 0]) / (weights @ kinds[:, 1])


def _without_spread(mean: float, problems: int, *, difference: bool) -> Interval:
    if difference:
        low, high = paired_difference(round(max(mean, 0) * problems), round(max(-mean, 0) * problems), problems)[1:]
    else:
        low, high = wilson(round(mean * problems), problems)[1:]
    return Interval(mean, low, high)
