"""Graders: `(prediction, problem) -> Grade`."""

from collections.abc import Callable

from score_rl.episodes import Grade, Problem
from score_rl.extract import Extractor, extractors
from score_rl.registry import Registry
from score_rl.schema import RewardSettings

Grader = Callable[[str, Problem], Grade]
rewards = Registry("reward")
register_reward = rewards.register


@register_reward("exact_match")
def exact_match(prediction: str, problem: Problem, *, extract: Extractor) -> Grade:
    """Right if the extracted strings are equal, case aside; an attempt without an answer is wrong."""
    found, gold = extract(prediction), extract(problem.answer)
    correct = found is not None and gold is not None and found.lower() == gold.lower()
    return Grade(correct, float(correct), found, None if found is not None else "unparsable")


def make_grader(settings: RewardSettings) -> Grader:
    """The grader that the settings name.

    Raises:
        ConfigError: an unknown reward or extractor.
    """
    reward = rewards.find(settings.fn, key="reward.fn")
    extract = extractors.find(settings.extractor, key="reward.extractor")
    return lambda prediction, problem: reward(prediction, problem, extract=extract)
