"""Where the episodes of each step of a stage come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from score_rl.episodes import Episode, Problem
from score_rl.errors import DataError
from score_rl.evaluation import make_player
from score_rl.metrics import training_metrics
from score_rl.offline import needed_problems, stored_attempts
from score_rl.policy import Policy
from score_rl.rollout import Plan
from score_rl.run import RunDirectory
from score_rl.schedule import draw_problems
from score_rl.schema import Settings, StageSettings
from score_rl.sharing import SharingPlayer
from score_rl.tracking import Screen


@dataclass(frozen=True)
class StageRun:
    """A stage of a run, and what its episodes are sampled with.

    Attributes:
        label: its name in the run directory.
        place: in the run's plan of stages.
        index: in the settings' list of stages.
        begin: questions drawn before it.
        problems: the training problems.
    """

    label: str
    place: int
    index: int
    begin: int
    settings: Settings
    run: RunDirectory
    problems: Sequence[Problem]
    player: SharingPlayer
    screen: Screen

    @property
    def stage(self) -> StageSettings:
        """Its settings."""
        return self.settings.stages[self.index]

    def questions(self, step: int) -> list[Problem]:
        """The problems of a step of the stage, counted from 0."""
        number = self.stage.problems
        return draw_problems(self.problems, self.begin + step * number, number, self.settings.seed)


@dataclass(frozen=True)
class Drawn:
    """What a step trains on.

    Attributes:
        episodes: one at least.
        metrics: of what was sampled on the step's questions.
        complete: False if episodes of these questions were left out because nobody could grade them.
        on_policy: they were sampled from the policy as it is before the step.
        restart: the step is to train from the weights that the stage began with.
    """

    episodes: Sequence[Episode]
    metrics: dict[str, float]
    complete: bool = True
    on_policy: bool = True
    restart: bool = False


class Supply(Protocol):
    """Gives each step of a stage its episodes."""

    def draw(self, step: int, pause: Callable[[], None]) -> Drawn:
        """The episodes of a step.

        Args:
            step: of the stage, from 0.
            pause: called wherever sampling that takes long can be left and gone on with.
        """


class Rollouts:
    """Episodes that are sampled anew for each step, some of them from stored first attempts."""

    def __init__(self, work: StageRun, policy: Policy) -> None:
        self.work = work
        stage, settings = work.stage, work.settings
        self._stored = {}
        if stage.offline_fraction:
            needed = needed_problems(work.problems, stage, work.begin, settings.seed)
            file = work.run.path / "offline" / f"{work.label}.jsonl"
            own = work.player.player
            with policy.reference() as model:
                sampler = SharingPlayer(make_player(policy, own.chat, own.grader, model=model), work.player.parallel)
                self._stored = stored_attempts(file, sampler, needed, stage, settings, work.screen)

    def draw(self, step: int, pause: Callable[[], None]) -> Drawn:
        """As `Supply.draw`.

        Raises:
            DataError: nobody could grade any of the episodes.
        """
        stage, settings = self.work.stage, self.work.settings
        problems = self.work.questions(step)
        plan = Plan(tuple(stage.branch), tuple(stage.max_new_tokens), stage.sampling, settings.train.rollout_rows)
        number = stage.offline_problems
        starts = [self._stored[p.id] if i < number else None for i, p in enumerate(problems)]
        place = (settings.seed, "rollout", self.work.place, step)
        played = self.work.player.play(problems, plan, place, first_attempts=starts)
        episodes = [episode for episode in played if episode.graded]
        with self.work.player.parallel.group.together():
            if not episodes:
                raise DataError(f"reward.fn gave no number for any of the {len(played)} episodes of a step")
        ungraded = len(played) - len(episodes)
        return Drawn(episodes, training_metrics(episodes) | {"ungraded": ungraded}, complete=not ungraded)
