"""The design's invariants about objective, update and policy, each under the name it has there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from enumerable import World, estimated_gradient, sequence_kl_gradient, token_kl_gradient
from tiny import (
    CPU,
    Recorder,
    add_lora,
    episode,
    gradients,
    largest_gap,
    make_model,
    make_policy,
    make_tokenizer,
    mixed_batch,
    stage,
    stir,
)
from torch import Tensor

from score_rl.batch import Batch, collate, micro_batches, rows
from score_rl.objectives import Objective, stage1, stage2
from score_rl.policy import Policy
from score_rl.update import accumulate

TWO = [
    episode("p", [[5, 6], [7]], [[10, 1], [11, 12, 1]], [0.0, 1.0], path=(0, 0)),
    episode("p", [[5, 6], [7]], [[13, 14, 1], [15, 1]], [1.0, 0.0], path=(1, 0)),
]


def by_logprob(policy: Policy, objective: Objective, **settings: object) -> list[tuple[list[float], list[float]]]:
    """Derivatives of the loss by each token's log-prob, for each episode of TWO: attempt 1's, then attempt 2's."""
    recorder = Recorder.around(policy)
    accumulate(recorder, TWO, stage(**settings), objective, max_tokens=1)  # a row a time, the longest first
    batches = micro_batches(rows(TWO), 0, 1, CPU)
    found: dict[int, tuple[list[float], list[float]]] = {}
    for batch, seen in zip(batches, recorder.seen, strict=True):
        attempts = [seen.grad[batch.token_turn == k].tolist() for k in (1, 2)]  # type: ignore[index]
        found[int(batch.row_episode)] = (attempts[0], attempts[1])
    return [found[0], found[1]]


def log_ratio(policy: Policy, index: int, attempt: int) -> Tensor:
    """Log-prob of an attempt's tokens under the policy less that under the reference."""
    batch = collate([rows(TWO)[index]], 0, CPU)
    inputs = (batch.input_ids, batch.attention_mask, batch.predicts)
    with torch.no_grad():
        ref = policy.reference_logprobs(policy.reference_hidden(*inputs), batch.targets, 1.0)
        return (policy(*inputs).logprobs - ref)[batch.token_turn == attempt]


def test_stage1_puts_no_policy_gradient_on_attempt_1_and_does_put_kl_gradient_there() -> None:
    policy = stir(make_policy(lora=True))
    without_kl = by_logprob(policy, stage1(beta1=0, beta2=0), advantage="none")
    # Attempt 1 gets nothing although it is right in episode 2; attempt 2 gets -r_2 / E on each of its tokens.
    assert without_kl == [([0, 0], [-0.5, -0.5, -0.5]), ([0, 0, 0], [0, 0])]
    with_kl = by_logprob(policy, stage1(beta1=0, beta2=2.0), advantage="none")
    for index, (first, second) in enumerate(with_kl):
        # k2: beta2 / E * d/dlogp (logp - ref)^2 / 2 = 2 / 2 * (logp - ref)
        ratio = log_ratio(policy, index, attempt=1)
        assert ratio.abs().min() > 1e-3
        assert first == pytest.approx(ratio.tolist(), rel=1e-4)
        assert second == without_kl[index][1]


def test_the_bonus_reaches_attempt_2_only() -> None:
    policy = stir(make_policy(lora=True))
    plain = by_logprob(policy, stage2(alpha=0, beta1=0.1), advantage="none", bonus_on="reward")
    shaped = by_logprob(policy, stage2(alpha=10, beta1=0.1), advantage="none", bonus_on="reward")
    for (first, second), (first_shaped, second_shaped), change in zip(plain, shaped, (1.0, -1.0), strict=True):
        assert first_shaped == first
        # Ascent on alpha * (r_2 - r_1) / E for each token of attempt 2.
        bonus = [after - before for before, after in zip(second, second_shaped, strict=True)]
        assert bonus == pytest.approx([-10 * change / 2] * len(bonus))


