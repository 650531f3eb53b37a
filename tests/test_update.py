"""The gradient of a real model against a loss written out by hand, and the policy that scores, saves and is frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
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
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM

from score_rl.batch import collate, rows
from score_rl.episodes import Episode
from score_rl.errors import ConfigError
from score_rl.objectives import Objective, stage1, stage2
from score_rl.policy import Policy, check_scores, load_policy
from score_rl.schema import LoraSettings, ModelSettings
from score_rl.update import accumulate, tabulate

EVERY_KL = [
    pytest.param(estimator, placement, id=f"{estimator} in the {placement}")
    for estimator, placement in [("k1", "loss"), ("k2", "loss"), ("k3", "loss"), ("exact", "loss"), ("k1", "reward")]
]


def inputs(episodes: list[Episode]) -> tuple[Tensor, Tensor, Tensor]:
    batch = collate(rows(episodes), 0, CPU)
    return batch.input_ids, batch.attention_mask, batch.predicts


def plain_logprobs(model: torch.nn.Module, ids: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    """Log-probs [T, V] of what follows each token, from transformers' own logits."""
    return (model(input_ids=torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)


# ---- One step by hand

FIRST = episode("p", [[2, 9, 3], [2, 8, 3]], [[10, 11, 1], [12, 1]], [0.0, 1.0], path=(0, 0))
SECOND = episode("p", [[2, 9, 3], [2, 8, 3]], [[13, 1], [14, 15, 16, 1]], [1.0, 0.0], path=(1, 0))


def spoken(model: torch.nn.Module, one: Episode, attempt: int, temperature: float) -> Tensor:
    """Log-probs [n, V] of an attempt's tokens by a forward pass over its own context, nothing shared or padded."""
    a = one.attempts[attempt - 1]
    log_p = plain_logprobs(model, a.context_ids + a.token_ids, temperature)
    return log_p[len(a.context_ids) - 1 : -1]


def test_the_gradient_of_a_step_is_that_of_the_loss_written_out_by_hand() -> None:
    temperature, beta = 0.8, 0.3
    policy, model, reference = make_policy("qwen3"), make_model("qwen3"), make_model("qwen3", seed=3)
    policy.freeze_reference(make_model("qwen3", seed=3))
    settings = stage(
        advantage="rloo", length_norm="sequence", kl={"estimator": "exact"}, sampling={"temperature": temperature}
    )
    accumulate(policy, [FIRST, SECOND], settings, stage2(alpha=10, beta1=beta), max_tokens=1)
    # Credits: episode 1 has 0 and 1 + 10 * 1, episode 2 has 1 and 0 - 10 * 1. Leave-one-out subtracts the other's.
    by_hand = {(0, 1): 0 - 1, (0, 2): 11 + 10, (1, 1): 1 - 0, (1, 2): -10 - 11}
    value = torch.zeros(())
    for (index, k), advantage in by_hand.items():
        one = (FIRST, SECOND)[index]
        log_p, log_q = (spoken(m, one, k, temperature) for m in (model, reference))
        chosen = log_p.gather(1, torch.tensor(one.attempts[k - 1].token_ids)[:, None])[:, 0]
        kl = (log_p.exp() * (log_p - log_q.detach())).sum(-1)
        value = value + (-advantage * chosen + beta * kl).mean() / 2
    value.backward()
    wanted = {f"model.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert largest_gap(wanted, gradients(policy)) < 2e-5


def test_the_metrics_of_a_step_by_hand() -> None:
    policy = make_policy()
    policy.freeze_reference(make_model(seed=3))
    reference = make_model(seed=3)
    metrics = accumulate(policy, [FIRST, SECOND], stage(), stage2(alpha=10, beta1=0.1), max_tokens=99)
    with torch.no_grad():
        log_p, log_q = (spoken(m, FIRST, 2, 1.0)[range(2), [12, 1]] for m in (policy.model, reference))
        other_p, other_q = (spoken(m, SECOND, 2, 1.0)[range(4), [14, 15, 16, 1]] for m in (policy.model, reference))
    d, other = log_q - log_p, other_q - other_p
    k3 = (d.exp() - d - 1).sum() + (other.exp() - other - 1).sum()
    assert metrics["kl/t2"] == pytest.approx(float(k3) / 2, rel=1e-4)
    # Nats a token, by attempt.
    assert metrics["entropy/t2"] == pytest.approx(-float(log_p.mean() + other_p.mean()) / 2, rel=1e-4)
    # The episodes say -1 for each token, as an engine would.
    gap = (log_p.mean() + 1).abs() + (other_p.mean() + 1).abs()
    assert metrics["engine_gap/t2"] == pytest.approx(float(gap) / 2, rel=1e-4)
    # Advantages 21 and -21 for attempt 2, -1 and 1 for attempt 1.
    assert metrics["advantage_std/t2"] == pytest.approx(21)
    assert metrics["advantage_std/t1"] == pytest.approx(1)


def test_places_in_the_tree_are_numbered_by_question_and_path() -> None:
    tree = [
        episode(problem, [[5], [6]], [[7, 1], [8]], [0.5, 1.0], path=path, offline=int(problem == "q"))
        for problem in "pq"
        for path in ((0, 0), (0, 1), (1, 0))
    ]
    table = tabulate(tree, CPU)
    p, q = set(table.problem[:3].tolist()), set(table.problem[3:].tolist())
    assert len(p) == len(q) == 1 and p != q
    first, second = table.nodes.T.tolist()
    assert first[0] == first[1] and len(set(first)) == 4
    assert len(set(second)) == 6 and not set(first) & set(second)
    assert table.lengths.tolist() == [[2, 1]] * 3 + [[0, 1]] * 3
    assert table.sampled.tolist() == [[True, True]] * 3 + [[False, True]] * 3
    assert table.rewards[0].tolist() == [0.5, 1.0] and table.correct[0].tolist() == [0, 1]


def test_a_question_drawn_twice_has_two_trees() -> None:
    twice = [episode("p", [[5], [6]], [[7, 1], [8]], [0, 1], path=path) for path in ((0, 0), (1, 0), (0, 0), (1, 0))]
    table = tabulate(twice, CPU)
    assert table.problem[0] == table.problem[1] != table.problem[2] == table.problem[3]
    assert len(set(table.nodes.flatten().tolist())) == 8


# ---- Only sampled tokens are trained


def test_only_sampled_tokens_have_a_weight() -> None:
    recorder = Recorder.around(stir(make_policy(lora=True)))
    accumulate(recorder, mixed_batch(), stage(), stage2(beta1=0.1), max_tokens=1000)
    # 3 + 2 and 2 + 5 tokens of the first question, 1 and 2 of the second, whose first attempts are stored.
    assert [len(seen) for seen in recorder.seen] == [15]


def test_a_stored_first_attempt_gets_neither_policy_nor_kl_gradient() -> None:
    policy = stir(make_policy(lora=True))
    own, stored = (
        [
            episode("p", [[5], [6]], [[7, 8, 1], [9, 1]], [1.0, 0.0], path=(0, 0), offline=offline),
            episode("p", [[5], [6]], [[11, 1], [12, 1]], [0.0, 1.0], path=(1, 0), offline=offline),
        ]
        for offline in (0, 1)
    )
    # The reward of attempt 1 and its pin are all that differ; where both are nil, the gradients are the same.
    nothing_on_1 = Objective(reward=(0.0, 1.0), beta=(0.0, 0.5))
    accumulate(policy, own, stage("stage1"), nothing_on_1, max_tokens=99)
    wanted = gradients(policy)
    pushed_and_pinned = Objective(reward=(7.0, 1.0), beta=(3.0, 0.5))
    metrics = accumulate(policy, stored, stage("stage1"), pushed_and_pinned, max_tokens=99)
    assert largest_gap(wanted, gradients(policy)) < 1e-5
    assert "kl/t1" not in metrics and "kl/t2" in metrics
    accumulate(policy, own, stage("stage1"), pushed_and_pinned, max_tokens=99)
    assert largest_gap(wanted, gradients(policy)) > 0.1


def test_without_a_beta_the_reference_is_never_asked() -> None:
    policy = make_policy()
    policy._frozen.clear()
    metrics = accumulate(policy, [FIRST, SECOND], stage(), stage2(beta1=0), max_tokens=99)
    assert gradients(policy) and "kl/t1" not in metrics


# ---- KL


@pytest.mark.parametrize("lora", [True, False], ids=["adapter off", "frozen copy"])
@pytest.mark.parametrize(("estimator", "placement"), EVERY_KL)
def test_kl_of_an_untrained_policy_is_exactly_zero_and_leaves_the_gradient_alone(
    estimator: str, placement: str, lora: bool
) -> None:
    policy = make_policy("qwen3", lora=lora)
    settings = stage(kl={"estimator": estimator, "placement": placement})
    metrics = accumulate(policy, mixed_batch(), settings, stage2(alpha=1, beta1=1), max_tokens=40)
    with_kl = gradients(policy)
    assert metrics["kl/t1"] == metrics["kl/t2"] == 0
    accumulate(policy, mixed_batch(), settings, stage2(alpha=1, beta1=0), max_tokens=40)
    if estimator == "k1" and placement == "loss":
        # Its value is zero, but not its derivative, which is 0 only in expectation.
        assert largest_gap(with_kl, gradients(policy)) > 1e-3
    else:
        assert largest_gap(with_kl, gradients(policy)) < 1e-6


def test_kl_in_the_reward_is_taken_off_each_attempts_own_credit() -> None:
    policy = make_policy()
    policy.freeze_reference(make_model(seed=3))
    recorder = Recorder.around(policy)
    settings = stage("stage1", advantage="none", kl={"estimator": "k1", "placement": "reward"})
    accumulate(recorder, [FIRST], settings, stage1(beta1=0.5, beta2=2.0), max_tokens=99)
    with torch.no_grad():
        sums = [
            float((spoken(policy.model, FIRST, k, 1.0) - spoken(policy._frozen[0], FIRST, k, 1.0))[range(n), ids].sum())
            for k, n, ids in ((1, 3, [10, 11, 1]), (2, 2, [12, 1]))
        ]
    # Minus the credit: attempt 1 earns 0 - 2 KL_1, attempt 2 earns 1 - 0.5 KL_2.
    (seen,) = recorder.seen
    assert seen.grad is not None
    assert seen.grad.tolist() == pytest.approx([2 * sums[0]] * 3 + [0.5 * sums[1] - 1] * 2, rel=1e-4)


# ---- Scores


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied embeddings"])
@pytest.mark.parametrize("chunk", [1, 3 * 64, 32_000_000], ids=["a token a chunk", "three", "all at once"])
def test_chunked_logprobs_are_those_of_the_full_softmax(chunk: int, tied: bool) -> None:
    policy, model = make_policy(tied=tied, chunk=chunk), make_model(tied=tied)
    found = policy(*inputs([FIRST]), temperature=0.5).logprobs
    ids = rows([FIRST])[0].ids
    full = plain_logprobs(model, ids, 0.5)
    wanted = torch.stack([full[t - 1, ids[t]] for t in (3, 4, 5, 9, 10)])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    wanted.sum().backward()
    by_hand = {f"model.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert largest_gap(by_hand, gradients(policy)) < 1e-5


def test_logits_are_held_a_chunk_at_a_time() -> None:
    policy = make_policy(chunk=2 * 64)
    heights: list[int] = []
    head = policy.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: heights.append(output.shape[0]))
    policy(*inputs([FIRST])).logprobs.sum().backward()
    # Five scored tokens, two at a time, once forward and once more in the backward pass.
    assert sorted(heights) == [1, 1, 2, 2, 2, 2]


def test_the_temperature_divides_the_logits_of_policy_and_reference() -> None:
    policy = make_policy()
    cold, hot = (policy(*inputs([FIRST]), temperature=t).logprobs for t in (0.5, 2.0))
    assert (cold - hot).abs().max() > 0.1
    states = policy.reference_hidden(*inputs([FIRST]))
    targets = collate(rows([FIRST]), 0, CPU).targets
    assert torch.equal(policy.reference_logprobs(states, targets, 0.5), cold)
    exact = policy(*inputs([FIRST]), temperature=2.0, reference_states=states).exact_kl
    assert exact is not None and torch.equal(exact, torch.zeros(5))


@pytest.mark.parametrize("lora", [False, True], ids=["whole model", "adapter"])
def test_gradient_checkpointing_gives_the_same_gradient(lora: bool, tmp_path: Path) -> None:
    make_policy("qwen3").save(tmp_path)
    found = []
    for checkpointing in (False, True):
        settings = ModelSettings(
            path=str(tmp_path), lora=LoraSettings(rank=4) if lora else None, gradient_checkpointing=checkpointing
        )
        policy = load_policy(settings)
        policy.freeze_reference()
        stir(policy).train()
        assert any(getattr(m, "gradient_checkpointing", False) for m in policy.modules()) == checkpointing
        accumulate(policy, mixed_batch(), stage(), stage2(beta1=0.5), max_tokens=40)
        found.append(gradients(policy))
    assert largest_gap(*found) < 1e-6


def test_a_model_that_scales_its_logits_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    granite = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=64, num_key_value_heads=2, initializer_range=0.3, logits_scaling=8.0, bos_token_id=None, **small
        )
    )
    Policy(granite, make_tokenizer()).save(tmp_path)
    with pytest.raises(ConfigError, match="GraniteForCausalLM computes its logits in a way that is not supported"):
        load_policy(ModelSettings(path=str(tmp_path)))
    granite.config.logits_scaling = 1.0
    check_scores(Policy(granite, make_tokenizer()))


