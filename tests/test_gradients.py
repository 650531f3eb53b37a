"""The estimator's expected gradient against the gradient of the paper's expectations, both summed over every episode.

Nothing is sampled: `estimated_gradient` runs the library's functions on every batch that can be drawn. What the KL
estimators do, and what the bonus does, is in test_invariants.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from enumerable import World, credit_gradient, estimated_gradient, token_kl_gradient
from tiny import episode, gradients, largest_gap, make_model, make_policy, stage
from torch import Tensor

from score_rl.objectives import Objective, multi_turn, shape_rewards, single_turn, stage1, stage2, substage
from score_rl.update import accumulate


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert float(wanted.abs().max()) > 1e-3, "nothing to compare"
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


# Each credit is written from the paper's text, not from the library: r holds the rewards, the result the credits.
TWO_ATTEMPTS = {
    "stage I credits attempt 2 only": (stage1(beta1=0, beta2=0), lambda r: (0, r[1])),
    "stage II adds the bonus": (stage2(alpha=10, beta1=0), lambda r: (r[0], r[1] + 10 * (r[1] - r[0]))),
    "fixing and breaking weigh differently": (
        stage2(alpha_fix=4, alpha_break=1, beta1=0),
        lambda r: (r[0], r[1] + (4 if r[1] > r[0] else 1) * (r[1] - r[0])),
    ),
    "gamma lets half of attempt 2's credit flow back": (
        stage2(alpha=2, gamma=0.5, beta1=0),
        lambda r: (r[0] + 0.5 * (3 * r[1] - 2 * r[0]), 3 * r[1] - 2 * r[0]),
    ),
    "naive multi-turn sums the rewards": (multi_turn(beta1=0), lambda r: (r[0], r[1])),
    "naive multi-turn on the last attempt": (multi_turn(beta1=0, credit="last"), lambda r: (0, r[1])),
}
THREE_ATTEMPTS = {
    "stage I(b) credits attempt 3 only": (substage(2, beta1=0, beta2=0), lambda r: (0, 0, r[2])),
    "stage II compares with the attempt before": (
        stage2(alpha=10, attempts=3, beta1=0),
        lambda r: (r[0], 11 * r[1] - 10 * r[0], 11 * r[2] - 10 * r[1]),
    ),
    "gamma is discounted once for each attempt": (
        stage2(alpha=1, gamma=0.5, attempts=3, beta1=0),
        lambda r: (
            r[0] + 0.5 * (2 * r[1] - r[0]) + 0.25 * (2 * r[2] - r[1]),
            2 * r[1] - r[0] + 0.5 * (2 * r[2] - r[1]),
            2 * r[2] - r[1],
        ),
    ),
}


@pytest.mark.parametrize("name", TWO_ATTEMPTS)
def test_two_attempts_have_the_gradient_of_the_paper(name: str) -> None:
    objective, credit = TWO_ATTEMPTS[name]
    world = World()
    assert_same(estimated_gradient(world, objective, branch=[1, 1]), credit_gradient(world, lambda r, _: credit(r)))


@pytest.mark.parametrize("name", THREE_ATTEMPTS)
def test_three_attempts_have_the_gradient_of_the_appendix(name: str) -> None:
    objective, credit = THREE_ATTEMPTS[name]
    world = World(attempts=3)
    assert_same(estimated_gradient(world, objective, branch=[1, 1, 1]), credit_gradient(world, lambda r, _: credit(r)))


def test_one_attempt_is_plain_policy_gradient() -> None:
    world = World(attempts=1, vocabulary=3)
    # Eq. 2 without its KL: nothing is held fixed here.
    log_p = world.logits.log_softmax(-1)
    value = sum(world.reward(0, a) * world.logp(log_p, 0, (), a).exp() for a in world.listed)
    wanted = torch.autograd.grad(value, world.logits)[0]
    assert_same(estimated_gradient(world, single_turn(beta1=0), branch=[2], advantage="rloo"), wanted)


def test_with_gamma_1_the_whole_shaped_return_is_differentiated_and_nothing_is_held_fixed() -> None:
    world = World()
    log_p = world.logits.log_softmax(-1)
    value = torch.zeros((), dtype=torch.float64)
    for problem, (first, second) in world.episodes():
        r1, r2 = world.rewards(problem, (first, second))
        chance = (world.logp(log_p, 0, (), first) + world.logp(log_p, 0, (first,), second)).exp()
        value = value + chance * (r1 + r2 + 10 * (r2 - r1))
    wanted = torch.autograd.grad(value, world.logits)[0]
    assert_same(estimated_gradient(world, stage2(alpha=10, gamma=1, beta1=0), branch=[1, 1]), wanted)


# The advantage, what it compares, and the shape of World that it is summed over. Each must not move the mean.
BASELINES = {
    "rloo over two whole episodes": ("rloo", [2, 1], {}),
    "rloo over a tree": ("rloo", [2, 2], {"length": 1}),
    "rloo over the second attempts of one first attempt": ("rloo", [1, 3], {}),
    "siblings in a tree": ("sibling", [2, 2], {"length": 1}),
    "siblings of attempts of unlike length": ("sibling", [1, 2], {}),
    "the rest of the batch": ("batch_mean", [1, 1], {"problems": 2}),
    "the rest of a batch of trees": ("batch_mean", [2, 1], {"problems": 2, "length": 1}),
}
NEEDS_TWO_FIRST_ATTEMPTS = {k: v for k, v in BASELINES.items() if v[1][0] > 1 or v[0] == "batch_mean"}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_moves_no_mean_in_stage_one(name: str) -> None:
    advantage, branch, shape = BASELINES[name]
    world = World(**shape)
    found = estimated_gradient(world, stage1(beta1=0, beta2=0), branch=branch, advantage=advantage)
    assert_same(found, credit_gradient(world, lambda r, _: (0, r[1])))


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("name", NEEDS_TWO_FIRST_ATTEMPTS)
def test_a_baseline_moves_no_mean_in_stage_two(name: str, gamma: float) -> None:
    advantage, branch, shape = BASELINES[name]
    world = World(**shape)
    objective = stage2(alpha_fix=10, alpha_break=3, gamma=gamma, beta1=0)

    def credit(r: list[float], _: object) -> Sequence[float]:
        second = r[1] + (10 if r[1] > r[0] else 3) * (r[1] - r[0])
        return (r[0] + gamma * second, second)

    found = estimated_gradient(world, objective, branch=branch, advantage=advantage)
    assert_same(found, credit_gradient(world, credit))


@pytest.mark.parametrize("advantage", ["rloo", "sibling", "batch_mean"])
def test_a_baseline_moves_no_mean_with_three_attempts(advantage: str) -> None:
    world = World(attempts=3, length=1)
    branch = [2, 1, 2] if advantage != "sibling" else [1, 2, 2]
    found = estimated_gradient(world, substage(2, beta1=0, beta2=0), branch=branch, advantage=advantage)
    assert_same(found, credit_gradient(world, lambda r, _: (0, 0, r[2])))


@pytest.mark.parametrize("advantage", ["none", "rloo", "sibling", "batch_mean"])
def test_stored_first_attempts_get_no_gradient_and_their_second_attempts_the_right_one(advantage: str) -> None:
    world = World(problems=2, length=1)
    stored = {1: [(0,), (1,)]}
    branch = [2, 1] if advantage != "sibling" else [2, 2]
    found = estimated_gradient(world, stage2(alpha=2, beta1=0), branch=branch, advantage=advantage, offline=stored)
    wanted = credit_gradient(world, lambda r, _: (r[0], 3 * r[1] - 2 * r[0]), offline=stored)
    assert_same(found, wanted)
    first_of_stored = torch.tensor([problem == 1 and not before for problem, before, _ in world.contexts])
    assert torch.equal(found[first_of_stored], torch.zeros_like(found[first_of_stored]))


def test_the_constant_length_norm_divides_the_gradient_by_the_limit() -> None:
    world = World(length=2)
    found = estimated_gradient(
        world, stage1(beta1=0.5, beta2=2), branch=[2, 1], advantage="rloo", length_norm="constant"
    )
    wanted = credit_gradient(world, lambda r, _: (0, r[1])) - token_kl_gradient(world, (2, 0.5), "reverse")
    assert_same(found, wanted / 2)


@pytest.mark.parametrize("advantage", ["none", "rloo"])
def test_the_sequence_length_norm_maximises_reward_over_length_and_its_baseline_moves_the_mean(advantage: str) -> None:
    world = World(length=2)
    found = estimated_gradient(
        world, stage1(beta1=0, beta2=0), branch=[1, 2], advantage=advantage, length_norm="sequence"
    )

    def by_length(r: list[float], chain: tuple[tuple[int, ...], ...]) -> Sequence[float]:
        # The baseline of an attempt is the mean reward behind its context: r_2 - E[r_2 | x_2].
        log_p = world.logits.detach().log_softmax(-1)
        mean = sum(world.reward(0, a) * float(world.logp(log_p, 0, chain[:1], a).exp()) for a in world.listed)
        return (0, (r[1] - mean * (advantage == "rloo")) / len(chain[1]))

    assert_same(found, credit_gradient(world, by_length))


def test_grpo_forgets_how_large_rewards_are_and_so_cancels_alpha_where_first_attempts_fare_alike() -> None:
    class Alike(World):
        def rewards(self, problem: int, attempts: Sequence[tuple[int, ...]]) -> list[float]:
            return [0.0, self.reward(problem, attempts[1])]

    world = Alike(length=1)
    second = world.of_attempt(2)

    def gradient(alpha: float, advantage: str) -> Tensor:
        found = estimated_gradient(world, stage2(alpha=alpha, beta1=0), branch=[2, 1], advantage=advantage)
        return found[second]

    assert_same(gradient(10, "rloo"), 11 * gradient(0, "rloo"))
    # Deviations are divided by their own size, but for the 1e-6 that keeps the division possible.
    torch.testing.assert_close(gradient(10, "grpo"), gradient(0, "grpo"), rtol=1e-4, atol=0)


def test_grpo_with_two_binary_episodes_is_leave_one_out() -> None:
    # (r - mean) / std is +-1 where the two rewards differ, as r_1 - r_2 is, and 0 where they are equal.
    world = World(attempts=1, length=1)
    world.reward = lambda problem, attempt: float(attempt == (1,))  # type: ignore[method-assign]
    found, wanted = (
        estimated_gradient(world, single_turn(beta1=0), branch=[2], advantage=kind) for kind in ("grpo", "rloo")
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


# ---- The same through a real model and `accumulate`, whose rows, masks and scores are then part of what is tested.

QUESTION, BRIDGE, TEMPERATURE = (0, 2), (2, 0), 0.7


def one_token_world() -> tuple[object, Tensor, Tensor]:
    """A real policy over three tokens, each of which is a whole attempt, and the probabilities it is drawn from.

    The probabilities are [3] for attempt 1 and [3, 3] for attempt 2, by transformers' own logits.
    """
    policy = make_policy(vocabulary=3)
    policy.freeze_reference(make_model(vocabulary=3, seed=5))
    return policy, *chances(policy.model)


def chances(model: object) -> tuple[Tensor, Tensor]:
    rows = torch.tensor([[*QUESTION, first, *BRIDGE] for first in range(3)])
    log_p = (model(input_ids=rows).logits / TEMPERATURE).log_softmax(-1)  # type: ignore[operator]
    return log_p[0, len(QUESTION) - 1].exp(), log_p[:, -1].exp()


def reward(token: int) -> float:
    return (0.0, 1.0, 0.5)[token]


def expectation(policy: object, first: Tensor, second: Tensor, objective: Objective, forward: bool) -> Tensor:
    """What the objective promises, with each credit's other factors held fixed -> scalar."""
    log_q = [q.log().detach() for q in chances(policy._frozen[0])]  # type: ignore[attr-defined]
    fixed = first.detach()
    rewards = torch.tensor([[reward(a), reward(b)] for a in range(3) for b in range(3)])
    credit = shape_rewards(objective, rewards).view(3, 3, 2)
    value = (first[:, None] * second.detach() * credit[..., 0]).sum()
    value = value + (fixed[:, None] * second * credit[..., 1]).sum()

    def kl(p: Tensor, log_of_q: Tensor) -> Tensor:
        if forward:
            return (log_of_q.exp() * (log_of_q - p.log())).sum(-1)
        return (p * (p.log() - log_of_q)).sum(-1)

    return value - objective.beta[0] * kl(first, log_q[0]) - objective.beta[1] * (fixed * kl(second, log_q[1])).sum()


