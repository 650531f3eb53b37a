"""What more attempts are worth: pass@n, majority votes, and samples side by side against attempts in a row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from math import comb
from statistics import fmean
from typing import TYPE_CHECKING

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
    if samples > 1:
        for k in range(1, attempts + 1):
            for n in doublings(samples):
                _put(metrics, f"pass/t{k}@{n}", [_pass(group, k, n) for group in problems])
                _put(metrics, f"maj/t{k}@{n}", [_majority(group, k, n) for group in problems])
    if attempts > 1:
        metrics |= _compare(problems, samples, attempts)
    return metrics


def doublings(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`.

    >>> doublings(10)
    [1, 2, 4, 8]
    """
    return [2**power for power in range(most.bit_length())]


def _put(metrics: Metrics, key: str, values: Sequence[float]) -> None:
    put(metrics, key, share([[value] for value in values]))


def _pass(group: list[Episode], attempt: int, n: int) -> float:
    return pass_at_k(sum(e.attempts[attempt - 1].correct for e in group), len(group), n)


def _majority(group: list[Episode], attempt: int, n: int) -> float:
    return majority([_answer(e, attempt) for e in group], [e.attempts[attempt - 1].correct for e in group], n)


def _answer(episode: Episode, attempt: int) -> str | None:
    grade = episode.attempts[attempt - 1].grade
    return None if grade is None else grade.answer


def _compare(problems: Problems, samples: int, attempts: int) -> Metrics:
    """The three ways to spend n attempts a problem, at every n that a way can spend."""
    metrics: Metrics = {}
    first = fmean(e.attempts[0].length for group in problems for e in group)
    chain = fmean(sum(a.length for a in e.attempts) for group in problems for e in group)
    chains = doublings(samples)
    beside = {c * attempts for c in chains if c * attempts <= samples}  # so that each n can be compared
    for n in sorted({*chains, *beside}):
        _put(metrics, f"scaling/parallel@{n}", [_majority(group, 1, n) for group in problems])
        metrics[f"scaling/parallel@{n}.tokens"] = n * first
    for c in chains:
        n = c * attempts
        _put(metrics, f"scaling/sequential@{n}", [_majority(group, attempts, c) for group in problems])
        _put(metrics, f"scaling/mixed@{n}", majority_of_chains(problems, c))
        metrics[f"scaling/sequential@{n}.tokens"] = metrics[f"scaling/mixed@{n}.tokens"] = c * chain
    return metrics


def majority_of_chains(problems: Problems, chains: int) -> list[float]:
    """Chance, by problem, that the most frequent answer of all attempts of some of its episodes is right.

    As `votes.majority`, except that whole episodes are drawn: over all selections of `chains` episodes, or over
    `MAX_SELECTIONS` drawn ones where there are more.

    Args:
        problems: each with equally many episodes.
    """
    import numpy as np

    selected = _selections(len(problems[0]), chains)
    counted = [_count(group) for group in problems]
    width = max(votes.shape[1] for votes, _ in counted)
    step = max(1, CELLS // (len(selected) * max(1, width)))
    found: list[float] = []
    for start in range(0, len(counted), step):
        part = counted[start : start + step]
        votes, right = (
            np.stack([np.pad(pair[i], ((0, 0), (0, width - pair[i].shape[1]))) for pair in part]) for i in (0, 1)
        )
        votes, right = selected @ votes, selected @ right
        most = votes.max(axis=2, keepdims=True, initial=0)
        won = (votes == most) & (votes > 0)
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


def _count(group: list[Episode]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often each episode gives each answer, and how often rightly -> [samples, answers] each."""
    import numpy as np

    column: dict[str, int] = {}
    given = [
        (row, column.setdefault(answer, len(column)), attempt.correct)
        for row, episode in enumerate(group)
        for attempt in episode.attempts
        if attempt.grade is not None and (answer := attempt.grade.answer) is not None
    ]
    votes, right = np.zeros((len(group), len(column))), np.zeros((len(group), len(column)))
    for row, place, correct in given:
        votes[row, place] += 1
        right[row, place] += correct
    return votes, right
