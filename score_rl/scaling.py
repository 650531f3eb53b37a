"""What more attempts are worth: pass@n, majority votes, and samples side by side against attempts in a row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from math import comb
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from score_rl.episodes import Episode
from score_rl.metrics import Metrics, put, share
from score_rl.votes import majority, pass_at_k

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SELECTIONS = 500
"""Selections of chains that a vote is averaged over: all of them, or as many drawn ones where there are more."""
CELLS = 4_000_000
"""Numbers held at once while votes are counted."""

Problems = list[list[Episode]]


def scaling(episodes: Sequence[Episode], samples: int) -> Metrics:
    """Flat metrics of what drawing more is worth, with `.low` and `.high` siblings.

    `pass/tK@n` and `maj/tK@n` where problems have several samples; `scaling/parallel@n`, `scaling/sequential@n` and
    `scaling/mixed@n` where episodes have several attempts, each with `.tokens`, the mean tokens that n attempts take.
    Two answers are the same where their extracted texts are. Only problems with all `samples` graded are counted.
    """
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.problem.id, []).append(episode)
    problems = [group for group in groups.values() if len(group) == samples]
    metrics: Metrics = {}
    if not problems:
        return metrics
    attempts = len(episodes[0].attempts)
    votes = {k: Votes(problems, k) for k in range(1, attempts + 1)}
    if samples > 1:
        for k in range(1, attempts + 1):
            for n in doublings(samples):
                _put(metrics, f"pass/t{k}@{n}", votes[k].any_right(n))
                _put(metrics, f"maj/t{k}@{n}", votes[k].most_right(n))
    if attempts > 1:
        metrics |= _compare(problems, samples, votes)
    return metrics


def doublings(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`.

    >>> doublings(10)
    [1, 2, 4, 8]
    """
    return [2**power for power in range(most.bit_length())]


def _put(metrics: Metrics, key: str, values: Sequence[float]) -> None:
    put(metrics, key, share([[value] for value in values]))


class Votes:
    """What the samples of each problem answer at one attempt."""

    def __init__(self, problems: Problems, attempt: int) -> None:
        grades = [[e.attempts[attempt - 1].grade for e in group] for group in problems]
        self.answers = [[grade.answer for grade in group if grade is not None] for group in grades]
        self.correct = [[grade.correct for grade in group if grade is not None] for group in grades]
        self._majorities: dict[int, list[float]] = {}

    def any_right(self, n: int) -> list[float]:
        """Chance, by problem, that one of n samples or more is right."""
        return [pass_at_k(sum(correct), len(correct), n) for correct in self.correct]

    def most_right(self, n: int) -> list[float]:
        """Chance, by problem, that the most frequent answer of n samples is right."""
        if n not in self._majorities:
            pairs = zip(self.answers, self.correct, strict=True)
            self._majorities[n] = [majority(answers, correct, n) for answers, correct in pairs]
        return self._majorities[n]


def _compare(problems: Problems, samples: int, votes: dict[int, Votes]) -> Metrics:
    """The three ways to spend n attempts a problem, at every n that a way can spend."""
    metrics: Metrics = {}
    attempts = len(votes)
    first = fmean(e.attempts[0].length for group in problems for e in group)
    chain = fmean(sum(a.cost for a in e.attempts) for group in problems for e in group)
    chains = doublings(samples)
    beside = {c * attempts for c in chains if c * attempts <= samples}  # so that each n can be compared
    for n in sorted({*chains, *beside}):
        _put(metrics, f"scaling/parallel@{n}", votes[1].most_right(n))
        metrics[f"scaling/parallel@{n}.tokens"] = n * first
    counted = count_answers(problems)
    for c in chains:
        n = c * attempts
        _put(metrics, f"scaling/sequential@{n}", votes[attempts].most_right(c))
        _put(metrics, f"scaling/mixed@{n}", majority_of_chains(counted, c))
        metrics[f"scaling/sequential@{n}.tokens"] = metrics[f"scaling/mixed@{n}.tokens"] = c * chain
    return metrics


class Counted(NamedTuple):
    """How often each episode of a problem gives each of its answers, and how often rightly, [P, samples, answers]."""

    votes: NDArray[np.float64]
    right: NDArray[np.float64]


def count_answers(problems: Problems) -> Counted:
    """The answers of all attempts, by problem and episode.

    Args:
        problems: each with equally many episodes.
    """
    import numpy as np

    given: list[tuple[int, int, int, bool]] = []
    width = 1
    for number, group in enumerate(problems):
        columns: dict[str, int] = {}
        for sample, episode in enumerate(group):
            for attempt in episode.attempts:
                if attempt.grade is not None and attempt.grade.answer is not None:
                    column = columns.setdefault(attempt.grade.answer, len(columns))
                    given.append((number, sample, column, attempt.grade.correct))
        width = max(width, len(columns))
    shape = (len(problems), len(problems[0]), width)
    places = np.array(given, int).reshape(-1, 4).T
    flat = np.ravel_multi_index((places[0], places[1], places[2]), shape)
    size = len(problems) * len(problems[0]) * width
    votes, right = np.bincount(flat, minlength=size), np.bincount(flat, places[3], minlength=size)
    return Counted(votes.reshape(shape).astype(float), right.reshape(shape).astype(float))


def majority_of_chains(counted: Counted, chains: int) -> list[float]:
    """Chance, by problem, that the most frequent answer of all attempts of some of its episodes is right.

    As `votes.majority`, except that whole episodes are drawn: over all selections of `chains` episodes, or over
    `MAX_SELECTIONS` drawn ones where there are more.
    """
    import numpy as np

    problems, samples, width = counted.votes.shape
    selected = _selections(samples, chains)
    step = max(1, CELLS // (len(selected) * width))
    found: list[float] = []
    for start in range(0, problems, step):
        votes, right = (selected @ numbers[start : start + step] for numbers in counted)
        won = (votes == votes.max(axis=2, keepdims=True)) & (votes > 0)
        chance = np.where(won, right / np.maximum(votes, 1), 0).sum(axis=2) / np.maximum(won.sum(axis=2), 1)
        found += chance.mean(axis=1).tolist()
    return found


@cache
def _selections(samples: int, chains: int) -> NDArray[np.float64]:
    """Which episodes each selection takes -> [selections, samples]."""
    import numpy as np

    if comb(samples, chains) <= MAX_SELECTIONS:
        taken = list(combinations(range(samples), chains))
    else:
        rng = np.random.default_rng(0)
        taken = [tuple(rng.permutation(samples)[:chains]) for _ in range(MAX_SELECTIONS)]
    selected = np.zeros((len(taken), samples))
    for row, places in zip(selected, taken, strict=True):
        row[list(places)] = 1
    return selected
