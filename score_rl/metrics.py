"""What a set of graded episodes says about self-correction (paper, section 3); every key is explained in docs."""

from collections.abc import Sequence
from statistics import fmean

from score_rl.episodes import Episode
from score_rl.stats import Interval, mcnemar, paired_difference, wilson


def is_unchanged(episode: Episode, attempt: int) -> bool:
    """Whether `attempt` (from 2) gives the answer of the one before it.

    Without an extracted answer on either side the texts are compared.
    """
    before, after = episode.attempts[attempt - 2], episode.attempts[attempt - 1]
    assert before.grade is not None and after.grade is not None
    if before.grade.answer is None and after.grade.answer is None:
        return before.text == after.text
    return before.grade.answer == after.grade.answer


def transitions(episodes: Sequence[Episode], before: int, after: int) -> tuple[int, int]:
    """Episodes that went from wrong to right, and from right to wrong, between two attempts (counted from 1)."""
    pairs = [(e.attempts[before - 1].correct, e.attempts[after - 1].correct) for e in episodes]
    return sum(not a and b for a, b in pairs), sum(a and not b for a, b in pairs)


def self_correction(episodes: Sequence[Episode]) -> dict[str, float]:
    """Flat metrics with `.low` and `.high` siblings; one episode for each problem.

    `delta/i_c` and `delta/c_i` compare attempts 1 and 2; `delta/t1_tK` compares attempt 1 with attempt K, so
    `delta/t1_t2 = delta/i_c - delta/c_i` exactly.

    Raises:
        ValueError: no episodes.
    """
    total = len(episodes)
    if not total:
        raise ValueError("no episodes to count")
    metrics: dict[str, float] = {}

    def put(key: str, interval: Interval) -> None:
        metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"] = interval

    attempts = len(episodes[0].attempts)
    for k in range(1, attempts + 1):
        put(f"acc/t{k}", wilson(sum(e.attempts[k - 1].correct for e in episodes), total))
    for k in range(2, attempts + 1):
        gained, lost = transitions(episodes, 1, k)
        put(f"delta/t1_t{k}", paired_difference(gained, lost, total))
        metrics[f"mcnemar_p/t1_t{k}"] = mcnemar(gained, lost)
        put(f"unchanged/t{k}", wilson(sum(is_unchanged(e, k) for e in episodes), total))
    if attempts > 1:
        gained, lost = transitions(episodes, 1, 2)
        put("delta/i_c", wilson(gained, total))
        put("delta/c_i", wilson(lost, total))
    return metrics | attempt_shapes(episodes)


def attempt_shapes(episodes: Sequence[Episode]) -> dict[str, float]:
    """Mean length in tokens and share cut off at the limit, by attempt."""
    metrics = {}
    for k in range(1, len(episodes[0].attempts) + 1):
        attempts = [e.attempts[k - 1] for e in episodes]
        metrics[f"length/t{k}"] = fmean(a.length for a in attempts)
        metrics[f"truncated/t{k}"] = fmean(not a.finished for a in attempts)
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
