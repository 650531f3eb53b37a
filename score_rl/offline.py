"""First attempts sampled once from the reference, to start episodes from (paper, section 5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from score_rl.episodes import Attempt, Episode, Problem
from score_rl.records import read_jsonl, to_lines, write_text
from score_rl.rollout import Plan
from score_rl.schedule import draw_problems
from score_rl.schema import Settings, StageSettings
from score_rl.sharing import SharingPlayer
from score_rl.tracking import Screen


def needed_problems(problems: Sequence[Problem], stage: StageSettings, begin: int, seed: int) -> list[Problem]:
    """The problems that a stage starts from stored first attempts, once each.

    Args:
        begin: questions drawn before the stage.
    """
    needed: dict[str, Problem] = {}
    for step in range(stage.steps):
        for problem in draw_problems(problems, begin + step * stage.problems, stage.offline_problems, seed):
            needed[problem.id] = problem
    return list(needed.values())


def stored_attempts(
    file: Path,
    player: SharingPlayer,
    problems: Sequence[Problem],
    stage: StageSettings,
    settings: Settings,
    screen: Screen,
) -> dict[str, list[Attempt]]:
    """`stage.offline_attempts` first attempts for each problem id, from `file` or else sampled and written there.

    Args:
        player: samples from the reference.
    """
    group = player.parallel.group
    if not group.first(file.is_file):
        plan = Plan((stage.offline_attempts,), (stage.max_new_tokens[0],), stage.sampling, settings.train.rollout_rows)
        with screen.task("offline attempts", len(problems)) as advance:
            episodes = player.play(
                problems, plan, (settings.seed, "offline"), progress=lambda number: advance(number, "")
            )
        group.first(lambda: write_text(file, to_lines(episode.to_json() for episode in episodes)))
    store: dict[str, list[Attempt]] = {}
    for _, row in group.first(lambda: list(read_jsonl(file))):
        episode = Episode.from_json(row)
        store.setdefault(episode.problem.id, []).append(episode.attempts[0])
    return store
