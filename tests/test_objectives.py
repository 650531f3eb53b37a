"""Weights, baselines and KL estimates, worked out by hand; expectations are in test_gradients.py."""

from __future__ import annotations

from math import exp, log, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from score_rl.objectives import (
    Objective,
    advantages,
    importance,
    kl_estimate,
    leave_out,
    length_scale,
    loss,
    multi_turn,
    per_attempt,
    shape_rewards,
    single_turn,
    stage1,
    stage2,
    substage,
    token_weights,
)


def coefficients(objective: Objective, *rewards: float) -> list[float]:
    """What multiplies the sum of each attempt's log-probs in one episode's objective, without a baseline."""
    credit = shape_rewards(objective, torch.tensor([rewards], dtype=torch.float64))
    sampled = torch.ones_like(credit, dtype=torch.bool)
    nodes = torch.arange(credit.shape[1])[None]
    advantage = advantages("none", credit, torch.zeros(1, dtype=torch.int64), nodes, sampled)
    scale = length_scale("none", torch.full_like(credit, 3), (8,) * credit.shape[1])
    return token_weights(objective, advantage, scale, "loss").policy[0].tolist()


# (r_1, r_2) -> the weights on attempt 1 and attempt 2. Eq. 3, and Eq. 4 with Eq. 5: r_2 + alpha (r_2 - r_1).
TABLE = {
    "stage I": (stage1(), {(0, 0): (0, 0), (0, 1): (0, 1), (1, 0): (0, 0), (1, 1): (0, 1)}),
    "stage II with alpha 10": (stage2(), {(0, 0): (0, 0), (0, 1): (0, 11), (1, 0): (1, -10), (1, 1): (1, 1)}),
    "stage II without bonus": (stage2(alpha=0), {(0, 0): (0, 0), (0, 1): (0, 1), (1, 0): (1, 0), (1, 1): (1, 1)}),
    "stage II with alpha_fix 5 and alpha_break 2": (
        stage2(alpha_fix=5, alpha_break=2),
        {(0, 0): (0, 0), (0, 1): (0, 6), (1, 0): (1, -2), (1, 1): (1, 1)},
    ),
    "stage II with alpha_fix 0 and alpha as the penalty": (
        stage2(alpha=3, alpha_fix=0),
        {(0, 0): (0, 0), (0, 1): (0, 1), (1, 0): (1, -3), (1, 1): (1, 1)},
    ),
    "stage II with gamma 0.5 and alpha 10": (
        stage2(gamma=0.5),
        # Attempt 1 gets r_1 + 0.5 * (what attempt 2 gets).
        {(0, 0): (0, 0), (0, 1): (5.5, 11), (1, 0): (-4, -10), (1, 1): (1.5, 1)},
    ),
    "stage II between grades": (stage2(alpha=4), {(0.5, 0.75): (0.5, 1.75), (0.75, 0.5): (0.75, -0.5)}),
    "naive multi-turn on all attempts": (multi_turn(), {(0, 1): (0, 1), (1, 0): (1, 0), (1, 1): (1, 1)}),
    "naive multi-turn on the last": (multi_turn(credit="last"), {(0, 1): (0, 1), (1, 0): (0, 0), (1, 1): (0, 1)}),
    "naive multi-turn on the last, flowing back": (
        multi_turn(credit="last", gamma=1),
        {(0, 1): (1, 1), (1, 0): (0, 0), (1, 1): (1, 1)},
    ),
    "three attempts in stage II": (
        stage2(alpha=10, attempts=3),
        {(0, 1, 1): (0, 11, 1), (0, 0, 1): (0, 0, 11), (1, 0, 1): (1, -10, 11), (1, 1, 0): (1, 1, -10)},
    ),
    "three attempts in stage II with gamma 0.5": (
        stage2(alpha=10, attempts=3, gamma=0.5),
        # From the last: 11; -10 + 5.5 = -4.5; 1 - 2.25 = -1.25.
        {(1, 0, 1): (-1.25, -4.5, 11)},
    ),
    # The known fault: attempt 1 gets r_1 + 10 (r_2 - r_1), so that failing first pays.
    "stage II with the bonus on all attempts": (
        stage2(bonus_to="all"),
        {(0, 0): (0, 0), (0, 1): (10, 11), (1, 0): (-9, -10), (1, 1): (1, 1)},
    ),
    "three attempts with the bonus on all": (
        stage2(alpha_fix=10, alpha_break=5, attempts=3, bonus_to="all"),
        # Bonuses of (1, 0, 1): -5 for attempt 2, 10 for attempt 3; attempt 1 gets both.
        {(1, 0, 1): (6, 5, 11), (0, 0, 1): (10, 10, 11), (0, 1, 0): (5, 6, -5)},
    ),
    "stage I(b) of three attempts": (substage(2), {(1, 1, 0): (0, 0, 0), (0, 0, 1): (0, 0, 1), (1, 1, 1): (0, 0, 1)}),
    "single turn": (single_turn(), {(0,): (0,), (1,): (1,)}),
}


