"""What a report counts in the episodes of an evaluation beyond its stored metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from score_rl.episodes import KEPT
from score_rl.metrics import edit_ratio
from score_rl.report.source import Played
from score_rl.report.transcripts import HEAD_CHARACTERS
from score_rl.stats import Interval, paired_difference

BINS = 20
"""Of the histogram of edit-distance ratios, each 0.05 wide."""


@dataclass(frozen=True)
class Summary:
    """Counts over the graded episodes of one evaluation.

    Attributes:
        flow: episodes by (attempt 1 right, attempt 2 right); empty where there is one attempt.
        identical: episodes whose attempts 1 and 2 are the same text.
        ratios: the others by edit-distance ratio of attempts 1 and 2, in `BINS` equal bins.
        too_long: episodes left out of `ratios` and `identical`.
        outcomes: for each problem, by id and question, whether each attempt was right, by sample.
    """

    episodes: int
    flow: dict[tuple[bool, bool], int]
    identical: int
    ratios: list[int]
    too_long: int
    outcomes: dict[tuple[str, str], list[tuple[bool, ...]]]

    @property
    def measured(self) -> int:
        """Episodes in the histogram."""
        return self.identical + sum(self.ratios)


def summarise(episodes: Sequence[Played]) -> Summary:
    """Counts the episodes whose every attempt has a grade."""
    flow: Counter[tuple[bool, bool]] = Counter()
    outcomes: dict[tuple[str, str], list[tuple[bool, ...]]] = {}
    ratios, identical, too_long, graded = [0] * BINS, 0, 0, 0
    for episode in episodes:
        if not episode.graded:
            continue
        graded += 1
        right = tuple(bool(attempt.correct) for attempt in episode.attempts)
        outcomes.setdefault((episode.problem, episode.question), []).append(right)
        if len(right) < 2:
            continue
        flow[right[0], right[1]] += 1
        before, after = episode.attempts[0].text, episode.attempts[1].text
        if max(len(before), len(after)) > HEAD_CHARACTERS:
            too_long += 1
        elif before == after or episode.attempts[1].note == KEPT:
            identical += 1
        else:
            ratios[min(BINS - 1, int(edit_ratio(before, after) * BINS))] += 1
    return Summary(graded, dict(flow), identical, ratios, too_long, outcomes)


def change(before: Summary, after: Summary, attempt: int) -> tuple[Interval, int] | None:
    """How much more often `attempt` (from 1) is right in `after`, paired by problem; with the number of problems.

    None where the two share no problem, or one of them has no such attempt.
    """
    pairs = []
    for problem, samples in before.outcomes.items():
        others = after.outcomes.get(problem)
        if others and min(map(len, [*samples, *others])) >= attempt:
            pairs.append(([s[attempt - 1] for s in samples], [s[attempt - 1] for s in others]))
    if not pairs:
        return None
    if all(len(a) == len(b) == 1 for a, b in pairs):
        gained, lost = sum(b > a for a, b in pairs), sum(a > b for a, b in pairs)
        return paired_difference(gained, lost, len(pairs)), len(pairs)
    from score_rl.resampling import clustered

    differences = [[sum(b) / len(b) - sum(a) / len(a)] for a, b in pairs]
    return clustered(differences, difference=True), len(pairs)
