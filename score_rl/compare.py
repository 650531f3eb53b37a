"""Paired tests between two evaluations, or two sets of seeds, on the same problems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from score_rl.errors import ConfigError, DataError
from score_rl.power import mcnemar_problems, problems_for
from score_rl.resampling import clustered, hierarchical, hierarchical_p, sign_flip
from score_rl.results import read_episodes
from score_rl.run import RunDirectory, stage_plan
from score_rl.stats import Interval, holm, mcnemar, paired_difference

Key = tuple[str, str]
"""Of a problem: its id and its question."""


class Outcomes(NamedTuple):
    """Which attempts of an evaluation were right.

    Attributes:
        file: of the episodes.
        attempts: of each episode.
        samples: of each problem: whether the first attempt was right, and the last; samples that the grader could not
            tell of are left out.
    """

    file: Path
    attempts: int
    samples: dict[Key, list[tuple[bool, bool]]]


class Comparison(NamedTuple):
    """One quantity of A and of B, as fractions.

    Attributes:
        difference: B - A with its 95% interval.
        p: exact McNemar for accuracies with one sample, random exchanges of the sides otherwise, Student's t for seeds.
        p_holm: corrected for all quantities that were tested.
        problems_needed: for a power of 80%, if the difference is as seen, or as asked for; None where it cannot be
            said: nothing was seen, or seeds are too few.
    """

    key: str
    a: float
    b: float
    difference: Interval
    p: float
    p_holm: float
    problems_needed: int | None

    @property
    def better(self) -> str | None:
        """`A` or `B`, or None where they cannot be told apart."""
        if self.p_holm >= 0.05:
            return None
        return "B" if self.difference.value > 0 else "A"


def evaluation_file(source: str) -> Path:
    """The episodes of an evaluation: of a run's last stage, of a run's evaluation `RUN:NAME`, or of a file.

    Raises:
        ConfigError: nothing of the kind is there.
    """
    path, (run, _, name) = Path(source), source.rpartition(":")
    if path.suffix in (".json", ".jsonl"):
        file = path.with_suffix(".jsonl")
        if not file.is_file():
            raise ConfigError(f"{source}: {file} does not exist; `score eval` writes it beside the .json")
        return file
    if RunDirectory(path).config.is_file():
        directory = RunDirectory(path)
        names = [label for label, _ in stage_plan(directory.load_settings())]
        found = [directory.eval / f"{label}.jsonl" for label in reversed(names)]
    elif run and RunDirectory(Path(run)).config.is_file():
        directory = RunDirectory(Path(run))
        found = [directory.eval / f"{name}.jsonl"]
    else:
        raise ConfigError(f"{source}: no run, RUN:NAME or .json of an evaluation")
    for file in found:
        if file.is_file():
            return file
    there = sorted(file.stem for file in directory.eval.glob("*.jsonl"))
    raise ConfigError(f"{source}: no such evaluation in {directory.eval} (there: {', '.join(there) or 'none'})")


def read_outcomes(source: str) -> Outcomes:
    """What is compared of an evaluation.

    Raises:
        ConfigError: there is no such evaluation.
        DataError: its file cannot be read, is empty or has episodes with different numbers of attempts.
    """
    file = evaluation_file(source)
    samples: dict[Key, list[tuple[bool, bool]]] = {}
    attempts = set()
    for episode in read_episodes(file):
        attempts.add(len(episode.attempts))
        of_problem = samples.setdefault((episode.problem.id, episode.problem.question), [])
        if episode.graded:
            of_problem.append((episode.attempts[0].correct, episode.attempts[-1].correct))
    if len(attempts) != 1 or 0 in attempts:
        raise DataError(f"{file}: episodes with {sorted(attempts)} attempts; expected one number for all, not 0")
    return Outcomes(file, attempts.pop(), samples)


def shared_problems(sides: Sequence[Outcomes], *, common: bool = False) -> list[Key]:
    """The problems that all have graded, which must be those that all were asked.

    Args:
        common: leave out what not all were asked.

    Raises:
        ConfigError: different problems or attempts, or none that all have graded.
    """
    first = sides[0]
    for other in sides[1:]:
        if other.attempts != first.attempts:
            raise ConfigError(
                f"{first.file} has {first.attempts} attempts a problem and {other.file} {other.attempts}; "
                "evaluate both with the same --attempts"
            )
        both = len(first.samples.keys() & other.samples.keys())
        if first.samples.keys() != other.samples.keys() and not common:
            raise ConfigError(
                f"{first.file} has {len(first.samples)} problems and {other.file} {len(other.samples)}, {both} of them "
                f"in common by id and question; {'--common compares on those' if both else 'nothing can be paired'}"
            )
    keys = [key for key in first.samples if all(side.samples.get(key) for side in sides)]
    if len(keys) < 2:
        raise ConfigError(f"{first.file} and the others have {len(keys)} graded problems in common; nothing to compare")
    return keys


def compare(a: Sequence[Outcomes], b: Sequence[Outcomes], keys: Sequence[Key], delta: float | None) -> list[Comparison]:
    """Comparisons of acc@t1, of acc of the last attempt and of delta between them; only the first with one attempt.

    Args:
        a: one evaluation, or one for each seed.
        b: as many; those at equal places are paired.
        keys: the problems to compare on.
        delta: difference to say the number of problems for; the one seen when None.

    Raises:
        ConfigError: different numbers of seeds.
    """
    if len(a) != len(b):
        raise ConfigError(f"{len(a)} evaluations against {len(b)}; give equally many, seed by seed")
    last = a[0].attempts
    weights = {"acc/t1": (1, 0)} | ({f"acc/t{last}": (0, 1), f"delta/t1_t{last}": (-1, 1)} if last > 1 else {})
    rows = [
        _compared(key, [_values(s, keys, w) for s in a], [_values(s, keys, w) for s in b], delta)
        for key, w in weights.items()
    ]
    return [row._replace(p_holm=p) for row, p in zip(rows, holm([row.p for row in rows]), strict=True)]


def _values(side: Outcomes, keys: Sequence[Key], weights: tuple[int, int]) -> list[list[int]]:
    """The quantity for each sample of each problem."""
    first, last = weights
    return [[first * t1 + last * tk for t1, tk in side.samples[key]] for key in keys]


def _compared(key: str, a: Sequence[list[list[int]]], b: Sequence[list[list[int]]], delta: float | None) -> Comparison:
    before = [[fmean(samples) for samples in seed] for seed in a]
    after = [[fmean(samples) for samples in seed] for seed in b]
    changes = [[y - x for x, y in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]
    one_sample = all(len(samples) == 1 for seed in (*a, *b) for samples in seed)
    means = fmean(map(fmean, before)), fmean(map(fmean, after))
    # Two deltas may differ by 2, twice what intervals are for.
    scale = 2 if key.startswith("delta") else 1
    if len(changes) > 1:
        found = hierarchical([[x / scale for x in seed] for seed in changes], difference=True)
        return Comparison(key, *means, _times(found, scale), hierarchical_p(changes), 1.0, None)
    (change,) = changes
    if one_sample and scale == 1:
        gained, lost = change.count(1), change.count(-1)
        difference, p = paired_difference(gained, lost, len(change)), mcnemar(gained, lost)
    else:
        difference = _times(clustered([[x / scale] for x in change], difference=True), scale)
        p = sign_flip(change)
    wanted = abs(difference.value) if delta is None else delta
    needed = _needed(wanted, change, exact=one_sample and scale == 1) if wanted else None
    return Comparison(key, *means, difference, p, 1.0, needed)


def _needed(wanted: float, change: Sequence[float], *, exact: bool) -> int:
    if exact:
        return mcnemar_problems(wanted, max(wanted, fmean(map(abs, change))))
    return problems_for(wanted, (fmean(x * x for x in change) - fmean(change) ** 2) ** 0.5)


def _times(interval: Interval, factor: int) -> Interval:
    return Interval(*(factor * x for x in interval))


def in_words(row: Comparison, problems: int, *, delta: float | None = None) -> str:
    """What the comparison says, as a sentence; differences in points.

    Args:
        delta: what `problems_needed` was asked for.
    """
    value, low, high = (100 * x for x in row.difference)
    tested = f"p {p_text(row.p_holm)}" if row.p_holm < 1e-4 else f"p = {p_text(row.p_holm)}"
    if row.better is not None:
        ends = (low, high) if value > 0 else (-high, -low)
        return f"{row.key}: {row.better} is better by {abs(value):.1f} points [{ends[0]:.1f}, {ends[1]:.1f}], {tested}"
    text = f"{row.key}: can't tell, B - A = {value:+.1f} points [{low:+.1f}, {high:+.1f}], {tested}"
    if row.problems_needed is None:
        return text
    wanted = "a difference like that" if delta is None else f"a difference of {100 * delta:g} points"
    return f"{text}; {wanted} would need about {_rounded(row.problems_needed):,} problems, here are {problems:,}"


def caution(rows: Sequence[Comparison]) -> str | None:
    """A sentence where a better delta comes with a worse first attempt, by which it can be bought."""
    if len(rows) < 3 or rows[2].better is None:
        return None
    first, last, delta = rows
    worse = first.difference.value * delta.difference.value < 0
    return f"the better {delta.key} comes with a lower {first.key}: go by {last.key}" if worse else None


def _rounded(number: int) -> int:
    """To two digits, above 100."""
    return round(number, 2 - len(str(number))) if number > 100 else number


def p_text(p: float) -> str:
    """A p-value with two digits.

    >>> p_text(0.0314), p_text(0.00031), p_text(1e-9)
    ('0.031', '0.00031', '< 0.0001')
    """
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
