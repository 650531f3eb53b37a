"""A real tokenizer with chat templates as found in the wild, and small real models; all built here, nothing stored."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from score_rl.chat import Chat
from score_rl.schema import ChatSettings

INSTRUCTION = "Redo it."

# Two newlines merge, so that text joined and re-tokenised differs from ids joined: the difference that tests look for.
MERGES = [("Ċ", "Ċ"), ("e", "r")]
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<|header|>"]
PLAIN = ["<think>", "</think>"]

_CHATML_TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
_CHATML_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

TEMPLATES = {
    # The common one; the model stops at <|im_end|> and never writes the newline behind it.
    "chatml": "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_PROMPT,
    # Reasoning models drop their thoughts from all but the last assistant turn.
    "strips thoughts": (
        "{% for m in messages %}{% if m.role == 'assistant' and '</think>' in m.content %}"
        "{{ '<|im_start|>assistant\n' + m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
        "{% else %}" + _CHATML_TURN + "{% endif %}{% endfor %}" + _CHATML_PROMPT
    ),
    # Opens the thoughts for the model, so the generation prompt is more than an assistant header.
    "opens thoughts": (
        "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    ),
    "without system role": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{{ m.content | trim + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
    ),
    "default system prompt": (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_PROMPT
    ),
    # The turn ends with a token that is neither eos nor among the tokenizer's named special tokens.
    "header": (
        "{{ bos_token }}{% for m in messages %}{{ '<|header|>' + m.role + '\n\n' + m.content | trim + '<|eot|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|header|>assistant\n\n' }}{% endif %}"
    ),
    # A space stands between the attempt and its end token, so the bridge does not start with the end token.
    "space before end": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[I] ' + m.content + ' [/I]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    # The system prompt travels to the last user turn: what was in front of attempt 1 changes once the chat goes on.
    "moves the system prompt": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[I]' }}"
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
        "{{ m.content + '[/I]' }}{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    ),
    # No special token at all; only the eos that the model learnt ends a turn.
    "plain text": (
        "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}{{ m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
    ),
}
NESTING = [name for name in TEMPLATES if name != "moves the system prompt"]

# eos, pad; everything else ends with </s> and pads with <pad>.
_ENDS = {
    "chatml": ("<|im_end|>", "<pad>"),
    "strips thoughts": ("<|im_end|>", "<|im_end|>"),
    "opens thoughts": ("<|im_end|>", "<pad>"),
    "default system prompt": ("</s>", "</s>"),
}


def make_tokenizer(template: str | None = "chatml") -> PreTrainedTokenizerFast:
    """Byte-level BPE over 256 bytes and two merges, with the template of that name, or none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *(a + b for a, b in MERGES)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN])
    # As Llama's does: text encoded with special tokens gets <s> in front, which templates write themselves.
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    eos, pad = _ENDS.get(template or "", ("</s>", "<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token=eos,
        pad_token=pad,
        chat_template=None if template is None else TEMPLATES[template],
    )


def encode(text: str) -> tuple[int, ...]:
    """Ids of a text, whose special tokens are recognised and to which none is added; the same for all templates."""
    return tuple(make_tokenizer()(text, add_special_tokens=False)["input_ids"])


def make_chat(template: str = "chatml", *, history: str = "verbatim", **options: object) -> Chat:
    """A chat with the short instruction."""
    settings = ChatSettings.model_validate({"instruction": INSTRUCTION, "history": history, **options})
    return Chat(make_tokenizer(template), settings)


VOCABULARY = 256 + len(MERGES) + len(SPECIAL) + len(PLAIN)

# Initial weights far from zero: logits then lie far apart, and no rounding decides which token is greedy.
_SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WINDOW = 8


def _qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_SIZE))


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_SIZE))


def _mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**_SIZE, sliding_window=WINDOW))


def _gemma2() -> PreTrainedModel:
    # One sliding layer and one full one, capped logits; eager attention because only it caps attention too. Untied,
    # because at this size a tied head answers every token with itself.
    config = Gemma2Config(
        **_SIZE,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        final_logit_softcapping=5.0,
        attn_implementation="eager",
        tie_word_embeddings=False,
    )
    return Gemma2ForCausalLM(config)


_FAMILIES = {
    "qwen3": _qwen3,
    "llama": _llama,
    "mistral, sliding window": _mistral,
    "gemma2, one sliding layer": _gemma2,
}
FAMILIES = list(_FAMILIES)


def make_model(family: str = "qwen3", seed: int = 0) -> PreTrainedModel:
    """A small random model, 2 layers of width 32, float32; the sliding windows are 8 tokens."""
    torch.manual_seed(seed)
    return _FAMILIES[family]().float().eval()
