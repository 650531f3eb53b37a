"""What a set of graded episodes says about self-correction (paper, section 3); every key is explained in docs."""

from collections.abc import Sequence
from statistics import fmean

from score_rl.episodes import Episode
from score_rl.resampling import clustered
from score_rl.stats import Interval, mcnemar, paired_difference, wilson

FIELDS = ("level", "subject", "difficulty", "type")
"""Columns of the data by which accuracies are also given."""
MAX_VALUES = 20
"""A column with more values than this does not group problems."""

Metrics = dict[str, float]


def is_unchanged(episode: Episode, attempt: int) -> bool:
    """Whether `attempt` (from 2) gives the answer of the one before it, or keeps it.

    Without an extracted answer on either side the texts are compared.
    """
    before, after = episode.attempts[attempt - 2], episode.attempts[attempt - 1]
    assert before.grade is not None and after.grade is not None
    if before.grade.answer is None and after.grade.answer is None:
        return _is_identical(episode, attempt)
    return before.grade.answer == after.grade.answer


def _is_identical(episode: Episode, attempt: int) -> bool:
    texts = episode.texts
    return texts[attempt - 2] == texts[attempt - 1]


def edit_ratio(before: str, after: str) -> float:
    """Characters to delete and insert between two texts, by the length of both (paper, Figure 5a): 0 for equal texts.

    >>> edit_ratio("abcd", "abce")  # one deleted and one inserted, of eight
    0.25
    """
    from rapidfuzz.distance import Indel

    return Indel.normalized_distance(before, after)


def transitions(episodes: Sequence[Episode], before: int, after: int) -> tuple[int, int]:
    """Episodes that went from wrong to right, and from right to wrong, between two attempts (counted from 1)."""
    pairs = [(e.attempts[before - 1].correct, e.attempts[after - 1].correct) for e in episodes]
    return sum(not a and b for a, b in pairs), sum(a and not b for a, b in pairs)


def share(values: Sequence[Sequence[float]]) -> Interval:
    """The mean of numbers between 0 and 1, given as a list for each problem, with its interval.

    Wilson where no problem has more than one number and each is 0 or 1; otherwise a bootstrap over problems.

    Raises:
        ValueError: no numbers.
    """
    if all(not v or (len(v) == 1 and v[0] in (0, 1)) for v in values):
        return wilson(sum(int(v[0]) for v in values if v), sum(map(len, values)))
    return clustered(values)


def put(metrics: Metrics, key: str, interval: Interval) -> None:
    """Adds a value under `key`, and its ends under `key.low` and `key.high`."""
    metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"] = interval


class _Tally:
    """Shares of episodes, with intervals that know which episodes are of one problem."""

    def __init__(self, episodes: Sequence[Episode]) -> None:
        labels: dict[str, int] = {}
        self.label = [labels.setdefault(e.problem.id, len(labels)) for e in episodes]
        self.problems = len(labels)
        self.metrics: Metrics = {}

    def rate(self, key: str, holds: Sequence[bool], among: Sequence[bool] | None = None) -> None:
        """Adds the share of episodes, or of those `among`, for which something holds; nothing if there are none."""
        if among is None or any(among):
            put(self.metrics, key, share(self._by_problem(holds, among)))

    def difference(self, key: str, before: Sequence[bool], after: Sequence[bool]) -> None:
        """Adds how much more often `after` holds than `before`, of the same episodes."""
        change = [b - a for a, b in zip(before, after, strict=True)]
        gained, lost, total = change.count(1), change.count(-1), len(change)
        if self.problems == total:
            put(self.metrics, f"delta/{key}", paired_difference(gained, lost, total))
            self.metrics[f"mcnemar_p/{key}"] = mcnemar(gained, lost)
        else:
            found = clustered(self._by_problem(change), difference=True)
            put(self.metrics, f"delta/{key}", found._replace(value=(gained - lost) / total))

    def _by_problem(self, values: Sequence[float], among: Sequence[bool] | None = None) -> list[list[float]]:
        grouped: list[list[float]] = [[] for _ in range(self.problems)]
        for place, (label, value) in enumerate(zip(self.label, values, strict=True)):
            if among is None or among[place]:
                grouped[label].append(value)
        return grouped


def self_correction(episodes: Sequence[Episode]) -> Metrics:
    """Flat metrics with `.low` and `.high` siblings; one episode a problem, or several samples of each.

    `delta/i_c` and `delta/c_i` compare attempts 1 and 2; `delta/t1_tK` compares attempt 1 with attempt K, so
    `delta/t1_t2 = delta/i_c - delta/c_i` exactly. A rate of nothing (`rate/fix` where every attempt 1 is right) is
    absent, and so is `mcnemar_p`, which knows of no samples, where problems have several.

    Raises:
        ValueError: no episodes.
    """
    if not episodes:
        raise ValueError("no episodes to count")
    tally, attempts = _Tally(episodes), range(len(episodes[0].attempts))
    right = [[e.attempts[k].correct for e in episodes] for k in attempts]
    wrong = [[not mark for mark in marks] for marks in right]
    for k in attempts:
        tally.rate(f"acc/t{k + 1}", right[k])
        tally.rate(f"no_answer/t{k + 1}", [_has_no_answer(e, k + 1) for e in episodes])
    for k in attempts[1:]:
        tally.difference(f"t1_t{k + 1}", right[0], right[k])
        tally.rate(f"unchanged/t{k + 1}", [is_unchanged(e, k + 1) for e in episodes])
        tally.rate(f"identical/t{k + 1}", [_is_identical(e, k + 1) for e in episodes])
        tally.rate(f"kept/t{k + 1}", [e.attempts[k].keeps for e in episodes])
    if len(attempts) > 1:
        tally.rate("delta/i_c", [a and b for a, b in zip(wrong[0], right[1], strict=True)])
        tally.rate("delta/c_i", [a and b for a, b in zip(right[0], wrong[1], strict=True)])
        tally.rate("rate/fix", right[1], wrong[0])
        tally.rate("rate/break", wrong[1], right[0])
    return tally.metrics | edit_ratios(episodes) | attempt_shapes(episodes)


