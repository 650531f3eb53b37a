"""Models without weights: on torch's meta device a tensor has a shape and a type, and no content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from score_rl.errors import ConfigError
from score_rl.loading import EMBEDDED, base_settings, build_blank, is_adapter, load_config, model_directory
from score_rl.schema import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_QWEN2_5 = {
    "model_type": "qwen2",
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN2_5,
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": _QWEN2_5,
    "Qwen/Qwen3-0.6B": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": True,
    },
    "google/gemma-2-2b-it": {
        "model_type": "gemma2",
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "vocab_size": 256_000,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        **_QWEN2_5,
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18_944,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
    "meta-llama/Llama-3.1-70B-Instruct": {
        "model_type": "llama",
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28_672,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
    },
}
"""What the configurations of the models that the recipes name say of their shapes, and of two larger ones that
docs/scaling.md plans with; all are stored in bfloat16."""


class Shape(NamedTuple):
    """A model's configuration, and where it is from: `config.json` or `table`."""

    config: PreTrainedConfig
    source: str


def find_shape(settings: ModelSettings) -> Shape:
    """The model's own configuration; where the hub does not give it, that of the table above.

    Raises:
        ConfigError: as `load_config`, for a model that is not in the table.
    """
    try:
        return Shape(load_config(settings), "config.json")
    except ConfigError:
        if settings.path not in KNOWN:
            raise
        return Shape(known_config(settings.path), "table")


def known_config(name: str) -> PreTrainedConfig:
    """The configuration of a model of the table."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**KNOWN[name], dtype=torch.bfloat16)


def weight_dtype(settings: ModelSettings, config: PreTrainedConfig) -> torch.dtype:
    """The type that the weights are held in, as `load_model(trains=True)` chooses it."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)  # type: ignore[no-any-return]
    if settings.lora is None and saved_adapter(settings) is None:
        return torch.float32
    return getattr(config, "dtype", None) or torch.float32


def saved_adapter(settings: ModelSettings) -> Path | None:
    """The directory of the adapter that `model.path` names, if it names one that is on this machine."""
    if settings.path in KNOWN or settings.path in EMBEDDED:
        return None
    directory = model_directory(settings, weights=False)
    return directory if is_adapter(directory) else None


def blank_model(settings: ModelSettings, config: PreTrainedConfig) -> Any:
    """The model that would train, with its adapter if it has one, and without weights.

    In 4 bits the shapes are those of the model that was quantised.

    Raises:
        ConfigError: no causal language model, or `model.lora.targets` matches no layer.
    """
    options: dict[str, Any] = {"dtype": weight_dtype(settings, config)}
    if settings.attention is not None and settings.attention.startswith("flash"):
        options["attn_implementation"] = "sdpa"  # which needs no package here, and no less memory there
    elif settings.attention is not None:
        options["attn_implementation"] = settings.attention
    saved = saved_adapter(settings)
    base = settings if saved is None else base_settings(settings, saved)
    return build_blank(settings, config, saved, base, **options)


def causal_lm(model: Any) -> Any:
    """The transformers model, inside peft's wrapper if there is one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
