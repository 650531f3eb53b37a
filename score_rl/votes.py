"""What several samples of a problem are worth: any of them right, or the answer that most of them give."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import comb

Rational = int | Fraction


def pass_at_k(correct: int, total: int, k: int) -> float:
    """Chance that at least one of `k` samples is right, drawn without replacement from `total` of one problem.

    Unbiased for `k` fresh samples (Chen et al. 2021).

    >>> pass_at_k(2, 4, 2)  # all but 1 of the 6 pairs
    0.8333333333333334

    Raises:
        ValueError: `k` is not between 1 and `total`, or `correct` not between 0 and `total`.
    """
    if not (1 <= k <= total and 0 <= correct <= total):
        raise ValueError(f"pass@{k} of {correct} right in {total} samples is not defined")
    return float(1 - Fraction(comb(total - correct, k), comb(total, k)))


def majority(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Chance that the most frequent answer of `k` samples is right, drawn without replacement from those given.

    Answers that are equally frequent share the chance. A sample without an answer (None) has no vote, and where none
    of the `k` has an answer the majority is wrong. Where equal answers were graded differently, the grade is drawn
    among them.

    >>> majority(["4", "4", "5"], [True, True, False], 2)  # of the 3 pairs one agrees on 4, two are tied
    0.6666666666666666

    Raises:
        ValueError: `k` is not between 1 and the number of samples, or the lists differ in length.
    """
    if len(answers) != len(correct):
        raise ValueError(f"{len(answers)} answers and {len(correct)} grades")
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} of {len(answers)} samples is not defined")
    given, right = Counter(answers), Counter(a for a, is_right in zip(answers, correct, strict=True) if is_right)
    unanswered = given.pop(None, 0)
    return _majority(tuple(sorted((number, right[answer]) for answer, number in given.items())), unanswered, k)


@lru_cache(maxsize=100_000)
def _majority(groups: tuple[tuple[int, int], ...], unanswered: int, k: int) -> float:
    """The chance for answers given by (number given, number of these right); problems with equal counts share it."""
    total = sum(number for number, _ in groups) + unanswered
    chance = Fraction(0)
    for votes in range(1, min(k, max((number for number, _ in groups), default=0)) + 1):
        # Selections in which no answer has more than `votes`, by (samples drawn, answers with exactly `votes`):
        # how many there are, and how many times an answer with exactly `votes` is right in them.
        ways: dict[tuple[int, int], tuple[int, Rational]] = {(0, 0): (1, 0)}
        for number, right in groups:
            # Whole numbers where equal answers have equal grades: fractions take ten times as long.
            share = Fraction(right, number) if 0 < right < number else right // number
            grown: dict[tuple[int, int], tuple[int, Rational]] = {}
            for (drawn, tied), (count, good) in ways.items():
                for chosen in range(min(votes, number, k - drawn) + 1):
                    place = (drawn + chosen, tied + (chosen == votes))
                    times, won = comb(number, chosen), count * share if chosen == votes else 0
                    before = grown.get(place, (0, 0))
                    grown[place] = (before[0] + times * count, before[1] + times * (good + won))
            ways = grown
        for (drawn, tied), (_, good) in ways.items():
            if tied:
                chance += Fraction(good * comb(unanswered, k - drawn)) / tied
    return float(chance / comb(total, k))
