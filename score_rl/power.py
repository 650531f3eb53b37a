"""How many problems a difference needs; shares and differences are fractions, tests two-sided at 0.05."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING

from score_rl.stats import Z95

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def mcnemar_power(problems: int, delta: float, discordant: float) -> float:
    """Chance that the exact McNemar test rejects on that many problems.

    >>> round(mcnemar_power(500, 0.02, 0.06), 3)
    0.373

    Args:
        delta: true difference of the two accuracies.
        discordant: true share of the problems that one side has right and the other wrong.

    Raises:
        ValueError: `delta` is 0 or larger than `discordant`, or a share is outside its range.
    """
    import numpy as np
    from scipy.stats import binom

    _check(delta, discordant)
    # Outside of this range lie fewer than one in 1e12 of the counts of discordant problems.
    low, high = binom.ppf([1e-12, 1 - 1e-12], problems, discordant)
    flips = np.arange(int(low), int(high) + 1)
    chances = binom.pmf(flips, problems, discordant)
    return float(chances @ power_given_flips(flips, (discordant + abs(delta)) / 2 / discordant))


def power_given_flips(flips: NDArray[np.int64], gain: float) -> NDArray[np.float64]:
    """Chance that the exact McNemar test rejects, for each number of discordant problems -> as `flips`.

    Args:
        gain: share of the discordant problems that go one way.
    """
    import numpy as np
    from scipy.stats import binom

    # The test rejects where at most this many flips go against the rest; -1: never.
    against = binom.ppf(0.025, flips, 0.5)
    against = np.where(binom.cdf(against, flips, 0.5) > 0.025, against - 1, against)
    rejected = binom.cdf(against, flips, gain) + binom.sf(flips - against - 1, flips, gain)
    return np.where(against < 0, 0.0, rejected)


def mcnemar_problems(delta: float, discordant: float, power: float = 0.8) -> int:
    """How many problems the exact McNemar test needs to reject with a chance of `power`.

    Above 100,000 the normal approximation stands in, which is then about one percent away or less.

    >>> mcnemar_problems(0.02, 0.06)
    1244

    Raises:
        ValueError: as for `mcnemar_power`, or `power` is not between 0.05 and 1.
    """
    _check(delta, discordant)
    estimate = problems_for(delta, sqrt(discordant - delta**2), power)
    if estimate > 100_000:
        return estimate
    return _smallest(lambda number: mcnemar_power(number, delta, discordant) >= power)


def problems_for(delta: float, deviation: float, power: float = 0.8) -> int:
    """How many problems a mean difference needs, by the normal approximation.

    Args:
        delta: true mean difference.
        deviation: standard deviation of the differences of single problems.

    Raises:
        ValueError: `delta` is 0, or `power` is not between 0.05 and 1.
    """
    if not delta:
        raise ValueError("no number of problems shows a difference of 0")
    if not 0.05 < power < 1:
        raise ValueError(f"power={power:g}; expected more than 0.05 and less than 1")
    return max(1, ceil(((Z95 + NormalDist().inv_cdf(power)) * deviation / delta) ** 2))


def _smallest(holds: Callable[[int], bool]) -> int:
    """The number from which on `holds`, found by doubling and halving."""
    high = 1
    while not holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check(delta: float, discordant: float) -> None:
    if not 0 < abs(delta) <= discordant <= 1:
        raise ValueError(f"delta={delta:g}, discordant={discordant:g}; expected 0 < delta <= discordant <= 1")
