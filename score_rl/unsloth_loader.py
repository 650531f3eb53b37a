"""Models through Unsloth (`model.loader: unsloth`), for its memory and its kernels.

Its `FastModel` keeps transformers' forward pass and cache. `FastLanguageModel` does not: it returns keys and values as
tuples and decodes from buffers of its own, which hold other rows once an attempt has ended (release 2026.10.9).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from score_rl.errors import ConfigError, MissingExtra
from score_rl.schema import LoraSettings, ModelSettings


def check_unsloth(settings: ModelSettings, *, whole: bool) -> None:
    """Refuses settings or a machine that the loader cannot work with.

    Args:
        whole: the whole model is to train.
    """
    if settings.attention is not None:
        raise ConfigError(
            f"model.attention={settings.attention}: model.loader=unsloth chooses it itself; set it to null"
        )
    if whole:
        raise ConfigError("model.loader=unsloth: trains adapters only; set model.lora={} or model.loader=transformers")
    if find_spec("unsloth") is None:
        raise MissingExtra("model.loader=unsloth needs unsloth: pip install unsloth, or set model.loader=transformers")
    if not torch.cuda.is_available():
        raise ConfigError("model.loader=unsloth: needs a GPU, and torch sees none; set model.loader=transformers")


def load_base(path: Path, settings: ModelSettings, positions: int | None) -> Any:
    """The base model in a directory; `positions` is the longest row that it has to take."""
    from unsloth import FastModel  # type: ignore[import-not-found]

    model, _ = FastModel.from_pretrained(
        str(path),
        use_exact_model_name=True,
        max_seq_length=positions or 2048,
        dtype=None if settings.dtype == "auto" else getattr(torch, settings.dtype),
        load_in_4bit=settings.quantize == "4bit",
        trust_remote_code=settings.trust_remote_code,
        use_gradient_checkpointing=settings.gradient_checkpointing,
    )
    return model


def add_unsloth_adapter(model: Any, settings: ModelSettings, lora: LoraSettings, seed: int) -> Any:
    """The model with a fresh adapter around it."""
    from unsloth import FastModel

    adapted = FastModel.get_peft_model(
        model,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        use_gradient_checkpointing=settings.gradient_checkpointing,
        random_state=seed,
    )
    adapted.peft_config["default"].revision = settings.revision
    return adapted


@torch.no_grad()
def check_cache(model: Any) -> None:
    """Refuses a model that leaves the cache it is given empty, as sampling would then draw from other contexts.

    Args:
        model: a causal language model, with or without an adapter.

    Raises:
        ConfigError: a sequence fed in two parts has other logits than fed at once.
    """
    from transformers import DynamicCache

    was_training = model.training
    model.eval()
    ids = torch.arange(1, 6, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    mask, cache = torch.ones_like(ids), DynamicCache()
    whole = model(input_ids=ids, attention_mask=mask).logits[:, -1].float()
    for begin, end in ((0, 3), (3, 4), (4, 5)):
        part, places = ids[:, begin:end], torch.arange(begin, end, device=model.device)[None]
        options = {"attention_mask": mask[:, :end], "position_ids": places, "past_key_values": cache, "use_cache": True}
        parts = model(input_ids=part, **options).logits[:, -1].float()
    model.train(was_training)
    gap = float((whole.log_softmax(-1) - parts.log_softmax(-1)).abs().max())
    if not gap < 0.1:
        raise ConfigError(
            f"model.loader=unsloth: {type(model).__name__} does not sample from the cache that it is given (log-probs "
            f"differ by {gap:.2g}); set model.loader=transformers"
        )
