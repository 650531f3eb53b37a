"""What commands are about: a run, a recipe or a model; the options that they share; and its player."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from score_rl.errors import ConfigError

if TYPE_CHECKING:
    from score_rl.chat import Chat
    from score_rl.policy import Policy
    from score_rl.rollout import Player
    from score_rl.schema import Settings

Subject = Annotated[
    str,
    typer.Argument(
        metavar="MODEL_OR_RECIPE",
        help="A run (its last model), a recipe, a model directory, a hub name, or `embedded`.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="Settings to change, e.g. data.options.digits=8."),
]
Recipe = Annotated[str, typer.Option(help="For a model without a recipe: data, prompts and grader of this one.")]
Stage = Annotated[str | None, typer.Option(help="Which model of a run: base, stage1, ...; the last by default.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same as seed=S.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON on standard output.")]


def is_run(subject: str) -> bool:
    """Whether it is a run directory."""
    return (Path(subject) / "config.yaml").is_file()


def settings_of(
    subject: str, recipe: str, overrides: list[str], *, stage: str | None = None, seed: int | None = None
) -> tuple[Settings, str]:
    """Settings of a run, a recipe or a model, and a name for the model.

    Args:
        subject: a run directory, a recipe's name or file, or what `model.path` takes.
        recipe: whose settings go with a model.
        stage: which model of a run: `base`, or a stage's label; the last finished one when None.

    Raises:
        ConfigError: no such recipe, model or stage, or an override that does not fit.
    """
    from score_rl.settings import load, recipe_names

    changes = [*overrides, *([f"seed={seed}"] if seed is not None else [])]
    if is_run(subject):
        return _of_run(Path(subject), stage, changes)
    if stage is not None:
        raise ConfigError(f"--stage {stage}: {subject} is no run (no config.yaml in it)")
    if subject in recipe_names() or Path(subject).suffix in (".yaml", ".yml"):
        return load(subject, changes), Path(subject).stem
    return load(recipe, [f"model.path={json.dumps(subject)}", *changes]), Path(subject).name


def _of_run(path: Path, stage: str | None, overrides: list[str]) -> tuple[Settings, str]:
    from score_rl.run import RunDirectory, final_model
    from score_rl.settings import override, parse

    run = RunDirectory(path)
    content: dict[str, Any] = run.load_settings().model_dump(mode="json")
    directory = None if stage == "base" else (run.model(stage) if stage else final_model(path))
    if directory is not None:
        if not directory.is_dir():
            raise ConfigError(f"--stage {stage}: {directory} does not exist; the run has no such finished stage")
        content["model"] |= {"path": str(directory), "revision": None}
    for assignment in overrides:
        override(content, assignment)
    return parse(content, str(run.config)), directory.name if directory else "base"


def chat_of(settings: Settings) -> Chat:
    """The conversation around a model's attempts; no weights are read.

    Raises:
        ScoreError: a model or template that cannot be used.
    """
    quiet_libraries()
    from score_rl.chat import Chat
    from score_rl.loading import load_tokenizer

    return Chat(load_tokenizer(settings.model), settings.chat)


def player_of(settings: Settings, chat: Chat) -> Player:
    """The model with its engine, chat and grader, on the GPU if there is one.

    Raises:
        ScoreError: a model, engine or reward that cannot be used.
    """
    from score_rl.engines import check_engine, engine_player
    from score_rl.grading import make_grader

    check_engine(settings, trains=False)
    grader = make_grader(settings.reward)
    return engine_player(settings, policy_of(settings, chat), chat, grader)


def policy_of(settings: Settings, chat: Chat) -> Policy:
    """The model, on the GPU if there is one.

    Raises:
        ScoreError: a model that cannot be used.
    """
    import torch

    from score_rl.loading import load_policy

    policy = load_policy(settings.model, chat.tokenizer, seed=settings.seed)
    return policy.to("cuda" if torch.cuda.is_available() else "cpu")


def quiet_libraries() -> None:
    """Our own progress is what the user reads; the libraries' bars for millisecond work are noise."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # peft calls what transformers has renamed; the user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # DeepSpeed, which transformers loads wherever it is installed, says on standard output that there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
