"""Several processes play the problems of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from score_rl.episodes import Attempt, Episode, Problem
from score_rl.parallel import Parallel
from score_rl.rollout import Plan, Player


class SharingPlayer:
    """Plays its share of the problems, and has the episodes of all.

    Every process is to ask for the same problems. A problem's tree is never split, and a draw depends on the problem's
    place in the whole list, so the episodes are those of one process up to what batching changes.
    """

    def __init__(self, player: Player, parallel: Parallel) -> None:
        self.player, self.parallel = player, parallel

    def problems_at_once(self, plan: Plan) -> int:
        """Problems that are decoded together in all processes."""
        return self.player.problems_at_once(plan) * self.parallel.group.size

    def play(
        self,
        problems: Sequence[Problem],
        plan: Plan,
        purpose: tuple[object, ...],
        *,
        first_attempts: Sequence[Sequence[Attempt] | None] | None = None,
        progress: Callable[[int], None] | None = None,
        first: int = 0,
    ) -> list[Episode]:
        """As `Player.play`; the same list in every process.

        Raises:
            ProcessError: playing failed in another process.
        """
        group = self.parallel.group
        place = group.share(len(problems))
        part = slice(place.start, place.stop)

        def share() -> list[Episode]:
            return self.player.play(
                problems[part],
                plan,
                purpose,
                first_attempts=None if first_attempts is None else first_attempts[part],
                progress=progress,
                first=first + place.start,
            )

        with self.parallel.sampling(getattr(self.player.engine, "model", None)):  # a server's engine has none
            played = group.gather(share)
        if progress and len(place) < len(problems):
            progress(len(problems) - len(place))
        return [episode for episodes in played for episode in episodes]
