"""Whether a run self-corrects, in a sentence that its intervals allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from score_rl.power import problems_for
from score_rl.report.source import Evaluation, Run
from score_rl.report.summary import Summary, change
from score_rl.report.text import about, number, percent
from score_rl.run import stage_plan
from score_rl.stats import Z95

NEGLIGIBLE = 0.01
"""A gain that the interval keeps below this is called none."""

CUT_OFF = 0.05
"""A share of cut-off attempts that is worth a word."""


@dataclass(frozen=True)
class Verdict:
    """The sentence: its first words, which are the verdict, and the rest; and what one must know to believe it.

    Attributes:
        kind: `yes`, `no`, `unsure`, or `none` where nothing was measured.
    """

    kind: str
    claim: str
    rest: str
    notes: list[str]


def judge(run: Run, summaries: Mapping[str, Summary]) -> Verdict:
    """The verdict on the last stage that was evaluated.

    Args:
        summaries: of the evaluations, by name.
    """
    if not run.evaluations:
        return Verdict("none", "Nothing measured yet", "the first evaluation has not finished.", _progress(run))
    last = run.evaluations[-1]
    kind, claim, rest = _claim(last)
    if last.name == "base":  # says little about what is being trained
        so_far = claim[:1].lower() + claim[1:] + ("" if kind == "yes" else " yet")
        kind, claim, rest = "none", "No stage finished", f"{so_far}; {rest}"
    notes = [*_progress(run), *_first_attempt(run.evaluations[0], last, summaries), *_cautions(last.metrics)]
    return Verdict(kind, claim, rest, notes)


def _claim(evaluation: Evaluation) -> tuple[str, str, str]:
    metrics, when = evaluation.metrics, evaluation.title[:1].lower() + evaluation.title[1:]
    found = [number(metrics, f"delta/t1_t2{end}") for end in ("", ".low", ".high")]
    first, second = number(metrics, "acc/t1"), number(metrics, "acc/t2")
    if None in found or first is None or second is None:
        return "none", "No verdict", f"{when} there was one attempt a problem, so there is nothing to compare."
    delta, low, high = (float(value) for value in found if value is not None)
    right = f"{when} the second attempt is right on {percent(second)}% of problems and the first on {percent(first)}%"
    interval = f"95% interval {percent(low, sign=True)} to {percent(high, sign=True)}"
    if low > 0:
        return "yes", "It self-corrects", f"{right}, a gain of {percent(delta)} points ({interval})."
    if high < 0:
        return "no", "It does not self-correct", f"{right}, a loss of {percent(-delta)} points ({interval})."
    if high < NEGLIGIBLE:
        return (
            "no",
            "It does not self-correct",
            f"{right}; a gain of {percent(NEGLIGIBLE)} points is ruled out ({interval}).",
        )
    needed = _needed(delta, high - low, number(metrics, "problems"))
    return "unsure", "Can't tell whether it self-corrects", f"{right}, and the {interval} holds 0{needed}."


def _needed(delta: float, width: float, problems: float | None) -> str:
    """How many problems would settle it if the difference were as measured."""
    if not delta or not problems:
        return ""
    needed = about(problems_for(delta, width / (2 * Z95) * sqrt(problems)))
    return f"; to tell a difference of {percent(abs(delta))} points takes about {needed} problems"


def _progress(run: Run) -> list[str]:
    if run.finished:
        return []
    total = sum(run.settings.stages[index].steps for _, index in stage_plan(run.settings))
    done = max((int(number(row, "step") or 0) for row in run.steps), default=0)
    return [f"The run has not finished: step {done} of {total}. Numbers are those so far."]


def _first_attempt(base: Evaluation, last: Evaluation, summaries: Mapping[str, Summary]) -> list[str]:
    """What became of attempt 1, since delta can be bought with it."""
    if base.name != "base" or base is last:
        return []
    before, after = summaries.get(base.name), summaries.get(last.name)
    found = change(before, after, 1) if before and after else None
    if found is None:
        return []
    (value, low, high), problems = found
    interval = f"95% interval {percent(low, sign=True)} to {percent(high, sign=True)}, {problems:,} problems"
    if high < 0:
        return [
            f"Attempt 1 fell by {percent(-value)} points from before training ({interval}): "
            "part of the gain is a worse first attempt."
        ]
    if value < 0:
        return [f"Attempt 1 is {percent(-value)} points lower than before training, which may be chance ({interval})."]
    if value == 0:
        return [f"Attempt 1 is as often right as before training ({interval})."]
    if low > 0:
        return [f"Attempt 1 rose by {percent(value)} points from before training ({interval})."]
    return [f"Attempt 1 is {percent(value)} points higher than before training, which may be chance ({interval})."]


def _cautions(metrics: Mapping[str, Any]) -> list[str]:
    notes = []
    cut = [(k, number(metrics, f"truncated/t{k}") or 0.0) for k in (1, 2)]
    if any(share > CUT_OFF for _, share in cut):
        shares = " and ".join(f"{percent(share)}% of attempts {k}" for k, share in cut)
        notes.append(f"{shares} were cut off at the token limit: every accuracy is a lower bound.")
    ungraded = number(metrics, "ungraded")
    if ungraded:
        notes.append(f"{ungraded:,.0f} episodes could not be graded and count in nothing.")
    return notes
