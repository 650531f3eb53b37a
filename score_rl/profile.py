"""How long prompts and attempts are, how they are graded, and what limits that suggests, before anything is trained."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from score_rl.chat import Chat, fitting
from score_rl.episodes import Attempt, Episode, Problem
from score_rl.errors import DataError
from score_rl.grading import make_grader
from score_rl.rollout import Plan, Player
from score_rl.schedule import draw_problems
from score_rl.schema import RewardPart, RewardSettings, Settings, StageSettings
from score_rl.stats import wilson

CLOSING = "</think>"
STEP = 64
MOST_CUT = 0.01
"""Share of attempts that may be cut off before their p99 is a guess."""


class Lengths(NamedTuple):
    """Tokens: mean, percentiles (nearest rank) and maximum."""

    mean: float
    p50: int
    p95: int
    p99: int
    max: int


def lengths(values: Sequence[int]) -> Lengths:
    """What a list of lengths looks like.

    >>> lengths([10] * 98 + [20, 400])
    Lengths(mean=14.0, p50=10, p95=10, p99=20, max=400)
    """
    ranked = sorted(values)
    p50, p95, p99 = (ranked[math.ceil(share * len(ranked) / 100) - 1] for share in (50, 95, 99))
    return Lengths(fmean(ranked), p50, p95, p99, ranked[-1])


def round_up(tokens: int) -> int:
    """The next multiple of 64.

    >>> round_up(64), round_up(65)
    (64, 128)
    """
    return STEP * math.ceil(tokens / STEP)


def profiled_stage(settings: Settings) -> StageSettings:
    """The stage whose sampling is profiled: the first with two attempts, or the first."""
    return next((stage for stage in settings.stages if stage.attempts > 1), settings.stages[0])


def profiled_limits(settings: Settings) -> tuple[int, ...]:
    """Token limits of the two attempts."""
    return tuple((profiled_stage(settings).max_new_tokens * 2)[:2])


def profile(
    player: Player,
    train: Sequence[Problem],
    settings: Settings,
    number: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Rolls out `number` training problems with two attempts each, as training would, and measures.

    Prompts are measured on all of `train`.

    Args:
        progress: called with the number of problems done since the last call.

    Raises:
        DataError: every prompt is longer than `chat.max_prompt_tokens`.
    """
    stage, chat = profiled_stage(settings), player.chat
    limits = profiled_limits(settings)
    drawn = fitting(draw_problems(train, 0, min(number, len(train)), settings.seed), chat)
    if not drawn.kept:
        raise DataError(
            f"chat.max_prompt_tokens={settings.chat.max_prompt_tokens}: every prompt that was tried is longer"
        )
    plan = Plan((1, 1), limits, stage.sampling, settings.train.rollout_rows)
    started = time.monotonic()
    episodes = player.play(drawn.kept, plan, (settings.seed, "profile"), progress=progress)
    seconds = time.monotonic() - started
    prompts = [len(chat.open(problem.question)) for problem in train]
    attempts = [[episode.attempts[k] for episode in episodes] for k in (0, 1)]
    sampled = sum(len(attempt.token_ids) for group in attempts for attempt in group)
    return {
        "model": settings.model.path,
        "data": settings.data.source,
        "stage": stage.label,
        "temperature": stage.sampling.temperature,
        "seed": settings.seed,
        "problems": len(episodes),
        "dropped": drawn.dropped,
        "train_problems": len(train),
        "prompt": lengths(prompts)._asdict(),
        "context_t2": lengths([len(attempt.context_ids) for attempt in attempts[1]])._asdict(),
        "attempts": [_attempts(group, limit, chat) for group, limit in zip(attempts, limits, strict=True)],
        "reward_parts": _parts(settings.reward, episodes),
        "tokens": sampled,
        "seconds": seconds,
        "tokens_per_second": sampled / seconds,
        "recommended": _recommend(attempts, limits, prompts),
    }


def _attempts(attempts: Sequence[Attempt], limit: int, chat: Chat) -> dict[str, Any]:
    found: dict[str, Any] = {"limit": limit, "length": lengths([len(a.token_ids) for a in attempts])._asdict()}
    found["cut_off"] = sum(not a.finished for a in attempts)
    thoughts = [_thoughts(a, chat) for a in attempts]
    closed = [(tokens, len(a.token_ids) - tokens) for a, tokens in zip(attempts, thoughts, strict=True) if tokens]
    found["with_thoughts"] = len(closed)
    if closed:
        found["thoughts"] = lengths([tokens for tokens, _ in closed])._asdict()
        found["after_thoughts"] = lengths([rest for _, rest in closed])._asdict()
    grades = [a.grade for a in attempts if a.grade is not None]
    graded = [grade for grade in grades if grade.reward is not None]
    found["graded"] = len(graded)
    if graded:
        found["correct"] = wilson(sum(grade.correct for grade in graded), len(graded))._asdict()
        found["reward"] = fmean(grade.reward or 0.0 for grade in graded)
    found["no_answer"] = sum(grade.answer is None for grade in grades)
    found["notes"] = dict(Counter(grade.note.split(":")[0] for grade in grades if grade.note).most_common())
    return found


