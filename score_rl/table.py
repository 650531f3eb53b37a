"""The tables of a sweep: every row with its intervals, and what can be said of its difference from the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from score_rl.compare import Outcomes, compare, shared_problems
from score_rl.errors import ConfigError
from score_rl.metrics import share
from score_rl.report.text import number
from score_rl.resampling import clustered, hierarchical
from score_rl.stats import Interval, holm, paired_difference
from score_rl.table_source import Metrics, Result, Row, Sweep

LEVEL = 0.05
COMPARED = ("acc/t2", "delta/t1_t2")
"""What a row is tested for against the reference."""

RATES = ("rate/fix", "rate/break")
FIXED = (*RATES, "acc/t2")
"""What is told of corrections of the base model's first attempts; of own ones the rates."""

Pick = Callable[[bool, bool], int]
COUNTED: dict[str, Pick] = {
    "acc/t1": lambda t1, t2: t1,
    "acc/t2": lambda t1, t2: t2,
    "delta/t1_t2": lambda t1, t2: t2 - t1,
    "delta/i_c": lambda t1, t2: t2 and not t1,
    "delta/c_i": lambda t1, t2: t1 and not t2,
}
"""What the two attempts at a problem count for."""

BUDGET = ("pass/t1@2", "maj/t1@2", "acc/t2")
"""Ways to spend two attempts a problem: the better of two with an oracle, the majority, and one corrected."""


