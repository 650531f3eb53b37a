"""The policy that scores, saves and is frozen, against transformers and peft on their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import (
    CPU,
    FIRST,
    SECOND,
    SIZE,
    add_lora,
    gradients,
    inputs,
    largest_gap,
    make_model,
    make_policy,
    make_tokenizer,
    mixed_batch,
    plain_logprobs,
    stage,
    stir,
)
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from score_rl.batch import collate, rows
from score_rl.errors import ConfigError
from score_rl.loading import check_scores, load_policy
from score_rl.objectives import stage2
from score_rl.policy import Policy
from score_rl.schema import LoraSettings, ModelSettings
from score_rl.update import accumulate

# ---- Scores


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied embeddings"])
@pytest.mark.parametrize("chunk", [1, 9 * 64, 32_000_000], ids=["a token a chunk", "three", "all at once"])
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
    policy = make_policy(chunk=3 * 2 * 64)
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


def test_a_model_that_caps_its_logits_is_scored_as_it_samples() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64,
        intermediate_size=48,
        **SIZE,
        initializer_range=0.5,
        final_logit_softcapping=2.0,
    )
    model = Gemma2ForCausalLM(config).eval()
    policy = Policy(model, make_tokenizer())
    check_scores(policy)
    ids = rows([FIRST])[0].ids
    with torch.no_grad():
        full = plain_logprobs(model, ids, 0.5)
        wanted = torch.stack([full[t - 1, ids[t]] for t in (3, 4, 5, 9, 10)])
        torch.testing.assert_close(policy(*inputs([FIRST]), temperature=0.5).logprobs, wanted, rtol=1e-5, atol=1e-5)
        config.final_logit_softcapping = None
        assert (policy(*inputs([FIRST]), temperature=0.5).logprobs - wanted).abs().max() > 0.1


def test_an_adapted_head_has_every_kl_but_the_exact_one_to_the_start_of_a_stage() -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    policy = Policy(get_peft_model(make_model(), lora), make_tokenizer())
    stir(policy)
    for estimator in ("k2", "exact"):
        metrics = accumulate(
            policy, [FIRST, SECOND], stage(kl={"estimator": estimator}), stage2(beta1=0.1), max_tokens=99
        )
        assert metrics["kl/t1"] > 0
        assert any("lm_head" in name for name in gradients(policy))
    policy.freeze_reference(at_adapter=True)
    assert accumulate(policy, [FIRST, SECOND], stage(), stage2(beta1=0.1), max_tokens=99)["kl/t1"] == 0
    with pytest.raises(ConfigError, match="exact cannot be had with an adapted output head and reference=stage_start"):
        accumulate(policy, [FIRST, SECOND], stage(kl={"estimator": "exact"}), stage2(beta1=0.1), max_tokens=99)


# ---- What fills rows and ends attempts


@pytest.mark.parametrize("pad", [None, 1], ids=["no padding token", "padding is the end token"])
def test_an_odd_padding_token_changes_nothing(pad: int | None) -> None:
    policy = stir(make_policy("qwen3"))
    accumulate(policy, mixed_batch(), stage(), stage2(beta1=0.5), max_tokens=1000)
    wanted = gradients(policy)
    policy.tokenizer.pad_token_id = pad
    assert policy.pad_id == 1
    accumulate(policy, mixed_batch(), stage(), stage2(beta1=0.5), max_tokens=1000)
    # The end tokens of the attempts, equal to the padding, are trained as before.
    assert largest_gap(wanted, gradients(policy)) < 1e-6
    policy.tokenizer.pad_token_id = policy.tokenizer.eos_token_id = None
    assert policy.pad_id == 0


@pytest.mark.parametrize(
    ("eos", "ends"), [(1, {1}), ([1, 7, 9], {1, 7, 9}), (None, set())], ids=["one", "several", "none"]
)
def test_the_models_own_end_tokens_end_an_attempt(eos: int | list[int] | None, ends: set[int]) -> None:
    policy = make_policy()
    policy.model.generation_config.eos_token_id = eos
    assert policy.end_ids == ends
    adapted = Policy(add_lora(policy.model), make_tokenizer())
    assert adapted.end_ids == ends


def test_weights_in_bfloat16_are_warned_of_unless_an_adapter_in_float32_trains() -> None:
    whole = Policy(make_model().to(torch.bfloat16), make_tokenizer())
    (caution,) = whole.cautions()
    assert caution.startswith("bfloat16 is also what the trained weights are held in")
    adapted = Policy(add_lora(make_model().to(torch.bfloat16)), make_tokenizer())
    assert adapted.cautions() == make_policy().cautions() == []
    assert {value.dtype for value in adapted.trained_state().values()} == {torch.float32}


def test_in_bfloat16_a_reference_at_the_adapter_scores_exactly_as_the_policy_did() -> None:
    policy = stir(Policy(add_lora(make_model().to(torch.bfloat16)), make_tokenizer()))
    policy.freeze_reference(at_adapter=True)
    for estimator in ("k2", "exact"):
        metrics = accumulate(policy, [FIRST, SECOND], stage(kl={"estimator": estimator}), stage2(), max_tokens=99)
        assert metrics["kl/t1"] == metrics["kl/t2"] == 0


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
    for estimator in ("k2", "exact"):
        metrics = accumulate(policy, [FIRST, SECOND], stage(kl={"estimator": estimator}), stage2(), max_tokens=99)
        assert metrics["kl/t1"] == metrics["kl/t2"] == 0
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


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
@pytest.mark.parametrize("saved_by_peft", [False, True], ids=["saved by us", "saved by peft with the head's weights"])
def test_an_adapter_of_the_head_is_saved_without_the_head_and_loaded_with_or_without(
    saved_by_peft: bool, tmp_path: Path
) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    trained, other = (Policy(get_peft_model(make_model(), lora), make_tokenizer()) for _ in range(2))
    stir(trained)
    if saved_by_peft:
        trained.model.save_pretrained(tmp_path)
    else:
        trained.save(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert any("lm_head" in name for name in stored)
    assert all("lora_" in name for name in stored) != saved_by_peft
    other.load_saved(tmp_path)
    assert torch.equal(other(*inputs([FIRST])).logprobs, trained(*inputs([FIRST])).logprobs)


# ---- Adapters that do not belong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"r": 8, "lora_alpha": 8}, "its rank is 8 and model.lora.rank=4; set model.lora.rank=8", id="rank"
        ),
        pytest.param(
            {"r": 4, "lora_alpha": 16}, "its alpha is 16 and model.lora.alpha=8; set model.lora.alpha=16", id="alpha"
        ),
        pytest.param({"r": 4, "lora_alpha": 8, "use_rslora": True}, "use_rslora is True", id="scaling"),
        pytest.param(
            {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}, "weights are in one adapter only", id="targets"
        ),
    ],
)
def test_an_adapter_of_other_settings_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    config = LoraConfig(**({"target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options))
    Policy(get_peft_model(make_model(), config), make_tokenizer()).save(tmp_path)
    policy = make_policy(lora=True)  # rank 4, alpha 8
    before = {name: value.clone() for name, value in policy.trained_state().items()}
    with pytest.raises(ConfigError, match=message) as caught:
        policy.load_saved(tmp_path)
    assert str(caught.value).startswith(f"--resume-adapter {tmp_path}: cannot be loaded (")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in policy.trained_state().items())


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    wide = make_model(vocabulary=64, intermediate_size=96)
    Policy(add_lora(wide), make_tokenizer()).save(tmp_path / "wide")
    policy = make_policy(lora=True)
    with pytest.raises(ConfigError, match=r"it is an adapter of another model: .* is \(96, 4\) there and \(48, 4\)"):
        policy.load_saved(tmp_path / "wide")
    named = []
    for name in ("someone/base", "someone/instruct"):
        model = make_model()
        model.name_or_path = name
        named.append(Policy(add_lora(model), make_tokenizer()))
    named[0].save(tmp_path / "named")
    with pytest.raises(ConfigError, match=r"it is an adapter of someone/base, and the model is someone/instruct"):
        named[1].load_saved(tmp_path / "named")
