"""LoRA adapters: fresh ones, and whether a saved one belongs to a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from score_rl.data.files import HUB_NAME
from score_rl.errors import ConfigError
from score_rl.schema import LoraSettings, ModelSettings


def add_adapter(model: Any, settings: ModelSettings, lora: LoraSettings, seed: int) -> Any:
    """The model with a fresh adapter around it.

    Raises:
        ConfigError: `model.lora.targets` matches no layer.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
        revision=settings.revision,
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        raise ConfigError(
            f"model.lora.targets={lora.targets}: {one_line(error)}; its linear layers: {', '.join(sorted(linear))}"
        ) from error


def adapter_state(model: Any, name: str, *, embeddings: bool = False) -> dict[str, Tensor]:
    """Weights of one adapter of a peft model, as peft saves them.

    Args:
        embeddings: also those of embeddings and head, which no adapter changes. Left to itself peft decides that by
            asking the hub, on every call.
    """
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=embeddings))


def check_adapter(directory: Path, model: Any) -> None:
    """Refuses a saved adapter that has another shape than the model's, or that counts for more or less.

    Args:
        directory: what peft wrote.
        model: a peft model.

    Raises:
        ValueError: the two differ; the message says in what.
    """
    from peft import PeftConfig, load_peft_weights

    theirs, ours = PeftConfig.from_pretrained(str(directory)), model.peft_config["default"]
    for key, field in (("rank", "r"), ("alpha", "lora_alpha")):
        there, here = getattr(theirs, field, None), getattr(ours, field)
        if there != here:
            raise ValueError(f"its {key} is {there} and model.lora.{key}={here}; set model.lora.{key}={there}")
    if theirs.use_rslora != ours.use_rslora:
        raise ValueError(f"use_rslora is {theirs.use_rslora} in its adapter_config.json and {ours.use_rslora} here")
    bases = [str(config.base_model_name_or_path) for config in (theirs, ours)]
    if bases[0] != bases[1] and (all(map(HUB_NAME.fullmatch, bases)) or _are_two_directories(*bases)):
        raise ValueError(f"it is an adapter of {bases[0]}, and the model is {bases[1]}; check model.path")
    stored = load_peft_weights(str(directory), device="cpu")
    wanted = adapter_state(model, "default")
    # peft itself saves the embeddings too where the head has an adapter.
    known = wanted.keys() | adapter_state(model, "default", embeddings=True).keys()
    odd = sorted((stored.keys() - known) | (wanted.keys() - stored.keys()))
    if odd:
        raise ValueError(f"{len(odd)} weights are in one adapter only, e.g. {odd[0]}; check model.path and model.lora")
    for name, value in wanted.items():
        if stored[name].shape != value.shape:
            shapes = f"{tuple(stored[name].shape)} there and {tuple(value.shape)} here"
            raise ValueError(f"it is an adapter of another model: {name} is {shapes}; check model.path")


def _are_two_directories(one: str, other: str) -> bool:
    """Whether both are there and differ: a model that the adapter was merged into would get its delta a second time."""
    return bool(one and other) and all(map(os.path.isdir, (one, other))) and not os.path.samefile(one, other)


def one_line(error: Exception) -> str:
    """First line of another library's message."""
    return " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
