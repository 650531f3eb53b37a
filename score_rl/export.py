"""A run's model as others load it: the adapter, or the whole weights with the adapter merged in, and a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from score_rl.errors import ConfigError
from score_rl.model_card import model_card
from score_rl.records import read_jsonl, write_directory, write_text
from score_rl.run import RunDirectory, final_model
from score_rl.schema import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_GAP = 0.1
"""Nats per token by which merged weights may differ from model and adapter, on average; rounding gives far less."""
MAX_PROBE = 256


class Exported(NamedTuple):
    """What was written.

    Attributes:
        kind: `model` or `adapter`.
        gap: mean distance of token log-probs between merged weights and model with adapter, in nats; None where
            nothing was merged.
    """

    path: Path
    stage: str
    kind: str
    gap: float | None


def export(run: Path, output: Path, *, stage: str | None = None, merge: bool = False) -> Exported:
    """Writes the model or adapter that a stage ended with, tokenizer, chat template and model card, in one step.

    Args:
        stage: the last one that has finished when None.
        merge: add the adapter to the base model's weights, so that no peft is needed; whole models are as they are.

    Raises:
        ConfigError: no run, no such finished stage, a directory that is not empty, or weights that cannot be merged.
        CheckpointError: it cannot be written.
        DataError: the run's figures or data cannot be read.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output}: is there and not empty; choose another directory with -o")
    place = RunDirectory(run)
    settings = place.load_settings()
    directory = final_model(run) if stage is None else place.model(stage)
    if stage == "base":
        raise ConfigError(f"--stage base: that is model.path={settings.model.path} as it was; nothing to export")
    if not (directory / "tokenizer_config.json").is_file():
        raise ConfigError(f"--stage {stage}: {directory} does not exist; the run has no such finished stage")
    from score_rl.loading import is_adapter

    adapted, label = is_adapter(directory), directory.name
    merged, gap = _merge(directory, settings, _probe(place, label)) if merge and adapted else (None, None)
    card = _card(place, label, settings, adapter=adapted and merged is None)

    def fill(path: Path) -> None:
        for file in sorted(directory.iterdir()):
            if file.is_file() and not (merged is not None and file.name.startswith("adapter_")):
                shutil.copyfile(file, path / file.name)
        if merged is not None:
            merged.save_pretrained(path)
        if settings.chat.template is not None:
            shutil.copyfile(settings.chat.template, path / "chat_template.jinja")
        write_text(path / "README.md", card)

    write_directory(output, fill)
    return Exported(output, label, "adapter" if adapted and merged is None else "model", gap)


def _merge(directory: Path, settings: Settings, probe: tuple[int, ...]) -> tuple[PreTrainedModel, float]:
    """The base model with the adapter added to its weights, and the distance that rounding put between log-probs."""
    import torch

    from score_rl.loading import load_model
    from score_rl.schema import ModelSettings

    def logprobs(model: PreTrainedModel) -> torch.Tensor:
        found = model(input_ids=ids).logits[0, :-1].float().log_softmax(dim=-1)
        return found.gather(1, ids[0, 1:, None])

    # A base that training held in 4 bits is merged into at full width: rounding the sum again would lose the adapter.
    model = load_model(ModelSettings(path=str(directory), dtype=settings.model.dtype)).eval()
    ids = torch.tensor([probe]) % model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        before = logprobs(model)
        merged = model.merge_and_unload()
        gap = float((logprobs(merged) - before).abs().mean())
    if not gap <= MAX_GAP:
        raise ConfigError(
            f"{directory}: merged weights give other log-probs than the adapter ({gap:.2g} nats per token apart), as "
            "where it adapts embeddings that are tied to the output; export without --merge"
        )
    return merged, gap


def _probe(run: RunDirectory, label: str) -> tuple[int, ...]:
    """Tokens to compare log-probs on: the attempts of an episode of the stage's evaluation, or any."""
    path = run.eval / f"{label}.jsonl"
    for _, row in read_jsonl(path) if path.is_file() else ():
        sampled = tuple(token for attempt in row["attempts"] for token in attempt["token_ids"])
        if len(sampled) > 1:
            return sampled[:MAX_PROBE]
    return tuple(range(1, 17))


def _card(run: RunDirectory, label: str, settings: Settings, *, adapter: bool) -> str:
    from score_rl.chat import Chat
    from score_rl.loading import load_tokenizer
    from score_rl.schema import ModelSettings

    chat = Chat(load_tokenizer(ModelSettings(path=str(run.model(label)))), settings.chat)
    path = run.eval / f"{label}.jsonl"
    rows = read_jsonl(path) if path.is_file() else iter(())
    question = next((str(row["problem"]["question"]) for _, row in rows), "your question")
    base, told = settings.model.path, run.model(label) / "adapter_config.json"
    if told.is_file():
        base = str(json.loads(told.read_text(encoding="utf-8"))["base_model_name_or_path"])
    return model_card(run, label, settings, chat, base=base, adapter=adapter, question=question)
