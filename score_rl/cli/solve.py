"""`score solve`: one question, and the attempts side by side."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from score_rl.cli.subject import Json, Recipe, Seed, Stage, Subject, chat_of, player_of, settings_of


def solve(
    subject: Subject,
    question: Annotated[str, typer.Argument(help="The question.")],
    attempts: Annotated[int, typer.Option(min=1, help="Attempts.")] = 2,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    stage: Stage = None,
    recipe: Recipe = "arithmetic",
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Ask one question and see the attempts side by side.

    score solve runs/arithmetic "7034512345 - 1234567890"
    """
    from score_rl.episodes import Problem
    from score_rl.limits import check_room
    from score_rl.loading import context_length
    from score_rl.rollout import Plan

    changes = [f"eval.sampling.temperature={temperature}"]
    settings, _ = settings_of(subject, recipe, changes, stage=stage, seed=seed)
    chat = chat_of(settings)
    problem = Problem("question", question, "")
    limits = [settings.eval.max_new_tokens] * attempts
    check_room([problem], chat, limits, context_length(settings.model), key="eval")
    plan = Plan((1,) * attempts, tuple(limits), settings.eval.sampling)
    (episode,) = player_of(settings, chat).play([problem], plan, (settings.seed, "solve"))
    if as_json:
        rows = [{"text": a.text, "finished": a.finished} for a in episode.attempts]
        print(json.dumps({"question": question, "attempts": rows}))
        return
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    panels = [
        Panel(Text(a.text + ("" if a.finished else " [cut off]")), title=f"attempt {k}")
        for k, a in enumerate(episode.attempts, start=1)
    ]
    Console().print(Columns(panels, equal=True, expand=True))