def _thoughts(attempt: Attempt, chat: Chat) -> int:
    """Tokens up to and with the end of the thoughts; 0 for an attempt without."""
    text = str(chat.tokenizer.decode(attempt.token_ids))
    head, closing, _ = text.rpartition(CLOSING)
    return min(len(attempt.token_ids), len(chat.template.encode(head + closing))) if closing else 0


def _parts(settings: RewardSettings, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Mean of each part of the reward at each attempt, before its weight."""
    parts = [RewardPart(**{name: getattr(settings, name) for name in RewardPart.model_fields}), *settings.also]
    problems = [episode.problem for episode in episodes]
    found = []
    for part in parts:
        alone = settings.model_copy(update={**dict(part), "weight": 1.0, "also": []})
        grader, means = make_grader(alone), []
        try:
            for k in (0, 1):
                grades = grader.submit([episode.texts[k] for episode in episodes], problems).result()
                told = [grade.reward for grade in grades if grade.reward is not None]
                means.append(fmean(told) if told else None)
        finally:
            grader.close()
        found.append({"fn": part.fn, "weight": part.weight, "reward": means})
    return found


def _recommend(
    attempts: Sequence[Sequence[Attempt]], limits: Sequence[int], prompts: Sequence[int]
) -> dict[str, dict[str, Any]]:
    tokens, reasons = [], []
    for k, (group, limit) in enumerate(zip(attempts, limits, strict=True), start=1):
        cut = sum(not attempt.finished for attempt in group) / len(group)
        if cut > MOST_CUT:
            tokens.append(round_up(2 * limit))
            reasons.append(
                f"attempt {k}: {cut:.1%} were cut off at {limit}, so nobody knows how long they would be; twice the "
                "limit, then profile again"
            )
        else:
            p99 = lengths([len(attempt.token_ids) for attempt in group]).p99
            tokens.append(round_up(p99))
            reasons.append(f"attempt {k}: 99% have at most {p99} tokens")
    p99 = lengths(prompts).p99
    limit = round_up(p99)
    longer = sum(prompt > limit for prompt in prompts)
    reason = f"99% of {len(prompts)} prompts have at most {p99} tokens; {longer} longer ones would be left out"
    return {
        "max_new_tokens": {"value": tokens, "reason": "; ".join(reasons)},
        "chat.max_prompt_tokens": {"value": limit, "reason": reason},
    }


def markdown(found: dict[str, Any]) -> str:
    """The profile as a page."""
    head = (
        f"`{found['model']}` on {found['problems']} training problems of `{found['data']}`, two attempts each at "
        f"temperature {found['temperature']:g} with the limits of {found['stage']}, seed {found['seed']}. "
        f"{found['tokens']} tokens in {found['seconds']:.1f} s, grading included: "
        f"{found['tokens_per_second']:.0f} tokens a second."
    )
    if found["dropped"]:
        head += f" {found['dropped']} more were left out by chat.max_prompt_tokens."
    recommended = [
        f"- `{'stages.N.' if key == 'max_new_tokens' else ''}{key}={one['value']}`: {one['reason']}"
        for key, one in found["recommended"].items()
    ]
    parts = ["# Profile", head, _length_table(found), _grade_table(found), _reward_table(found)]
    return "\n\n".join([*parts, "## Recommended\n\n" + "\n".join(recommended)]) + "\n"


def _length_table(found: dict[str, Any]) -> str:
    rows = [(f"prompt (all {found['train_problems']} training problems)", found["prompt"], "")]
    for k, one in enumerate(found["attempts"], start=1):
        if k == 2:
            rows.append(("context of attempt 2", found["context_t2"], ""))
        cut = f"{one['cut_off']} of {found['problems']} at {one['limit']}"
        rows.append((f"attempt {k}", one["length"], cut))
        if one["with_thoughts"]:
            share = f"{one['with_thoughts']} of {found['problems']} have it"
            rows.append((f"attempt {k}, up to `{CLOSING}`", one["thoughts"], share))
            rows.append((f"attempt {k}, behind it", one["after_thoughts"], ""))
    lines = [
        "| tokens | mean | p50 | p95 | p99 | max | cut off |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {one['mean']:.1f} | {one['p50']} | {one['p95']} | {one['p99']} | {one['max']} | {note} |"
            for name, one, note in rows
        ),
    ]
    return "\n".join(lines)


def _grade_table(found: dict[str, Any]) -> str:
    lines = ["| | right, percent | reward | no answer found | notes |", "| --- | --- | --- | --- | --- |"]
    for k, one in enumerate(found["attempts"], start=1):
        right, reward = "ungraded", ""
        if one["graded"]:
            value, low, high = (100 * one["correct"][name] for name in ("value", "low", "high"))
            right, reward = f"{value:.1f} [{low:.1f}, {high:.1f}]", f"{one['reward']:.3f}"
        notes = ", ".join(f"{note}: {number}" for note, number in one["notes"].items())
        lines.append(f"| attempt {k} | {right} | {reward} | {one['no_answer']} of {found['problems']} | {notes} |")
    return "\n".join(lines)


def _reward_table(found: dict[str, Any]) -> str:
    lines = ["| part of the reward | weight | attempt 1 | attempt 2 |", "| --- | --- | --- | --- |"]
    for part in found["reward_parts"]:
        means = ["ungraded" if mean is None else f"{mean:.3f}" for mean in part["reward"]]
        lines.append(f"| {part['fn']} | {part['weight']:g} | {' | '.join(means)} |")
    return "\n".join(lines)
