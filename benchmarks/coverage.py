"""How often intervals of 95% hold the truth, by simulation: `python benchmarks/coverage.py`.

Prints the published flips with our p-values and intervals, then coverage over 10,000 simulated evaluations a row, as
tables. `--draws` is the number of simulated evaluations; half an hour on a core.
"""

import argparse
from collections.abc import Callable, Iterable

import numpy as np
from scipy.stats import betabinom, norm

from score_rl.resampling import FEW, bootstrap, hierarchical
from score_rl.stats import Interval, mcnemar, paired_difference, wald_difference, wilson

PUBLISHED = {
    "base, MATH": (23, 79, 500),
    "Self-Refine, MATH": (16, 21, 500),
    "STaR, MATH": (13, 11, 500),
    "Pair-SFT, MATH": (27, 18, 500),
    "SCoRe, MATH": (29, 7, 500),
    "base, HumanEval": (13, 8, 164),
    "SCoRe, HumanEval": (25, 5, 164),
}
SHARES = (0.02, 0.05, 0.2, 0.5, 0.95)
FLIPS = ((0.046, 0.158), (0.032, 0.042), (0.026, 0.022), (0.054, 0.036), (0.058, 0.014), (0.04, 0.02), (0.152, 0.03))
CHANGES = ((0.046, 0.158, 0.1), (0.046, 0.158, 0.4), (0.026, 0.022, 0.4), (0.058, 0.014, 0.4), (0.04, 0.02, 0.4))


def held(counts: np.ndarray, interval: Callable[..., Interval], truth: float) -> float:
    """Share of the rows of `counts` whose interval holds the truth; equal rows are looked at once."""
    kinds, numbers = np.unique(counts, axis=0, return_counts=True)
    found = [interval(*(int(c) for c in np.atleast_1d(kind))) for kind in kinds]
    return float(numbers @ [low <= truth <= high for _, low, high in found] / numbers.sum())


def wilson_coverage(problems: int, share: float, draws: int) -> float:
    """Of one sample a problem."""
    counts = np.random.default_rng(0).binomial(problems, share, size=draws)
    return held(counts, lambda right: wilson(right, problems), share)


def paired_coverage(problems: int, gain: float, loss: float, draws: int) -> float:
    """Of the difference of two attempts with one sample a problem."""
    counts = np.random.default_rng(0).multinomial(problems, [gain, loss, 1 - gain - loss], size=draws)[:, :2]
    return held(counts, lambda gained, lost: paired_difference(gained, lost, problems), gain - loss)


def clustered_coverage(outcomes: np.ndarray, chances: np.ndarray, problems: int, draws: int, resamples: int) -> float:
    """Of the mean over problems whose sum of 8 samples is one of `outcomes`, each with its chance.

    The same choice as in `resampling.clustered`, which would spend its time on unpacking lists.
    """
    truth, difference = float(outcomes @ chances) / 8, outcomes.min() < 0
    kinds = np.stack([outcomes, np.full(len(outcomes), 8)], axis=1).astype(float)
    right = 0
    for seed, numbers in enumerate(np.random.default_rng(0).multinomial(problems, chances, size=draws)):
        if problems - numbers.max() >= FEW:
            seen = numbers > 0
            interval = bootstrap(kinds[seen], numbers[seen], difference=difference, seed=seed, draws=resamples)
        elif difference:
            gained, lost = numbers @ outcomes.clip(min=0) / 8, -numbers @ outcomes.clip(max=0) / 8
            interval = paired_difference(float(gained), float(lost), problems)
        else:
            interval = wilson(float(numbers @ outcomes) / 8, problems)
        right += interval.low <= truth <= interval.high
    return right / draws


def right_of_8(share: float, likeness: float) -> tuple[np.ndarray, np.ndarray]:
    """How many of 8 samples are right, with chances: problems' shares are Beta, samples of one correlate `likeness`."""
    strength = (1 - likeness) / likeness
    return np.arange(9), betabinom.pmf(np.arange(9), 8, share * strength, (1 - share) * strength)


def change_of_8(gain: float, loss: float, likeness: float) -> tuple[np.ndarray, np.ndarray]:
    """Gained minus lost of 8 samples, with chances, where a problem's shares of the two are independent Betas."""
    up, down = right_of_8(gain, likeness)[1], right_of_8(loss, likeness)[1]
    return np.arange(-8, 9), np.convolve(up, down[::-1])


def seeds_coverage(seeds: int, problems: int, spread: float, draws: int) -> float:
    """Of the mean over seeds and problems: right where problem + seed + luck > 0, all normal."""
    rng, right = np.random.default_rng(0), 0
    for _ in range(draws):
        problem, luck = 0.6**0.5 * rng.normal(size=problems), 0.4**0.5 * rng.normal(size=(seeds, problems))
        interval = hierarchical((0.5 + spread * rng.normal(size=(seeds, 1)) + problem + luck > 0).astype(float))
        right += interval.low <= norm.cdf(0.5 / (1 + spread**2) ** 0.5) <= interval.high
    return right / draws


def table(head: str, rows: Iterable[str]) -> None:
    """Prints a table in Markdown, each row as soon as it is there."""
    print(f"\n| {head} |\n|{' --- |' * (head.count('|') + 1)}")
    for row in rows:
        print(f"| {row} |", flush=True)


def points(interval: Interval) -> str:
    """In points, with its ends."""
    return f"{100 * interval.value:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=500, help="draws of a bootstrap; `score eval` takes 2000")
    args = parser.parse_args()
    draws, sizes = args.draws, (50, 200, 500)
    table(
        "row | flips | plain interval | ours | exact p",
        (
            f"{name} | {g} / {b} of {n} | {points(wald_difference(g, b, n))} | {points(paired_difference(g, b, n))}"
            f" | {mcnemar(g, b):.2g}"
            for name, (g, b, n) in PUBLISHED.items()
        ),
    )
    head = " | ".join(f"n = {n}" for n in sizes)

    def percents(coverage: Callable[[int], float]) -> str:
        return " | ".join(f"{100 * coverage(n):.1f}" for n in sizes)

    table(
        f"one sample: share | {head}",
        (f"{p} | {percents(lambda n, p=p: wilson_coverage(n, p, draws))}" for p in SHARES),
    )
    table(
        f"paired: gained, lost | {head}",
        (f"{g}, {b} | {percents(lambda n, g=g, b=b: paired_coverage(n, g, b, draws))}" for g, b in FLIPS),
    )
    table(
        f"8 samples: share, likeness | {head}",
        (
            f"{p}, {r} | "
            + percents(lambda n, p=p, r=r: clustered_coverage(*right_of_8(p, r), n, draws, args.resamples))
            for p in SHARES
            for r in (0.1, 0.4)
        ),
    )
    table(
        f"8 samples: gained, lost, likeness | {head}",
        (
            f"{g}, {b}, {r} | "
            + percents(lambda n, g=g, b=b, r=r: clustered_coverage(*change_of_8(g, b, r), n, draws, args.resamples))
            for g, b, r in CHANGES
        ),
    )
    table(
        f"seeds, spread between them | {head}",
        (
            f"{s}, {spread} | {percents(lambda n, s=s, spread=spread: seeds_coverage(s, n, spread, draws))}"
            for s in (2, 3, 5)
            for spread in (0.0, 0.1, 0.3)
        ),
    )


if __name__ == "__main__":
    main()
