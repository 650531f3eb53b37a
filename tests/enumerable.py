"""A policy whose episodes can all be listed, and the library's estimator summed over every batch it can draw.

Letters: C contexts, V vocabulary. All sums are exact, in float64, so a gradient is right or wrong, never "close".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

from score_rl.episodes import Attempt, Episode, Grade, Problem
from score_rl.objectives import (
    Objective,
    advantages,
    kl_estimate,
    length_scale,
    loss,
    per_attempt,
    shape_rewards,
    token_weights,
)
from score_rl.update import tabulate

Tokens = tuple[int, ...]
Offline = Mapping[int, Sequence[Tokens]]


class World:
    """Every context has logits of its own. The last token of the vocabulary ends an attempt.

    Attributes:
        logits: [C, V], the policy's parameters.
        ref: [C, V], the reference's log-probs.
        listed: all attempts, `reward` gives each one's.
    """

    def __init__(self, *, attempts: int = 2, vocabulary: int = 2, length: int = 2, problems: int = 1) -> None:
        self.attempts, self.problems, self.length = attempts, problems, length
        self.listed = self._list((), vocabulary, length)
        self.contexts: list[tuple[int, tuple[Tokens, ...], Tokens]] = [
            (problem, before, prefix)
            for problem in range(problems)
            for k in range(attempts)
            for before in product(self.listed, repeat=k)
            for prefix in sorted({a[:n] for a in self.listed for n in range(len(a))})
        ]
        self._row = {context: row for row, context in enumerate(self.contexts)}
        generator = torch.Generator().manual_seed(7)
        shape = (len(self.contexts), vocabulary)
        self.logits = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        self.ref = torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1)
        self._now = self.logits.detach().log_softmax(-1)

    def _list(self, prefix: Tokens, vocabulary: int, length: int) -> list[Tokens]:
        if len(prefix) == length or (prefix and prefix[-1] == vocabulary - 1):
            return [prefix]
        return [a for token in range(vocabulary) for a in self._list((*prefix, token), vocabulary, length)]

    def reward(self, problem: int, attempt: Tokens) -> float:
        """1, 0.25 and 0 in turn, by the attempt's place in the list; another turn for each problem."""
        return (1.0, 0.25, 0.0)[(self.listed.index(attempt) + problem) % 3]

    def rewards(self, problem: int, attempts: Sequence[Tokens]) -> list[float]:
        return [self.reward(problem, attempt) for attempt in attempts]

    def of_attempt(self, k: int) -> Tensor:
        """[C] True for the contexts in which attempt `k` (from 1) is sampled."""
        return torch.tensor([len(before) == k - 1 for _, before, _ in self.contexts])

    def spots(self, problem: int, before: tuple[Tokens, ...], attempt: Tokens) -> list[tuple[int, int]]:
        """Row and token of each of the attempt's draws."""
        return [(self._row[problem, before, attempt[:n]], attempt[n]) for n in range(len(attempt))]

    def logp(self, values: Tensor, problem: int, before: tuple[Tokens, ...], attempt: Tokens) -> Tensor:
        """Sum of `values` [C, V] over the attempt's draws."""
        return torch.stack([values[spot] for spot in self.spots(problem, before, attempt)]).sum()

    def episodes(self) -> Iterator[tuple[int, tuple[Tokens, ...]]]:
        """Every problem with every chain of attempts."""
        yield from product(range(self.problems), product(self.listed, repeat=self.attempts))

    def batches(self, branch: Sequence[int], offline: Offline | None = None) -> Iterator[tuple[float, list[Episode]]]:
        """Every batch that can be drawn, one tree for each problem, with its probability.

        Args:
            offline: stored first attempts of a problem, as many as `branch[0]`.
        """
        trees = [list(self._trees(p, (), (), branch, (offline or {}).get(p))) for p in range(self.problems)]
        for drawn in product(*trees):
            yield prod(chance for chance, _ in drawn), [e for _, leaves in drawn for e in leaves]

    def _trees(
        self, problem: int, before: tuple[Tokens, ...], path: Tokens, branch: Sequence[int], stored: Sequence | None
    ) -> Iterator[tuple[float, list[Episode]]]:
        if not branch:
            yield 1.0, [self._episode(problem, before, path, stored is not None)]
            return
        children = []
        for j in range(branch[0]):
            options = []
            for attempt in self.listed if stored is None or before else [stored[j]]:
                drawn = stored is None or bool(before)
                chance = float(self.logp(self._now, problem, before, attempt).exp()) if drawn else 1.0
                rest = self._trees(problem, (*before, attempt), (*path, j), branch[1:], stored)
                options += [(chance * more, leaves) for more, leaves in rest]
            children.append(options)
        for drawn_children in product(*children):
            yield prod(c for c, _ in drawn_children), [e for _, leaves in drawn_children for e in leaves]

    def _episode(self, problem: int, chain: tuple[Tokens, ...], path: Tokens, is_offline: bool) -> Episode:
        attempts = tuple(
            Attempt((), attempt, "", True, bool(k) or not is_offline, grade=Grade(reward == 1, reward))
            for k, (attempt, reward) in enumerate(zip(chain, self.rewards(problem, chain), strict=True))
        )
        return Episode(Problem(str(problem), "", ""), attempts, path)

    def draws(self, episodes: Sequence[Episode]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row, token, episode and attempt of every sampled token of a batch, [N] each."""
        found = []
        for index, episode in enumerate(episodes):
            chain = tuple(a.token_ids for a in episode.attempts)
            for k, attempt in enumerate(episode.attempts):
                spots = self.spots(int(episode.problem.id), chain[:k], chain[k]) if attempt.sampled else []
                found += [(row, token, index, k + 1) for row, token in spots]
        rows, tokens, places, turns = torch.tensor(found).T
        return rows, tokens, places, turns


def estimated_gradient(
    world: World,
    objective: Objective,
    *,
    branch: Sequence[int],
    advantage: str = "none",
    estimator: str = "k2",
    placement: str = "loss",
    length_norm: str = "none",
    offline: Offline | None = None,
) -> Tensor:
    """Expectation of the ascent direction that the library's loss gives -> [C, V], summed over every batch."""
    log_p = world.logits.log_softmax(-1)
    exact = (log_p.exp() * (log_p - world.ref)).sum(-1)
    total = torch.zeros((), dtype=torch.float64)
    for chance, episodes in world.batches(branch, offline):
        table = tabulate(episodes, torch.device("cpu"))
        rows, tokens, episode, turn = world.draws(episodes)
        logprobs = log_p[rows, tokens]
        kl = kl_estimate(estimator, logprobs, world.ref[rows, tokens], exact[rows])
        credit = shape_rewards(objective, table.rewards.double())
        if placement == "reward":
            sums = per_attempt(kl.detach(), episode, turn, tuple(credit.shape))
            credit = credit - credit.new_tensor(objective.beta) * sums
        advantage_ = advantages(advantage, credit, table.problem, table.nodes, table.sampled)
        scale = length_scale(length_norm, table.lengths.double(), (world.length,) * world.attempts)
        weights = token_weights(objective, advantage_, scale, placement)
        total = total + chance * loss(weights, episode, turn, logprobs, kl)
    return -torch.autograd.grad(total, world.logits)[0]


def credit_gradient(
    world: World, credit: Callable[[list[float], tuple[Tokens, ...]], Sequence[float]], offline: Offline | None = None
) -> Tensor:
    """Gradient of E[sum_k credit_k], each credit reaching the tokens of its own attempt only -> [C, V].

    The paper's instantaneous credit (A.4): in term k all factors of p(episode) but attempt k's are constants.

    Args:
        credit: of each attempt, from the episode's rewards and attempts.
        offline: a problem's stored first attempts, which are as probable as often as they are stored.
    """
    log_p = world.logits.log_softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for problem, chain in world.episodes():
        stored = (offline or {}).get(problem)
        factors = [world.logp(log_p, problem, chain[:k], attempt).exp() for k, attempt in enumerate(chain)]
        if stored is not None:
            factors[0] = torch.tensor(stored.count(chain[0]) / len(stored), dtype=torch.float64)
        for k, value in enumerate(credit(world.rewards(problem, chain), chain)):
            others = prod(float(f.detach()) for i, f in enumerate(factors) if i != k)
            total = total + value * others * factors[k] / world.problems
    return torch.autograd.grad(total, world.logits)[0]


def token_kl_gradient(world: World, beta: Sequence[float], direction: str) -> Tensor:
    """Gradient of sum_k beta_k E[sum of KL at each token of attempt k], the contexts held fixed -> [C, V].

    Args:
        direction: `reverse` for KL(policy || reference), `forward` for KL(reference || policy).
    """
    log_p = world.logits.log_softmax(-1)
    if direction == "reverse":
        kl = (log_p.exp() * (log_p - world.ref)).sum(-1)
    else:
        kl = (world.ref.exp() * (world.ref - log_p)).sum(-1)
    total = (_visits(world) * torch.tensor([beta[len(before)] for _, before, _ in world.contexts]) * kl).sum()
    return torch.autograd.grad(total / world.problems, world.logits)[0]


def sequence_kl_gradient(world: World, beta: Sequence[float]) -> Tensor:
    """Gradient of sum_k beta_k E[KL(policy || reference) of attempt k as a whole], its context held fixed."""
    log_p = world.logits.log_softmax(-1)
    now = log_p.detach()
    total = torch.zeros((), dtype=torch.float64)
    for problem in range(world.problems):
        for k in range(world.attempts):
            for before in product(world.listed, repeat=k):
                reached = prod(float(world.logp(now, problem, before[:i], a).exp()) for i, a in enumerate(before))
                for attempt in world.listed:
                    policy, ref = (world.logp(v, problem, before, attempt) for v in (log_p, world.ref))
                    total = total + beta[k] * reached * policy.exp() * (policy - ref) / world.problems
    return torch.autograd.grad(total, world.logits)[0]


def _visits(world: World) -> Tensor:
    """Probability of coming by each context in an episode of its problem -> [C], a constant."""
    now = world.logits.detach().log_softmax(-1)
    chances = []
    for problem, before, prefix in world.contexts:
        chance = prod(float(world.logp(now, problem, before[:i], a).exp()) for i, a in enumerate(before))
        row_of = {context: row for row, context in enumerate(world.contexts)}
        chance *= prod(float(now[row_of[problem, before, prefix[:n]], t].exp()) for n, t in enumerate(prefix))
        chances.append(chance)
    return torch.tensor(chances, dtype=torch.float64)
