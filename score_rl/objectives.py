"""The paper's objectives as data, and the one loss that serves them all.

Shapes: E episodes, A attempts, N trained tokens of a batch. Everything here is a pure function of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3", "exact"]
Placement = Literal["loss", "reward"]
Advantage = Literal["none", "batch_mean", "rloo", "sibling", "grpo"]
LengthNorm = Literal["none", "sequence", "constant", "token"]
BonusTo = Literal["later", "all"]


@dataclass(frozen=True)
class Objective:
    """What a stage maximises: a weight for each attempt's reward, a pin for each attempt, and the progress bonus.

    Attributes:
        reward: how much each attempt's own reward counts, [A].
        beta: KL coefficient of each attempt, [A].
        alpha_fix: bonus of attempt k >= 2 for each unit by which it is better than attempt k - 1.
        alpha_break: penalty for each unit by which it is worse.
        gamma: how much of a later attempt's credit flows back to an earlier one's tokens (paper A.4: 0).
        bonus_to: whose tokens earn a bonus: its own attempt's alone (`later`), or those of all before it too (`all`).
        importance_cap: bound of the weights that correct for an engine with log-probs of its own; None for no weights.
    """

    reward: tuple[float, ...]
    beta: tuple[float, ...]
    alpha_fix: float = 0.0
    alpha_break: float = 0.0
    gamma: float = 0.0
    importance_cap: float | None = None
    bonus_to: BonusTo = "later"

    def __post_init__(self) -> None:
        if len(self.reward) != len(self.beta):
            raise ValueError(f"{len(self.reward)} reward weights and {len(self.beta)} betas; give one each per attempt")


def stage1(*, beta1: float = 0.01, beta2: float = 0.1) -> Objective:
    """Eq. 3: maximise E[r_2 - beta2 KL_1 - beta1 KL_2]; attempt 1 earns nothing and is pinned to the reference."""
    return Objective(reward=(0.0, 1.0), beta=(beta2, beta1))


def stage2(
    *,
    alpha: float = 10.0,
    beta1: float = 0.01,
    gamma: float = 0.0,
    attempts: int = 2,
    alpha_fix: float | None = None,
    alpha_break: float | None = None,
    bonus_to: BonusTo = "later",
) -> Objective:
    """Eq. 4 and 5: maximise E[sum_k r_k + b_k - beta1 KL_k], b_k = alpha (r_k - r_{k-1}) for k >= 2 (A.1 for k > 2)."""
    fix, broken = (alpha if alpha_fix is None else alpha_fix), (alpha if alpha_break is None else alpha_break)
    return Objective((1.0,) * attempts, (beta1,) * attempts, fix, broken, gamma, bonus_to=bonus_to)


def substage(j: int, *, beta1: float = 0.01, beta2: float = 0.1) -> Objective:
    """Appendix A.1, Stage I(a), I(b), ...: maximise r_{j+1} with attempts 1..j pinned; `substage(1)` is Stage I."""
    return Objective(reward=(0.0,) * j + (1.0,), beta=(beta2,) * j + (beta1,))


def single_turn(*, beta1: float = 0.01) -> Objective:
    """Eq. 2: plain RL on one attempt."""
    return Objective(reward=(1.0,), beta=(beta1,))


def multi_turn(
    *, beta1: float = 0.01, attempts: int = 2, credit: Literal["last", "all"] = "all", gamma: float = 0.0
) -> Objective:
    """Multi-turn RL without stages or bonus (section 5): the sum of all rewards, or Eq. 1 on the last alone."""
    if credit == "all":
        return Objective((1.0,) * attempts, (beta1,) * attempts, gamma=gamma)
    earlier = (0.0,) * (attempts - 1)
    return Objective((*earlier, 1.0), (*earlier, beta1), gamma=gamma)


def sft(*, attempts: int = 2) -> Objective:
    """Imitation of traces whose trained attempts have reward 1: the log-likelihood of their tokens, without KL."""
    return Objective((1.0,) * attempts, (0.0,) * attempts)


def shape_rewards(objective: Objective, rewards: Tensor, progress: Tensor | None = None) -> Tensor:
    """Credit of each attempt's tokens -> [E, A]: its own weighted reward, its bonus, and gamma of what comes after.

    Args:
        rewards: [E, A].
        progress: [E, A], what the bonus compares; the rewards when None.
    """
    progress = rewards if progress is None else progress
    change = progress.diff(dim=1, prepend=progress[:, :1])
    bonus = objective.alpha_fix * change.clamp(min=0) - objective.alpha_break * (-change).clamp(min=0)  # Eq. 5
    if objective.bonus_to == "all":  # for ablations: attempt 1 then earns r_1 + alpha (r_2 - r_1) and learns to fail
        bonus = bonus.flip(1).cumsum(1).flip(1)
    credit = rewards * rewards.new_tensor(objective.reward) + bonus
    for k in range(credit.shape[1] - 2, -1, -1):
        credit[:, k] += objective.gamma * credit[:, k + 1]
    return credit


def advantages(
    kind: Advantage, credit: Tensor, problem: Tensor, nodes: Tensor, sampled: Tensor, *, complete: bool = True
) -> Tensor:
    """Credit minus baseline -> [E, A]; zero where the attempt was not sampled.

    Every baseline but grpo's leaves out the episodes that share the very attempt it is for, so it does not depend on
    what it is subtracted from and moves no expectation.

    Args:
        kind: `none` (plain REINFORCE), `batch_mean` (all other attempts of the batch), `rloo` (the others of the
            problem), `sibling` (the others after the same context), `grpo` (group mean and standard deviation).
        credit: [E, A] from `shape_rewards`.
        problem: [E], equal for episodes of one problem.
        nodes: [E, A], equal where two episodes share attempts 1 to k.
        sampled: [E, A], False for stored attempts.
        complete: False if episodes were left out, so that an attempt may have lost all others to be compared with;
            its advantage is 0 then.

    Raises:
        ValueError: an attempt that has none to be compared with, in a complete batch.
    """
    columns = []
    for k in range(credit.shape[1]):
        values, valid = credit[:, k], sampled[:, k]
        if kind == "none" or not values[valid].any():  # what earns nothing needs none to be compared with
            columns.append(values * valid)
        elif kind == "grpo":
            columns.append(_standardise(values, problem, valid) * valid)
        else:
            parent = nodes[:, k - 1] if k else problem
            group = {"batch_mean": torch.zeros_like(problem), "rloo": problem, "sibling": parent}[kind]
            others = leave_out(values, group, nodes[:, k], valid, lonely_is_own=not complete)
            columns.append((values - others) * valid)
    return torch.stack(columns, dim=1)


def leave_out(values: Tensor, group: Tensor, unit: Tensor, valid: Tensor, *, lonely_is_own: bool = False) -> Tensor:
    """Mean over the same group's other units -> [E]: leave-one-out (RLOO, Ahmadian et al. 2024) for shared attempts.

    Args:
        values: [E].
        group: [E], equal for episodes that are compared.
        unit: [E], equal for episodes that share the attempt; a unit lies within one group.
        valid: [E], False for episodes that are nobody's baseline.
        lonely_is_own: a valid unit that is alone in its group gets its own value.

    Raises:
        ValueError: a valid unit is alone in its group, and `lonely_is_own` is False.
    """
    counted = valid.to(values.dtype)
    others = _sum_by(group, values * counted) - _sum_by(unit, values * counted)
    number = _sum_by(group, counted) - _sum_by(unit, counted)
    lonely = valid & (number < 1)
    if lonely_is_own:
        return torch.where(lonely, values, others / number.clamp(min=1))
    if bool(lonely.any()):
        raise ValueError("an attempt has no other to be compared with; draw more of them, or use batch_mean")
    return others / number.clamp(min=1)


def _sum_by(labels: Tensor, values: Tensor) -> Tensor:
    _, index = labels.unique(return_inverse=True)
    return values.new_zeros(int(index.max()) + 1).index_add(0, index, values)[index]


def _standardise(values: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    counted = valid.to(values.dtype)
    number = _sum_by(group, counted).clamp(min=1)
    centred = (values - _sum_by(group, values * counted) / number) * counted
    deviation = (_sum_by(group, centred**2) / number).sqrt()
    return centred / (deviation + 1e-6)


def length_scale(kind: LengthNorm, lengths: Tensor, max_new_tokens: tuple[int, ...]) -> Tensor:
    """Weight of each token's term -> [E, A]; policy gradient and KL share it, and the loss is a plain sum of terms.

    Args:
        kind: `none` (sum over an attempt's tokens, mean over episodes), `sequence` (mean over its own tokens),
            `constant` (divided by the attempt's limit, Dr. GRPO), `token` (by all trained tokens of the batch, DAPO).
        lengths: [E, A], trained tokens of each attempt in the whole batch, never in a micro-batch.
        max_new_tokens: [A].
    """
    if kind == "token":
        return torch.ones_like(lengths) / lengths.sum().clamp(min=1)
    divisor = {
        "none": torch.ones_like(lengths),
        "sequence": lengths.clamp(min=1),
        "constant": lengths.new_tensor(max_new_tokens).expand_as(lengths),
    }[kind]
    return 1.0 / (divisor * lengths.shape[0])


def kl_estimate(estimator: Estimator, logprobs: Tensor, ref_logprobs: Tensor, exact: Tensor | None = None) -> Tensor:
    """Per-token estimate of KL(policy || reference) -> [N], with d = ref_logprobs - logprobs.

    Gradients, on-policy and with the contexts held fixed: `k1` = -d has none in expectation; `k2` = d^2 / 2 and `exact`
    (the whole vocabulary) that of KL(policy || reference); `k3` = exp(d) - d - 1 that of KL(reference || policy).
    """
    d = ref_logprobs - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d**2 / 2
    if estimator == "k3":
        return d.exp() - d - 1
    assert exact is not None, "the exact KL needs the reference's states"
    return exact


class TokenWeights(NamedTuple):
    """What multiplies each attempt's token log-probs and token KL in the loss, [E, A] each."""

    policy: Tensor
    kl: Tensor


def token_weights(objective: Objective, advantage: Tensor, scale: Tensor, placement: Placement) -> TokenWeights:
    """Weights of the loss; a KL placed in the reward is in the advantage already and has none here."""
    beta = scale.new_tensor(objective.beta).expand_as(scale)
    return TokenWeights(advantage * scale, beta * scale if placement == "loss" else torch.zeros_like(scale))


def importance(cap: float | None, logprobs: Tensor, engine_logprobs: Tensor) -> Tensor | None:
    """Truncated importance weights min(exp(logprobs - engine_logprobs), cap) -> [N], no gradient; None without cap.

    They correct, token by token, for tokens that were drawn by an engine whose kernels round differently; the cap
    bounds the variance that a few tokens would bring (Ionides 2008).

    Args:
        cap: at least 1.
        logprobs: [N], of the policy that is trained.
        engine_logprobs: [N], under which the tokens were drawn.
    """
    return None if cap is None else (logprobs.detach() - engine_logprobs).exp().clamp(max=cap)


def loss(
    weights: TokenWeights,
    episode: Tensor,
    turn: Tensor,
    logprobs: Tensor,
    kl: Tensor | None,
    ratio: Tensor | None = None,
) -> Tensor:
    """Scalar whose gradient is minus the policy gradient plus the KL gradient (Eq. 2 to 4); micro-batches add up.

    Args:
        weights: of the whole batch.
        episode: [N], row of `weights` of each trained token.
        turn: [N], its attempt, from 1.
        logprobs: [N], with gradient.
        kl: [N], with gradient, or None where every beta is 0.
        ratio: [N], importance weights of the policy gradient's terms; 1 when None.
    """
    weight = weights.policy[episode, turn - 1]
    total = -((weight if ratio is None else weight * ratio) * logprobs).sum()
    return total if kl is None else total + (weights.kl[episode, turn - 1] * kl).sum()


def per_attempt(values: Tensor, episode: Tensor, turn: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sums of token values over each attempt -> [E, A]."""
    flat = values.new_zeros(shape[0] * shape[1])
    return flat.index_add(0, episode * shape[1] + turn - 1, values).view(shape)