# ---- Saving, and the reference


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_saved_adapter_loads_with_plain_peft_and_scores_alike(family: str, tmp_path: Path) -> None:
    policy = stir(make_policy(family, lora=True))
    policy.freeze_reference(at_adapter=True)
    policy.save(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file() and not (tmp_path / "reference").exists()
    loaded = PeftModel.from_pretrained(make_model(family), tmp_path)
    ids = rows([SECOND])[0].ids
    with torch.no_grad():
        torch.testing.assert_close(plain_logprobs(loaded, ids), plain_logprobs(policy.model, ids), rtol=0, atol=1e-6)
        assert (plain_logprobs(make_model(family), ids) - plain_logprobs(loaded, ids)).abs().max() > 0.01


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied embeddings"])
def test_a_saved_model_loads_with_plain_transformers_and_scores_alike(tied: bool, tmp_path: Path) -> None:
    policy = stir(make_policy(tied=tied))
    policy.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = rows([SECOND])[0].ids
    with torch.no_grad():
        assert torch.equal(plain_logprobs(loaded, ids), plain_logprobs(policy.model, ids))


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "whole model"])
def test_saved_weights_come_back_without_moving_the_reference(lora: bool, tmp_path: Path) -> None:
    trained = stir(make_policy(lora=lora))
    trained.save(tmp_path)
    other = make_policy(lora=lora)
    states = other.reference_hidden(*inputs([FIRST]))
    other.load_saved(tmp_path)
    assert torch.equal(other(*inputs([FIRST])).logprobs, trained(*inputs([FIRST])).logprobs)
    assert torch.equal(other.reference_hidden(*inputs([FIRST])), states)