@pytest.mark.parametrize(
    ("name", "rewards"), [pytest.param(n, r, id=f"{n}, rewards {r}") for n, (_, rows) in TABLE.items() for r in rows]
)
def test_weight_on_each_attempt(name: str, rewards: tuple[float, ...]) -> None:
    objective, rows = TABLE[name]
    assert coefficients(objective, *rewards) == pytest.approx(rows[rewards])


@pytest.mark.parametrize(
    ("objective", "beta"),
    [
        pytest.param(stage1(beta1=0.01, beta2=0.1), (0.1, 0.01), id="stage I pins attempt 1 with beta2"),
        pytest.param(substage(2, beta1=0.01, beta2=0.1), (0.1, 0.1, 0.01), id="stage I(b) pins attempts 1 and 2"),
        pytest.param(stage2(beta1=0.02, attempts=3), (0.02,) * 3, id="stage II holds all alike"),
        pytest.param(multi_turn(beta1=0.02), (0.02, 0.02), id="multi-turn on all holds all"),
        pytest.param(multi_turn(beta1=0.02, credit="last"), (0, 0.02), id="Eq. 1 holds the last"),
        pytest.param(single_turn(beta1=0.02), (0.02,), id="single turn holds its attempt"),
    ],
)
def test_weight_on_each_kl(objective: Objective, beta: tuple[float, ...]) -> None:
    scale = torch.full((1, len(beta)), 0.5, dtype=torch.float64)
    in_loss = token_weights(objective, torch.zeros_like(scale), scale, "loss")
    in_reward = token_weights(objective, torch.zeros_like(scale), scale, "reward")
    assert in_loss.kl[0].tolist() == pytest.approx([0.5 * b for b in beta])
    assert in_reward.kl[0].tolist() == [0] * len(beta)


def test_substage_1_is_stage_one() -> None:
    assert substage(1, beta1=0.3, beta2=0.7) == stage1(beta1=0.3, beta2=0.7)


def test_an_objective_needs_one_beta_for_each_reward() -> None:
    with pytest.raises(ValueError, match="2 reward weights and 1 betas"):
        Objective(reward=(0.0, 1.0), beta=(0.1,))


@given(alpha=st.floats(0, 50), r1=st.floats(0, 1), r2=st.floats(0, 1))
def test_attempt_1_never_earns_less_for_being_right(alpha: float, r1: float, r2: float) -> None:
    # With the whole return on both attempts it would earn (1 - alpha) r_1, and learn to fail first.
    assert coefficients(stage2(alpha=alpha), r1, r2)[0] == r1
    assert coefficients(stage1(), r1, r2)[0] == 0


def test_the_bonus_compares_correctness_where_told_and_the_reward_is_still_paid() -> None:
    rewards, correct = torch.tensor([[0.2, 0.9]]), torch.tensor([[0.0, 1.0]])
    # 0.9 + 10 * (1 - 0), not 0.9 + 10 * 0.7.
    assert shape_rewards(stage2(), rewards, correct)[0].tolist() == pytest.approx([0.2, 10.9])
    assert shape_rewards(stage2(), rewards)[0].tolist() == pytest.approx([0.2, 7.9])


# ---- Baselines

# One question, two first attempts a and b, two second attempts after each: a1 a2 b1 b2.
PROBLEM = torch.zeros(4, dtype=torch.int64)
NODES = torch.tensor([[0, 2], [0, 3], [1, 4], [1, 5]])
CREDIT = torch.tensor([[1.0, 0.0], [1.0, 3.0], [0.0, 6.0], [0.0, 9.0]], dtype=torch.float64)
ALL = torch.ones(4, 2, dtype=torch.bool)