@pytest.mark.parametrize(
    ("advantage", "branch", "shape"),
    [
        pytest.param("none", [1, 1], {}, id="no baseline"),
        pytest.param("rloo", [2, 1], {}, id="leave-one-out"),
        pytest.param("sibling", [2, 2], {"length": 1}, id="siblings"),
        pytest.param("batch_mean", [1, 1], {"problems": 2}, id="batch mean"),
    ],
)
def test_the_bonus_scales_the_expected_gradient_of_attempt_2_by_1_plus_alpha_and_leaves_attempt_1_alone(
    advantage: str, branch: list[int], shape: dict[str, int]
) -> None:
    world = World(**shape)
    plain, shaped = (
        estimated_gradient(world, stage2(alpha=alpha, beta1=0), branch=branch, advantage=advantage) for alpha in (0, 10)
    )
    first, second = world.of_attempt(1), world.of_attempt(2)
    assert plain[first].abs().min() > 1e-4 and plain[second].abs().min() > 1e-4
    torch.testing.assert_close(shaped[first], plain[first], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shaped[second], 11 * plain[second], rtol=1e-9, atol=1e-12)


KL_GRADIENTS = {
    "k1 in the loss has none": ("k1", "loss", lambda world, beta: torch.zeros_like(world.logits)),
    "k2 in the loss has that of the reverse KL of each token": (
        "k2",
        "loss",
        lambda world, beta: token_kl_gradient(world, beta, "reverse"),
    ),
    "exact in the loss has that of the reverse KL of each token": (
        "exact",
        "loss",
        lambda world, beta: token_kl_gradient(world, beta, "reverse"),
    ),
    "k3 in the loss has that of the forward KL of each token": (
        "k3",
        "loss",
        lambda world, beta: token_kl_gradient(world, beta, "forward"),
    ),
    "k1 in the reward has that of the reverse KL of the attempt": ("k1", "reward", sequence_kl_gradient),
}