def _has_no_answer(episode: Episode, attempt: int) -> bool:
    grade = episode.attempts[attempt - 1].grade
    assert grade is not None, "the attempt has not been graded"
    return grade.answer is None


def edit_ratios(episodes: Sequence[Episode]) -> Metrics:
    """Mean and quartiles of `edit_ratio` between each attempt and the one before it; 0 for one that is kept."""
    import numpy as np

    metrics: Metrics = {}
    texts = [e.texts for e in episodes]
    for k in range(2, len(episodes[0].attempts) + 1):
        found = [edit_ratio(of[k - 2], of[k - 1]) for of in texts]
        metrics[f"edit_ratio/t{k}"] = fmean(found)
        for name, percent in (("q1", 25), ("median", 50), ("q3", 75)):
            metrics[f"edit_ratio_{name}/t{k}"] = float(np.percentile(found, percent))
    return metrics


def by_field(episodes: Sequence[Episode]) -> Metrics:
    """Accuracies and delta(t1, t2) by the problems' `level`, `subject`, `difficulty` and `type`, where they have it.

    Keys are `by/FIELD=VALUE/...`; a field with more than `MAX_VALUES` values is passed over.
    """
    metrics: Metrics = {}
    for field in FIELDS:
        groups: dict[str, list[Episode]] = {}
        for episode in episodes:
            if episode.problem.meta.get(field) is not None:
                groups.setdefault(str(episode.problem.meta[field]), []).append(episode)
        for value in sorted(groups) if len(groups) <= MAX_VALUES else ():
            tally = _Tally(groups[value])
            right = [[e.attempts[k].correct for e in groups[value]] for k in range(len(episodes[0].attempts))[:2]]
            for k, marks in enumerate(right, start=1):
                tally.rate(f"acc/t{k}", marks)
            if len(right) > 1:
                tally.difference("t1_t2", *right)
            found = {key: number for key, number in tally.metrics.items() if not key.startswith("mcnemar_p/")}
            metrics |= {f"by/{field}={value}/{key}": number for key, number in found.items()}
            metrics[f"by/{field}={value}/problems"] = tally.problems
    return metrics


def attempt_shapes(episodes: Sequence[Episode]) -> dict[str, float]:
    """Mean length in tokens and share cut off at the limit, by attempt; of critiques too where there are some."""
    metrics = {}
    for k in range(1, len(episodes[0].attempts) + 1):
        attempts = [e.attempts[k - 1] for e in episodes]
        metrics[f"length/t{k}"] = fmean(a.length for a in attempts)
        metrics[f"truncated/t{k}"] = fmean(not a.finished for a in attempts)
        critiques = [a.critique for a in attempts if a.critique]
        if critiques:
            metrics[f"critique_length/t{k}"] = fmean(critique.length for critique in critiques)
            metrics[f"critique_truncated/t{k}"] = fmean(not critique.finished for critique in critiques)
    return metrics


def training_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over the sampled episodes of one training step.

    Episodes that start from a stored first attempt are counted apart, under `offline/`; `groups/no_signal` is the
    share of questions whose episodes all have the same rewards, where questions have several.
    """
    own = [e for e in episodes if e.attempts[0].sampled]
    metrics: dict[str, float] = {}
    for prefix, group in (("", own), ("offline/", [e for e in episodes if not e.attempts[0].sampled])):
        if not group:
            continue
        for k in range(1, len(group[0].attempts) + 1):
            metrics[f"{prefix}acc/t{k}"] = fmean(e.attempts[k - 1].correct for e in group)
            metrics[f"{prefix}reward/t{k}"] = fmean(_reward(e, k) for e in group)
        for k in range(2, len(group[0].attempts) + 1):
            metrics[f"{prefix}unchanged/t{k}"] = fmean(is_unchanged(e, k) for e in group)
            metrics[f"{prefix}kept/t{k}"] = fmean(e.attempts[k - 1].keeps for e in group)
        if len(group[0].attempts) > 1:
            gained, lost = transitions(group, 1, 2)
            metrics[f"{prefix}delta/t1_t2"] = (gained - lost) / len(group)
            metrics[f"{prefix}delta/i_c"], metrics[f"{prefix}delta/c_i"] = gained / len(group), lost / len(group)
    rewards_of: dict[str, list[tuple[float, ...]]] = {}
    for episode in episodes:
        rewards = tuple(_reward(episode, k) for k in range(1, len(episode.attempts) + 1))
        rewards_of.setdefault(episode.problem.id, []).append(rewards)
    groups = [group for group in rewards_of.values() if len(group) > 1]
    if groups:
        metrics["groups/no_signal"] = fmean(len(set(group)) == 1 for group in groups)
    return metrics | attempt_shapes(own or episodes)


def _reward(episode: Episode, attempt: int) -> float:
    grade = episode.attempts[attempt - 1].grade
    assert grade is not None and grade.reward is not None, "the attempt has not been graded"
    return grade.reward
