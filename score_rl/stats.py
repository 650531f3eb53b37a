"""Intervals and tests for shares of right answers; everything is a fraction, 0.95 two-sided."""

from math import sqrt
from typing import NamedTuple

Z95 = 1.959963984540054


class Interval(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval:
    """Wilson score interval of a share.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.8, 0.49, 0.943]

    Raises:
        ValueError: no trials.
    """
    if trials < 1:
        raise ValueError("a share of nothing has no interval")
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    # At the ends the bound is the share itself; computed, it can miss it by rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return Interval(share, low, 1.0 if successes == trials else min(1.0, centre + half))


def paired_difference(gained: int, lost: int, trials: int) -> Interval:
    """Interval of the difference of two shares on the same `trials` problems (Bonett and Price 2012).

    `gained` went from wrong to right and `lost` from right to wrong. One count is added to each discordant cell, so
    that the interval has a width also where nothing changed.

    >>> [round(x, 3) for x in paired_difference(29, 7, 500)]
    [0.044, 0.02, 0.068]

    Raises:
        ValueError: no trials.
    """
    if trials < 1:
        raise ValueError("a difference of nothing has no interval")
    up, down = (gained + 1) / (trials + 2), (lost + 1) / (trials + 2)
    centre, half = up - down, Z95 * sqrt((up + down - (up - down) ** 2) / (trials + 2))
    return Interval((gained - lost) / trials, max(-1.0, centre - half), min(1.0, centre + half))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of McNemar's test; 1 where nothing changed.

    >>> round(mcnemar(29, 7), 4)
    0.0003
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
