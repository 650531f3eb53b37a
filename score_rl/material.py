"""What a run is made of, loaded and checked before anything is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from score_rl.chat import Chat
from score_rl.data.load import load_splits
from score_rl.engines import check_engine
from score_rl.episodes import Problem
from score_rl.errors import ConfigError
from score_rl.grading import Grader, make_grader
from score_rl.limits import check_run, keep_short
from score_rl.loading import blank_model, context_length, load_policy, load_tokenizer
from score_rl.optim import optimizer_class
from score_rl.policy import Policy
from score_rl.schedule import make_objective
from score_rl.schema import Settings
from score_rl.trackers import check_installed
from score_rl.tracking import Screen
from score_rl.update import uses_reference


class Material(NamedTuple):
    """Problems, policy, chat and grader of a run.

    Attributes:
        start: trained weights to begin the first stage with, where they are not those of the policy as it is.
    """

    train_problems: list[Problem]
    validation: list[Problem]
    held_out: list[Problem]
    chat: Chat
    grader: Grader
    policy: Policy
    start: dict[str, Tensor] | None


def load_material(settings: Settings, screen: Screen, adapter: Path | None) -> Material:
    """All of it; what can be refused without the model's weights comes before them.

    Args:
        adapter: weights to start from: a saved model or adapter directory.

    Raises:
        ScoreError: settings, data or a model that cannot work.
    """
    if settings.chat.feedback is not None:
        raise ConfigError("chat.feedback: critiques are not trained; leave it out here, and set it for `score eval`")
    train, validation, held_out = load_splits(settings.data, settings.eval.split)
    validation, held_out = validation[: settings.train.validation_problems], held_out[: settings.eval.problems]
    optimizer_class(settings.optim)
    check_installed(settings.log)
    check_engine(settings)
    tokenizer = load_tokenizer(settings.model)
    chat, grader = Chat(tokenizer, settings.chat), make_grader(settings.reward)
    train = keep_short(train, chat, "train", screen.say)
    validation = keep_short(validation, chat, "validation", screen.say)
    held_out = keep_short(held_out, chat, settings.eval.split, screen.say)
    check_run(settings, chat, context_length(settings.model), train, [*validation, *held_out])
    if adapter is not None:
        Policy(blank_model(settings.model), tokenizer).check_saved(adapter)
    chunk = settings.train.logprob_chunk
    policy = load_policy(settings.model, tokenizer, seed=settings.seed, chunk=chunk, trains=True)
    if policy.has_adapter or any(uses_reference(stage, make_objective(stage)) for stage in settings.stages):
        policy.freeze_reference()  # of a whole model a copy, as large as itself
    start = None
    if adapter is not None:  # weights that do not fit are refused before the run begins
        base = {name: tensor.clone() for name, tensor in policy.trained_state().items()}
        policy.load_saved(adapter)
        start = {name: tensor.cpu().clone() for name, tensor in policy.trained_state().items()}
        policy.load_trained_state(base)
    return Material(train, validation, held_out, chat, grader, policy, start)
