"""Intervals and tests for shares of right answers; everything is a fraction, 0.95 two-sided."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

Z95 = 1.959963984540054


class Interval(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


def wilson(successes: float, trials: int) -> Interval:
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


def paired_difference(gained: float, lost: float, trials: int) -> Interval:
    """Interval of the difference of two shares on the same `trials` problems (score interval, Tango 1998).

    `gained` went from wrong to right and `lost` from right to wrong. It holds the differences that a score test does
    not reject, and so has a width also where nothing changed.

    >>> [round(x, 3) for x in paired_difference(29, 7, 500)]
    [0.044, 0.022, 0.07]

    Raises:
        ValueError: no trials.
    """
    if trials < 1:
        raise ValueError("a difference of nothing has no interval")
    return Interval((gained - lost) / trials, -_upper_end(lost, gained, trials), _upper_end(gained, lost, trials))


def _upper_end(gained: float, lost: float, trials: int) -> float:
    """The largest difference at most 1.96 standard errors above the one seen, the errors being those under it."""
    held, rejected = (gained - lost) / trials, 1.0
    while (middle := (held + rejected) / 2) not in (held, rejected):
        # The likeliest share of lost problems if the difference is `middle` solves a quadratic equation.
        b = (2 * trials - gained + lost) * middle - gained - lost
        c = -lost * middle * (1 - middle)
        share = (sqrt(max(0.0, b * b - 8 * trials * c)) - b) / (4 * trials)
        variance = trials * (2 * share + middle * (1 - middle))
        if (gained - lost - trials * middle) ** 2 <= Z95**2 * variance:
            held = middle
        else:
            rejected = middle
    return held


def wald_difference(gained: float, lost: float, trials: int) -> Interval:
    """The difference with 1.96 standard errors on either side: what papers print, and what to expect when planning.

    Without a width where nothing changed, and too narrow where little did: results get `paired_difference`.

    >>> [round(x, 3) for x in wald_difference(29, 7, 500)]
    [0.044, 0.021, 0.067]

    Raises:
        ValueError: no trials.
    """
    if trials < 1:
        raise ValueError("a difference of nothing has no interval")
    difference = (gained - lost) / trials
    half = Z95 * sqrt(((gained + lost) / trials - difference**2) / trials)
    return Interval(difference, difference - half, difference + half)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of McNemar's test; 1 where nothing changed.

    >>> round(mcnemar(29, 7), 4)
    0.0003
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(pvalues: Sequence[float]) -> list[float]:
    """P-values corrected for testing all of them (Holm 1979), in the given order.

    Rejecting what is below 0.05 errs anywhere in the family with a chance of at most 0.05.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(pvalues), 0.0
    for rank, place in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        largest = max(largest, min(1.0, (len(pvalues) - rank) * pvalues[place]))
        corrected[place] = largest
    return corrected
