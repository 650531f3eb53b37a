"""Real models that are small enough to be checked by hand, and episodes whose ids and rewards are written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from score_rl.batch import collate, rows
from score_rl.episodes import Attempt, Episode, Grade, Problem
from score_rl.policy import Policy, TokenScores
from score_rl.schema import StageSettings

CPU = torch.device("cpu")
SPECIAL = ["<pad>", "<end>", "<user>", "<assistant>"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
"""Of every model here, and of those that tests make of other classes."""
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "query_pre_attn_scalar": 8}
PECULIAR = {
    "mistral": {"sliding_window": 8},
    "gemma2": WINDOWS | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "gemma3": WINDOWS,
}
"""What a family has that others lack, scaled down so that it matters for rows of a dozen tokens."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character, and four special ones: 64 in all."""
    characters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNO +-*/=.,?"
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters[:60]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", unk_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    fast.chat_template = TEMPLATE
    return fast


def make_model(
    family: str = "llama", *, seed: int = 0, vocabulary: int = 64, tied: bool = False, **options: Any
) -> PreTrainedModel:
    """Two layers of width 32; weights large enough for its distributions to be far from uniform."""
    config_class, model_class = FAMILIES[family]
    usual = {"intermediate_size": 48, "pad_token_id": 0, "eos_token_id": 1}
    options = usual | PECULIAR.get(family, {}) | options
    config = config_class(
        vocab_size=vocabulary,
        **SIZE,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=None,
        **options,
    )
    torch.manual_seed(seed)
    return model_class(config).eval()


def add_lora(model: PreTrainedModel, *, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))


def make_policy(
    family: str = "llama",
    *,
    lora: bool = False,
    seed: int = 0,
    vocabulary: int = 64,
    tied: bool = False,
    chunk: int = 32_000_000,
) -> Policy:
    """A policy whose reference is itself as it is now."""
    model = make_model(family, seed=seed, vocabulary=vocabulary, tied=tied)
    policy = Policy(add_lora(model) if lora else model, make_tokenizer(), chunk=chunk)
    policy.freeze_reference()
    return policy


def stir(policy: Policy, *, seed: int = 1, size: float = 0.1) -> Policy:
    """Moves the trained weights, so that the policy is no longer its reference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return policy


class Recorder(Policy):
    """A policy that keeps the token log-probs it gave, so that the loss's derivative by each can be read off."""

    @classmethod
    def around(cls, policy: Policy) -> Recorder:
        recorder = cls(policy.model, policy.tokenizer, chunk=policy.chunk)
        recorder._frozen = policy._frozen
        recorder.seen: list[Tensor] = []
        return recorder

    def forward(self, *args: Any, **options: Any) -> TokenScores:
        scores = super().forward(*args, **options)
        if scores.logprobs.requires_grad:
            scores.logprobs.retain_grad()
            self.seen.append(scores.logprobs)
        return scores


def stage(kind: str = "stage2", **settings: Any) -> StageSettings:
    """Settings with a step and a question; two attempts of at most 8 tokens unless told otherwise."""
    branch = settings.pop("branch", [2, 1])
    limits = settings.pop("max_new_tokens", [8] * len(branch))
    return StageSettings(kind=kind, steps=1, problems=1, branch=branch, max_new_tokens=limits, **settings)


def episode(
    problem: str,
    contexts: Sequence[Sequence[int]],
    attempts: Sequence[Sequence[int]],
    rewards: Sequence[float],
    *,
    path: Sequence[int] | None = None,
    offline: int = 0,
) -> Episode:
    """An episode from ids: `contexts` are the question and the bridges, `offline` the number of stored attempts."""
    ids: tuple[int, ...] = ()
    made = []
    for k, (context, tokens, reward) in enumerate(zip(contexts, attempts, rewards, strict=True)):
        ids += tuple(context)
        grade = Grade(correct=reward == 1, reward=reward, answer=str(tokens))
        logprobs = (-1.0,) * len(tokens)
        made.append(Attempt(ids, tuple(tokens), str(tokens), True, k >= offline, logprobs, grade))
        ids += tuple(tokens)
    return Episode(Problem(problem, problem, "1"), tuple(made), tuple(path or (0,) * len(made)))


def mixed_batch() -> list[Episode]:
    """Two questions with two episodes each, attempts of 1 to 5 tokens, one question with stored first attempts."""
    return [
        episode("p", [[2, 9, 3], [2, 8, 3]], [[10, 11, 1], [12, 1]], [0.0, 1.0], path=(0, 0)),
        episode("p", [[2, 9, 3], [2, 8, 3]], [[13, 1], [14, 15, 16, 17, 1]], [1.0, 0.25], path=(1, 0)),
        episode("q", [[2, 9, 9, 9, 3], [2, 8, 3]], [[20, 1], [1]], [0.0, 0.0], path=(0, 0), offline=1),
        episode("q", [[2, 9, 9, 9, 3], [2, 8, 3]], [[21, 22, 1], [23, 1]], [0.5, 1.0], path=(1, 0), offline=1),
    ]


def gradients(policy: Policy) -> dict[str, Tensor]:
    """The trained parameters' gradients by name; emptied in the policy."""
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return found


def largest_gap(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Greatest difference of two gradients, relative to the greatest entry of the left one."""
    assert left.keys() == right.keys() and left
    size = max(float(value.abs().max()) for value in left.values())
    assert size > 0, "no gradient at all"
    return max(float((left[name] - right[name]).abs().max()) for name in left) / size


FIRST = episode("p", [[2, 9, 3], [2, 8, 3]], [[10, 11, 1], [12, 1]], [0.0, 1.0], path=(0, 0))
SECOND = episode("p", [[2, 9, 3], [2, 8, 3]], [[13, 1], [14, 15, 16, 1]], [1.0, 0.0], path=(1, 0))


def inputs(episodes: Sequence[Episode]) -> tuple[Tensor, Tensor, Tensor]:
    """What a policy takes to score the episodes, all in one batch."""
    batch = collate(rows(episodes), 0, CPU)
    return batch.input_ids, batch.attention_mask, batch.predicts


def plain_logprobs(model: torch.nn.Module, ids: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    """Log-probs [T, V] of what follows each token, from transformers' own logits."""
    return (model(input_ids=torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)
