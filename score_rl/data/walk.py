"""A walk of short and long steps between two walls: hard to see the end of at a glance, easy to follow step by step."""

import random

from score_rl.data.load import register_source
from score_rl.episodes import Problem
from score_rl.errors import ConfigError

STEPS = {"-": -3, "<": -1, ">": 1, "+": 3}
PLACES = 10
"""The walk is on 0 to 9; a step that would leave them ends at the wall."""


@register_source("walk")
def walk(
    split: str, *, moves: int = 8, train: int = 20_000, validation: int = 1_000, test: int = 2_000
) -> list[Problem]:
    """Problems such as `5+>-`: from 5, three up, one up, three down; the answer is the last place, here `6`.

    All problems differ, and are the same for all seeds of training. The test split comes from a stream of its own;
    validation and train, in this order, are cut from a second one.

    Raises:
        ConfigError: too few moves for that many distinct problems.
    """
    sizes = {"test": test, "validation": validation, "train": train}
    total = sum(sizes.values())
    if PLACES * len(STEPS) ** moves < 8 * total:
        raise ConfigError(f"data.options.moves={moves} has too few problems for {total}; use more moves")
    seen: dict[str, None] = {}
    for stream, count in (("score_rl walk test", test), ("score_rl walk", total - test)):
        rng = random.Random(stream)
        wanted = len(seen) + count
        while len(seen) < wanted:
            seen[str(rng.randrange(PLACES)) + "".join(rng.choice("-<>+") for _ in range(moves))] = None
    start = {"test": 0, "validation": test, "train": test + validation}[split]
    questions = list(seen)[start : start + sizes[split]]
    return [Problem(f"{split}/{i}", question, str(places(question)[-1])) for i, question in enumerate(questions)]


def places(question: str) -> list[int]:
    """The place after each step.

    >>> places("5+>-")
    [8, 9, 6]
    >>> places("8+-")
    [9, 6]
    """
    place, found = int(question[0]), []
    for step in question[1:]:
        place = min(PLACES - 1, max(0, place + STEPS[step]))
        found.append(place)
    return found
