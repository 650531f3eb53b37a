"""Plays held-out problems and counts, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from score_rl.chat import Chat
from score_rl.decode import TransformersEngine
from score_rl.episodes import Attempt, Episode, Problem
from score_rl.errors import DataError
from score_rl.grading import Grader
from score_rl.metrics import by_field, self_correction
from score_rl.policy import Policy
from score_rl.results import Partial, read_episodes, write_files
from score_rl.rollout import Plan, Player
from score_rl.scaling import scaling
from score_rl.schema import EvalSettings, SamplingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FirstAttempts = Sequence[Sequence[Attempt] | None]


class Evaluation(NamedTuple):
    """Flat metrics, and the episodes that they count."""

    metrics: dict[str, float | int | str]
    episodes: list[Episode]


class EpisodePlayer(Protocol):
    """What plays an evaluation: `rollout.Player`, or one that asks a server."""

    def problems_at_once(self, plan: Plan) -> int:
        """Problems of a part; an evaluation that was killed goes on behind the last whole part."""

    def play(
        self,
        problems: Sequence[Problem],
        plan: Plan,
        purpose: tuple[object, ...],
        *,
        first_attempts: FirstAttempts | None = None,
        progress: Callable[[int], None] | None = None,
        first: int = 0,
    ) -> list[Episode]:
        """As `Player.play`."""


def make_player(policy: Policy, chat: Chat, grader: Grader, *, model: PreTrainedModel | None = None) -> Player:
    """A player that samples from the policy, or from `model`, e.g. its reference."""
    end_ids = chat.end_ids | policy.end_ids
    return Player(TransformersEngine(model or policy.causal_lm, end_ids, policy.pad_id), chat, grader)


def plan_of(settings: EvalSettings) -> Plan:
    """How the episodes are played: `samples` of each problem, which share nothing but the question."""
    return Plan(
        branch=(settings.samples,) + (1,) * (settings.attempts - 1),
        max_new_tokens=(settings.max_new_tokens,) * settings.attempts,
        sampling=settings.sampling,
        rows=settings.rows,
    )


def evaluate(
    player: EpisodePlayer,
    problems: Sequence[Problem],
    settings: EvalSettings,
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
    first_attempts: FirstAttempts | None = None,
    partial: Partial | None = None,
) -> Evaluation:
    """Episodes of all problems, greedy and one each unless the settings say otherwise, and what they say.

    Args:
        seed: of the draws when sampling; independent of those of training.
        progress: called with the number of problems done since the last call.
        first_attempts: for each problem, the first attempts to go on from, which are not the player's own.
        partial: opened; has what was played by an earlier call, and gets what this one plays, part by part.

    Raises:
        DataError: the grader could not tell for any problem.
        CheckpointError: `partial` cannot be written.
    """
    plan = plan_of(settings)
    episodes = list(partial.episodes) if partial else []
    start = len(episodes) // settings.samples
    step = player.problems_at_once(plan) if partial else max(1, len(problems))
    for place in range(start, len(problems), step):
        part = slice(place, place + step)
        fixed = first_attempts[part] if first_attempts is not None else None
        played = player.play(
            problems[part], plan, (seed, "evaluate"), first_attempts=fixed, progress=progress, first=place
        )
        if partial:
            partial.append(played)
        episodes += played
    return Evaluation(count(episodes, settings, seed), episodes)


def fixed_attempts(
    file: Path, problems: Sequence[Problem], samples: int, grader: Grader, chat: Chat | None
) -> list[list[Attempt]]:
    """The first attempts that another evaluation has stored, `samples` for each problem, in this model's tokens.

    They are graded anew, so that one grader judges them and what follows.

    Args:
        chat: of the model that goes on from them; None where tokens are a server's business.

    Raises:
        DataError: the file cannot be read, or lacks a problem, has it with another question, or too few of it.
    """
    stored: dict[str, list[Episode]] = {}
    for episode in read_episodes(file):
        stored.setdefault(episode.problem.id, []).append(episode)
    for problem in problems:
        found = stored.get(problem.id, [])
        where = f"--first-attempts {file}: problem {problem.id}"
        if found and found[0].problem.question != problem.question:
            raise DataError(f"{where} has another question there; give an evaluation of the same data")
        if len(found) < samples:
            number = f"{len(found)} first attempts and eval.samples={samples}" if found else "not in it"
            raise DataError(f"{where}: {number}; evaluate fewer problems or samples, or choose another file")
    texts = [(p, e.attempts[0]) for p in problems for e in stored[p.id][:samples]]
    grades = grader.submit([a.text for _, a in texts], [p for p, _ in texts]).result()
    made = [
        dataclasses.replace(_in_tokens(p, a, chat), grade=grade) for (p, a), grade in zip(texts, grades, strict=True)
    ]
    return [made[start : start + samples] for start in range(0, len(made), samples)]


def _in_tokens(problem: Problem, attempt: Attempt, chat: Chat | None) -> Attempt:
    plain = Attempt((), (), attempt.text, attempt.finished, sampled=False, num_tokens=attempt.length)
    if chat is None:
        return plain
    header = "" if attempt.text.startswith(chat.header) else chat.header
    said = chat.template.encode(header + chat.template.literal(attempt.text))
    ids = (*said, *(chat.closing_ids if attempt.finished else ()))
    return dataclasses.replace(plain, context_ids=chat.open(problem.question), token_ids=ids, num_tokens=None)


def count(episodes: Sequence[Episode], settings: EvalSettings, seed: int) -> dict[str, float | int | str]:
    """The metrics of an evaluation's episodes, and where they come from.

    Raises:
        DataError: none was graded.
    """
    graded = [episode for episode in episodes if episode.graded]
    if not graded:
        raise DataError(f"reward.fn gave no number for any of {len(episodes)} {settings.split} episodes")
    counted: dict[str, float | int | str] = dict(self_correction(graded))
    counted |= scaling(graded, settings.samples) | by_field(graded)
    counted |= {"problems": len({e.problem.id for e in graded}), "ungraded": len(episodes) - len(graded)}
    counted |= {"samples": settings.samples, "seed": seed, "split": settings.split}
    return counted | {"temperature": settings.sampling.temperature, "top_p": settings.sampling.top_p}


def at_temperature(settings: EvalSettings, temperature: float) -> EvalSettings:
    """The same evaluation, drawn at `temperature` without truncation."""
    return settings.model_copy(update={"sampling": SamplingSettings(temperature=temperature)})


def write_evaluation(result: Evaluation, path: Path) -> None:
    """Writes `path` (metrics, JSON) and its `.jsonl` sibling (episodes), episodes first."""
    write_files(path, result.metrics, result.episodes)
