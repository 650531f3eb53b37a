"""Correction traces to imitate: STaR (Zelikman et al. 2022) and Pair-SFT (Welleck et al. 2023) on two attempts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

from score_rl.chat import Chat
from score_rl.draws import derive
from score_rl.episodes import Attempt, Episode
from score_rl.errors import DataError
from score_rl.metrics import training_metrics
from score_rl.records import read_jsonl
from score_rl.rollout import Plan
from score_rl.schedule import round_of, shuffled
from score_rl.supply import Drawn, StageRun


def star_traces(episodes: Iterable[Episode], *, keep_correct: bool) -> list[Episode]:
    """The episodes that end right and go from right to wrong nowhere, in order.

    Args:
        keep_correct: also those that were right from the start (the paper's D+); episodes of one attempt always are.
    """
    kept = []
    for episode in episodes:
        marks = [attempt.correct for attempt in episode.attempts]
        if marks[-1] and marks == sorted(marks) and (keep_correct or not marks[0] or len(marks) == 1):
            kept.append(episode)
    return kept


def pair_traces(
    episodes: Sequence[Episode], chat: Chat, key: tuple[object, ...], *, keep_correct: bool
) -> list[Episode]:
    """Each right attempt behind a wrong one of the same question, in random order, as an episode of two attempts.

    All wrong attempts have had their turn before one comes again. A question without a right or without a wrong attempt
    gives no such pair.

    Args:
        episodes: of one attempt each; those of one question stand together.
        key: of the random order; with the question's place it determines the pairs.
        keep_correct: each right attempt also stands behind another right one (the paper's D+), if there are two.
    """
    pairs = []
    for place, attempts in enumerate(_by_question(episodes)):
        random = Random(derive(*key, place))
        right = [episode for episode in attempts if episode.attempts[0].correct]
        wrong = [episode for episode in attempts if not episode.attempts[0].correct]
        random.shuffle(right)
        random.shuffle(wrong)
        for number, last in enumerate(right):
            if wrong:
                pairs.append(_pair(wrong[number % len(wrong)], last, chat))
            if keep_correct and len(right) > 1:
                pairs.append(_pair(right[number - 1], last, chat))
    return pairs


def _by_question(episodes: Iterable[Episode]) -> list[list[Episode]]:
    """A list for each question, also where one was drawn twice in a row: its paths begin again."""
    groups: list[list[Episode]] = []
    for episode in episodes:
        before = groups[-1][-1] if groups else None
        if before is None or before.problem.id != episode.problem.id or before.path >= episode.path:
            groups.append([])
        groups[-1].append(episode)
    return groups


def _pair(first: Episode, last: Episode, chat: Chat) -> Episode:
    before, after = first.attempts[0], last.attempts[0]
    context = chat.context(last.problem.question, [before])
    return Episode(last.problem, (before, replace(after, context_ids=context)), (first.path[0], last.path[0]))


def to_imitate(episode: Episode, credit: Literal["last", "all"]) -> Episode:
    """The episode with reward 1 for what is trained: the last attempt given those before it, or all of them.

    An attempt that is not trained counts as stored, and no attempt keeps the log-probs of an engine, which had another
    policy or another context.
    """
    last = len(episode.attempts) - 1

    def mark(k: int, attempt: Attempt) -> Attempt:
        trained = credit == "all" or k == last
        assert attempt.grade is not None, "the attempt has not been graded"
        grade = replace(attempt.grade, reward=1.0) if trained else attempt.grade
        return replace(attempt, sampled=trained, engine_logprobs=(), grade=grade)

    return replace(episode, attempts=tuple(mark(k, attempt) for k, attempt in enumerate(episode.attempts)))


class Part(NamedTuple):
    """What was sampled on the questions of one step.

    Attributes:
        marks: how many episodes have which marks, e.g. `01` for wrong, then right.
        metrics: means over all of them, as of a step of RL.
        traces: those to imitate.
    """

    step: int
    marks: dict[str, int]
    metrics: dict[str, float]
    traces: list[Episode]

    def to_json(self) -> dict[str, Any]:
        """A dictionary for one JSON line."""
        return {**self._asdict(), "traces": [episode.to_json() for episode in self.traces]}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Part:
        """What `to_json` wrote."""
        return cls(**{**row, "traces": [Episode.from_json(trace) for trace in row["traces"]]})


class Traces:
    """The traces of a stage: sampled at the start of each of its rounds, kept, and given out in shuffled passes."""

    def __init__(self, work: StageRun) -> None:
        self.work = work
        self._span: range | None = None
        self._parts: list[Part] = []
        self._kept: list[Episode] = []

    def draw(self, step: int, pause: Callable[[], None]) -> Drawn:
        """As `Supply.draw`.

        Raises:
            DataError: nothing that was sampled for the round is a trace.
        """
        stage = self.work.stage
        number, span = round_of(stage, step)
        if span != self._span:
            self._begin(number, span, pause)
        place = step - span.start
        key = (self.work.settings.seed, "traces", self.work.place, number)
        episodes = shuffled(self._kept, place * stage.episodes, stage.episodes, key)
        kept, sampled = len(self._kept), sum(sum(part.marks.values()) for part in self._parts)
        told = {
            "traces/kept": kept,
            "traces/share": kept / sampled,
            "traces/passes": (place + 1) * stage.episodes / kept,
        }
        restart = stage.restarts and number > 0 and place == 0
        return Drawn(episodes, self._parts[place].metrics | told, on_policy=False, restart=restart)

    def _begin(self, number: int, span: range, pause: Callable[[], None]) -> None:
        """Has the traces of a round, from its file as far as they are there."""
        work, group = self.work, self.work.player.parallel.group
        file = work.run.path / "traces" / f"{work.label}-{number + 1}.jsonl"
        parts = [Part.from_json(row) for row in group.first(lambda: _finished_lines(file))]
        with work.screen.task(f"{work.label} traces", len(span), len(parts)) as advance:
            for step in span[len(parts) :]:
                part = self._sample(step)
                group.first(lambda part=part: work.run.append(file, [part.to_json()]))  # type: ignore[misc]
                parts.append(part)
                advance(1, "")
                pause()
        self._parts, self._kept = parts, [trace for part in parts for trace in part.traces]
        with group.together():
            if not self._kept:
                raise DataError(self._nothing(number))
        self._span = span

    def _sample(self, step: int) -> Part:
        """Plays the questions of a step with the policy as it is."""
        work, stage, settings = self.work, self.work.stage, self.work.settings
        pairs = stage.traces == "pairs"
        branch, limits = tuple(stage.branch), tuple(stage.max_new_tokens)
        if pairs:  # as many attempts, all of them first ones
            branch, limits = (sum(prod(branch[: k + 1]) for k in range(len(branch))),), limits[:1]
        plan = Plan(branch, limits, stage.sampling, settings.train.rollout_rows)
        key = (settings.seed, "traces", work.place, step)
        played = work.player.play(work.questions(step), plan, key)
        episodes = [episode for episode in played if episode.graded]
        chat = work.player.player.chat
        found = (
            pair_traces(episodes, chat, (*key, "pairs"), keep_correct=stage.keep_correct)
            if pairs
            else star_traces(episodes, keep_correct=stage.keep_correct)
        )
        marks = Counter("".join("01"[attempt.correct] for attempt in episode.attempts) for episode in episodes)
        metrics = (training_metrics(episodes) if episodes else {}) | {"ungraded": len(played) - len(episodes)}
        return Part(step, dict(sorted(marks.items())), metrics, [to_imitate(e, stage.credit) for e in found])

    def _nothing(self, number: int) -> str:
        """Why a round has no traces, and what to do."""
        stage, marks = self.work.stage, sum((Counter(part.marks) for part in self._parts), Counter())
        where = f"stages.{self.work.index} ({self.work.label}), round {number + 1}"
        words = {"0": "wrong", "1": "right"}
        counts = ", ".join(f"{n:,} {', then '.join(words[mark] for mark in key)}" for key, n in sorted(marks.items()))
        kind = "first attempts" if stage.traces == "pairs" else "episodes"
        mend = "draw more (problems, branch, or fewer rounds), raise sampling.temperature"
        if stage.attempts > 1 and not stage.keep_correct:
            mend += ", set keep_correct=true"
        return (
            f"{where}: nothing to imitate among {sum(marks.values()):,} {kind} ({counts or 'none graded'}); "
            f"{mend}, or start from a policy that is right more often"
        )


def _finished_lines(file: Path) -> list[dict[str, Any]]:
    """Rows that were written to their end; what a killed run left of another is cut off."""
    if not file.is_file():
        return []
    content = file.read_bytes()
    os.truncate(file, content.rfind(b"\n") + 1)
    return [row for _, row in read_jsonl(file)]