class Difference(NamedTuple):
    """One quantity of a row less that of the reference, on the same problems, as fractions.

    Attributes:
        p: of one pair of runs by exact McNemar or random exchanges, of several by Student's t.
        p_holm: corrected for all tests of the table.
        paper: the same difference in the paper; None where it is not known.
    """

    interval: Interval
    p: float
    p_holm: float
    paper: float | None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `can't tell`."""
        if self.p_holm >= LEVEL:
            return "can't tell"
        return "better" if self.interval.value > 0 else "worse"

    @property
    def direction(self) -> str | None:
        """Whether it goes the way of the paper's: `same`, `opposite` or `can't tell`; None without a paper's."""
        if self.paper is None:
            return None
        if self.p_holm >= LEVEL or self.paper == 0:
            return "can't tell"
        return "same" if (self.interval.value > 0) == (self.paper > 0) else "opposite"


class Line(NamedTuple):
    """A row of a table.

    Attributes:
        status: how many seeds there are, in words.
        values: with their intervals, by metric; empty where nothing has been run.
        pairs: how many pairs of runs the differences are from; 0 where there is none.
        differences: by metric; empty for the reference itself.
        budget: ways to spend two sampled attempts, by metric of that evaluation; empty where it was not made.
        fixed: corrections of the base model's first attempts, by metric; empty where that evaluation was not made.
        own: the rates of the row's own first attempts, beside them.
    """

    row: Row
    status: str
    values: dict[str, Interval]
    pairs: int
    differences: dict[str, Difference]
    budget: dict[str, Interval]
    fixed: dict[str, Interval]
    own: dict[str, Interval]


class Table(NamedTuple):
    """Rows that are compared with one reference.

    Attributes:
        problems: that the rows were evaluated on; 0 where nothing has been run.
        tests: that p-values are corrected for.
        sampled: how the budgets of its lines were evaluated; empty where there are none.
    """

    name: str
    title: str
    reference: Row | None
    lines: list[Line]
    problems: int
    tests: int
    sampled: str

    @property
    def notes(self) -> list[str]:
        """What one must know to read it, a sentence each."""
        if not self.problems:
            return ["Nothing has been run yet."]
        single = any(len(line.row.results) == 1 for line in self.lines)
        alone = ", of one seed over problems alone" if single else ""
        found = [f"Percent of {self.problems:,} problems, with 95% intervals over seeds and problems{alone}."]
        if self.reference is not None and self.tests:
            found.append(
                f"Differences from {self.reference.title}: on the same problems, runs paired by their seed; p is "
                f"corrected for the {self.tests} tests of this table (Holm). A delta can be bought with a worse "
                "attempt 1: go by acc@t2."
            )
            found += self._counted()
        if self.sampled:
            found.append(
                f"Two sampled attempts ({self.sampled}) are two first attempts, of which an oracle chooses the right "
                "one or a majority votes (a tie is decided by lot), or one corrected attempt."
            )
        if any(line.fixed for line in self.lines):
            found.append(
                "The base model's first attempts are the same for every row: what is made of them compares correctors "
                "on the same mistakes. The fix rate is of wrong first attempts, the break rate of right ones."
            )
        missing = [f"{line.row.title} ({line.status})" for line in self.lines if not line.row.finished]
        if missing:
            found.append(f"Not finished: {'; '.join(missing)}.")
        return found

    def _counted(self) -> list[str]:
        """How many rows are better or worse, and how many differences go the paper's way."""
        sentences = []
        for key, name in zip(COMPARED, ("acc@t2", "delta"), strict=True):
            found = [line.differences[key] for line in self.lines if line.differences]
            said = Counter(d.verdict for d in found)
            against = Counter(d.direction for d in found if d.direction is not None)
            counts = [f"{said[word]} {word}" for word in ("better", "worse", "can't tell")]
            paper = [f"{against[word]} {word}" for word in ("same", "opposite", "can't tell")]
            ways = f"; direction as in the paper, in brackets on its task: {', '.join(paper)}" if against else ""
            sentences.append(f"{name} against the reference, in rows: {', '.join(counts)}{ways}.")
        return sentences


class Cost(NamedTuple):
    """What the finished runs took.

    Attributes:
        machines: what they ran on, each once.
    """

    runs: int
    planned: int
    attempts: int
    hours: float
    machines: list[str]

    @property
    def words(self) -> str:
        """In a line."""
        where = "; ".join(self.machines) or "no machine"
        return (
            f"{self.runs} of {self.planned} runs, {self.attempts:,} attempts sampled in training, {self.hours:.2f} "
            f"hours of runs, on {where}"
        )


def tables(sweep: Sweep) -> list[Table]:
    """The tables that the sweep's file asks for; one of all rows where it asks for none.

    Raises:
        ConfigError: rows of one table were evaluated on different problems.
    """
    return [_table(sweep, name, title, listed) for name, (title, listed) in sweep.tables.items()]


def _table(sweep: Sweep, name: str, title: str, listed: Sequence[str]) -> Table:
    reference = None if sweep.reference is None else sweep.rows[sweep.reference]
    rows = [sweep.rows[row] for row in listed]
    compared = [*rows, *([] if reference is None else [reference])]
    _check_problems([result for row in compared for result in row.results.values()])
    lines = [_line(row, reference) for row in rows]
    keys = [(place, key) for place, line in enumerate(lines) for key in line.differences]
    for (place, key), p in zip(keys, holm([lines[i].differences[k].p for i, k in keys]), strict=True):
        lines[place].differences[key] = lines[place].differences[key]._replace(p_holm=p)
    done = [result for row in rows for result in row.results.values()]
    problems = len(done[0].outcomes.samples) if done else 0
    return Table(name, title, reference, lines, problems, len(keys), _sampled(rows))


def _sampled(rows: Sequence[Row]) -> str:
    found = (evaluation(row, result, BUDGET[0]) for row in rows for result in row.results.values())
    first = next((metrics for metrics in found if metrics is not None), {})
    words = {"problems": "{:,} problems", "samples": "{} samples each", "temperature": "temperature {:g}"}
    return ", ".join(text.format(first[key]) for key, text in words.items() if key in first)


def _check_problems(results: Sequence[Result]) -> None:
    for other in results[1:]:
        first = results[0]
        if (first.problems, len(first.first)) != (other.problems, len(other.first)):
            raise ConfigError(
                f"{other.file}: evaluated on other problems than {first.file} ({len(other.first)} with digest "
                f"{other.problems}, {len(first.first)} with {first.problems}); put them into different tables, or "
                "give both rows the same data and eval settings"
            )


def _line(row: Row, reference: Row | None) -> Line:
    results = list(row.results.values())
    if not results:
        return Line(row, row.status, {}, 0, {}, {}, {}, {})
    sides = [result.outcomes for result in results]
    values = {key: estimate(sides, pick, difference=key == "delta/t1_t2") for key, pick in COUNTED.items()}
    values |= _measured([result.final for result in results], ["unchanged/t2"])
    sampled = [found for result in results if (found := evaluation(row, result, BUDGET[0])) is not None]
    pairs = [] if reference is None or row is reference else pair(row, reference)
    found = _differences(pairs, row, reference) if reference is not None and pairs else {}
    fixed = _measured(after_fixed(row), FIXED)
    own = _measured([result.final for result in results], RATES) if fixed else {}
    return Line(row, row.status, values, len(pairs), found, _measured(sampled, BUDGET), fixed, own)


def estimate(sides: Sequence[Outcomes], pick: Pick, *, difference: bool = False) -> Interval:
    """The mean of what `pick` makes of two attempts, with its interval over seeds and problems.

    Args:
        sides: of one seed each; a single one gives an interval over problems.
        difference: the numbers lie between -1 and 1, and not 0 and 1.
    """
    keys = shared_problems(sides)
    values = [[[int(pick(*marks)) for marks in side.samples[key]] for key in keys] for side in sides]
    if len(values) > 1:
        return hierarchical([[fmean(samples) for samples in seed] for seed in values], difference=difference)
    [only] = values
    if not difference:
        return share(only)
    if any(len(samples) > 1 for samples in only):
        return clustered(only, difference=True)
    changes = [samples[0] for samples in only]
    return paired_difference(changes.count(1), changes.count(-1), len(changes))


def over_seeds(seeds: Sequence[Interval]) -> Interval:
    """The mean of several seeds' values, with an interval from their spread and their own intervals over problems.

    For what is known of each seed as a whole. The seeds' means count with Student's t; the intervals over the same
    problems are taken to move together, which makes the result rather too wide than too narrow.

    >>> over_seeds([Interval(0.5, 0.25, 0.75), Interval(0.5, 0.25, 1.0)])
    Interval(value=0.5, low=0.25, high=0.875)
    """
    value = fmean(seed.value for seed in seeds)
    if len(seeds) == 1:
        return seeds[0]
    from scipy.stats import t

    spread = float(t.isf(0.025, len(seeds) - 1)) * stdev(seed.value for seed in seeds) / sqrt(len(seeds))
    below, above = fmean(seed.value - seed.low for seed in seeds), fmean(seed.high - seed.value for seed in seeds)
    return Interval(value, value - sqrt(below**2 + spread**2), value + sqrt(above**2 + spread**2))


def interval_of(metrics: Metrics, key: str) -> Interval | None:
    """A metric with its interval; None where it was not measured."""
    value, low, high = (number(metrics, f"{key}{end}") for end in ("", ".low", ".high"))
    return None if value is None or low is None or high is None else Interval(value, low, high)


def measured(seeds: Iterable[Metrics], key: str) -> Interval | None:
    """A metric of several seeds' evaluations; None where none has it."""
    found = [interval for metrics in seeds if (interval := interval_of(metrics, key)) is not None]
    if not found:
        return None
    value, low, high = over_seeds(found)
    return Interval(value, max(0.0, low), min(1.0, high))


def _measured(seeds: Sequence[Metrics], keys: Sequence[str]) -> dict[str, Interval]:
    return {key: found for key in keys if (found := measured(seeds, key)) is not None}


def evaluation(row: Row, result: Result, key: str) -> Metrics | None:
    """The evaluation of a run's last model that has a metric: one of those the sweep adds, or the final one.

    Those that go on from another model's first attempts are left out.
    """
    added = [metrics for metrics in _added(row, result) if "first_attempts" not in metrics]
    return next((metrics for metrics in [*added, result.final] if key in metrics), None)


def after_fixed(row: Row) -> list[Metrics]:
    """Of each run that has it, the evaluation that goes on from the base model's first attempts."""
    found = [next((m for m in _added(row, result) if "first_attempts" in m), None) for result in row.results.values()]
    return [metrics for metrics in found if metrics is not None]


def _added(row: Row, result: Result) -> list[Metrics]:
    return [result.evaluations[name] for name in row.extra if name in result.evaluations]


def pair(row: Row, reference: Row) -> list[tuple[Result, Result]]:
    """Runs of the reference and of the row with the same seed.

    A model that is not trained is the same for every seed, and so stands beside each seed of the other.
    """
    ours, theirs = row.results, reference.results
    seeds = [seed for seed in ours if seed in theirs]
    if not row.trained and ours:
        seeds = list(theirs)
    elif not reference.trained and theirs:
        seeds = list(ours)
    return [(_of_seed(theirs, seed), _of_seed(ours, seed)) for seed in seeds]


def _of_seed(results: Mapping[int, Result], seed: int) -> Result:
    return results[seed] if seed in results else next(iter(results.values()))


def _differences(pairs: Sequence[tuple[Result, Result]], row: Row, reference: Row) -> dict[str, Difference]:
    before, after = [a.outcomes for a, _ in pairs], [b.outcomes for _, b in pairs]
    found = {c.key: c for c in compare(before, after, shared_problems([*before, *after]), None)}
    papers = dict.fromkeys(COMPARED, None) | _paper(row, reference)
    return {key: Difference(found[key].difference, found[key].p, 1.0, papers[key]) for key in COMPARED}


def _paper(row: Row, reference: Row) -> dict[str, float]:
    """The paper's differences; accuracies have one digit after the point there, so that 0 is 0."""
    if row.paper is None or reference.paper is None:
        return {}
    (t1, t2), (r1, r2) = row.paper, reference.paper
    return {"acc/t2": round(t2 - r2, 6), "delta/t1_t2": round((t2 - t1) - (r2 - r1), 6)}


def cost(sweep: Sweep) -> Cost:
    """What the finished runs took, of all rows."""
    done = [result for row in sweep.rows.values() for result in row.results.values()]
    machines = {
        f"{made.get('processors', '?')} processors, {made.get('platform', 'an unknown platform')}"
        for made in (result.environment for result in done)
    }
    planned = sum(len(row.seeds) for row in sweep.rows.values())
    seconds = sum(result.seconds for result in done)
    return Cost(len(done), planned, sum(r.attempts_sampled for r in done), seconds / 3600, sorted(machines))