def column(kind: str, attempt: int, credit: Tensor = CREDIT, sampled: Tensor = ALL) -> list[float]:
    return advantages(kind, credit, PROBLEM, NODES, sampled)[:, attempt - 1].tolist()  # type: ignore[arg-type]


def test_none_takes_nothing_off() -> None:
    assert column("none", 2) == [0, 3, 6, 9]


def test_rloo_of_a_shared_first_attempt_leaves_out_both_episodes_that_share_it() -> None:
    # a earns 1 and is compared with b alone (0), never with its own second copy.
    assert column("rloo", 1) == [1, 1, -1, -1]


def test_rloo_of_second_attempts_compares_with_all_others_of_the_question() -> None:
    assert column("rloo", 2) == pytest.approx([0 - 18 / 3, 3 - 15 / 3, 6 - 12 / 3, 9 - 9 / 3])


def test_sibling_compares_second_attempts_after_the_same_first_one() -> None:
    assert column("sibling", 2) == [-3, 3, -3, 3]


def test_sibling_compares_first_attempts_with_each_other() -> None:
    assert column("sibling", 1) == [1, 1, -1, -1]


def test_with_gamma_a_shared_first_attempt_is_not_its_own_baseline() -> None:
    credit = shape_rewards(stage2(alpha=0, gamma=1), CREDIT)  # attempt 1: 1, 4, 6, 9
    # a's two copies are compared with the mean of b's, 7.5, and b's with the mean of a's, 2.5.
    assert column("rloo", 1, credit) == [1 - 7.5, 4 - 7.5, 6 - 2.5, 9 - 2.5]


def test_batch_mean_compares_across_questions() -> None:
    problem, nodes = torch.tensor([0, 1, 2]), torch.tensor([[0], [1], [2]])
    credit, sampled = torch.tensor([[1.0], [0.0], [5.0]]), torch.ones(3, 1, dtype=torch.bool)
    # 1 - (0 + 5) / 2, 0 - (1 + 5) / 2, 5 - (1 + 0) / 2
    assert advantages("batch_mean", credit, problem, nodes, sampled)[:, 0].tolist() == [-1.5, -3, 4.5]


def test_rloo_compares_within_each_question() -> None:
    problem, nodes = torch.tensor([0, 1, 0, 1]), torch.arange(4)[:, None]
    credit, sampled = torch.tensor([[1.0], [10.0], [0.0], [20.0]]), torch.ones(4, 1, dtype=torch.bool)
    assert advantages("rloo", credit, problem, nodes, sampled)[:, 0].tolist() == [1, -10, -1, 10]


def test_grpo_divides_by_the_deviation_of_the_question() -> None:
    # Mean 4.5, deviations -4.5, -1.5, 1.5, 4.5: the root of their mean square is sqrt(11.25).
    assert column("grpo", 2) == pytest.approx([d / sqrt(11.25) for d in (-4.5, -1.5, 1.5, 4.5)], rel=1e-5)


@pytest.mark.parametrize("kind", ["rloo", "sibling", "grpo", "batch_mean"])
def test_equal_credits_have_no_advantage(kind: str) -> None:
    assert column(kind, 2, torch.full((4, 2), 7.0)) == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["none", "rloo", "sibling", "grpo", "batch_mean"])
def test_stored_first_attempts_have_no_advantage_and_their_second_attempts_keep_theirs(kind: str) -> None:
    sampled = ALL.clone()
    sampled[:, 0] = False
    assert column(kind, 1, sampled=sampled) == [0, 0, 0, 0]
    assert column(kind, 2, sampled=sampled) == column(kind, 2)


def test_stored_attempts_are_nobodys_baseline() -> None:
    # Two questions of two episodes; the second starts from stored attempts with credits that would shift the mean.
    problem, nodes = torch.tensor([0, 0, 1, 1]), torch.tensor([[0], [1], [2], [3]])
    credit = torch.tensor([[1.0], [0.0], [100.0], [200.0]])
    sampled = torch.tensor([[True], [True], [False], [False]])
    assert advantages("batch_mean", credit, problem, nodes, sampled)[:, 0].tolist() == [1, -1, 0, 0]
    assert advantages("grpo", credit, problem, nodes, sampled)[:, 0].tolist() == pytest.approx([1, -1, 0, 0], rel=1e-5)


