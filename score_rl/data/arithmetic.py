"""Multi-digit subtraction, written most significant digit first, so that every borrow must be looked ahead for."""

import random

from score_rl.data.load import register_source
from score_rl.episodes import Problem
from score_rl.errors import ConfigError

SPLITS = ("train", "validation", "test")


@register_source("arithmetic")
def arithmetic(
    split: str, *, digits: int = 10, train: int = 50_000, validation: int = 1_000, test: int = 2_000
) -> list[Problem]:
    """Problems `a - b` with `a >= b`, both of `digits` digits with leading zeros, and so is the answer.

    One stream of distinct problems, fixed for all seeds of training, is cut into test, validation and train, in this
    order: the splits are disjoint and a larger training set leaves the others as they are.

    Raises:
        ConfigError: too few digits for that many distinct problems.
    """
    sizes = {"test": test, "validation": validation, "train": train}
    total = sum(sizes.values())
    if 10 ** (2 * digits) < 8 * total:
        raise ConfigError(f"data.options.digits={digits} has too few problems for {total}; use more digits")
    rng = random.Random("score_rl arithmetic")
    seen: dict[tuple[int, int], None] = {}
    while len(seen) < total:
        a, b = rng.randrange(10**digits), rng.randrange(10**digits)
        seen[max(a, b), min(a, b)] = None
    start = {"test": 0, "validation": test, "train": test + validation}[split]
    pairs = list(seen)[start : start + sizes[split]]
    return [
        Problem(f"{split}/{i}", f"{a:0{digits}d} - {b:0{digits}d}", f"{a - b:0{digits}d}")
        for i, (a, b) in enumerate(pairs)
    ]
