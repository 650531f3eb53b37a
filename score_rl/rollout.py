"""Plays episodes: problems in, trees of graded attempts out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from score_rl.chat import Chat
from score_rl.decode import Engine
from score_rl.draws import derive
from score_rl.episodes import Attempt, Episode, Problem
from score_rl.rewards import Grader
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


class Player:
    """Plays problems with an engine, a chat and a grader."""

    def __init__(self, engine: Engine, chat: Chat, grader: Grader) -> None:
        self.engine = engine
        self.chat = chat
        self.grader = grader

    def play(
        self,
        problems: Sequence[Problem],
        plan: Plan,
        purpose: tuple[object, ...],
        *,
        first_attempts: Sequence[Sequence[Attempt] | None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Episode]:
        """Episodes of all problems, problem by problem, `branch`'s product each.

        Args:
            purpose: what the random draws are for, e.g. (seed, "rollout", stage, step); with the problem's place in
                `problems`, the attempt's place in the tree and the position it determines every draw.
            first_attempts: for each problem, stored first attempts to start from (as many as `branch[0]`), or None.
            progress: called with the number of problems played since the last call.
        """
        leaves = 1
        for children in plan.branch:
            leaves *= children
        size = max(1, plan.rows // leaves)
        stored = first_attempts or [None] * len(problems)
        episodes: list[Episode] = []
        for start in range(0, len(problems), size):
            part = range(start, min(start + size, len(problems)))
            episodes += self._play_part(problems, part, plan, purpose, stored)
            if progress:
                progress(len(part))
        return episodes

    def _play_part(
        self,
        problems: Sequence[Problem],
        part: range,
        plan: Plan,
        purpose: tuple[object, ...],
        stored: Sequence[Sequence[Attempt] | None],
    ) -> list[Episode]:
        given = [i for i in part if stored[i] is not None]
        drawn = [i for i in part if stored[i] is None]
        # Drawn first attempts have a cache to continue and given ones have none, so they go through apart.
        trees: dict[int, list[Episode]] = {i: [] for i in part}
        for group, fixed in ((drawn, False), (given, True)):
            if not group:
                continue
            session = self.engine.open()
            nodes = [(i, Episode(problems[i], (), ())) for i in group]
            parents: list[int] | None = None
            for depth, children in enumerate(plan.branch):
                last = depth == len(plan.branch) - 1
                if depth == 0 and fixed:
                    nodes = [
                        (i, self._append(e, dataclasses.replace(a, sampled=False), j))
                        for i, e in nodes
                        for j, a in enumerate(_take(stored[i], children))
                    ]
                    continue
                nodes, parents = self._grow(session, nodes, parents, children, depth, plan, purpose, last)
            for i, episode in nodes:
                trees[i].append(episode)
        return [episode for i in part for episode in trees[i]]

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
        contexts = [self.chat.context(episode.problem.question, episode.attempts) for _, episode in nodes]
        spread = [n for n in range(len(nodes)) for _ in range(children)]
        paths = [(*nodes[n][1].path, j) for n in range(len(nodes)) for j in range(children)]
        keys = [derive(*purpose, nodes[n][0], path) for n, path in zip(spread, paths, strict=True)]
        samples = session.sample(  # type: ignore[attr-defined]
            [contexts[n] for n in spread],
            None if continues is None else spread,
            keys,
            plan.sampling,
            plan.max_new_tokens[depth],
            last=last,
        )
        grown = []
        for n, path, sample in zip(spread, paths, samples, strict=True):
            text = self.chat.decode(sample.token_ids)
            attempt = Attempt(
                context_ids=contexts[n],
                token_ids=sample.token_ids,
                text=text,
                finished=sample.finished,
                engine_logprobs=sample.logprobs,
                grade=self.grader(text, nodes[n][1].problem),
            )
            grown.append((nodes[n][0], self._append(nodes[n][1], attempt, path[-1])))
        return grown, spread

    @staticmethod
    def _append(episode: Episode, attempt: Attempt, child: int) -> Episode:
        return Episode(episode.problem, (*episode.attempts, attempt), (*episode.path, child))


def _take(attempts: Sequence[Attempt] | None, number: int) -> Sequence[Attempt]:
    assert attempts is not None and len(attempts) >= number, "too few stored first attempts"
    return attempts[:number]
