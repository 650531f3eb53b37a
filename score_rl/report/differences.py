"""What a report on several runs says of their differences: each run against the first, on the same problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from score_rl.compare import Comparison, Outcomes, compare, p_text, shared_problems
from score_rl.errors import ConfigError
from score_rl.report.source import Run
from score_rl.report.summary import Summary
from score_rl.report.text import about, percent


class Difference(NamedTuple):
    """One quantity of two runs, in words and numbers."""

    name: str
    first: str
    other: str
    change: str
    p: str
    says: str


class Pair(NamedTuple):
    """The last evaluated stages of two runs; `rows` is empty where they cannot be compared, and `note` says why."""

    first: str
    other: str
    note: str
    rows: list[Difference]


def differences(runs: Sequence[Run], summaries: Mapping[tuple[str, str], Summary]) -> list[Pair]:
    """The first run against each of the others, after the last stage that each has evaluated."""
    sides = [(run.name, _outcomes(run, summaries)) for run in runs]
    (first, before), *others = sides
    return [_pair(first, before, name, after) for name, after in others]


def _outcomes(run: Run, summaries: Mapping[tuple[str, str], Summary]) -> Outcomes | None:
    last = run.evaluations[-1] if run.evaluations else None
    found = summaries.get((run.name, last.name)) if last else None
    if last is None or found is None or not found.outcomes:
        return None
    attempts = {len(marks) for samples in found.outcomes.values() for marks in samples}
    samples = {key: [(marks[0], marks[-1]) for marks in rows] for key, rows in found.outcomes.items()}
    return Outcomes(last.file, max(attempts), samples)


def _pair(first: str, before: Outcomes | None, other: str, after: Outcomes | None) -> Pair:
    if before is None or after is None:
        return Pair(first, other, "Nothing to compare yet.", [])
    try:
        keys = shared_problems([before, after], common=True)
        found = compare([before], [after], keys, None)
    except ConfigError as error:
        return Pair(first, other, f"{error}.", [])
    note = f"{len(keys):,} problems that both answered; p is corrected for {len(found)} tests (Holm)."
    return Pair(first, other, note, [_row(row) for row in found])


def _row(row: Comparison) -> Difference:
    name = row.key.replace("acc/", "acc@").replace("delta/t1_t", "Δ(t1, t") + (")" if "delta" in row.key else "")
    sign = row.key.startswith("delta")
    value, low, high = (percent(x, sign=True) for x in row.difference)
    says = {"A": "the first is better", "B": "the other is better", None: "can't tell"}[row.better]
    if row.better is None and row.problems_needed is not None:
        says += f": a difference like that takes about {about(row.problems_needed)} problems"
    first, other = percent(row.a, sign=sign), percent(row.b, sign=sign)
    return Difference(name, first, other, f"{value} [{low}, {high}]", p_text(row.p_holm), says)