def one_token_tree(firsts: Sequence[int], seconds: Sequence[Sequence[int]]) -> list:
    return [
        episode("p", [QUESTION, BRIDGE], [[first], [second]], [reward(first), reward(second)], path=(i, j))
        for i, first in enumerate(firsts)
        for j, second in enumerate(seconds[i])
    ]


ACCUMULATED = {
    "stage I with k2 in the loss": (stage1(beta1=0.1, beta2=1.0), "k2", "loss", False),
    "stage I with k1 in the reward": (stage1(beta1=0.1, beta2=1.0), "k1", "reward", False),
    "stage I with k3 in the loss": (stage1(beta1=0.1, beta2=1.0), "k3", "loss", True),
    "stage II with the exact KL": (stage2(alpha=10, beta1=0.3), "exact", "loss", False),
    "stage II with k1 in the reward": (stage2(alpha=10, beta1=0.3), "k1", "reward", False),
    "stage II with fixing and breaking apart": (stage2(alpha_fix=5, alpha_break=2, beta1=0.3), "k2", "loss", False),
}


@pytest.mark.parametrize("name", ACCUMULATED)
def test_accumulate_on_a_real_model_has_the_gradient_of_the_paper(name: str) -> None:
    objective, estimator, placement, forward = ACCUMULATED[name]
    policy, first, second = one_token_world()
    (-expectation(policy, first, second, objective, forward)).backward()
    wanted = gradients(policy)
    settings = stage(
        branch=[1, 1],
        advantage="none",
        bonus_on="reward",
        kl={"estimator": estimator, "placement": placement},
        sampling={"temperature": TEMPERATURE},
    )
    for a in range(3):
        for b in range(3):
            chance = float((first[a] * second[a, b]).detach())
            accumulate(
                policy,
                one_token_tree([a], [[b]]),
                settings,
                objective,
                max_tokens=99,
                backward=lambda value, chance=chance: (chance * value).backward(),
            )
    assert largest_gap(wanted, gradients(policy)) < 2e-5