@pytest.mark.parametrize("kind", ["rloo", "sibling", "batch_mean"])
def test_an_attempt_that_earns_and_has_no_other_is_refused(kind: str) -> None:
    alone = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="no other to be compared with"):
        advantages(kind, torch.ones(1, 1), alone, alone[:, None], torch.ones(1, 1, dtype=torch.bool))  # type: ignore[arg-type]


def test_an_attempt_that_earns_nothing_needs_no_other() -> None:
    # Stage I with one first attempt: attempt 1 has credit 0 and nothing to be compared with.
    credit = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    nodes = torch.tensor([[0, 1], [0, 2]])
    for kind in ("rloo", "sibling"):
        found = advantages(kind, credit, PROBLEM[:2], nodes, ALL[:2])  # type: ignore[arg-type]
        assert found.tolist() == [[0, 1], [0, -1]]


def test_leave_out_weighs_attempts_by_the_episodes_that_hold_them() -> None:
    # Units 0 (twice), 1 and 2 of one group, and a group whose second member is not valid.
    values = torch.tensor([4.0, 8.0, 1.0, 3.0, 5.0, 50.0])
    group, unit = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 2, 3, 4])
    valid = torch.tensor([True, True, True, True, False, False])
    # Without unit 0: (1 + 3) / 2. Without unit 1: (4 + 8 + 3) / 3. Without unit 2: (4 + 8 + 1) / 3.
    assert leave_out(values, group, unit, valid).tolist()[:4] == pytest.approx([2, 2, 5, 13 / 3])


def test_an_attempt_that_lost_its_others_to_an_incomplete_batch_has_no_advantage() -> None:
    # Problem 1 has one episode left; problem 0 has two, with 1 - 3 and 3 - 1.
    credit = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 7.0]])
    problem, nodes = torch.tensor([0, 0, 1]), torch.tensor([[0, 1], [2, 3], [4, 5]])
    sampled = torch.ones_like(credit, dtype=torch.bool)
    with pytest.raises(ValueError, match="no other to be compared with"):
        advantages("rloo", credit, problem, nodes, sampled)
    found = advantages("rloo", credit, problem, nodes, sampled, complete=False)
    assert found.tolist() == [[0, -2], [0, 2], [0, 0]]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_leave_one_out_advantages_sum_to_zero(rewards: list[float]) -> None:
    values = torch.tensor(rewards, dtype=torch.float64)
    units = torch.arange(len(rewards))
    baseline = leave_out(values, torch.zeros_like(units), units, torch.ones_like(units, dtype=torch.bool))
    assert float((values - baseline).sum()) == pytest.approx(0, abs=1e-9)


# ---- Length normalisation, KL estimates and the loss


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        # Two episodes, lengths 2 and 4, and 0 (stored) and 5; limits 8 and 10; 11 trained tokens.
        pytest.param("none", [[1 / 2, 1 / 2], [1 / 2, 1 / 2]], id="none: mean over episodes"),
        pytest.param("sequence", [[1 / 4, 1 / 8], [1 / 2, 1 / 10]], id="sequence: mean over an attempt's own tokens"),
        pytest.param("constant", [[1 / 16, 1 / 20], [1 / 16, 1 / 20]], id="constant: by the attempt's limit"),
        pytest.param("token", [[1 / 11, 1 / 11], [1 / 11, 1 / 11]], id="token: by all trained tokens"),
    ],
)
def test_length_scale(kind: str, wanted: list[list[float]]) -> None:
    lengths = torch.tensor([[2.0, 4.0], [0.0, 5.0]], dtype=torch.float64)
    found = length_scale(kind, lengths, (8, 10))  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize(
    ("estimator", "wanted"),
    [
        # d = log q - log p = log 2 where the reference is twice as sure.
        pytest.param("k1", -log(2), id="k1 = -d"),
        pytest.param("k2", log(2) ** 2 / 2, id="k2 = d^2 / 2"),
        pytest.param("k3", 2 - log(2) - 1, id="k3 = exp(d) - d - 1"),
        pytest.param("exact", 0.125, id="exact is passed through"),
    ],
)
def test_kl_estimate(estimator: str, wanted: float) -> None:
    p, q = torch.tensor([log(0.25)], dtype=torch.float64), torch.tensor([log(0.5)], dtype=torch.float64)
    exact = torch.tensor([0.125], dtype=torch.float64)
    assert float(kl_estimate(estimator, p, q, exact)) == pytest.approx(wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_of_equal_policies_is_exactly_zero(estimator: str) -> None:
    same = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kl_estimate(estimator, same, same).abs(), torch.zeros(50))  # type: ignore[arg-type]


