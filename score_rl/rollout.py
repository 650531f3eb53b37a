"""Plays episodes: problems in, trees of graded attempts out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from score_rl.chat import Chat
from score_rl.decode import Engine
from score_rl.draws import derive
from score_rl.episodes import Attempt, Critique, Episode, Grade, Problem
from score_rl.grading import Grader, Grading
from score_rl.schema import SamplingSettings


@dataclass(frozen=True)
class Plan:
    """How episodes are played.

    Attributes:
        branch: attempts drawn from each context; [n, m] is a tree of n first attempts with m second attempts each.
        max_new_tokens: token limit of each attempt.
        sampling: how tokens are drawn.
        rows: decoded at once, at most (a problem's tree is never split).
    """

    branch: tuple[int, ...]
    max_new_tokens: tuple[int, ...]
    sampling: SamplingSettings
    rows: int = 512


Place = tuple[int, tuple[int, ...]]
"""Where an attempt stands: its problem's place in the whole list, and the path to it in the problem's tree."""


@dataclass
class _Part:
    """Sampled episodes of some problems, and the grades on their way, with the places of the attempts they are for."""

    places: range
    trees: dict[int, list[Episode]]
    gradings: list[tuple[list[Place], Grading]]

    def graded(self) -> list[Episode]:
        """The episodes with their grades, waited for."""
        grades: dict[Place, Grade] = {}
        for places, grading in self.gradings:
            grades |= zip(places, grading.result(), strict=True)
        done: dict[Place, Attempt] = {}
        episodes = []
        for i in self.places:
            for episode in self.trees[i]:
                for k, attempt in enumerate(episode.attempts, start=1):
                    place = (i, episode.path[:k])
                    if place not in done:  # episodes that share an attempt share the object
                        grade = grades.get(place, attempt.grade)
                        if grade is None and k > 1:  # it was not handed to the grader: it keeps the attempt before it
                            grade = _grade_of(done[i, episode.path[: k - 1]]).of_keeping()
                        done[place] = dataclasses.replace(attempt, grade=grade)
                attempts = tuple(done[i, episode.path[:k]] for k in range(1, len(episode.path) + 1))
                episodes.append(dataclasses.replace(episode, attempts=attempts))
        return episodes


class Player:
    """Plays problems with an engine, a chat and a grader, which works while the engine goes on."""

    def __init__(self, engine: Engine, chat: Chat, grader: Grader) -> None:
        self.engine = engine
        self.chat = chat
        self.grader = grader

    def prove(self) -> None:
        """Nothing; an engine with weights of its own shows that it gets the policy's."""

    @staticmethod
    def problems_at_once(plan: Plan) -> int:
        """Problems that are decoded together; a call that is split at multiples of it gives the same bits."""
        return max(1, plan.rows // prod(plan.branch))

    def play(
        self,
        problems: Sequence[Problem],
        plan: Plan,
        purpose: tuple[object, ...],
        *,
        first_attempts: Sequence[Sequence[Attempt] | None] | None = None,
        progress: Callable[[int], None] | None = None,
        first: int = 0,
    ) -> list[Episode]:
        """Episodes of all problems, problem by problem, `branch`'s product each.

        Args:
            purpose: what the random draws are for, e.g. (seed, "rollout", stage, step); with the problem's place in
                the whole list, the attempt's place in the tree and the position it determines every draw.
            first_attempts: for each problem, stored first attempts to start from (as many as `branch[0]`), or None.
            progress: called with the number of problems played and graded since the last call.
            first: place of `problems[0]` in the whole list, where the ones before it were played by another call.
        """
        size = self.problems_at_once(plan)
        stored = first_attempts or [None] * len(problems)
        parts = [range(start, min(start + size, len(problems))) for start in range(0, len(problems), size)]
        episodes: list[Episode] = []
        waiting: list[_Part] = []
        for number, part in enumerate(parts):
            waiting.append(self._play_part(problems, part, plan, purpose, stored, first))
            # The last part that was sampled is graded while the next one is.
            while waiting and (len(waiting) > 1 or number == len(parts) - 1):
                episodes += waiting[0].graded()
                if progress:
                    progress(len(waiting[0].places))
                del waiting[0]
        return episodes

    def _play_part(
        self,
        problems: Sequence[Problem],
        part: range,
        plan: Plan,
        purpose: tuple[object, ...],
        stored: Sequence[Sequence[Attempt] | None],
        first: int,
    ) -> _Part:
        places = range(first + part.start, first + part.stop)
        given = [i for i in places if stored[i - first] is not None]
        drawn = [i for i in places if stored[i - first] is None]
        # Drawn first attempts have a cache to continue and given ones have none, so they go through apart.
        played = _Part(places, {i: [] for i in places}, [])
        for group, fixed in ((drawn, False), (given, True)):
            if not group:
                continue
            session = self.engine.open()
            nodes = [(i, Episode(problems[i - first], (), ())) for i in group]
            parents: list[int] | None = None
            for depth, children in enumerate(plan.branch):
                last = depth == len(plan.branch) - 1
                if depth == 0 and fixed:
                    nodes = [
                        (i, self._append(e, dataclasses.replace(a, sampled=False), j))
                        for i, e in nodes
                        for j, a in enumerate(_take(stored[i - first], children))
                    ]
                    continue
                nodes, parents = self._grow(session, nodes, parents, children, depth, plan, purpose, last)
                played.gradings.append(self._submit(nodes))
            for i, episode in nodes:
                played.trees[i].append(episode)
        return played

    def _grow(
        self,
        session: object,
        nodes: list[tuple[int, Episode]],
        continues: list[int] | None,
        children: int,
        depth: int,
        plan: Plan,
        purpose: tuple[object, ...],
        last: bool,
    ) -> tuple[list[tuple[int, Episode]], list[int]]:
        """Each node's episode with one more attempt, `children` times; `continues` tells the session's rows."""
        spread = [n for n in range(len(nodes)) for _ in range(children)]
        paths = [(*nodes[n][1].path, j) for n in range(len(nodes)) for j in range(children)]
        places = [(*purpose, nodes[n][0], path) for n, path in zip(spread, paths, strict=True)]
        parents = None if continues is None else spread
        critiques: list[Critique | None] = [None] * len(spread)
        if depth and self.chat.settings.feedback is not None:
            critiques = self._criticise(session, [nodes[n][1] for n in spread], parents, places, depth, plan)
            parents = list(range(len(spread)))
            rows = [(nodes[n][1], critique) for n, critique in zip(spread, critiques, strict=True)]
            contexts = [self.chat.context(e.problem.question, e.attempts, critique) for e, critique in rows]
        else:
            shared = [self.chat.context(e.problem.question, e.attempts) for _, e in nodes]
            contexts = [shared[n] for n in spread]
        samples = session.sample(  # type: ignore[attr-defined]
            contexts,
            parents,
            [derive(*place) for place in places],
            plan.sampling,
            plan.max_new_tokens[depth],
            last=last,
        )
        grown = []
        for n, path, context, critique, sample in zip(spread, paths, contexts, critiques, samples, strict=True):
            attempt = Attempt(
                context_ids=context,
                token_ids=sample.token_ids,
                text=self.chat.decode(sample.token_ids),
                finished=sample.finished,
                engine_logprobs=sample.logprobs,
                critique=critique,
            )
            grown.append((nodes[n][0], self._append(nodes[n][1], attempt, path[-1])))
        return grown, spread

    def _criticise(
        self,
        session: object,
        episodes: Sequence[Episode],
        parents: list[int] | None,
        places: Sequence[tuple[object, ...]],
        depth: int,
        plan: Plan,
    ) -> list[Critique | None]:
        """What the policy says of each episode's last attempt, in as many tokens as the next one may have."""
        samples = session.sample(  # type: ignore[attr-defined]
            [self.chat.feedback_context(e.problem.question, e.attempts) for e in episodes],
            parents,
            [derive(*place, "critique") for place in places],
            plan.sampling,
            plan.max_new_tokens[depth],
        )
        return [Critique(s.token_ids, self.chat.decode(s.token_ids), s.finished) for s in samples]

    def _submit(self, nodes: Sequence[tuple[int, Episode]]) -> tuple[list[Place], Grading]:
        """The last attempts' grades on their way; an attempt that keeps the one before it gets that one's."""
        keeps = self.chat.settings.keeps
        own = [(i, e) for i, e in nodes if not keeps(len(e.attempts), e.attempts[-1].text)]
        grading = self.grader.submit([e.attempts[-1].text for _, e in own], [e.problem for _, e in own])
        return [(i, e.path) for i, e in own], grading

    @staticmethod
    def _append(episode: Episode, attempt: Attempt, child: int) -> Episode:
        return Episode(episode.problem, (*episode.attempts, attempt), (*episode.path, child))


def _take(attempts: Sequence[Attempt] | None, number: int) -> Sequence[Attempt]:
    assert attempts is not None and len(attempts) >= number, "too few stored first attempts"
    return attempts[:number]


def _grade_of(attempt: Attempt) -> Grade:
    assert attempt.grade is not None, "the attempt has not been graded"
    return attempt.grade