@pytest.mark.parametrize(("advantage", "m"), [("rloo", 1), ("sibling", 2)])
def test_a_baseline_moves_no_mean_of_accumulate_on_a_real_model(advantage: str, m: int) -> None:
    policy, first, second = one_token_world()
    objective = stage1(beta1=0, beta2=0) if advantage == "sibling" else stage2(alpha=10, beta1=0)
    (-expectation(policy, first, second, objective, forward=False)).backward()
    wanted = gradients(policy)
    n = 3 - m
    settings = stage(
        "stage1", branch=[n, m], advantage=advantage, bonus_on="reward", sampling={"temperature": TEMPERATURE}
    )
    every = torch.cartesian_prod(*[torch.arange(3)] * (n + n * m)).tolist()
    for drawn in every:
        firsts, rest = drawn[:n], drawn[n:]
        seconds = [rest[i * m : (i + 1) * m] for i in range(n)]
        chance = 1.0
        for a, children in zip(firsts, seconds, strict=True):
            chance *= float((first[a] * second[a, children].prod()).detach())
        accumulate(
            policy,
            one_token_tree(firsts, seconds),
            settings,
            objective,
            max_tokens=99,
            backward=lambda value, chance=chance: (chance * value).backward(),
        )
    assert largest_gap(wanted, gradients(policy)) < 2e-5