def test_a_reference_at_the_adapter_is_the_policy_of_that_moment_and_stays_there() -> None:
    policy = stir(make_policy(lora=True))
    then = policy(*inputs([FIRST])).logprobs.detach()
    trained = set(policy.trained_state())
    policy.freeze_reference(at_adapter=True)
    batch = collate(rows([FIRST]), 0, CPU)

    def reference() -> Tensor:
        return policy.reference_logprobs(policy.reference_hidden(*inputs([FIRST])), batch.targets, 1.0)

    assert torch.equal(reference(), then)
    metrics = accumulate(policy, [FIRST, SECOND], stage(), stage2(), max_tokens=99)
    assert metrics["kl/t1"] == 0
    stir(policy, seed=2)
    assert torch.equal(reference(), then)
    assert (policy(*inputs([FIRST])).logprobs - then).abs().max() > 0.01
    # The same parameters train as before, and the reference's never do.
    assert set(policy.trained_state()) == trained
    assert not any("reference" in name for name in gradients(policy))
    policy.freeze_reference()
    assert torch.equal(reference(), make_policy(lora=True)(*inputs([FIRST])).logprobs)


@pytest.mark.parametrize("lora", [True, False], ids=["adapter at stage start", "frozen copy"])
def test_a_reference_round_trips_through_its_state(lora: bool) -> None:
    policy = stir(make_policy(lora=lora))
    policy.freeze_reference(at_adapter=lora)
    states = policy.reference_hidden(*inputs([FIRST]))
    kept = policy.reference_state()
    assert kept is not None
    kept = {name: value.clone() for name, value in kept.items()}
    other = make_policy(lora=lora)
    assert not torch.equal(other.reference_hidden(*inputs([FIRST])), states)
    mine = {name: value.clone() for name, value in other.trained_state().items()}
    other.load_reference_state(kept)
    assert torch.equal(other.reference_hidden(*inputs([FIRST])), states)
    assert all(torch.equal(value, mine[name]) for name, value in other.trained_state().items())


