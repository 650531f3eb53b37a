"""What changes from step to step: objective, pin, learning rate and data order, each a function of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, pi
from typing import NamedTuple, TypeVar

import torch

from score_rl.draws import derive
from score_rl.episodes import Problem
from score_rl.objectives import Objective, multi_turn, sft, single_turn, stage1, stage2, substage
from score_rl.schema import StageSettings, TrainSettings

T = TypeVar("T")


def make_objective(stage: StageSettings, beta2: float | None = None) -> Objective:
    """The objective that a stage's settings describe, with the pin at `beta2` where a controller moved it."""
    pin = stage.beta2 if beta2 is None else beta2
    if stage.kind == "stage1":
        return stage1(beta1=stage.beta1, beta2=pin)
    if stage.kind == "substage":
        return substage(stage.attempts - 1, beta1=stage.beta1, beta2=pin)
    if stage.kind == "single_turn":
        return single_turn(beta1=stage.beta1)
    if stage.kind == "multi_turn":
        return multi_turn(beta1=stage.beta1, attempts=stage.attempts, credit=stage.credit, gamma=stage.gamma)
    if stage.kind == "sft":
        return sft(attempts=stage.attempts)
    return stage2(
        alpha=stage.alpha,
        alpha_fix=stage.alpha_fix,
        alpha_break=stage.alpha_break,
        beta1=stage.beta1,
        gamma=stage.gamma,
        attempts=stage.attempts,
        bonus_to=stage.bonus_to,
    )


def adapt_beta2(beta2: float, kl: float, stage: StageSettings) -> float:
    """The pin for the next step: moved towards the target KL of attempt 1, by at most the set rate."""
    control = stage.adaptive_beta2
    if control is None:
        return beta2
    error = max(-1.0, min(1.0, kl / control.target - 1.0))
    return beta2 * (1.0 + control.rate * error)


def learning_rate(stage: StageSettings, step: int) -> float:
    """Learning rate of a step, from 0: linear warm-up, then constant or cosine to 0; in each round that restarts."""
    steps = stage.steps
    if stage.restarts:
        _, span = round_of(stage, step)
        step, steps = step - span.start, len(span)
    warm = min(1.0, (step + 1) / (stage.warmup_steps + 1))
    if stage.schedule == "constant" or step < stage.warmup_steps:
        return stage.lr * warm
    part = (step - stage.warmup_steps) / max(1, steps - stage.warmup_steps)
    return stage.lr * 0.5 * (1 + cos(pi * part))


class Round(NamedTuple):
    """One of the rounds that the steps of a stage are divided into: its number and its steps, both from 0."""

    number: int
    steps: range


def round_of(stage: StageSettings, step: int) -> Round:
    """The round of a step; where `rounds` does not divide `steps`, some are one step longer."""
    number = next(n for n in range(stage.rounds) if step < stage.steps * (n + 1) // stage.rounds)
    return Round(number, range(stage.steps * number // stage.rounds, stage.steps * (number + 1) // stage.rounds))


def draw_problems(problems: Sequence[Problem], start: int, number: int, seed: int) -> list[Problem]:
    """Questions `start` to `start + number` of an endless stream of shuffled passes over the data."""
    return shuffled(problems, start, number, (seed, "order"))


def shuffled(items: Sequence[T], start: int, number: int, key: tuple[object, ...]) -> list[T]:
    """Items `start` to `start + number` of an endless stream of passes, each in an order of its own from the key."""
    orders: dict[int, list[int]] = {}
    drawn = []
    for place in range(start, start + number):
        epoch, index = divmod(place, len(items))
        if epoch not in orders:
            generator = torch.Generator().manual_seed(derive(*key, epoch) & (2**63 - 1))
            orders[epoch] = torch.randperm(len(items), generator=generator).tolist()
        drawn.append(items[orders[epoch][index]])
    return drawn


def rank(train: TrainSettings, metrics: Mapping[str, float], base_acc_t1: float, *, due: bool) -> list[float] | None:
    """How good a step's weights are, compared as a list; None where this step is no candidate.

    `validation` prefers every step whose first attempt has not fallen, among them the best last attempt, and failing
    that the best first one. `train_reward` is the paper's choice: the highest reward of the last attempt.

    Args:
        base_acc_t1: validation accuracy at attempt 1 before training.
        due: a checkpoint is written after this step.
    """
    if train.select == "validation" and "validation/acc/t1" in metrics:
        first = metrics["validation/acc/t1"]
        holds = first >= base_acc_t1 - train.acc_t1_tolerance
        return [1.0, _last_attempt(metrics, "validation/acc/t")] if holds else [0.0, first]
    if train.select == "train_reward" and due:
        return [_last_attempt(metrics, "reward/t")]
    return None


def _last_attempt(metrics: Mapping[str, float], prefix: str) -> float:
    keys = [key for key in metrics if key.startswith(prefix) and key.removeprefix(prefix).isdecimal()]
    return metrics[max(keys, key=lambda key: int(key.removeprefix(prefix)))]