@pytest.mark.parametrize("attempts", [2, 3])
@pytest.mark.parametrize("name", KL_GRADIENTS)
def test_k1_k2_k3_have_the_gradients_claimed(name: str, attempts: int) -> None:
    estimator, placement, claimed = KL_GRADIENTS[name]
    beta = (1.5, 0.5, 0.25)[:attempts]
    world = World(attempts=attempts)
    objective = Objective(reward=(0.0,) * attempts, beta=beta)
    found = -estimated_gradient(world, objective, branch=[1] * attempts, estimator=estimator, placement=placement)
    torch.testing.assert_close(found, claimed(world, beta), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("advantage", ["rloo", "batch_mean"])
def test_k1_in_the_reward_keeps_its_gradient_under_a_baseline(advantage: str) -> None:
    world = World(length=1, problems=2)
    objective = Objective(reward=(0.0, 0.0), beta=(1.5, 0.5))
    found = -estimated_gradient(
        world, objective, branch=[2, 1], estimator="k1", placement="reward", advantage=advantage
    )
    torch.testing.assert_close(found, sequence_kl_gradient(world, (1.5, 0.5)), rtol=1e-9, atol=1e-12)


def test_the_reverse_and_the_forward_kl_pull_differently() -> None:
    # Were they alike here, the claims about k2 and k3 could not be told apart.
    world = World()
    reverse, forward = (token_kl_gradient(world, (1, 1), direction) for direction in ("reverse", "forward"))
    assert (reverse - forward).abs().max() > 0.1 * reverse.abs().max()


@pytest.mark.parametrize(
    ("estimator", "placement"),
    [
        pytest.param("k2", "loss", id="k2 in the loss"),
        pytest.param("exact", "loss", id="exact in the loss"),
        pytest.param("k1", "reward", id="k1 in the reward"),
    ],
)
@pytest.mark.parametrize("length_norm", ["none", "sequence", "constant", "token"])
def test_micro_batching_does_not_change_the_gradient(length_norm: str, estimator: str, placement: str) -> None:
    policy = stir(make_policy(lora=True))
    settings = stage(length_norm=length_norm, kl={"estimator": estimator, "placement": placement})
    found, losses = [], []
    for max_tokens in (1, 40, 1000):  # a row each, two and two, all at once
        assert len(micro_batches(rows(mixed_batch()), 0, max_tokens, CPU)) == {1: 4, 40: 2, 1000: 1}[max_tokens]
        metrics = accumulate(policy, mixed_batch(), settings, stage2(alpha=3, beta1=0.5), max_tokens=max_tokens)
        found.append(gradients(policy))
        losses.append([metrics[key] for key in ("loss", "kl/t1", "kl/t2", "entropy/t1", "entropy/t2")])
    assert largest_gap(found[2], found[0]) < 1e-5
    assert largest_gap(found[2], found[1]) < 1e-5
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_adapter_off_is_the_base_model(family: str) -> None:
    policy = Policy(add_lora(make_model(family)), make_tokenizer())
    policy.freeze_reference()
    stir(policy)
    batch = collate(rows(mixed_batch()), 0, CPU)
    inputs = (batch.input_ids, batch.attention_mask, batch.predicts)
    policy.train()
    reference = policy.reference_logprobs(policy.reference_hidden(*inputs), batch.targets, 1.0)
    base = Policy(make_model(family), make_tokenizer())
    with torch.no_grad():
        assert torch.equal(reference, base(*inputs).logprobs)
        # And the adapter is on again afterwards, in training mode, with its gradient.
        assert (policy(*inputs).logprobs - reference).abs().max() > 0.01
    assert policy.model.training
    assert policy(*inputs).logprobs.requires_grad
    assert all("lora_" in name for name in policy.trained_state())


def left_padded(batch: Batch, pad_id: int) -> Batch:
    """The same rows with their padding in front."""

    def shifted(values: Tensor, fill: int) -> Tensor:
        lengths = batch.attention_mask.sum(1).tolist()
        moved = [
            torch.cat([values.new_full((values.shape[1] - n,), fill), v[:n]])
            for v, n in zip(values, lengths, strict=True)
        ]
        return torch.stack(moved)

    return replace(
        batch,
        input_ids=shifted(batch.input_ids, pad_id),
        attention_mask=shifted(batch.attention_mask, 0),
        turn=shifted(batch.turn, 0),
    )


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_padding_side_pad_id_and_batch_order_change_nothing(family: str) -> None:
    policy = stir(make_policy(family, lora=True))
    ours = rows(mixed_batch())
    alone: dict[int, Tensor] = {}
    for row in ours:
        batch = collate([row], 0, CPU)
        alone[row.episode] = policy(batch.input_ids, batch.attention_mask, batch.predicts).logprobs
    right = collate(ours, 0, CPU)
    variants = {
        "padded on the right": right,
        "with another pad id": collate(ours, 17, CPU),
        "in another order": collate(ours[::-1], 0, CPU),
        "padded on the left": left_padded(right, 0),
        "padded on the left with another pad id": left_padded(right, 17),
    }
    for name, batch in variants.items():
        found = policy(batch.input_ids, batch.attention_mask, batch.predicts).logprobs
        for index, wanted in alone.items():
            gap = (found[batch.token_episode == index] - wanted).abs().max().item()
            assert gap < 1e-5, f"{name}: episode {index} differs by {gap}"

    def gradient(episodes: list, pad_id: int) -> dict[str, Tensor]:
        policy.tokenizer.pad_token_id = pad_id
        accumulate(policy, episodes, stage(), stage2(beta1=0.5), max_tokens=1000)
        return gradients(policy)

    wanted_gradient = gradient(mixed_batch(), 0)
    assert largest_gap(wanted_gradient, gradient(mixed_batch(), 17)) < 1e-5
    assert largest_gap(wanted_gradient, gradient(mixed_batch()[::-1], 0)) < 1e-5