@given(p=st.floats(0.01, 0.99), q=st.floats(0.01, 0.99))
def test_k1_and_k3_have_the_kl_as_their_mean(p: float, q: float) -> None:
    # Two tokens, drawn with p and 1 - p.
    kl = p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))
    logp, logq = (torch.tensor([log(x), log(1 - x)], dtype=torch.float64) for x in (p, q))
    for estimator in ("k1", "k3"):
        mean = (logp.exp() * kl_estimate(estimator, logp, logq)).sum()  # type: ignore[arg-type]
        assert float(mean) == pytest.approx(kl, abs=1e-12)


def test_the_loss_by_hand() -> None:
    objective = Objective(reward=(1.0, 1.0), beta=(0.1, 0.2))
    scale = torch.full((2, 2), 0.5, dtype=torch.float64)
    weights = token_weights(objective, torch.tensor([[1.0, -2.0], [3.0, 0.0]], dtype=torch.float64), scale, "loss")
    episode, turn = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 2, 1])
    logprobs = torch.tensor([-1.0, -2.0, -3.0, -4.0], dtype=torch.float64, requires_grad=True)
    kl = torch.tensor([0.5, 0.0, 1.0, 2.0], dtype=torch.float64)
    value = loss(weights, episode, turn, logprobs, kl)
    value.backward()
    # -[0.5 (-1 - 2) - 1 (-3) + 1.5 (-4)] + [0.05 * 0.5 + 0.1 * 1 + 0.05 * 2]
    assert value.item() == pytest.approx(4.5 + 0.225)
    # Descent on the loss is ascent on advantage-weighted log-probs.
    assert logprobs.grad is not None and logprobs.grad.tolist() == [-0.5, -0.5, 1.0, -1.5]
    assert loss(weights, episode, turn, logprobs, None).item() == pytest.approx(4.5)


def test_importance_weights_are_the_ratio_up_to_the_cap_and_scale_the_policy_gradient_alone() -> None:
    logprobs = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    engine = torch.tensor([-1.0, -1.0 - log(1.5), -9.0], dtype=torch.float64)
    ratio = importance(2.0, logprobs, engine)
    assert ratio is not None and not ratio.requires_grad
    assert ratio.tolist() == pytest.approx([1.0, 1.5, 2.0])
    assert importance(None, logprobs, engine) is None
    weights = token_weights(
        Objective(reward=(1.0,), beta=(0.1,)), torch.tensor([[3.0]]), torch.ones(1, 1, dtype=torch.float64), "loss"
    )
    place = torch.zeros(3, dtype=torch.int64)
    loss(weights, place, place + 1, logprobs, 0.5 * logprobs, ratio).backward()
    # -3 ratio + 0.1 * 0.5
    assert logprobs.grad is not None and logprobs.grad.tolist() == pytest.approx([-2.95, -4.45, -5.95])


def test_per_attempt_sums_tokens() -> None:
    values, episode, turn = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 1, 2])
    assert per_attempt(values, episode, turn, (2, 2)).tolist() == [[3, 0], [4, 8]]


def test_k3_weighs_a_token_by_how_much_surer_the_reference_is() -> None:
    # The derivative by log p is 1 - q / p; k2's is log p - log q: they differ, and a test of both would notice a swap.
    logp = torch.tensor([log(0.25)], dtype=torch.float64, requires_grad=True)
    logq = torch.tensor([log(0.5)], dtype=torch.float64)
    (k3,) = torch.autograd.grad(kl_estimate("k3", logp, logq).sum(), logp)
    (k2,) = torch.autograd.grad(kl_estimate("k2", logp, logq).sum(), logp)
    assert float(k3) == pytest.approx(1 - exp(log(2)))
    assert float(k2) == pytest.approx(-log(2))