def test_a_reference_with_the_adapter_off_has_no_state() -> None:
    policy = make_policy(lora=True)
    assert policy.reference_state() is None
    policy.freeze_reference(at_adapter=True)
    policy.load_reference_state(None)
    assert policy.reference_state() is None


def test_the_frozen_copy_is_neither_trained_nor_saved_nor_moved_by_training() -> None:
    policy = make_policy()
    states = policy.reference_hidden(*inputs([FIRST]))
    accumulate(policy, [FIRST, SECOND], stage(), stage2(beta1=0.5), max_tokens=99)
    torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1).step()
    assert torch.equal(policy.reference_hidden(*inputs([FIRST])), states)
    assert all(p.grad is None for p in policy._frozen[0].parameters())
    assert sum(1 for _ in policy.parameters()) == sum(1 for _ in policy.model.parameters())


def test_a_whole_model_without_a_reference_says_so() -> None:
    policy = Policy(make_model(), make_tokenizer())
    with pytest.raises(RuntimeError, match="freeze_reference"):
        policy.reference_hidden(*inputs([FIRST]))


def test_weights_of_another_model_are_refused() -> None:
    policy = Policy(add_lora(make_model()), make_tokenizer())
    with pytest.raises(ConfigError, match="of another model or adapter"):
        policy.load_trained_state(make_policy().trained_state())
